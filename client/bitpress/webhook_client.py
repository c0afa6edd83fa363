"""The webhooks of one tenant, as `Client.webhooks`."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from bitpress.transport import Transport
from bitpress.webhooks import Delivery, EventType, Webhook, WebhookSecret

_PATH = "/v1/webhooks"
_WEBHOOKS = TypeAdapter(tuple[Webhook, ...])
_DELIVERIES = TypeAdapter(tuple[Delivery, ...])


class Webhooks:
    """Register receivers and look at what was sent to them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(self, url: str, events: Sequence[EventType] | None = None) -> WebhookSecret:
        """Register a receiver. The secret in the answer is not shown again. Raises InvalidRequest, ForbiddenAddress."""
        body: dict[str, Any] = {"url": url} | ({"events": list(events)} if events else {})
        return WebhookSecret.model_validate(self._call("POST", _PATH, body))

    def list(self) -> tuple[Webhook, ...]:
        return _WEBHOOKS.validate_python(self._call("GET", _PATH)["data"])

    def get(self, webhook_id: str) -> Webhook:
        return Webhook.model_validate(self._call("GET", f"{_PATH}/{webhook_id}"))

    def remove(self, webhook_id: str) -> None:
        self._transport.request("DELETE", f"{_PATH}/{webhook_id}")

    def rotate(self, webhook_id: str) -> WebhookSecret:
        """A new secret; for a day messages are signed with the old one, too. Enables a webhook that was disabled."""
        return WebhookSecret.model_validate(self._call("POST", f"{_PATH}/{webhook_id}/rotate"))

    def test(self, webhook_id: str) -> Delivery:
        """Send a message of type `webhook.test`."""
        return Delivery.model_validate(self._call("POST", f"{_PATH}/{webhook_id}/test"))

    def deliveries(self, webhook_id: str) -> tuple[Delivery, ...]:
        """The last messages, newest first."""
        return _DELIVERIES.validate_python(self._call("GET", f"{_PATH}/{webhook_id}/deliveries")["data"])

    def _call(self, method: str, path: str, body: object = None) -> Any:
        return self._transport.request(method, path, json=body).json()
