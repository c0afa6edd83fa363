"""What a job reads before its first block: all of its texts, as tokens."""

from dataclasses import dataclass

from torch import Tensor

from bitpress.errors import CalibrationError
from bitpress.jobs import JobSpec
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import Windows, calibration_tokens, evaluation_windows
from bitpress_workers.pipeline.preprocessing import training_documents


@dataclass(frozen=True)
class Texts:
    """tokens: calibration's, int64 [N, S]. windows: of each evaluated dataset. documents: of a preprocessing."""

    tokens: Tensor
    windows: dict[str, Windows]
    documents: list[Tensor]


def read_texts(spec: JobSpec, checkpoint: Checkpoint) -> Texts:
    """Read all texts before the first block: one that is missing or too short must not cost hours.

    Raises CalibrationError.
    """
    calibration, evaluation = spec.calibration, spec.evaluation
    _check_positions("calibration", calibration.sequence_length, checkpoint)
    if evaluation.datasets:
        _check_positions("evaluation", evaluation.sequence_length, checkpoint)
    tokenizer = checkpoint.tokenizer()
    tokens = calibration_tokens(calibration, tokenizer)
    windows = {
        name: evaluation_windows(name, evaluation.sequence_length, evaluation.max_sequences, tokenizer)
        for name in evaluation.datasets
    }
    documents = []
    if preprocessing := getattr(spec.method, "preprocessing", None):
        positions = getattr(checkpoint.config, "max_position_embeddings", None)
        documents = training_documents(
            preprocessing, preprocessing.dataset or calibration.dataset, positions, tokenizer
        )
    return Texts(tokens, windows, documents)


def _check_positions(part: str, sequence_length: int, checkpoint: Checkpoint) -> None:
    positions = getattr(checkpoint.config, "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise CalibrationError(
            f"{part}.sequence_length: expected at most {positions}, the model's positions, found {sequence_length}"
        )
