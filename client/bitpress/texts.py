"""How a text is named in a spec: a known dataset, or a file."""

from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field

KNOWN_DATASETS = ("wikitext2", "ptb", "ptb-new", "c4", "c4-new")
DATASET_SUFFIXES = (".txt", ".jsonl", ".parquet")


def _check_dataset(value: str) -> str:
    if value in KNOWN_DATASETS or PurePath(value).suffix in DATASET_SUFFIXES:
        return value
    known, suffixes = ", ".join(KNOWN_DATASETS), ", ".join(DATASET_SUFFIXES)
    raise ValueError(f"expected a known name ({known}) or a file ({suffixes}), found {value!r}")


NO_NUL = r"^[^\x00]*$"  # no path holds one
Dataset = Annotated[str, Field(min_length=1, max_length=4096, pattern=NO_NUL), AfterValidator(_check_dataset)]
SequenceLength = Annotated[int, Field(ge=8, le=131072, description="tokens of one sequence")]
