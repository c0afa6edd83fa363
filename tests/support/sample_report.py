"""A report with everything a page has to show, small, and with names as nasty as a user may make them."""

from bitpress.artifacts import (
    Accuracy,
    BlockReport,
    DivergenceReport,
    Interval,
    LedgerEntry,
    LinearReport,
    LoadCheck,
    PerplexityReport,
    ProcessCost,
    Provenance,
    Report,
    TaskReport,
)
from bitpress.jobs import JobSpec

NASTY = "<script>alert('x')</script>\"'&"
PROVENANCE = Provenance(
    version="0.1.0",
    code_sha256="a" * 64,
    weights_sha256="b" * 64,
    tokens_sha256="c" * 64,
    seeds={"calibration": 0},
    devices=("EPYC",),
    versions={"python": "3.11"},
)
PLACES = ("self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj")


def sample_report(spec: JobSpec, bits: float = 3.5, perplexity: float = 20.0, blocks: int = 3) -> Report:
    """Errors grow from block to block and from linear to linear; of two experts the second is worse."""
    return Report(
        spec=spec,
        bits_per_weight=bits,
        num_weights=blocks * len(PLACES) * 64,
        bytes_before=4096,
        bytes_after=1024,
        perplexity={"/texts/held-out.txt": sample_perplexity(perplexity)},
        divergence={
            "/texts/held-out.txt": DivergenceReport(
                kl=0.05,
                kl_interval=Interval(low=0.04, high=0.06),
                agreement=0.875,
                agreement_interval=Interval(low=0.86, high=0.89),
            )
        },
        error_growth=tuple(0.01 * (index + 1) for index in range(blocks)),
        tasks={},
        gate_misses=None,
        failures=(),
        load_check=LoadCheck(
            outcome="equal", opened="whole", num_tokens=32, difference=0.0, tolerance=1e-4, detail="sums"
        ),
        blocks=tuple(_block(index) for index in range(blocks)),
        phases={"calibrating": 61.0, "evaluating": 3.0},
        peak_bytes=2**30,
        peak_device_bytes=0,
        ledger=(LedgerEntry(kind="dead-columns", where=f"block 1, {NASTY}", detail="3 of 64"),),
        processes=(
            ProcessCost(
                part="job", device="EPYC", peak_bytes=2**30, peak_device_bytes=0, bytes_read=10**9, bytes_written=10**6
            ),
        ),
        provenance=PROVENANCE,
    )


def sample_task(compressed: float = 0.6) -> TaskReport:
    return TaskReport(
        num_examples=100,
        dense=Accuracy(value=0.65, standard_error=0.048),
        compressed=Accuracy(value=compressed, standard_error=0.049),
        dense_normalized=None,
        compressed_normalized=None,
        drop=Accuracy(value=0.65 - compressed, standard_error=0.02),
        prompts_sha256="d" * 64,
    )


def sample_perplexity(compressed: float, dense: float = 18.0) -> PerplexityReport:
    return PerplexityReport(
        dense=dense,
        dense_interval=Interval(low=dense - 1, high=dense + 1),
        compressed=compressed,
        compressed_interval=Interval(low=compressed - 1, high=compressed + 1),
        increase_percent=100 * (compressed / dense - 1),
        increase_interval=None,
        dense_bits_per_byte=1.0,
        compressed_bits_per_byte=1.1,
        num_windows=24,
        num_tokens=12345,
        tokens_sha256="e" * 64,
    )


def _block(index: int) -> BlockReport:
    linears = tuple(
        LinearReport(
            name=place,
            shape=(8, 8),
            bits_per_weight=3.0 + number,
            relative_error=0.001 * (1 + index) * (1 + number),
            outlier_fraction=0.01 * number,
            damping_used=0.01,
            num_tokens=100,
            seconds=0.5,
        )
        for number, place in enumerate(PLACES)
    )
    return BlockReport(index=index, sha256=f"{index:064x}", bytes=300, seconds=1.5, linears=linears)
