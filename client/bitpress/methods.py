"""The parameters of every compression method, written once.

API validation, CLI help and the algorithms all read these classes; the equations are in
`bitpress_workers.methods`. Names follow the field: `bits` per code, `group_size` columns
that share a grid, `damping` as a share of the Hessian's mean diagonal.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Bits = Annotated[int, Field(ge=2, le=8, description="bits of a weight's code")]
Damping = Annotated[
    float, Field(gt=0, le=100, description="share of the Hessian's mean diagonal added to its diagonal")
]
ColumnBlock = Annotated[int, Field(ge=1, le=4096, description="columns solved before the rest is updated by one GEMM")]
GroupSize = Annotated[int, Field(ge=2, le=65536, description="columns of a row that share a grid; null: the whole row")]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RTNConfig(_Config):
    """Round to nearest: no calibration enters the weights; the baseline of every report."""

    kind: Literal["rtn"] = "rtn"
    bits: Bits
    group_size: GroupSize | None = None
    symmetric: bool = False


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
    order: Literal["natural", "activation"] = "activation"
    damping: Damping = 1.0
    symmetric: bool = False
    round_zero: bool = False
    column_block: ColumnBlock = 128

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.scale_bits is None) != (self.zero_bits is None):
            raise ValueError("scale_bits and zero_bits must both be set or both be null")
        group = self.group_size
        if group is not None and self.column_block % group and group % self.column_block:
            raise ValueError(f"column_block {self.column_block} and group_size {group}: one must divide the other")
        return self


class SEPTQConfig(_Config):
    """SEPTQ (ghtll/SEPTQ): one global mask of weights kept in 16 bits, per-row grids found by search."""

    kind: Literal["septq"] = "septq"
    bits: Bits
    retained_percent: float = Field(1.0, ge=0, lt=100, description="percent of a linear's weights kept in 16 bits")
    damping: Damping = 0.01
    column_block: ColumnBlock = 128


MethodConfig = Annotated[RTNConfig | SpQRConfig | SEPTQConfig, Field(discriminator="kind")]

METHODS: dict[str, type[RTNConfig] | type[SpQRConfig] | type[SEPTQConfig]] = {
    "rtn": RTNConfig,
    "spqr": SpQRConfig,
    "septq": SEPTQConfig,
}
