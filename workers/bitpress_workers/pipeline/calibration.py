"""From texts to tokens: what a method looks at, and the windows that perplexity is measured on.

Texts are read through the `datasets` library. A text (`.txt`, wikitext2, ptb) is one stream of tokens;
a collection of documents (`.jsonl`, `.parquet`, c4) is sampled document by document for calibration and
joined by single spaces for evaluation.
"""

import glob
import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import datasets
import torch
from datasets.exceptions import DatasetsError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitpress.errors import CalibrationError
from bitpress.jobs import Calibration
from bitpress.texts import KNOWN_DATASETS

Split = Literal["calibration", "evaluation"]

# Perplexity on C4 as published tables give it: the first 1100 documents, cut to 256 windows
# (`get_c4_new` of https://github.com/IST-DASLab/gptq, the `--new-eval` switch).
C4_DOCUMENTS, C4_WINDOWS = 1100, 256


@dataclass(frozen=True)
class Documents:
    """A dataset's texts. is_stream: they are one string; else calibration draws a document first."""

    dataset: str
    texts: tuple[str, ...]
    is_stream: bool


def load_documents(dataset: str, split: Split) -> Documents:
    """Read a file (`.txt`, `.jsonl`, `.parquet`, with documents in `text`) or one split of a known dataset.

    A known name is read from the directory of that name in $BITPRESS_DATA_DIR, else from the hub.
    Raises CalibrationError when there is no such text or it cannot be read.
    """
    if dataset in KNOWN_DATASETS:
        return _load_known(dataset, split)
    suffix = Path(dataset).suffix
    texts = _read_file(Path(dataset), **({"sample_by": "document"} if suffix == ".txt" else {}))
    return Documents(dataset, texts, is_stream=suffix == ".txt")


def calibration_tokens(calibration: Calibration, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Draw the calibration sequences: int64 [num_sequences, sequence_length].

    Draws come from Python's Mersenne Twister in the order of the reference loaders (`datautils.py` of
    https://github.com/IST-DASLab/gptq): for documents, one of them, again until it is long enough,
    then an offset in it. A text of exactly one sequence, on which the reference fails, has offset 0.
    Raises CalibrationError when nothing is long enough.
    """
    documents = load_documents(calibration.dataset, "calibration")
    draw, length = random.Random(calibration.seed), calibration.sequence_length
    if documents.is_stream:
        drawn: Iterator[Tensor] = itertools.repeat(_tokenize(documents.texts[0], tokenizer))
    else:
        drawn = _draw(documents, draw, length, tokenizer)
    sequences = []
    for tokens in itertools.islice(drawn, calibration.num_sequences):
        _require(len(tokens) >= length, calibration.dataset, length, len(tokens))
        offset = draw.randint(0, len(tokens) - length - 1) if len(tokens) > length else 0
        sequences.append(tokens[offset : offset + length])
    return torch.stack(sequences)


def evaluation_windows(
    dataset: str, sequence_length: int, max_sequences: int | None, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Cut a dataset's held-out text into windows without overlap, int64 [windows, sequence_length].

    The text is tokenized once; the tail that fills no window is dropped.
    Raises CalibrationError when not even one is filled.
    """
    documents = load_documents(dataset, "evaluation")
    tokens = _tokenize(" ".join(documents.texts), tokenizer)
    _require(len(tokens) >= sequence_length, dataset, sequence_length, len(tokens))
    windows = tokens[: len(tokens) // sequence_length * sequence_length].view(-1, sequence_length)
    if dataset == "c4":
        windows = windows[:C4_WINDOWS]
    return windows[:max_sequences].clone()


def tokens_sha256(tokens: Tensor) -> str:
    """Hash of a tensor of tokens, its shape included."""
    digest = hashlib.sha256(str(list(tokens.shape)).encode())
    digest.update(tokens.contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _load_known(name: str, split: Split) -> Documents:
    if name == "c4":
        texts = _rows(name, split, "*.jsonl")
        return Documents(name, texts if split == "calibration" else texts[:C4_DOCUMENTS], is_stream=False)
    rows = _rows(name, split, "*.txt", sample_by="line", keep_linebreaks=True)
    if name == "wikitext2":
        # A row is a line with its end; an empty line is an empty row, whatever spaces it has.
        return Documents(name, ("\n\n".join(row if row.strip() else "" for row in rows),), is_stream=True)
    between = "\n\n" if split == "calibration" else " "
    return Documents(name, (between.join(row.strip() for row in rows),), is_stream=True)


def _rows(name: str, split: Split, pattern: str, **options: Any) -> tuple[str, ...]:
    directory = Path(os.environ.get("BITPRESS_DATA_DIR", "")) / name
    if "BITPRESS_DATA_DIR" not in os.environ or not directory.is_dir():
        return _read_hub(name, split)
    files = sorted(directory.glob(pattern))
    wanted = [file for file in files if _is_of(split, file.name, name)]
    if not wanted:
        found = ", ".join(file.name for file in files) or "none"
        raise CalibrationError(f"{directory}: expected a file {pattern} for {split}, found {found}")
    return _read_file(wanted[0], **options)


def _is_of(split: Split, file: str, name: str) -> bool:
    """C4's files other than train are for evaluation; the other sets have a test file beside a validation file."""
    if split == "calibration":
        return "train" in file
    return "train" not in file if name == "c4" else "test" in file


def _read_file(file: Path, **options: Any) -> tuple[str, ...]:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise CalibrationError(f"{file}: cannot be read: {error.strerror}") from error
    if size == 0:
        raise CalibrationError(f"{file}: the file is empty")
    builder = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}[file.suffix]
    # Streamed: no second copy on disk, no progress bar. What is left to write is a lock file.
    with TemporaryDirectory() as cache:
        options |= {"data_files": glob.escape(str(file.absolute())), "cache_dir": cache, "streaming": True}
        return _read(str(file), builder, **options)


def _read_hub(name: str, split: Split) -> tuple[str, ...]:
    train = split == "calibration"
    datasets.disable_progress_bars()
    if name == "c4":
        shard = "en/c4-train.00000-of-01024.json.gz" if train else "en/c4-validation.00000-of-00008.json.gz"
        return _read(name, "allenai/c4", data_files=shard)
    part = "train" if train else "test"
    if name == "wikitext2":
        return _read(name, "Salesforce/wikitext", name="wikitext-2-raw-v1", split=part)
    file = f"penn_treebank/{part}/0000.parquet"
    return _read(
        name, "ptb-text-only/ptb_text_only", revision="refs/convert/parquet", data_files=file, column="sentence"
    )


def _read(shown: str, path: str, split: str = "train", column: str = "text", **options: Any) -> tuple[str, ...]:
    """Load one column of strings. `shown` names the dataset in errors."""
    try:
        rows = [row.get(column) for row in datasets.load_dataset(path, split=split, **options)]
    except (OSError, ValueError, DatasetsError) as error:
        raise CalibrationError(f"{shown}: cannot be read: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            raise CalibrationError(f"{shown}: expected a string {column!r} in row {number}, found {row!r}")
    return tuple(rows)


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    # verbose=False: that a text is longer than the model's context is no news here.
    return torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.int64)


def _draw(
    documents: Documents, draw: random.Random, sequence_length: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Tensor]:
    """Draw documents, over and over, that have `sequence_length` tokens or more.

    Raises CalibrationError once all were seen and none has.
    """
    too_short: dict[int, int] = {}
    while len(too_short) < len(documents.texts):
        number = draw.randint(0, len(documents.texts) - 1)
        if number in too_short:
            continue
        tokens = _tokenize(documents.texts[number], tokenizer)
        if len(tokens) >= sequence_length:
            yield tokens
        else:
            too_short[number] = len(tokens)
    _require(False, documents.dataset, sequence_length, max(too_short.values(), default=0))


def _require(enough: bool, dataset: str, expected: int, found: int) -> None:
    if not enough:
        raise CalibrationError(f"{dataset}: expected a text of {expected} tokens or more, the longest has {found}")
