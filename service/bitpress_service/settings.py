"""Where the service runs: everything an operator may set, each by an environment variable `BITPRESS_<NAME>`.

What a job is to do stands in its JobSpec; the two are never mixed.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bitpress.errors import Unavailable
from bitpress_service.logs import LogFormat


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "bitpress"


Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(lambda text: tuple(filter(None, text.split(","))) if isinstance(text, str) else text),
]
"""Several names with commas between them."""


class Settings(BaseSettings):
    """Defaults are the embedded service: one machine, one directory, loopback only."""

    model_config = SettingsConfigDict(env_prefix="BITPRESS_", frozen=True)

    state_dir: Path = Field(default_factory=_default_state_dir, description="all that the embedded default keeps")
    redis_url: str | None = Field(None, description="null: a private server in state_dir")
    storage_url: str | None = Field(None, description="file:///path or s3://bucket/prefix; null: state_dir/artifacts")
    first_key_file: Path | None = Field(None, description="a file with an API key that may do everything, made by you")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    lease_seconds: float = Field(30.0, gt=0, description="a job whose worker is silent this long goes to another")
    stall_seconds: float = Field(1800.0, gt=0, description="a shard that stands still this long is replaced")
    device_memory_gib: float | None = Field(
        None, gt=0, description="most that a job may plan to take of a device, of the host for CPU cores; null: all"
    )
    drain_seconds: float = Field(
        60.0, ge=0, description="time that the block in hand gets when a dispatcher is stopped"
    )
    max_body_bytes: int = Field(64 * 1024, ge=1024)
    requests_per_second: float = Field(1000.0, ge=0, description="what one API key may ask; 0: no limit")
    request_burst: int = Field(2000, ge=1, description="requests at once, before the limit counts")
    waiting_jobs_per_tenant: int = Field(1000, ge=1, description="jobs that are queued or paused")
    model_roots: Names = Field((), description="directories below which models and their texts may lie")
    model_buckets: Names = Field((), description="s3://bucket/prefix below which models may lie")
    model_hub: Names = Field((), description="owners, or owner/model, on the hub")
    text_roots: Names = Field((), description="more directories below which texts may lie")
    presign_seconds: int = Field(
        900, ge=0, le=7 * 24 * 3600, description="life of a download URL; 0: none, the API hands on what is downloaded"
    )
    streams_per_key: int = Field(200, ge=1, description="event streams that one API key may have open in a process")
    private_webhooks: bool = Field(False, description="webhooks may use http and addresses that are not public")
    log_format: LogFormat = Field("text", description="json: one object a line")
    shutdown_seconds: int = Field(3, ge=1, description="time that open requests get when the service stops")

    def make_state_dir(self) -> None:
        """Make the state directory when there is none; nobody else may look into it. Raises Unavailable."""
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot make the state directory {self.state_dir}: {error}") from error

    @property
    def redis_dir(self) -> Path:
        """Data of the embedded Redis server."""
        return self.state_dir / "redis"

    @property
    def artifacts_url(self) -> str:
        return self.storage_url or (self.state_dir / "artifacts").absolute().as_uri()

    @property
    def key_file(self) -> Path:
        """The API key of the embedded default."""
        return self.state_dir / "api-key"
