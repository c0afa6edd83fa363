"""Sends what webhooks are to be told. Every API process runs one; each delivery is one process's at a time."""

import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass

import httpx2

from bitpress.errors import ForbiddenAddress, Unavailable
from bitpress.webhooks import Delivery, sign
from bitpress_service.webhooks import Claimed, Webhooks

TRY_SECONDS = 5.0
LEASE_SECONDS = 30.0  # several times what a try may take
AT_ONCE = 16
POLL_SECONDS = 1.0
# After the first try: seven more over about a day, each up to a tenth earlier or later.
RETRY_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 28800.0, 36000.0)
JITTER = 0.1
GONE, TOO_MANY = 410, 429

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """How one try went; `again`: another one may go better."""

    status: int | None
    error: str | None
    again: bool = False


class WebhookSender:
    """Takes ownership of `transport`."""

    def __init__(self, webhooks: Webhooks, transport: httpx2.AsyncBaseTransport) -> None:
        self._webhooks = webhooks
        self._http = httpx2.AsyncClient(transport=transport, trust_env=False, timeout=TRY_SECONDS)

    async def run(self) -> None:
        """Send until cancelled; what was being sent then is sent again by the next process."""
        async with self._http:
            while True:
                try:
                    sent = await self.send_due()
                except Unavailable as error:
                    log.warning("no webhooks are sent: %s", error)
                    sent = 0
                if not sent:
                    await asyncio.sleep(POLL_SECONDS)

    async def send_due(self) -> int:
        """Try everything that is due, some at once; returns how many were tried."""
        claims = await self._webhooks.claim(LEASE_SECONDS, AT_ONCE)
        await asyncio.gather(*map(self._send, claims))
        return len(claims)

    async def _send(self, claimed: Claimed) -> None:
        delivery = claimed.delivery
        answer = await self._try(claimed)
        if answer.status == GONE:
            await self._webhooks.disable(delivery.webhook, "the receiver answered 410 Gone")
        delay = _pause(delivery.tries) if answer.again else None
        await self._webhooks.settle(claimed, answer.status, answer.error, delay)
        outcome = answer.error or "delivered"
        log.info("webhook %s: %s, try %d: %s", delivery.webhook, delivery.id, delivery.tries, outcome)

    async def _try(self, claimed: Claimed) -> Answer:
        delivery, body, now = claimed.delivery, message(claimed.delivery), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "bitpress",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(claimed.secrets, delivery.id, now, body),
        }
        try:
            # The answer's body is never read. The limit is for all of it: a peer may send its header byte by byte.
            async with (
                asyncio.timeout(TRY_SECONDS),
                self._http.stream("POST", claimed.url, content=body, headers=headers) as response,
            ):
                return _judge(response.status_code)
        except ForbiddenAddress as error:
            return Answer(None, error.message)
        except TimeoutError:
            return Answer(None, f"no answer within {TRY_SECONDS:g} s", again=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return Answer(None, str(error) or type(error).__name__, again=True)


def message(delivery: Delivery) -> bytes:
    """The body: what happened to which job. Whoever wants more asks the API, with a key."""
    data = {} if delivery.job_id is None else {"job_id": delivery.job_id, "status": delivery.type.partition(".")[2]}
    return json.dumps({"type": delivery.type, "timestamp": delivery.created_at.isoformat(), "data": data}).encode()


def _judge(status: int) -> Answer:
    if 200 <= status < 300:
        return Answer(status, None)
    return Answer(status, f"the receiver answered {status}", again=status == TOO_MANY or status >= 500)


def _pause(tries: int) -> float | None:
    """How long to wait after so many tries; None after the last one."""
    if tries > len(RETRY_SECONDS):
        return None
    return RETRY_SECONDS[tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)
