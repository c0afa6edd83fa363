"""The log of every process: one line a record on standard error, as text or as JSON, with the job that it is about."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

# What stands in every line, null where a line is about no job.
SUBJECT = ("job", "attempt", "block")

_KEY = re.compile(r"\bbp_[0-9A-Za-z]{20,}")

_process: dict[str, Any] = {}
_task: ContextVar[Mapping[str, Any]] = ContextVar("subject")


@contextmanager
def about(**subject: Any) -> Iterator[None]:
    """Put `job`, `attempt` or `block` into every line of this task within the context."""
    token = _task.set({**_task.get({}), **subject})
    try:
        yield
    finally:
        _task.reset(token)


def whole_process_about(**subject: Any) -> None:
    """The same for all threads of a process that has one subject only, from here on."""
    _process.update(subject)


def configure(log_format: LogFormat) -> None:
    """Send what is logged to standard error. Chatty libraries say no more than warnings: addresses may hold secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _subject() -> dict[str, Any]:
    return {**dict.fromkeys(SUBJECT), **_process, **_task.get({})}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(subject)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        known = {name: value for name, value in _subject().items() if value is not None}
        record.subject = "".join(f"{name} {value}: " for name, value in known.items())
        return _without_keys(super().format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_subject(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _without_keys(json.dumps(line, ensure_ascii=False, default=str))


def _without_keys(line: str) -> str:
    """Somebody may write a key where none belongs, as in an address."""
    return _KEY.sub("bp_***", line)
