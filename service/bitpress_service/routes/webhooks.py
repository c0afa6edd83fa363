"""Webhooks: register receivers, rotate their secrets, see what was sent to them."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from bitpress.webhooks import Delivery, Webhook, WebhookRequest, WebhookSecret
from bitpress_service.auth import KeyedRoute
from bitpress_service.outbound import check_scheme
from bitpress_service.routes.dependencies import ServiceSettings, WebhookOwner, Webhooks

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=KeyedRoute)


class WebhookList(BaseModel):
    object: Literal["list"] = "list"
    data: tuple[Webhook, ...]


class DeliveryList(BaseModel):
    """The last messages, newest first."""

    object: Literal["list"] = "list"
    data: tuple[Delivery, ...]


@router.post("", status_code=201)
async def create(
    webhook: WebhookRequest, caller: WebhookOwner, webhooks: Webhooks, settings: ServiceSettings, response: Response
) -> WebhookSecret:
    """Register a receiver. Its secret is in this answer and in no other."""
    check_scheme(webhook.url.partition(":")[0].lower(), settings.private_webhooks)
    created = await webhooks.create(caller.tenant, webhook)
    response.headers["Location"] = f"/v1/webhooks/{created.id}"
    return created


@router.get("")
async def list_webhooks(caller: WebhookOwner, webhooks: Webhooks) -> WebhookList:
    return WebhookList(data=tuple(await webhooks.list(caller.tenant)))


@router.get("/{webhook_id}")
async def get(webhook_id: str, caller: WebhookOwner, webhooks: Webhooks) -> Webhook:
    return await webhooks.get(webhook_id, caller.tenant)


@router.delete("/{webhook_id}", status_code=204)
async def remove(webhook_id: str, caller: WebhookOwner, webhooks: Webhooks) -> None:
    """Remove a receiver; what was still to be sent to it is dropped."""
    await webhooks.remove(webhook_id, caller.tenant)


@router.post("/{webhook_id}/rotate")
async def rotate(webhook_id: str, caller: WebhookOwner, webhooks: Webhooks) -> WebhookSecret:
    """A new secret; messages carry the old one's signature, too, for a day. Enables a webhook that was disabled."""
    return await webhooks.rotate(webhook_id, caller.tenant)


@router.post("/{webhook_id}/test", status_code=202)
async def test(webhook_id: str, caller: WebhookOwner, webhooks: Webhooks) -> Delivery:
    """Send a message of type `webhook.test`; how it went stands among the deliveries."""
    return await webhooks.test(webhook_id, caller.tenant)


@router.get("/{webhook_id}/deliveries")
async def deliveries(webhook_id: str, caller: WebhookOwner, webhooks: Webhooks) -> DeliveryList:
    return DeliveryList(data=tuple(await webhooks.deliveries(webhook_id, caller.tenant)))
