"""How much memory a job will take, before anything is loaded: float32 throughout, from above."""

from math import prod

from bitpress.jobs import JobSpec
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.pipeline.placement import micro_batch_size
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes

DOCUMENT_TOKENS = 2048  # of the longest document that PTQ1.61's adapter is trained on (published)
BASE_BYTES = 700 * 2**20  # a process with torch and transformers imported


def peak_bytes(
    spec: JobSpec, method: Method | BlockMethod, sizes: ModelSizes, num_windows: int, kind: str, num_shards: int
) -> int:
    """Bytes for the whole host (CPU) or one device: the largest moment of each phase, all held at once."""
    calibration, evaluation = spec.calibration, spec.evaluation
    calibrated = calibration.num_sequences * calibration.sequence_length
    evaluated = 2 * num_windows * evaluation.sequence_length  # dense and compressed
    activations = 4 * 2 * max(calibrated, evaluated) * sizes.hidden_size
    block_weights = max(block.num_weights for block in sizes.blocks)
    if isinstance(method, BlockMethod):
        activations *= 2  # two streams, and the dense block's outputs for one of them
        compressing, solve = _training_bytes(block_weights, sizes, calibration.sequence_length), 0
    else:
        compressing = max(_gram_bytes(method, block) for block in sizes.blocks)
        solve = max(_solving_bytes(block) for block in sizes.blocks)
    micro_batch = micro_batch_size(calibration.sequence_length) * calibration.sequence_length
    forward = 4 * 8 * micro_batch * _widest(sizes)
    logits = 4 * 3 * evaluation.sequence_length * sizes.vocab_size if num_windows else 0
    per_shard = 4 * (2 * block_weights + sizes.outer_weights) + compressing + max(forward, logits)
    preprocessing = getattr(spec.method, "preprocessing", None)
    restoring = _restoring_bytes(sizes, preprocessing.rank) if preprocessing else 0
    if kind == "cpu":
        return num_shards * (BASE_BYTES + per_shard) + max(activations + solve, restoring)
    return BASE_BYTES + max(per_shard + activations // num_shards + solve, restoring)


def _widest(sizes: ModelSizes) -> int:
    return max(max(shape) for block in sizes.blocks for shape in block.linears.values())


def _gram_bytes(method: Method, block: BlockSizes) -> int:
    """The Hessians open at once, each twice while slices merge, and what one factorization takes."""
    widths = [[block.linears[tap.linears[0]][1] for tap in stage] for stage in block.stages]
    squares = [sum(width**2 for width in stage) for stage in widths]
    open_taps = sum(squares) if method.propagation == "block" else max(squares)
    return 4 * (2 * open_taps + 3 * max(max(stage) for stage in widths) ** 2)


def _solving_bytes(block: BlockSizes) -> int:
    """The weights of a tap being solved, and what goes with them."""
    return 4 * 6 * max(sum(prod(block.linears[name]) for name in tap.linears) for tap in block.taps)


def _training_bytes(num_weights: int, sizes: ModelSizes, sequence_length: int) -> int:
    """What a training step on one sequence takes: ten numbers a weight, twenty a row and token, four scores a head."""
    tokens = 20 * sequence_length * _widest(sizes) + 4 * sizes.num_heads * sequence_length**2
    return 4 * (10 * num_weights + tokens)


def _restoring_bytes(sizes: ModelSizes, rank: int) -> int:
    """What the whole model takes with an adapter in training: two copies of the weights while it is written."""
    whole = 2 * sum(block.num_weights for block in sizes.blocks) + sizes.outer_weights
    adapters = 4 * rank * sum(sum(shape) for block in sizes.blocks for shape in block.linears.values())
    tokens = DOCUMENT_TOKENS * (len(sizes.blocks) * sizes.hidden_size + 4 * sizes.vocab_size)
    return 4 * (whole + adapters + tokens) + _training_bytes(0, sizes, DOCUMENT_TOKENS)
