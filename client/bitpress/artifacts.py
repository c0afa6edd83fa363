"""What a finished job leaves behind: files with their hashes, and a report that proves the result."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitpress.errors import BitpressError, EvaluationFailed, GateFailed
from bitpress.jobs import JobSpec

MANIFEST = "manifest.json"
REPORT = "report.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ArtifactFile(_Model):
    """One file of an artifact; `name` is its relative path, no part of which begins with a dot."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
    bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Model):
    """The list of an artifact's files, written last: no manifest, no artifact."""

    version: Literal[1] = 1
    spec: JobSpec
    fingerprint: Sha256
    files: tuple[ArtifactFile, ...]


class LinearReport(_Model):
    """The evidence for one linear.

    `relative_error` is the squared error of its outputs on the calibration tokens divided by the
    squared outputs; `bits_per_weight` counts every stored bit, statistics and indices included;
    `outlier_fraction` is the share of weights kept in 16 bits. Linears that share an input are solved
    together; `seconds` is a linear's part of that time, by its number of weights.
    """

    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    relative_error: float
    outlier_fraction: float
    damping_used: float | None
    num_tokens: int
    seconds: float


class BlockReport(_Model):
    """The evidence for one block. `training_losses`: mean of each epoch, of a method that trains blocks."""

    index: int
    sha256: Sha256
    bytes: int
    seconds: float
    linears: tuple[LinearReport, ...]
    training_losses: tuple[float, ...] = ()

    @property
    def relative_error(self) -> float:
        """Mean over the block's linears."""
        return sum(linear.relative_error for linear in self.linears) / len(self.linears)


LinearDeviation = Literal[
    "constant-groups",  # groups of weights that are all alike
    "too-fine-groups",  # groups whose weights differ by less than 16 bits hold a scale for
    "short-groups",  # last groups with fewer columns than the group size
    "short-statistics",  # last rows whose scales share a second-level grid with fewer than the others
    "no-threshold",  # rows that do not differ, by whose spread outliers would be told
]


class LedgerEntry(_Model):
    """A deviation from the plain method: what (a stable word), where, and the numbers."""

    kind: (
        LinearDeviation | Literal["damping-raised", "dead-columns", "starved-expert", "worker-replaced", "smaller-plan"]
    )
    where: str
    detail: str


class Interval(_Model):
    """A 95 % confidence interval over an evaluation's windows; how it is made stands in `Report`."""

    low: float
    high: float


class PerplexityReport(_Model):
    """Both models' perplexity on one text: exp of the mean over windows of the mean loss of their predictions.

    `increase_percent` is by how much the compressed model's is higher; its interval is that of the pairs of
    losses, and so narrower than those of the two perplexities. `bits_per_byte` is of the predicted text in UTF-8,
    by which models with different tokenizers compare; null when the tokenizer does not say where its tokens lie.
    Intervals are null for a single window. `tokens_sha256` is of the windows.
    """

    dense: float
    dense_interval: Interval | None
    compressed: float
    compressed_interval: Interval | None
    increase_percent: float
    increase_interval: Interval | None
    dense_bits_per_byte: float | None
    compressed_bits_per_byte: float | None
    num_windows: int
    num_tokens: int
    tokens_sha256: Sha256


class DivergenceReport(_Model):
    """How the compressed model's predictions differ from the dense one's on the tokens of the same text.

    `kl` is the mean Kullback-Leibler divergence KL(dense || compressed) in nats, `agreement` the share of
    predictions whose most likely token is the same.
    """

    kl: float
    kl_interval: Interval | None
    agreement: float
    agreement_interval: Interval | None


class GateMiss(_Model):
    """A limit of the spec's gate that a dataset's result misses. metric: the limit's name in the spec."""

    metric: Literal["perplexity_increase_percent", "kl_max", "agreement_min"]
    dataset: str
    limit: float
    found: float


class PartFailure(_Model):
    """A part of the evaluation that ended in an error, with the error's stable code."""

    part: Literal["quality"]
    code: str
    message: str


class Report(_Model):
    """Everything a reader needs to judge the result; written beside the model as report.json and report.md.

    `bytes_before` and `bytes_after` count the weights of all blocks' linears as stored in the
    checkpoint and in the artifact; `bits_per_weight` is 8 * bytes_after / number of those weights.
    `error_growth` is, behind each block, the squared difference of the compressed model's hidden states from
    the dense one's on all evaluated tokens, divided by the latter's squares; empty without evaluation.
    Intervals are percentiles of 2000 bootstrap samples of the windows, drawn with one fixed seed.
    `gate_misses` is null when the spec has no gate or what it asks for could not be evaluated; without misses the
    result has passed. `failures` names what could not be evaluated.
    `phases` are wall seconds by phase, `peak_bytes` the largest resident memory of any process of
    the job, `peak_device_bytes` that of any accelerator (0 without one), `versions` the libraries
    and the machine.
    """

    version: Literal[2] = 2
    spec: JobSpec
    bits_per_weight: float
    num_weights: int
    bytes_before: int
    bytes_after: int
    perplexity: dict[str, PerplexityReport]
    divergence: dict[str, DivergenceReport]
    error_growth: tuple[float, ...]
    gate_misses: tuple[GateMiss, ...] | None
    failures: tuple[PartFailure, ...]
    blocks: tuple[BlockReport, ...]
    phases: dict[str, float]
    peak_bytes: int
    peak_device_bytes: int
    ledger: tuple[LedgerEntry, ...]
    versions: dict[str, str]

    def problem(self) -> BitpressError | None:
        """Why the job has not succeeded although its artifact is complete; None when it has."""
        if self.failures:
            told = "; ".join(f"{failure.part}: {failure.code}: {failure.message}" for failure in self.failures)
            return EvaluationFailed(f"the artifact is kept, but its evaluation failed: {told}")
        if self.gate_misses:
            told = "; ".join(
                f"{miss.dataset}: {miss.metric} is {miss.limit:g}, found {miss.found:.6g}" for miss in self.gate_misses
            )
            return GateFailed(f"the artifact is kept, but it misses its gate: {told}")
        return None
