"""What routes ask for by the type of an argument: the stores, and the caller with a scope."""

from typing import Annotated

from fastapi import Depends, Request, Security

from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.auth import Key, authenticate
from bitpress_service.event_feed import EventFeed
from bitpress_service.jobstore import JobStore
from bitpress_service.settings import Settings


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _jobs(request: Request) -> JobStore:
    jobs: JobStore = request.app.state.jobs
    return jobs


def _artifacts(request: Request) -> ArtifactStore:
    artifacts: ArtifactStore = request.app.state.artifacts
    return artifacts


def _feed(request: Request) -> EventFeed:
    feed: EventFeed = request.app.state.feed
    return feed


ServiceSettings = Annotated[Settings, Depends(_settings)]
Jobs = Annotated[JobStore, Depends(_jobs)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]
Feed = Annotated[EventFeed, Depends(_feed)]

JobReader = Annotated[Key, Security(authenticate, scopes=["jobs:read"])]
JobWriter = Annotated[Key, Security(authenticate, scopes=["jobs:write"])]
ArtifactReader = Annotated[Key, Security(authenticate, scopes=["artifacts:read"])]


def accepts(request: Request, media_type: str) -> bool:
    """Whether the caller named this media type; no weights, since every route has one default and one other."""
    return media_type in request.headers.get("accept", "")
