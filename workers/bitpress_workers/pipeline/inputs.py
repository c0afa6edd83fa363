"""What a job reads before its first block: all of its texts, as tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitpress.errors import CalibrationError
from bitpress.jobs import Evaluation, JobSpec
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import Windows, calibration_tokens, evaluation_windows
from bitpress_workers.pipeline.opening import prompt_tokens
from bitpress_workers.pipeline.placement import MICRO_BATCH_TOKENS
from bitpress_workers.pipeline.preprocessing import training_documents

if TYPE_CHECKING:
    from bitpress_workers.pipeline.zero_shot import ZeroShot


@dataclass(frozen=True)
class Texts:
    """tokens: calibration's, int64 [N, S]. windows: of each evaluated dataset. documents: of a preprocessing.

    prompt: what the artifact is checked with, int64 [1, P]. zero_shot: the tasks, when there are any.
    """

    tokens: Tensor
    windows: dict[str, Windows]
    documents: list[Tensor]
    prompt: Tensor
    zero_shot: "ZeroShot | None"

    @property
    def num_windows(self) -> int:
        """Of all datasets; what tasks ask counts as so many windows as it has tokens for."""
        windows = sum(map(len, self.windows.values()))
        length = next((part.tokens_KS.shape[1] for part in self.windows.values()), MICRO_BATCH_TOKENS)
        return windows + (-(-sum(self.zero_shot.prompts.lengths) // length) if self.zero_shot else 0)


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
    prompt = torch.tensor([prompt_tokens(tokenizer)])
    return Texts(tokens, windows, documents, prompt, _zero_shot(evaluation, tokenizer, checkpoint))


def _zero_shot(evaluation: Evaluation, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> "ZeroShot | None":
    if not evaluation.tasks:
        return None
    from bitpress_workers.pipeline.zero_shot import read_zero_shot  # takes seconds, and an extra

    return read_zero_shot(evaluation, tokenizer, checkpoint.config)


def _check_positions(part: str, sequence_length: int, checkpoint: Checkpoint) -> None:
    positions = getattr(checkpoint.config, "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise CalibrationError(
            f"{part}.sequence_length: expected at most {positions}, the model's positions, found {sequence_length}"
        )
