"""The webhooks of all tenants and what is still to be sent to them, in Redis; `lua/common.lua` lists the keys.

A delivery is made in the same step as the change it tells of. It is claimed for a while by one process at a time, and
comes back when that process was lost: it is sent at least once, with the same id every time.
"""

import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitpress.errors import Conflict, NotFound
from bitpress.webhooks import SECRET_PREFIX, Delivery, Webhook, WebhookRequest, WebhookSecret
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import Scripts, milliseconds, pairs, time_of

MAX_WEBHOOKS = 20  # of a tenant: every change of a job looks at all of them
KEPT_DELIVERIES = 100
ROTATION_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Claimed:
    """A delivery to make now, as its `tries`-th try; newest secret first."""

    delivery: Delivery
    url: str
    secrets: Sequence[str]


class Webhooks(Scripts):
    """Every method raises Unavailable when Redis cannot be reached, and NotFound for another tenant's webhook."""

    async def create(self, tenant: str, request: WebhookRequest) -> WebhookSecret:
        """Raises Conflict when the tenant has too many."""
        webhook_id, secret = f"wh_{secrets.token_hex(12)}", _new_secret()
        events = " ".join(dict.fromkeys(request.events))
        reply = await self._run("add_webhook", webhook_id, tenant, request.url, events, secret, MAX_WEBHOOKS)
        if reply == "full":
            raise Conflict(f"there are {MAX_WEBHOOKS} webhooks already; remove one first")
        return _with_secret(await self.get(webhook_id, tenant), secret)

    async def list(self, tenant: str) -> Sequence[Webhook]:
        with reporting_unavailable():
            ids: Any = await self._client.smembers(f"{PREFIX}webhooks:{tenant}")
        found = [_webhook(fields) for webhook_id in ids if (fields := await self._fields(webhook_id, tenant))]
        return sorted(found, key=lambda webhook: (webhook.created_at, webhook.id))

    async def get(self, webhook_id: str, tenant: str) -> Webhook:
        return _webhook(await self._found(webhook_id, tenant))

    async def remove(self, webhook_id: str, tenant: str) -> None:
        """What was still to be sent to it is dropped."""
        await self._found(webhook_id, tenant)
        with reporting_unavailable():
            async with self._client.pipeline(transaction=True) as transaction:
                transaction.srem(f"{PREFIX}webhooks:{tenant}", webhook_id)
                transaction.delete(f"{PREFIX}webhook:{webhook_id}", f"{PREFIX}deliveries:{webhook_id}")
                await transaction.execute()

    async def rotate(self, webhook_id: str, tenant: str) -> WebhookSecret:
        """Give it a new secret beside the old one, which signs for another day; a disabled webhook is enabled."""
        before, secret = await self._found(webhook_id, tenant), _new_secret()
        new: dict[Any, Any] = {
            "secret": secret,
            "old_secret": before["secret"],
            "old_until": milliseconds(time.time() + ROTATION_SECONDS),
        }
        with reporting_unavailable():
            async with self._client.pipeline(transaction=True) as transaction:
                transaction.hset(f"{PREFIX}webhook:{webhook_id}", mapping=new)
                transaction.hdel(f"{PREFIX}webhook:{webhook_id}", "disabled")
                await transaction.execute()
        return _with_secret(await self.get(webhook_id, tenant), secret)

    async def test(self, webhook_id: str, tenant: str) -> Delivery:
        """Queue a message of type `webhook.test`."""
        await self._found(webhook_id, tenant)
        return _delivery(pairs(await self._run("test_webhook", webhook_id, secrets.token_hex(8))))

    async def deliveries(self, webhook_id: str, tenant: str) -> Sequence[Delivery]:
        """The last ones, newest first."""
        await self._found(webhook_id, tenant)
        with reporting_unavailable():
            ids: Any = await self._client.lrange(f"{PREFIX}deliveries:{webhook_id}", 0, KEPT_DELIVERIES - 1)
            async with self._client.pipeline(transaction=False) as pipeline:
                for delivery_id in ids:
                    pipeline.hgetall(f"{PREFIX}delivery:{delivery_id}")
                records = await pipeline.execute()
        return [_delivery(fields) for fields in records if fields]

    async def claim(self, lease_seconds: float, limit: int) -> Sequence[Claimed]:
        """Deliveries that are due, for this process alone until the lease runs out."""
        replies = await self._run("claim_deliveries", milliseconds(lease_seconds), limit)
        return [_claimed(pairs(delivery), pairs(webhook)) for delivery, webhook in replies]

    async def settle(
        self, claimed: Claimed, status: int | None, error: str | None, retry_seconds: float | None
    ) -> None:
        """Write down how a try went: `error` is None when it succeeded, `retry_seconds` when it was the last one.

        A claim whose lease ran out and that another process has taken since changes nothing.
        """
        await self._run(
            "settle_delivery", claimed.delivery.id, claimed.delivery.tries, status or "", error or "",
            "" if retry_seconds is None else milliseconds(retry_seconds),
        )  # fmt: skip

    async def disable(self, webhook_id: str, reason: str) -> None:
        await self._run("disable_webhook", webhook_id, reason)

    async def _fields(self, webhook_id: str, tenant: str) -> Mapping[str, str]:
        with reporting_unavailable():
            fields: Any = await self._client.hgetall(f"{PREFIX}webhook:{webhook_id}")
        return fields if fields and fields["tenant"] == tenant else {}

    async def _found(self, webhook_id: str, tenant: str) -> Mapping[str, str]:
        if not (fields := await self._fields(webhook_id, tenant)):
            raise NotFound(f"no webhook {webhook_id!r}")
        return fields


def _new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _webhook(fields: Mapping[str, str]) -> Webhook:
    return Webhook(
        id=fields["id"],
        url=fields["url"],
        events=tuple(fields["events"].split()),
        disabled=fields.get("disabled"),
        created_at=time_of(fields["created_at"]),
    )


def _with_secret(webhook: Webhook, secret: str) -> WebhookSecret:
    return WebhookSecret(**dict(webhook), secret=secret)


def _delivery(fields: Mapping[str, str]) -> Delivery:
    return Delivery(
        id=fields["id"],
        webhook=fields["webhook"],
        type=fields["type"],
        job_id=fields["job"] or None,
        state=fields["state"],
        tries=int(fields["tries"]),
        status=int(fields["status"]) if fields.get("status") else None,
        error=fields.get("error") or None,
        created_at=time_of(fields["created_at"]),
        next_try_at=time_of(fields["due"]) if fields["state"] == "pending" else None,
    )


def _claimed(delivery: Mapping[str, str], webhook: Mapping[str, str]) -> Claimed:
    signing = [webhook["secret"]]
    if "old_secret" in webhook and milliseconds(time.time()) < int(webhook["old_until"]):
        signing.append(webhook["old_secret"])
    return Claimed(_delivery(delivery), webhook["url"], signing)
