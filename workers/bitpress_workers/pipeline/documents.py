"""Texts as they are read: a file, or one split of a known dataset from a directory or the hub.

A text (`.txt`, wikitext2, ptb) is one string; a collection (`.jsonl`, `.parquet`, c4) has documents.
The names, and how rows are joined, are those of the reference loaders (`datautils.py` of
https://github.com/IST-DASLab/gptq), where `-new` marks the variants of its `--new-eval` switch.
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import datasets
from datasets.exceptions import DatasetsError

from bitpress.errors import CalibrationError
from bitpress.texts import KNOWN_DATASETS

Split = Literal["calibration", "evaluation"]

# The part that perplexity is measured on, as the hub calls it.
EVALUATED = {"wikitext2": "test", "ptb": "validation", "ptb-new": "test"}


@dataclass(frozen=True)
class Documents:
    """A dataset's texts. is_stream: they are one string; else calibration draws a document first."""

    dataset: str
    texts: tuple[str, ...]
    is_stream: bool


def load_documents(dataset: str, split: Split) -> Documents:
    """Read a file (`.txt`, `.jsonl`, `.parquet`, with documents in `text`) or one split of a known dataset.

    A known name is read from the directory of that name, without `-new`, in $BITPRESS_DATA_DIR, else from the hub.
    Raises CalibrationError when there is no such text or it cannot be read.
    """
    if dataset in KNOWN_DATASETS:
        return _load_known(dataset, split)
    suffix = Path(dataset).suffix
    texts = _read_file(Path(dataset), **({"sample_by": "document"} if suffix == ".txt" else {}))
    return Documents(dataset, texts, is_stream=suffix == ".txt")


def _load_known(name: str, split: Split) -> Documents:
    if name in ("c4", "c4-new"):
        return Documents(name, _rows(name, split, "*.jsonl"), is_stream=False)
    rows = _rows(name, split, "*.txt", sample_by="line", keep_linebreaks=True)
    if name == "wikitext2":
        # A row is a line with its end; an empty line is an empty row, whatever spaces it has.
        return Documents(name, ("\n\n".join(row if row.strip() else "" for row in rows),), is_stream=True)
    between = "\n\n" if name == "ptb" else " "
    return Documents(name, (between.join(row.strip() for row in rows),), is_stream=True)


def _rows(name: str, split: Split, pattern: str, **options: Any) -> tuple[str, ...]:
    directory = Path(os.environ.get("BITPRESS_DATA_DIR", "")) / name.removesuffix("-new")
    if "BITPRESS_DATA_DIR" not in os.environ or not directory.is_dir():
        return _read_hub(name, split)
    files = sorted(directory.glob(pattern))
    wanted = [file for file in files if _is_of(split, file.name, name)]
    if not wanted:
        found = ", ".join(file.name for file in files) or "none"
        raise CalibrationError(f"{directory}: expected a file {pattern} for {split}, found {found}")
    return _read_file(wanted[0], **options)


def _is_of(split: Split, file: str, name: str) -> bool:
    """A file's name says which part it is: train, valid (or validation), test; of C4 all but train are evaluated."""
    if split == "calibration":
        return "train" in file
    return EVALUATED[name][:5] in file if name in EVALUATED else "train" not in file


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
    if name in ("c4", "c4-new"):
        shard = "en/c4-train.00000-of-01024.json.gz" if train else "en/c4-validation.00000-of-00008.json.gz"
        return _read(name, "allenai/c4", data_files=shard)
    part = "train" if train else EVALUATED[name]
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
