"""What jobs may read: where models and texts may lie, and the models that are found there."""

from typing import Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.dependencies import AllowedSources, JobReader
from bitpress_service.sources import ModelEntry, Sources

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=KeyedRoute)


class ModelList(BaseModel):
    """The models in the directories that are named; those in buckets and on the hub are not looked for."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]
    sources: Sources


@router.get("")
async def list_models(_: JobReader, sources: AllowedSources) -> ModelList:
    return ModelList(data=await run_in_threadpool(sources.models), sources=sources)
