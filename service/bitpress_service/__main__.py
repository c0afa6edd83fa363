"""`python -m bitpress_service`: serve the API.

Without BITPRESS_REDIS_URL it starts, or finds, the embedded Redis server of its state directory and
leaves it running; `bitpress up` is what stops it.

`python -m bitpress_service doctor` prints what is wrong on this machine, `... import` takes jobs in again whose
artifacts lie in the storage, both as JSON; `bitpress doctor` shows it to people.
"""

import asyncio
import ipaddress
import json
import sys
from dataclasses import asdict
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from bitpress.errors import BitpressError, Unavailable
from bitpress_service import doctor, embedded_redis, logs, tracing
from bitpress_service.app import create_app
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.keys import Keys
from bitpress_service.metrics import StoreMetrics
from bitpress_service.outbound import PinnedTransport
from bitpress_service.recovery import Finding, Recovery
from bitpress_service.redis_client import connect
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_service.trash import empty_trash
from bitpress_service.webhook_sender import WebhookSender
from bitpress_service.webhooks import Webhooks


class _Server(uvicorn.Server):
    """Tells the application when it is about to stop, so that event streams end instead of being cut off."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                timeout_graceful_shutdown=settings.shutdown_seconds,
                server_header=False,
                log_config=None,  # its records go where all others go
            )
        )
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal may interrupt the loop anywhere.
        asyncio.get_running_loop().call_soon_threadsafe(self._app.state.feed.close)
        super().handle_exit(sig, frame)


async def serve(settings: Settings) -> None:
    """Serve until a signal comes.

    Raises Unavailable when the state directory, Redis or the artifact store is, or when others could reach an
    API without keys.
    """
    settings.make_state_dir()
    client = connect(settings.redis_url or embedded_redis.start(settings.redis_dir))
    jobs, keys, webhooks = RedisJobStore(client), Keys(client), Webhooks(client)
    try:
        artifacts = ArtifactStore.from_url(settings.artifacts_url)
        artifacts.sweep()
        await jobs.ping()
        await empty_trash(jobs, artifacts)
        await _check_keys(settings, keys)
        sender = asyncio.create_task(WebhookSender(webhooks, PinnedTransport(settings.private_webhooks)).run())
        await _Server(create_app(settings, jobs, artifacts, keys, webhooks, StoreMetrics(client)), settings).serve()
        sender.cancel()
    finally:
        await jobs.aclose()


async def _check_keys(settings: Settings, keys: Keys) -> None:
    if settings.first_key_file is not None:
        await keys.admit_first_key(settings.first_key_file)
    elif _is_loopback(settings.host):
        await keys.ensure_local_key(settings.key_file)
    elif not await keys.exist():
        raise Unavailable(
            f"refusing to listen on {settings.host}: there is no API key yet. "
            "Write one into a file that BITPRESS_FIRST_KEY_FILE names, "
            f"or start once on 127.0.0.1; the first key will be in {settings.key_file}"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def take_in(settings: Settings) -> list[Finding]:
    """Take jobs in again. Raises Unavailable when no Redis runs, StoreError when the storage cannot be listed."""
    url = settings.redis_url or embedded_redis.find(settings.redis_dir)
    if url is None:
        raise Unavailable(f"no Redis server runs in {settings.redis_dir}: start the service first")
    client = connect(url)
    try:
        return [each async for each in Recovery(client).take_in(ArtifactStore.from_url(settings.artifacts_url))]
    finally:
        await client.aclose()


def main() -> int:
    try:
        settings = Settings()
        logs.configure(settings.log_format)
        match sys.argv[1:]:
            case []:
                tracing.configure("api")
                asyncio.run(serve(settings))
            case ["doctor"]:
                print(json.dumps([check.model_dump() for check in asyncio.run(doctor.examine(settings))]))
            case ["import"]:
                print(json.dumps([asdict(finding) for finding in asyncio.run(take_in(settings))]))
            case unknown:
                print(f"bitpress: no command {' '.join(unknown)!r}; there are doctor and import", file=sys.stderr)
                return 2
    except ValidationError as error:
        for wrong in error.errors(include_url=False, include_input=False):
            print(f"bitpress: BITPRESS_{str(wrong['loc'][0]).upper()}: {wrong['msg']}", file=sys.stderr)
        return 1
    except BitpressError as error:
        print(f"bitpress: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
