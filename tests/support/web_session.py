"""A browser without a screen: an HTTP client with a session of the page."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from running_api import Api


def csrf_of(page: str) -> str:
    """The token that the forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found is not None, page
    return found[1]


@asynccontextmanager
async def logged_in(api: Api, tenant: str = "local", *scopes: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that has logged in with a new key of `tenant`."""
    key = await (api.keys.create(tenant, scopes) if scopes else api.keys.create(tenant))
    async with httpx2.AsyncClient(base_url=api.client.base_url, trust_env=False, timeout=60) as client:
        answer = await client.post("/ui/login", data={"key": key, "next": "/ui/jobs"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs")
        yield client
