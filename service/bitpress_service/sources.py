"""Which models and texts jobs may read.

An operator names directories, buckets and owners on the hub; with any of them named, nothing else is read. With
none, as on one's own machine, a job may read what the service's user may. The API refuses a job when it is
submitted; the worker looks again, on the host where the files are, just before it opens them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from bitpress.errors import SourceNotAllowed
from bitpress.jobs import JobSpec
from bitpress.sweeps import SweepSpec
from bitpress.texts import KNOWN_DATASETS
from bitpress_service.settings import Settings

MODELS_LISTED = 1000
_DEPTH = 3  # root/model, root/owner/model, root/models--owner--model/snapshots/revision


class ModelEntry(BaseModel):
    """A model that jobs may name."""

    uri: str
    model_type: str | None


class Sources(BaseModel):
    """Directories, buckets (with prefix), and owners (or owner/model) on the hub. `limited`: nothing else is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limited: bool = False
    model_roots: tuple[Path, ...] = ()
    model_buckets: tuple[str, ...] = ()
    model_hub: tuple[str, ...] = ()
    text_roots: tuple[Path, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        named = {name: getattr(settings, name) for name in cls.model_fields if name != "limited"}
        return cls(limited=any(named.values()), **named)

    def check(self, spec: JobSpec | SweepSpec) -> None:
        """Raises SourceNotAllowed, naming every source that is not to be read."""
        details = [] if self._model_allowed(spec.model.uri) else [("/model/uri", self._refusal(spec.model.uri))]
        details += [(path, self._text_refusal(name)) for path, name in _texts(spec) if not self._text_allowed(name)]
        if details:
            raise SourceNotAllowed("; ".join(f"{path}: {text}" for path, text in details), details)

    def models(self) -> list[ModelEntry]:
        """The checkpoints below the directories, by path."""
        found = (entry for root in self.model_roots for entry in _checkpoints(root, _DEPTH))
        return sorted(islice(found, MODELS_LISTED), key=lambda entry: entry.uri)

    def _model_allowed(self, uri: str) -> bool:
        if not self.limited:
            return True
        match _kind(uri):
            case "directory":
                return _is_below(uri, self.model_roots)
            case "bucket":
                parts = uri.split("/")
                inside = (f"{bucket.rstrip('/')}/" for bucket in self.model_buckets)
                return not {".", ".."} & set(parts) and any(f"{uri.rstrip('/')}/".startswith(each) for each in inside)
            case "hub":
                return uri in self.model_hub or uri.partition("/")[0] in self.model_hub
        return False

    def _text_allowed(self, name: str) -> bool:
        return not self.limited or name in KNOWN_DATASETS or _is_below(name, self._text_directories)

    @property
    def _text_directories(self) -> tuple[Path, ...]:
        """Those of the models as well: a model may come with its texts."""
        return (*self.text_roots, *self.model_roots)

    def _refusal(self, uri: str) -> str:
        offered = ", ".join((*map(str, self.model_roots), *self.model_buckets, *self.model_hub))
        return f"{uri!r} is not among the models of this service ({offered or 'none'}); GET /v1/models lists them"

    def _text_refusal(self, name: str) -> str:
        offered = ", ".join((*KNOWN_DATASETS, *(f"files below {root}" for root in self._text_directories)))
        return f"{name!r} is not among the texts of this service; it reads {offered}"


def _kind(uri: str) -> Literal["directory", "bucket", "hub", "unknown"]:
    if uri.startswith("s3://"):
        return "bucket"
    if "://" in uri:
        return "unknown"
    looks_like_path = uri.startswith(("/", ".", "~")) or uri.count("/") > 1
    return "directory" if looks_like_path or os.path.lexists(uri) else "hub"


def _texts(spec: JobSpec | SweepSpec) -> Iterator[tuple[str, str]]:
    """All texts a spec names, each with its JSON pointer."""
    yield "/calibration/dataset", spec.calibration.dataset
    for place, name in enumerate(spec.evaluation.datasets):
        yield f"/evaluation/datasets/{place}", name
    if spec.evaluation.task_files is not None:
        yield "/evaluation/task_files", spec.evaluation.task_files
    preprocessing = getattr(spec.method, "preprocessing", None)
    if preprocessing is not None and preprocessing.dataset is not None:
        yield "/method/preprocessing/dataset", preprocessing.dataset


def _is_below(path: str, roots: Sequence[Path]) -> bool:
    """Whether a path, with all its links followed, lies in one of the directories."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def _checkpoints(directory: Path, depth: int) -> Iterator[ModelEntry]:
    config = directory / "config.json"
    if config.is_file():
        yield ModelEntry(uri=str(directory), model_type=_model_type(config))
    elif depth and directory.is_dir():
        for below in sorted(directory.iterdir()):
            if below.is_dir() and not below.is_symlink():
                yield from _checkpoints(below, depth - 1)


def _model_type(config: Path) -> str | None:
    try:
        found = json.loads(config.read_bytes()[:1_000_000]).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
