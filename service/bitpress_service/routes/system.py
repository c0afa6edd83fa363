"""The service about itself: whether it lives, whether it is ready, what it can do."""

from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from bitpress.advice import ADVICE
from bitpress.cluster import Cluster
from bitpress.errors import NotFound, StoreError, Unavailable
from bitpress.keys import Caller
from bitpress.methods import METHODS
from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.dependencies import AllKeys, AnyCaller, Artifacts, JobReader, Jobs

VERSION = version("bitpress")

router = APIRouter(tags=["system"])
keyed = APIRouter(tags=["system"], route_class=KeyedRoute)


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Method(BaseModel):
    """A compression method and the JSON Schema of its parameters."""

    kind: str
    description: str
    schema_: dict[str, Any] = Field(serialization_alias="schema")


class MethodList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Method]


@router.get("/livez")
async def livez() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz")
async def readyz(jobs: Jobs, artifacts: Artifacts) -> Health:
    """The job store and the artifact store answer too."""
    down: list[tuple[str, str]] = []
    try:
        await jobs.ping()
    except Unavailable as error:
        down.append(("jobs", error.message))
    try:
        await run_in_threadpool(artifacts.ping)
    except StoreError as error:
        down.append(("artifacts", error.message))
    if down:
        raise Unavailable("not ready: " + "; ".join(text for _, text in down), down)
    return Health()


class ClusterResource(Cluster):
    object: Literal["cluster"] = "cluster"


@keyed.get("/v1/cluster")
async def cluster(_: JobReader, jobs: Jobs) -> ClusterResource:
    """Dispatchers with their devices, and the queue by priority, over all tenants."""
    return ClusterResource(**dict(await jobs.cluster()))


class Kind(BaseModel):
    """A kind of problem, and what to do about it."""

    code: str
    advice: str


@router.get("/problems/{code}")
async def problem(code: str) -> Kind:
    """What the `type` of a problem document leads to."""
    if code not in ADVICE:
        raise NotFound(f"no kind of problem is called {code!r}; there are {', '.join(ADVICE)}")
    return Kind(code=code, advice=ADVICE[code])


class CallerResource(Caller):
    object: Literal["key"] = "key"


@keyed.get("/v1/whoami")
async def whoami(caller: AnyCaller, keys: AllKeys) -> CallerResource:
    """The key that the request carries, and this service's version."""
    return CallerResource(**dict(await keys.get(caller.id)), version=VERSION)


@router.get("/v1/methods")
async def methods() -> MethodList:
    return MethodList(data=[_method(kind) for kind in METHODS])


@router.get("/v1/methods/{kind}")
async def method(kind: str) -> Method:
    if kind not in METHODS:
        raise NotFound(f"no method {kind!r}; there are {', '.join(METHODS)}")
    return _method(kind)


def _method(kind: str) -> Method:
    schema = METHODS[kind].model_json_schema()
    return Method(kind=kind, description=schema["description"], schema_=schema)
