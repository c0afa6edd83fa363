"""What a finished job leaves behind: files with their hashes, and a report that proves the result."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitpress.errors import ArtifactError, BitpressError, EvaluationFailed, GateFailed, LoadCheckFailed
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


class Provenance(_Model):
    """What an artifact was made from and with, beside its spec; `bitpress replay` holds a second run against it.

    `code_sha256` is of all sources of the installed package `bitpress` of this `version`; `weights_sha256` of the
    checkpoint's tensors as the forward holds them (float32 on CPUs); `tokens_sha256` of the calibration's tokens.
    `devices` are the names of the shards' devices, in their order, `versions` the libraries and the machine.
    """

    version: str
    code_sha256: Sha256
    weights_sha256: Sha256
    tokens_sha256: Sha256
    seeds: dict[str, int]
    devices: tuple[str, ...]
    versions: dict[str, str]

    def rows(self) -> list[tuple[str, str]]:
        """Every fact with its name, for a table."""
        hashes = {"code": self.code_sha256, "weights": self.weights_sha256, "calibration tokens": self.tokens_sha256}
        return [
            ("bitpress", self.version),
            *((f"sha256 of {what}", sha256) for what, sha256 in hashes.items()),
            *((f"seed of {what}", str(seed)) for what, seed in self.seeds.items()),
            ("devices", ", ".join(self.devices)),
            *((name, version) for name, version in sorted(self.versions.items()) if name != "bitpress"),
        ]


class Manifest(_Model):
    """The list of an artifact's files, written last: no manifest, no artifact.

    `provenance` is null in artifacts of before it was recorded.
    """

    version: Literal[1] = 1
    spec: JobSpec
    fingerprint: Sha256
    provenance: Provenance | None = None
    files: tuple[ArtifactFile, ...]

    def result(self) -> dict[str, ArtifactFile]:
        """The files, by name, that the same job writes again byte for byte; the others tell times as well."""
        return {file.name: file for file in self.files if not is_evidence(file.name)}


def is_evidence(name: str) -> bool:
    """Whether a file of an artifact tells times, and so is never written twice alike."""
    return name.startswith("report.") or (name.startswith("blocks/") and name.endswith(".json"))


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


class Accuracy(_Model):
    """Share of right answers, with its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f}"


class TaskReport(_Model):
    """Both models' accuracy on one zero-shot task, as lm-eval computes it.

    `dense_normalized` and `compressed_normalized` count the answer that is likeliest by its length in bytes; null
    where the task knows no such metric. `drop` is by how much the compressed model's accuracy is lower; its standard
    error is that of the differences, example by example. `prompts_sha256` is of all that was asked, as tokens.
    """

    num_examples: int
    dense: Accuracy
    compressed: Accuracy
    dense_normalized: Accuracy | None
    compressed_normalized: Accuracy | None
    drop: Accuracy
    prompts_sha256: Sha256


class GateMiss(_Model):
    """A limit of the spec's gate that a dataset's, or task's, result misses. metric: the limit's name in the spec."""

    metric: Literal["perplexity_increase_percent", "kl_max", "agreement_min", "accuracy_drop_max"]
    dataset: str
    limit: float
    found: float


class PartFailure(_Model):
    """A part of the evaluation that ended in an error, with the error's stable code."""

    part: Literal["quality", "tasks"]
    code: str
    message: str


class LoadCheck(_Model):
    """Whether the artifact, opened from the object store in a fresh process, is the model that was calibrated.

    `outcome`: `equal`, the same logits on a fixed prompt, bit by bit; `close`, within `tolerance`; `failed`;
    `not-done`. `opened`: `whole`, as `bitpress.loading.load` does it, or, where that would have taken too much memory,
    `by-block`, the same packed linears with one block in memory at a time. `difference` is the root of the squared
    differences of all logits by their squares. `detail` says why it failed or was not done, else what the tolerance
    is for.
    """

    outcome: Literal["equal", "close", "failed", "not-done"]
    opened: Literal["whole", "by-block"] | None = None
    num_tokens: int = 0
    difference: float | None = None
    tolerance: float = 0.0
    detail: str

    def words(self) -> str:
        """The outcome as a sentence."""
        how = {"whole": "opened from the object store", "by-block": "opened from the object store block by block"}
        opened = f"{how[self.opened]} in a fresh process" if self.opened else ""
        match self.outcome:
            case "equal":
                return f"{opened}, the same logits on a prompt of {self.num_tokens} tokens, bit by bit."
            case "close":
                return f"{opened}, logits differ by {self.difference:.2g} at most {self.tolerance:g} ({self.detail})."
            case "failed":
                return f"failed: {self.detail}"
            case "not-done":
                return f"not done: {self.detail}"


class ProcessCost(_Model):
    """What one part of a job took: `job`, which steers, or a shard, `shard 0`.

    `peak_bytes` is the largest resident memory of its process, `peak_device_bytes` that of its accelerator (0 without
    one); `bytes_read` and `bytes_written` are of checkpoint and object store.
    """

    part: str
    device: str
    peak_bytes: int
    peak_device_bytes: int
    bytes_read: int
    bytes_written: int


class Report(_Model):
    """Everything a reader needs to judge the result; written beside the model as report.json and report.md.

    `bytes_before` and `bytes_after` count the weights of all blocks' linears as stored in the
    checkpoint and in the artifact; `bits_per_weight` is 8 * bytes_after / number of those weights.
    `error_growth` is, behind each block, the squared difference of the compressed model's hidden states from
    the dense one's on all evaluated tokens, divided by the latter's squares; empty without evaluation.
    Intervals are percentiles of 2000 bootstrap samples of the windows, drawn with one fixed seed.
    `gate_misses` is null when the spec has no gate or what it asks for could not be evaluated; without misses the
    result has passed. `failures` names what could not be evaluated.
    `phases` are wall seconds by phase, `processes` what each part of the job took (of a worker that was replaced
    nothing is known), `peak_bytes` and `peak_device_bytes` the largest of them.
    """

    version: Literal[3] = 3
    spec: JobSpec
    bits_per_weight: float
    num_weights: int
    bytes_before: int
    bytes_after: int
    perplexity: dict[str, PerplexityReport]
    divergence: dict[str, DivergenceReport]
    error_growth: tuple[float, ...]
    tasks: dict[str, TaskReport]
    gate_misses: tuple[GateMiss, ...] | None
    failures: tuple[PartFailure, ...]
    load_check: LoadCheck
    blocks: tuple[BlockReport, ...]
    phases: dict[str, float]
    processes: tuple[ProcessCost, ...]
    peak_bytes: int
    peak_device_bytes: int
    ledger: tuple[LedgerEntry, ...]
    provenance: Provenance

    def problem(self) -> BitpressError | None:
        """Why the job has not succeeded although its artifact is complete; None when it has."""
        if self.load_check.outcome == "failed":
            return LoadCheckFailed(
                f"the artifact is kept, but does not open as what was calibrated: {self.load_check.detail}"
            )
        if self.failures:
            told = "; ".join(f"{failure.part}: {failure.code}: {failure.message}" for failure in self.failures)
            return EvaluationFailed(f"the artifact is kept, but its evaluation failed: {told}")
        if self.gate_misses:
            told = "; ".join(
                f"{miss.dataset}: {miss.metric} is {miss.limit:g}, found {miss.found:.6g}" for miss in self.gate_misses
            )
            return GateFailed(f"the artifact is kept, but it misses its gate: {told}")
        return None


def parse_report(data: bytes | str) -> Report:
    """Read a report.json. Raises ArtifactError, which says so when it is another version's."""
    try:
        return Report.model_validate_json(data)
    except ValidationError as error:
        found = _version(data)
        expected = Report.model_fields["version"].default
        if found not in (None, expected):
            raise ArtifactError(
                f"the report is of version {found}, and this Bitpress reads version {expected}; "
                "report.md and report.html beside it can be read as they are"
            ) from None
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"not a report: {where}: {first['msg']}") from None


def _version(data: bytes | str) -> object:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found.get("version") if isinstance(found, dict) else None
