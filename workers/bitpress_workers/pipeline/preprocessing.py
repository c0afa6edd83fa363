"""PTQ1.61's preprocessing, as seen by a job: a first pass into a private store, an adapter trained on it, a checkpoint.

What the first pass makes is no part of the artifact and is not recorded: an attempt that is lost
costs this stage. On one host the private directory may be anywhere; on a cluster all hosts must see it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitpress.errors import BitpressError, CalibrationError, UnsupportedModel
from bitpress.jobs import Progress
from bitpress.methods import LoRAPreprocessing
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.documents import load_documents
from bitpress_workers.pipeline.estimate import DOCUMENT_TOKENS
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Recorder
from bitpress_workers.pipeline.restoration import ADAPTED, DOCUMENTS_PER_STEP, SEED, adapted_linears
from bitpress_workers.pipeline.shard import Shard

STEPS_PER_CALL = 10  # between two looks at whether the job was cancelled


@dataclass(frozen=True)
class Unrecorded:
    """Passes progress on; blocks count for nothing beyond this attempt."""

    recorder: Recorder

    def blocks(self) -> dict[int, BlockRecord]:
        return {}

    def block(self, record: BlockRecord) -> None:
        """Nothing to do."""

    def progress(self, progress: Progress) -> None:
        self.recorder.progress(progress)

    def log(self, message: str) -> None:
        self.recorder.log(message)

    def waiting(self, reason: str) -> None:
        self.recorder.waiting(reason)

    def finish(self, files: Mapping[str, str]) -> None:
        raise AssertionError("a first pass leaves no artifact")

    def ended(self, error: BitpressError | None) -> None:
        raise AssertionError("a first pass is not the end")


def check_adapters(linears: Sequence[str]) -> None:
    """Raise UnsupportedModel when none of a block's linears would get an adapter."""
    if not adapted_linears(linears):
        raise UnsupportedModel(
            f"preprocessing trains adapters of {', '.join(sorted(ADAPTED))}; this model's linears are "
            f"{', '.join(linears)}"
        )


def training_documents(
    config: LoRAPreprocessing, dataset: str, positions: int | None, tokenizer: PreTrainedTokenizerBase
) -> list[Tensor]:
    """Tokenize what the steps need, in their order; int64 [S], S at most 2048 and the model's positions.

    The documents are shuffled, and anew when all were seen; a text without documents is cut into
    pieces. Documents of one token have nothing to predict and are left out.
    Raises CalibrationError when there is no other.
    """
    length = min(DOCUMENT_TOKENS, positions or DOCUMENT_TOKENS)
    pieces = _Pieces(dataset, length, tokenizer)
    wanted, chosen, draw = DOCUMENTS_PER_STEP * config.steps, list[Tensor](), random.Random(SEED)
    while len(chosen) < wanted:
        before = len(chosen)
        for number in draw.sample(range(len(pieces)), len(pieces)):
            if len(chosen) < wanted and len(pieces[number]) > 1:
                chosen.append(pieces[number])
        if len(chosen) == before:
            raise CalibrationError(f"{dataset}: expected documents of 2 tokens or more, found none")
    return chosen


class _Pieces:
    """A dataset's documents as tokens, each tokenized when it is first asked for."""

    def __init__(self, dataset: str, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self._length, self._tokenizer = length, tokenizer
        documents = load_documents(dataset, "calibration")
        self._texts: Sequence[str] = documents.texts
        self._tokens: dict[int, Tensor] = {}
        if documents.is_stream:
            whole = torch.tensor(tokenizer(documents.texts[0], verbose=False).input_ids, dtype=torch.int64)
            self._tokens = dict(enumerate(whole.split(length)))
        self._count = len(self._tokens) or len(documents.texts)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        if number not in self._tokens:
            ids = self._tokenizer(self._texts[number], truncation=True, max_length=self._length).input_ids
            self._tokens[number] = torch.tensor(ids, dtype=torch.int64)
        return self._tokens[number]


def restore(
    fleet: Fleet,
    config: LoRAPreprocessing,
    first_pass: Sequence[BlockRecord],
    documents: Sequence[Tensor],
    prefix: str,
    meter: ProgressMeter,
) -> None:
    """Train an adapter on the first pass's blocks, on shard 0, and write the merged model below a prefix of keys."""
    blocks = [(record.key, record.sha256) for record in first_pass]
    fleet.get([fleet.on(0, Shard.begin_restoring, blocks, config)])
    for step in range(0, config.steps, STEPS_PER_CALL):
        meter.restoring(step, config.steps)
        part = documents[DOCUMENTS_PER_STEP * step : DOCUMENTS_PER_STEP * (step + STEPS_PER_CALL)]
        loss: float = fleet.get([fleet.on(0, Shard.restore, step, part)])[0]
        meter.recorder.log(f"restoring: mean loss {loss:.4f} in the steps from {step + 1} of {config.steps}")
    fleet.get([fleet.on(0, Shard.finish_restoring, prefix)])
