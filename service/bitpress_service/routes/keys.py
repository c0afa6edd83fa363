"""API keys: made, listed, revoked by who has the scope `admin`."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from bitpress.keys import IssuedKey, KeyRecord, KeyRequest
from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.dependencies import AllKeys, Operator

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=KeyedRoute)


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyRecord]


@router.post("", status_code=201)
async def issue(request: KeyRequest, _: Operator, keys: AllKeys) -> IssuedKey:
    """Make a key for a tenant. The answer is the only place where it can be read."""
    return await keys.issue(request)


@router.get("")
async def list_keys(_: Operator, keys: AllKeys) -> KeyList:
    """All keys of all tenants, the oldest first."""
    return KeyList(data=list(await keys.listed()))


@router.delete("/{key_id}", status_code=204)
async def revoke(key_id: str, _: Operator, keys: AllKeys) -> None:
    """From here on the key is not known."""
    await keys.revoke(key_id)
