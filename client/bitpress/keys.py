"""What an API key is: its tenant, what it may do, and for how long."""

from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

Scope = Literal["jobs:read", "jobs:write", "artifacts:read", "webhooks:write", "metrics:read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USER_SCOPES: tuple[Scope, ...] = ("jobs:read", "jobs:write", "artifacts:read", "webhooks:write")

# A tenant is part of keys in Redis and of paths.
Tenant = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyRequest(_Model):
    """A key that is to be made. `admin` is the operator's scope: it makes, lists and revokes keys of all tenants."""

    tenant: Tenant
    name: str = Field("", max_length=200, description="what people call the key")
    scopes: tuple[Scope, ...] = Field(USER_SCOPES, min_length=1)
    expires_at: AwareDatetime | None = None

    @field_validator("expires_at")
    @classmethod
    def _expires_at(cls, value: datetime | None) -> datetime | None:
        if value is not None and value <= datetime.now(UTC):
            raise ValueError(f"expected a time that is still to come, found {value.isoformat()}")
        return value


class KeyRecord(_Model):
    """A key as it is listed. `id` may be shown and logged; the key itself is stored nowhere."""

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = Field(None, description="to the minute")


class IssuedKey(KeyRecord):
    """A new key, which cannot be read again."""

    key: str


class Caller(KeyRecord):
    """The key that a request carries, and the version of the service that it was sent to."""

    version: str
