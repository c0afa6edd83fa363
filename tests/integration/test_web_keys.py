"""API keys as a page: shown once, listed without the key, revoked; for operators alone."""

import re

import pytest
from running_api import Api
from web_session import csrf_of, logged_in

from bitpress_service.keys import Key

FORM = {"tenant": "acme", "name": "build <server>", "scopes": "jobs:read", "days": "30"}


async def test_a_key_is_made_shown_once_and_revoked(api: Api) -> None:
    async with logged_in(api, "local", "admin", "jobs:read") as client:
        token = csrf_of((await client.get("/ui/keys")).text)
        made = await client.post("/ui/keys", data=FORM | {"csrf": token})
        found = re.search(r'<code class="secret break">(bp_\w+)</code>', made.text)
        assert made.status_code == 200 and found is not None
        key = found[1]
        known = await api.keys.lookup(key)
        assert isinstance(known, Key) and (known.tenant, known.scopes) == ("acme", {"jobs:read"})
        listed = (await client.get("/ui/keys")).text
        assert key not in listed and "build &lt;server&gt;" in listed and known.id in listed
        revoked = await client.post(f"/ui/keys/{known.id}/revoke", data={"csrf": token})
        assert revoked.status_code == 303
        assert await api.keys.lookup(key) is None
        assert (await client.post(f"/ui/keys/{known.id}/revoke", data={"csrf": token})).status_code == 404


@pytest.mark.parametrize(
    ("change", "field"), [({"tenant": "A C"}, "tenant"), ({"name": "n" * 201}, "name"), ({"scopes": ""}, "scopes")]
)
async def test_a_request_that_is_wrong_says_where(api: Api, change: dict[str, str], field: str) -> None:
    async with logged_in(api, "local", "admin") as client:
        token = csrf_of((await client.get("/ui/keys")).text)
        before = len(await api.keys.listed())
        answer = await client.post("/ui/keys", data=FORM | {"csrf": token} | change)
        assert answer.status_code == 422 and "field-error" in answer.text and f'name="{field}"' in answer.text
        assert len(await api.keys.listed()) == before


async def test_keys_are_an_operators(api: Api) -> None:
    async with logged_in(api) as client:
        assert "/ui/keys" not in (await client.get("/ui/jobs")).text
        answer = await client.get("/ui/keys")
        assert answer.status_code == 403 and "lacks the scope admin" in answer.text
        token = csrf_of((await client.get("/ui/new")).text)
        assert (await client.post("/ui/keys", data=FORM | {"csrf": token})).status_code == 403


async def test_who_revokes_their_own_key_is_logged_out(api: Api) -> None:
    async with logged_in(api, "local", "admin") as client:
        own = next(record for record in await api.keys.listed() if record.scopes == ("admin",))
        token = csrf_of((await client.get("/ui/keys")).text)
        await client.post(f"/ui/keys/{own.id}/revoke", data={"csrf": token})
        assert (await client.get("/ui/keys")).headers["location"] == "/ui/login?next=%2Fui%2Fkeys"
