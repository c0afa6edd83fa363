"""Objects whose job was deleted: removed at once, or, when the artifact store is away, another time."""

import asyncio
import logging

from bitpress.errors import StoreError
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.jobstore import JobStore

_log = logging.getLogger(__name__)


async def empty_trash(jobs: JobStore, artifacts: ArtifactStore) -> None:
    """Remove what the trash holds. Raises Unavailable when the job store is."""
    for prefix in await jobs.trash():
        try:
            await asyncio.to_thread(artifacts.remove, prefix)
        except StoreError as error:
            _log.warning("objects of a deleted job are still there: %s", error.message)
        else:
            await jobs.emptied(prefix)
