"""Webhooks: what a service tells other systems about jobs, signed as Standard Webhooks (standardwebhooks.com) asks.

A message is a POST with a thin JSON body (`type`, `timestamp`, and in `data` the job's id and state) and the headers
`webhook-id` (the same on every try), `webhook-timestamp` and `webhook-signature`. A receiver checks it by `verify`.
"""

import base64
import binascii
import hmac
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, field_validator

from bitpress.errors import Unauthorized

SECRET_PREFIX = "whsec_"  # noqa: S105
TOLERANCE_SECONDS = 300.0  # a message that is older may be one that somebody recorded

EventType = Literal[
    "job.queued", "job.running", "job.pausing", "job.paused", "job.cancelling", "job.succeeded", "job.failed",
    "job.cancelled",
]  # fmt: skip
DeliveryState = Literal["pending", "delivered", "failed"]
_URL = TypeAdapter(HttpUrl)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WebhookRequest(_Model):
    """A receiver, and what it is to be told."""

    url: str = Field(max_length=2048, description="https, without a user and a fragment")
    events: tuple[EventType, ...] = Field(("job.succeeded", "job.failed", "job.cancelled"), min_length=1, max_length=16)

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parsed = _URL.validate_python(value)
        if parsed.username or parsed.password or parsed.fragment:
            raise ValueError("expected a URL without user, password and fragment")
        return value


class Webhook(_Model):
    """A receiver that is registered; `disabled` says why it is told nothing any more."""

    id: str
    url: str
    events: tuple[str, ...]
    disabled: str | None = None
    created_at: datetime


class WebhookSecret(Webhook):
    """A webhook together with its new secret, which is shown this once."""

    secret: str


class Delivery(_Model):
    """One message to one receiver, over all its tries; `status` is the HTTP status of the last one."""

    id: str
    webhook: str
    type: str
    job_id: str | None = None
    state: DeliveryState
    tries: int = 0
    status: int | None = None
    error: str | None = None
    created_at: datetime
    next_try_at: datetime | None = None


def sign(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, `v1,<base64>`, with spaces between."""
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digests = (hmac.digest(_key(secret), content, sha256) for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> None:
    """Check a message that claims to come from the service; `headers` by their names in lower case.

    Raises Unauthorized for a wrong signature and for one whose time is more than five minutes off.
    """
    given, moment = headers.get("webhook-signature", ""), headers.get("webhook-timestamp", "")
    if not moment.isascii() or not moment.isdigit() or abs(time.time() - int(moment)) > TOLERANCE_SECONDS:
        raise Unauthorized("the webhook's timestamp is missing or too far from now")
    expected = sign([secret], headers.get("webhook-id", ""), int(moment), body)
    if not any(hmac.compare_digest(expected.encode(), one.encode()) for one in given.split(" ")):
        raise Unauthorized("the webhook's signature is not that of its secret")


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise Unauthorized(f"expected a secret of the form {SECRET_PREFIX}<base64>") from None
