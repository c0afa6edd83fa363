"""What routes ask for by the type of an argument: the stores, and the caller with a scope.

All are `async`: the web framework would run others in a thread, which costs more than what they do.
"""

from typing import Annotated

from fastapi import Depends, Request, Security

from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.auth import authenticate
from bitpress_service.event_feed import EventFeed
from bitpress_service.jobstore import JobStore
from bitpress_service.keys import Key, Keys
from bitpress_service.settings import Settings
from bitpress_service.sources import Sources
from bitpress_service.webhooks import Webhooks as WebhookStore


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _jobs(request: Request) -> JobStore:
    jobs: JobStore = request.app.state.jobs
    return jobs


async def _artifacts(request: Request) -> ArtifactStore:
    artifacts: ArtifactStore = request.app.state.artifacts
    return artifacts


async def _feed(request: Request) -> EventFeed:
    feed: EventFeed = request.app.state.feed
    return feed


async def _webhooks(request: Request) -> WebhookStore:
    webhooks: WebhookStore = request.app.state.webhooks
    return webhooks


async def _keys(request: Request) -> Keys:
    keys: Keys = request.app.state.keys
    return keys


async def _sources(request: Request) -> Sources:
    sources: Sources = request.app.state.sources
    return sources


ServiceSettings = Annotated[Settings, Depends(_settings)]
Jobs = Annotated[JobStore, Depends(_jobs)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]
Feed = Annotated[EventFeed, Depends(_feed)]
Webhooks = Annotated[WebhookStore, Depends(_webhooks)]

JobReader = Annotated[Key, Security(authenticate, scopes=["jobs:read"])]
JobWriter = Annotated[Key, Security(authenticate, scopes=["jobs:write"])]
AllowedSources = Annotated[Sources, Depends(_sources)]
AllKeys = Annotated[Keys, Depends(_keys)]
ArtifactReader = Annotated[Key, Security(authenticate, scopes=["artifacts:read"])]
WebhookOwner = Annotated[Key, Security(authenticate, scopes=["webhooks:write"])]

AnyCaller = Annotated[Key, Security(authenticate)]
Operator = Annotated[Key, Security(authenticate, scopes=["admin"])]


def accepts(request: Request, media_type: str) -> bool:
    """Whether the caller named this media type; no weights, since every route has one default and one other."""
    return media_type in request.headers.get("accept", "")
