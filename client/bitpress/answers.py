"""What the service answered, as our types."""

import re
from typing import Any, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from bitpress.errors import BitpressError, NotFound
from bitpress.jobs import Job

_T = TypeVar("_T")
_JOB = TypeAdapter(Job)


def path_of(job_id: str, *rest: str) -> str:
    """Path of a job, or of something of it. Raises NotFound for what can be no id."""
    return "/".join(("/v1/jobs", plain(job_id, "job"), *rest))


def plain(id_: str, what: str) -> str:
    """The id, which is to be a part of a path. Raises NotFound for what can be none."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", id_):
        raise NotFound(f"no {what} can have the id {id_!r}")
    return id_


def json_of(response: httpx2.Response) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        found = response.headers.get("content-type", "nothing")
        raise BitpressError(f"expected a JSON object from {response.url}, found {found}; is it a Bitpress service?")
    return data


def job_of(data: dict[str, Any]) -> Job:
    return read(_JOB, {name: value for name, value in data.items() if name not in ("object", "urls")})


def read(adapter: TypeAdapter[_T], data: object) -> _T:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BitpressError(
            f"the service's answer is not understood by this version of the client: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
