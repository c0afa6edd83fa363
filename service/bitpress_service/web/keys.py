"""API keys as a page: made, listed and revoked by an operator."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from bitpress.keys import SCOPES, USER_SCOPES, IssuedKey, KeyRequest
from bitpress_service.routes import keys as key_routes
from bitpress_service.routes.dependencies import AllKeys, Operator
from bitpress_service.web.login import SessionRoute, read_form
from bitpress_service.web.rendering import render

router = APIRouter(prefix="/keys", route_class=SessionRoute)

LIVES = {"": "never", "7": "in 7 days", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}


@router.get("")
async def list_keys(request: Request, caller: Operator, keys: AllKeys) -> Response:
    return await _page(request, caller, keys, {"tenant": caller.tenant, "scopes": USER_SCOPES})


@router.post("")
async def issue(request: Request, caller: Operator, keys: AllKeys) -> Response:
    """Make a key and show it, this once."""
    posted = await read_form(request)
    form = dict(posted)
    days = form.get("days", "")
    values = {
        "tenant": form.get("tenant", "").strip(),
        "name": form.get("name", "").strip(),
        "scopes": tuple(text for name, text in posted if name == "scopes"),
        "expires_at": datetime.now(UTC) + timedelta(days=int(days)) if days and days in LIVES else None,
    }
    try:
        wanted = KeyRequest.model_validate(values)
    except ValidationError as error:
        errors = {str(each["loc"][0]): each["msg"] for each in error.errors()}
        return await _page(request, caller, keys, values | {"days": days}, errors=errors)
    issued = await key_routes.issue(wanted, caller, keys)
    return await _page(request, caller, keys, {"tenant": wanted.tenant, "scopes": USER_SCOPES}, issued=issued)


@router.post("/{key_id}/revoke")
async def revoke(key_id: str, caller: Operator, keys: AllKeys) -> Response:
    await key_routes.revoke(key_id, caller, keys)
    return RedirectResponse("/ui/keys", 303)


async def _page(
    request: Request,
    caller: Operator,
    keys: AllKeys,
    values: Mapping[str, object],
    *,
    errors: dict[str, str] | None = None,
    issued: IssuedKey | None = None,
) -> Response:
    listed = (await key_routes.list_keys(caller, keys)).data
    return render(
        request,
        "keys.html",
        422 if errors else 200,
        keys=listed,
        scopes=SCOPES,
        lives=LIVES,
        values={"name": "", "days": "", **values},
        errors=errors or {},
        issued=issued,
    )
