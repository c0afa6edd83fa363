"""The OpenAPI document is part of the interface: a change of it is seen in review."""

import json
import os
from pathlib import Path

import redis.asyncio

from bitpress_service.app import create_app
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.keys import Keys
from bitpress_service.metrics import StoreMetrics
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_service.webhooks import Webhooks

GOLDEN = Path(__file__).with_name("openapi.json")


def test_the_document_is_the_golden_one(tmp_path: Path) -> None:
    """Regenerate with BITPRESS_UPDATE_GOLDEN=1 and read the difference."""
    client = redis.asyncio.Redis(unix_socket_path=str(tmp_path / "never-connected"))
    artifacts = ArtifactStore.from_url(tmp_path.as_uri())
    app = create_app(
        Settings(state_dir=tmp_path),
        RedisJobStore(client),
        artifacts,
        Keys(client),
        Webhooks(client),
        StoreMetrics(client),
    )
    document = json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("BITPRESS_UPDATE_GOLDEN"):
        GOLDEN.write_text(document)
    assert document == GOLDEN.read_text()
