"""Who may see the page: logging in and out, sessions and their keys, forms of other sites, headers, other tenants."""

import hashlib
import re
from pathlib import Path

import httpx2
import pytest
from running_api import Api
from service_helpers import job_spec
from web_session import csrf_of, logged_in

from bitpress_service import web
from bitpress_service.redis_client import PREFIX

PAGES = ("/ui/jobs", "/ui/new", "/ui/compare", "/ui/jobs/job_1", "/ui/jobs/job_1/report", "/ui/jobs/job_1/events")


async def anonymous(api: Api) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=api.client.base_url, trust_env=False, timeout=60)


@pytest.mark.parametrize("page", PAGES)
async def test_a_stranger_is_asked_to_log_in_and_comes_back_to_the_page(api: Api, page: str) -> None:
    async with await anonymous(api) as client:
        answer = await client.get(f"{page}?text=a%26b")
        assert answer.status_code == 303
        asked = answer.headers["location"]
        assert asked == f"/ui/login?next={page.replace('/', '%2F')}%3Ftext%3Da%2526b"
        form = await client.get(asked)
        assert form.status_code == 200 and f'name="next" value="{page}?text=a%26b"' in form.text
        # The API's own key opens no page: a page is opened by its cookie alone.
        assert (await client.get(page, headers=dict(api.client.headers))).status_code == 303


async def test_a_part_of_a_page_sends_the_whole_page_to_the_login(api: Api) -> None:
    async with await anonymous(api) as client:
        headers = {"HX-Request": "true", "HX-Current-URL": f"{client.base_url}/ui/jobs/job_1"}
        answer = await client.get("/ui/jobs/job_1/live", headers=headers)
    assert answer.status_code == 401 and answer.headers["hx-redirect"] == "/ui/login?next=%2Fui%2Fjobs%2Fjob_1"


async def test_a_key_is_exchanged_for_a_cookie_that_scripts_and_other_sites_cannot_use(api: Api) -> None:
    key = await api.keys.create("local")
    async with await anonymous(api) as client:
        answer = await client.post("/ui/login", data={"key": f" {key}\n"})
        cookie = answer.headers["set-cookie"]
        assert re.search(r"HttpOnly; Max-Age=43200; Path=/ui; SameSite=strict$", cookie), cookie
        token = client.cookies["bitpress_session"]
        assert key not in cookie and hashlib.sha256(key.encode()).hexdigest() not in cookie
        stored = await api.keys.client.keys(f"{PREFIX}session:*")
        assert stored == [f"{PREFIX}session:{hashlib.sha256(token.encode()).hexdigest()}"]
        assert 0 < await api.keys.client.ttl(stored[0]) <= 43200
        assert (await client.get("/ui/jobs")).status_code == 200


async def test_a_key_that_is_not_known_opens_nothing(api: Api) -> None:
    async with await anonymous(api) as client:
        answer = await client.post("/ui/login", data={"key": "bp_none", "next": "/ui/new"})
        assert answer.status_code == 401 and "not known" in answer.text and "bp_none" not in answer.text
        assert 'value="/ui/new"' in answer.text and "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example/ui/", "//evil.example/ui/", "/ui/..\\\\evil", "/v1/jobs", "javascript:alert(1)"]
)
async def test_a_login_leads_nowhere_else(api: Api, elsewhere: str) -> None:
    key = await api.keys.create("local")
    async with await anonymous(api) as client:
        answer = await client.post("/ui/login", data={"key": key, "next": elsewhere})
        assert answer.headers["location"] == "/ui/jobs"


async def test_a_session_ends_with_its_key_and_with_a_logout(api: Api) -> None:
    async with logged_in(api) as client, logged_in(api) as other:
        await client.post("/ui/logout")
        assert "bitpress_session" not in client.cookies
        assert (await other.get("/ui/jobs")).status_code == 200
        for name in await api.keys.client.keys(f"{PREFIX}key:*"):
            await api.keys.client.delete(name)
        assert (await other.get("/ui/jobs")).status_code == 303


async def test_a_logout_is_one_for_whoever_kept_the_cookie(api: Api) -> None:
    async with logged_in(api) as client:
        token = client.cookies["bitpress_session"]
        await client.post("/ui/logout")
        client.cookies.set("bitpress_session", token, path="/ui")
        assert (await client.get("/ui/jobs")).status_code == 303


@pytest.mark.parametrize("address", ["/ui/jobs/{id}/cancel", "/ui/new", "/ui/new/plan", "/ui/new/method"])
async def test_a_form_without_its_sessions_token_changes_nothing(api: Api, address: str) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api) as client, logged_in(api) as other:
        token = csrf_of((await other.get("/ui/new")).text)
        for form in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": token}, {"csrf": "\N{BULLET}"}):
            answer = await client.post(address.format(id=job.id), data=form)
            assert answer.status_code == 403 and "reload the page" in answer.text
    assert await api.jobs.get(job.id) == job
    assert len((await api.jobs.list("local", limit=9)).data) == 1


@pytest.mark.parametrize("address", ["/ui/login", "/ui/logout", "/ui/theme"])
async def test_a_form_of_another_site_is_refused(api: Api, address: str) -> None:
    async with logged_in(api) as client:
        answer = await client.post(address, data={"key": "bp_x"}, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert (await client.get("/ui/jobs")).status_code == 200


async def test_the_page_of_a_key_without_a_scope_does_not_offer_what_it_refuses(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api, "local", "jobs:read", "jobs:write") as writer:
        token = csrf_of((await writer.get(f"/ui/jobs/{job.id}")).text)
        assert token
    async with logged_in(api, "local", "jobs:read") as reader:
        page = await reader.get(f"/ui/jobs/{job.id}")
        assert page.status_code == 200 and "/cancel" not in page.text
        refused = await reader.get("/ui/new")
        assert refused.status_code == 403 and "lacks the scope jobs:write" in refused.text


async def test_another_tenants_job_is_not_there(api: Api) -> None:
    job = await api.succeeded_job()
    async with logged_in(api, "other") as client:
        assert job.id not in (await client.get("/ui/jobs")).text
        token = csrf_of((await client.get("/ui/new")).text)
        paths = (job.id, f"{job.id}/live", f"{job.id}/report", f"{job.id}/events", f"{job.id}/artifacts/report.json")
        for path in paths:
            answer = await client.get(f"/ui/jobs/{path}")
            assert answer.status_code == 404 and "no job" in answer.text
        assert (await client.post(f"/ui/jobs/{job.id}/cancel", data={"csrf": token})).status_code == 404
        assert (await client.get(f"/ui/compare?job={job.id}&job={job.id}")).status_code == 404
        assert (await client.get(f"/ui/new?like={job.id}")).status_code == 404


async def test_every_answer_forbids_what_is_not_ours(api: Api) -> None:
    async with logged_in(api) as client:
        for path in ("/ui/jobs", "/ui/login", "/ui/nowhere", "/ui/static/ui.js", "/ui/jobs/job_x"):
            headers = (await client.get(path)).headers
            policy = headers["content-security-policy"]
            assert (
                policy.startswith("default-src 'none'")
                and "unsafe" not in policy
                and "frame-ancestors 'none'" in policy
            )
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["x-request-id"]
            kept = "max-age=31536000" in headers["cache-control"]
            assert kept == path.startswith("/ui/static/"), (path, headers["cache-control"])


async def test_pages_name_no_other_host_and_hold_no_script_or_style(api: Api) -> None:
    job = await api.succeeded_job()
    async with logged_in(api) as client:
        for path in ("/ui/jobs", "/ui/new", "/ui/compare", "/ui/cluster", f"/ui/jobs/{job.id}", "/ui/login"):
            page = (await client.get(path)).text
            assert re.findall(r"(?:src|href|action)=[\"'](?!/ui/|#)", page) == []
            assert re.findall(r"<style|\bstyle=|\bon\w+=|javascript:", page) == []
            assert re.findall(r"<script(?! src=\"/ui/static/)", page) == []
            for address in re.findall(r"(/ui/static/[^\"']+)", page):
                assert (await client.get(address)).status_code == 200


async def test_no_file_outside_of_static_is_served(api: Api) -> None:
    async with logged_in(api) as client:
        for path in ("/ui/static/../app.py", "/ui/static/%2e%2e/app.py", "/ui/static/..%2fapp.py", "/ui/static/"):
            assert (await client.get(path)).status_code == 404


async def test_the_theme_is_kept_in_a_cookie(api: Api) -> None:
    async with await anonymous(api) as client:
        assert 'data-theme="auto"' in (await client.get("/ui/login")).text
        answer = await client.post("/ui/theme", data={"theme": "dark", "next": "/ui/login"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/login")
        assert 'data-theme="dark"' in (await client.get("/ui/login")).text
        await client.post("/ui/theme", data={"theme": "<pink>"})
        assert 'data-theme="dark"' in (await client.get("/ui/login")).text


def test_files_of_others_are_unchanged() -> None:
    places = [Path(web.__file__).parent / "static" / "vendor", Path(__file__).parents[1] / "browser" / "vendor"]
    for place in places:
        listed = dict(re.findall(r"^\| `(\S+)` \|.*\| ([0-9a-f]{64}) \|$", (place / "README.md").read_text(), re.M))
        found = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in place.iterdir()
            if path.name != "README.md"
        }
        assert found and found == listed
