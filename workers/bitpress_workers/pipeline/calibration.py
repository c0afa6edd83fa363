"""From texts to tokens: what a method looks at, and the windows that perplexity is measured on.

A text is one stream of tokens; a collection of documents is sampled document by document for calibration and
joined by single spaces for evaluation, but for `c4`, whose evaluation is sampled as well.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitpress.errors import CalibrationError
from bitpress.jobs import Calibration, canonical_json
from bitpress_workers.pipeline.documents import Documents, load_documents

# Perplexity on C4 as published tables give it (`datautils.py` of https://github.com/IST-DASLab/gptq): `c4` is 256
# windows drawn with seed 0, each from a document; `c4-new` the first 1100 documents, cut to 256 windows.
C4_WINDOWS, C4_SEED, C4_DOCUMENTS = 256, 0, 1100


@dataclass(frozen=True)
class Windows:
    """What one dataset is evaluated on.

    tokens_KS: int64 [windows, sequence_length]. num_bytes: of each window's text in UTF-8, from behind its first
    token, which is not predicted; None when the tokenizer does not say where in a text its tokens lie.
    """

    tokens_KS: Tensor
    num_bytes: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.tokens_KS)


def calibration_tokens(calibration: Calibration, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Draw the calibration sequences: int64 [num_sequences, sequence_length].

    Draws come from Python's Mersenne Twister in the order of the reference loaders: for documents, one of
    them, again until it is long enough, then an offset in it. A text of exactly one sequence, on which the
    reference fails, has offset 0. Raises CalibrationError when nothing is long enough.
    """
    documents = load_documents(calibration.dataset, "calibration")
    length = calibration.sequence_length
    drawn = _draw(documents, calibration.seed, length, tokenizer)
    sequences = itertools.islice(drawn, calibration.num_sequences)
    return torch.stack([tokens[offset : offset + length] for _, tokens, offset in sequences])


def evaluation_windows(
    dataset: str, sequence_length: int, max_sequences: int | None, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Cut a dataset's held-out text into windows without overlap.

    The text is tokenized once; the tail that fills no window is dropped.
    Raises CalibrationError when not even one is filled.
    """
    documents = load_documents(dataset, "evaluation")
    if dataset == "c4":
        return _drawn_windows(documents, sequence_length, min(C4_WINDOWS, max_sequences or C4_WINDOWS), tokenizer)
    text = " ".join(documents.texts[:C4_DOCUMENTS] if dataset == "c4-new" else documents.texts)
    tokens = _tokenize(text, tokenizer)
    _require(len(tokens) >= sequence_length, dataset, sequence_length, len(tokens))
    count = min(len(tokens) // sequence_length, max_sequences or len(tokens))
    if dataset == "c4-new":
        count = min(count, C4_WINDOWS)
    num_bytes = _num_bytes(text, range(0, count * sequence_length, sequence_length), sequence_length, tokenizer)
    return Windows(tokens[: count * sequence_length].view(count, sequence_length).clone(), num_bytes)


def tokens_sha256(tokens: Tensor) -> str:
    """Hash of a tensor of tokens, its shape included."""
    digest = hashlib.sha256(str(list(tokens.shape)).encode())
    digest.update(tokens.contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def list_sha256(sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Hash of pairs of token sequences of any length."""
    return hashlib.sha256(canonical_json(sequences).encode()).hexdigest()


def _drawn_windows(documents: Documents, length: int, count: int, tokenizer: PreTrainedTokenizerBase) -> Windows:
    windows: list[Tensor] = []
    num_bytes: tuple[int, ...] | None = ()
    for text, tokens, offset in itertools.islice(_draw(documents, C4_SEED, length, tokenizer), count):
        windows.append(tokens[offset : offset + length])
        of_window = _num_bytes(text, [offset], length, tokenizer)
        num_bytes = None if num_bytes is None or of_window is None else num_bytes + of_window
    return Windows(torch.stack(windows), num_bytes)


def _num_bytes(
    text: str, starts: Sequence[int], length: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...] | None:
    """UTF-8 bytes of `length` tokens from each start, the first token's left out."""
    if not tokenizer.is_fast:
        return None
    # Special tokens lie at (0, 0), wherever they stand.
    spans = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    ends = list(itertools.accumulate((end for _, end in spans), max))
    return tuple(len(text[ends[start] : ends[start + length - 1]].encode()) for start in starts)


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    # verbose=False: that a text is longer than the model's context is no news here.
    return torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.int64)


def _draw(
    documents: Documents, seed: int, length: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Tensor, int]]:
    """Draw sequences without end: a text, its tokens, the place in them where `length` of them begin."""
    draw = random.Random(seed)
    if documents.is_stream:
        tokens = _tokenize(documents.texts[0], tokenizer)
        _require(len(tokens) >= length, documents.dataset, length, len(tokens))
        drawn: Iterator[tuple[str, Tensor]] = itertools.repeat((documents.texts[0], tokens))
    else:
        drawn = _draw_documents(documents, draw, length, tokenizer)
    for text, tokens in drawn:
        yield text, tokens, draw.randint(0, len(tokens) - length - 1) if len(tokens) > length else 0


def _draw_documents(
    documents: Documents, draw: random.Random, length: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Tensor]]:
    """Draw documents, over and over, that have `length` tokens or more.

    Raises CalibrationError once all were seen and none has.
    """
    too_short: dict[int, int] = {}
    while len(too_short) < len(documents.texts):
        number = draw.randint(0, len(documents.texts) - 1)
        if number in too_short:
            continue
        tokens = _tokenize(documents.texts[number], tokenizer)
        if len(tokens) >= length:
            yield documents.texts[number], tokens
        else:
            too_short[number] = len(tokens)
    _require(False, documents.dataset, length, max(too_short.values(), default=0))


def _require(enough: bool, dataset: str, expected: int, found: int) -> None:
    if not enough:
        raise CalibrationError(f"{dataset}: expected a text of {expected} tokens or more, the longest has {found}")
