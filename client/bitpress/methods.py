"""The parameters of every compression method, written once.

API validation, CLI help and the algorithms all read these classes; the equations are in
`bitpress_workers.methods`. Names follow the field: `bits` per code, `group_size` columns
that share a grid, `damping` as a share of the Hessian's mean diagonal.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitpress.texts import Dataset

Bits = Annotated[int, Field(ge=2, le=8, description="bits of a weight's code")]
Damping = Annotated[
    float, Field(gt=0, le=100, description="share of the Hessian's mean diagonal added to its diagonal")
]
ColumnBlock = Annotated[int, Field(ge=1, le=4096, description="columns solved before the rest is updated by one GEMM")]
Order = Annotated[
    Literal["natural", "activation"], Field(description="order in which columns are solved; activation: largest first")
]
Propagation = Annotated[
    Literal["block", "tap", "linear"],
    Field(
        description="what a Hessian sees of its own block: block, as it was; tap, the taps before it compressed; "
        "linear, the linears before it compressed (the same as tap: linears of one tap read one input)"
    ),
]
GroupSize = Annotated[int, Field(ge=2, le=65536, description="columns of a row that share a grid; null: the whole row")]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RTNConfig(_Config):
    """Round to nearest: no calibration enters the weights; the baseline of every report."""

    kind: Literal["rtn"] = "rtn"
    bits: Bits
    group_size: GroupSize | None = None
    symmetric: bool = False


class GPTQConfig(_Config):
    """GPTQ (arXiv 2210.17323): columns one by one, each making up for the errors of those before it."""

    kind: Literal["gptq"] = "gptq"
    bits: Bits
    group_size: GroupSize | None = None
    symmetric: bool = False
    static_groups: bool = Field(False, description="fit all groups before the first column, on columns as they lie")
    stale_groups: bool = Field(
        False,
        description="fit a group on weights without the corrections of its own column block, as published code does",
    )
    order: Order = "natural"
    damping: Damping = 0.01
    column_block: ColumnBlock = 128
    mse_search: bool = Field(False, description="shrink each grid until the weights' error is smallest")
    propagation: Propagation = "block"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.group_size is None and (self.static_groups or self.stale_groups):
            raise ValueError("static_groups and stale_groups say how groups are fitted; there is no group_size")
        if self.static_groups and self.stale_groups:
            raise ValueError("static_groups are fitted before the first column; they cannot be stale")
        if not self.static_groups:
            _check_groups(self.group_size, self.column_block)
        return self


class SpQRConfig(_Config):
    """SpQR (arXiv 2306.03078): small groups, quantized statistics, outliers kept in 16 bits."""

    kind: Literal["spqr"] = "spqr"
    bits: Bits = 3
    group_size: GroupSize | None = 16
    scale_bits: Annotated[int, Field(ge=1, le=8)] | None = Field(
        3, description="bits of a group's scale; null: 16-bit scales and zeros"
    )
    zero_bits: Annotated[int, Field(ge=1, le=8)] | None = Field(
        3, description="bits of a group's zero; null: 16-bit scales and zeros"
    )
    statistics_group_size: int = Field(16, ge=2, le=1024, description="rows whose scales and zeros share a grid")
    outlier_threshold: float | None = Field(
        0.2, gt=0, description="higher means fewer outliers; null: no outliers at all"
    )
    simplified_outliers: bool = Field(False, description="skip the leave-one-out search when fitting a group's grid")
    order: Order = "activation"
    damping: Damping = 1.0
    symmetric: bool = False
    round_zero: bool = False
    column_block: ColumnBlock = 128
    propagation: Propagation = "block"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.scale_bits is None) != (self.zero_bits is None):
            raise ValueError("scale_bits and zero_bits must both be set or both be null")
        _check_groups(self.group_size, self.column_block)
        return self


class SEPTQConfig(_Config):
    """SEPTQ (ghtll/SEPTQ): one global mask of weights kept in 16 bits, per-row grids found by search."""

    kind: Literal["septq"] = "septq"
    bits: Bits
    retained_percent: float = Field(1.0, ge=0, lt=100, description="percent of a linear's weights kept in 16 bits")
    damping: Damping = 0.01
    column_block: ColumnBlock = 128
    layered: bool = Field(False, description="store codes of 0 where a weight is kept, so that both parts can be added")
    propagation: Propagation = "linear"


class LoRAPreprocessing(_Config):
    """PTQ1.61's restorative stage: an adapter trained on the first pass's model and merged, then a second pass."""

    rank: int = Field(64, ge=1, le=1024)
    alpha: int = Field(16, ge=1, description="the adapter counts alpha / rank times")
    steps: int = Field(10000, ge=1, description="optimizer steps, of two documents each")
    learning_rate: float = Field(1e-4, gt=0, description="at its highest; it rises at first and falls as a cosine")
    dataset: Dataset | None = Field(None, description="text to train on; null: that of the calibration")


class PTQ161Config(_Config):
    """PTQ1.61 (arXiv 2502.13179): signs for most input channels, codes for the rest, scales trained by block."""

    kind: Literal["ptq161"] = "ptq161"
    salient_percent: float = Field(20.0, ge=0, le=100, description="percent of a linear's input channels kept in codes")
    salient_bits: Bits = 4
    epochs: int = Field(20, ge=0, le=1000, description="passes over the calibration sequences; 0: nothing is trained")
    scale_learning_rate: float = Field(5e-4, gt=0, description="of one number a row")
    rotation_learning_rate: float = Field(1e-3, gt=0, description="of another number a row, and of one a column")
    saliency: Literal["max", "mean"] = Field("max", description="of the magnitudes of a channel's activations")
    preprocessing: LoRAPreprocessing | None = Field(
        None, description="train an adapter on the compressed model and compress the merged one; null: compress once"
    )


def _check_groups(group_size: int | None, column_block: int) -> None:
    if group_size is not None and column_block % group_size and group_size % column_block:
        raise ValueError(f"column_block {column_block} and group_size {group_size}: one must divide the other")


def check_independent(config: "MethodConfig") -> None:
    """Raise ValueError when a method cannot calibrate a block on the original model's activations alone."""
    if isinstance(config, PTQ161Config):
        raise ValueError("ptq161 trains a block on what the blocks before it became; its strategy is exact")
    propagation = getattr(config, "propagation", "block")
    if propagation != "block":
        raise ValueError(
            f"independent blocks are calibrated as they were, which is propagation block; found {propagation}"
        )


MethodConfig = Annotated[RTNConfig | GPTQConfig | SpQRConfig | SEPTQConfig | PTQ161Config, Field(discriminator="kind")]

METHODS: dict[str, type[RTNConfig] | type[GPTQConfig] | type[SpQRConfig] | type[SEPTQConfig] | type[PTQ161Config]] = {
    "rtn": RTNConfig,
    "gptq": GPTQConfig,
    "spqr": SpQRConfig,
    "septq": SEPTQConfig,
    "ptq161": PTQ161Config,
}
