"""What the pages say: lists and filters, one job in every state, reports, comparisons, and everything escaped."""

import html
import re

import pytest
from running_api import Api
from sample_report import NASTY, sample_report
from service_helpers import LEASE, block_record, failure, job_spec
from web_session import csrf_of, logged_in

from bitpress.advice import ADVICE
from bitpress.artifacts import MANIFEST, REPORT, ArtifactFile, Manifest, Report
from bitpress.errors import ERRORS
from bitpress.jobs import Job, JobSpec, JobState, Progress, parse_spec
from bitpress.sweeps import SweepSpec
from bitpress_service.artifactstore import job_key
from bitpress_service.web.steering import ACTIONS


async def succeed(api: Api, report: Report) -> Job:
    """A job that ended with this report."""
    job, _ = await api.jobs.create("local", report.spec)
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None and claim.job.id == job.id
    content = report.model_dump_json().encode()
    manifest = Manifest(
        spec=report.spec,
        fingerprint="0" * 64,
        files=(ArtifactFile(name=REPORT, bytes=len(content), sha256="a" * 64),),
    )
    keys = {name: job_key("local", job.id, claim.fence, name) for name in (REPORT, MANIFEST)}
    api.artifacts.put_bytes(keys[REPORT], content)
    api.artifacts.put_bytes(keys[MANIFEST], manifest.model_dump_json().encode())
    return await api.jobs.finish(job.id, claim.fence, state="succeeded", files=keys)


def text_of(page: str) -> str:
    """A page as it is read."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


async def test_an_empty_list_says_what_to_do_next(api: Api) -> None:
    async with logged_in(api) as client:
        page = (await client.get("/ui/jobs")).text
        assert "No jobs yet" in page and 'href="/ui/new"' in page and "bitpress submit" in page
        page = (await client.get("/ui/jobs?state=failed")).text
        assert "No job fits" in page and 'href="/ui/jobs"' in page


async def test_jobs_are_listed_filtered_and_paged(api: Api) -> None:
    jobs = [(await api.jobs.create("local", job_spec(bits=2 + n % 2, number=str(n))))[0] for n in range(30)]
    await api.jobs.request_cancel(jobs[7].id)
    async with logged_in(api) as client:

        async def listed(query: str) -> set[str]:
            return set(re.findall(r'href="/ui/jobs/(job_\w+)"', (await client.get(f"/ui/jobs{query}")).text))

        assert await listed("?state=cancelled") == {jobs[7].id}
        assert await listed("?text=number%3D3") == {jobs[3].id}
        assert await listed(f"?text={jobs[9].id[-8:].lower()}") == {jobs[9].id}
        assert await listed("?text=nowhere") == set()
        first = (await client.get("/ui/jobs?text=SPQR+some")).text
        older = re.search(r'href="([^"]+)" rel="next"', first)
        assert older is not None
        second = (await client.get(html.unescape(older[1]))).text
        found = [set(re.findall(r'href="/ui/jobs/(job_\w+)"', page)) for page in (first, second)]
        assert len(found[0]) == 25 and not found[0] & found[1]
        assert found[0] | found[1] == {job.id for job in jobs}
        assert "Newest" in second and 'rel="next"' not in second


async def test_a_member_of_a_sweep_leads_to_the_others(api: Api) -> None:
    methods = [{"kind": "spqr", "bits": bits} for bits in (2, 3, 4)]
    sweep = SweepSpec.model_validate(job_spec().model_dump() | {"method": methods})
    members, _ = await api.jobs.create_sweep("local", sweep)
    alone, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api) as client:
        link = re.search(r'href="(/ui/jobs\?sweep=[^"]+)"', (await client.get(f"/ui/jobs/{members[1].id}")).text)
        assert link is not None
        page = (await client.get(html.unescape(link[1]))).text
        assert set(re.findall(r'href="/ui/jobs/(job_\w+)"', page)) == {job.id for job in members}
        assert "Jobs of a sweep" in page and str(members[0].sweep) in page
        assert "sweep=" not in (await client.get(f"/ui/jobs/{alone.id}")).text


async def test_a_part_of_the_list_is_sent_to_a_script(api: Api) -> None:
    async with logged_in(api) as client:
        page = (await client.get("/ui/jobs", headers={"HX-Request": "true"})).text
        assert page.startswith('<div id="table"') and "<html" not in page


async def test_a_running_job_shows_how_far_it_is(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    progress = Progress(
        phase="calibrating", blocks_done=2, blocks_total=4, linear="fc1", fraction=0.625, eta_seconds=3725
    )
    for index in (0, 1):
        await api.jobs.record(job.id, claim.fence, block=block_record(index))
    await api.jobs.record(job.id, claim.fence, progress=progress, log=f"says {NASTY}")
    async with logged_in(api) as client:
        page = (await client.get(f"/ui/jobs/{job.id}")).text
        part = (await client.get(f"/ui/jobs/{job.id}/live")).text
        listed = text_of((await client.get("/ui/jobs")).text)
    for shown in (page, part):
        text = text_of(shown)
        assert "Calibrating · block 2 of 4 · fc1" in text and "1:02:05 left" in text and 'value="0.625"' in shown
        assert "block 1: relative error 0.001, 1001 B" in text and "block 2: not yet published" in text
        assert len(re.findall(r"<rect ", shown)) == 2
    assert "62 % · calibrating · block 2 of 4 · 1:02:05 left" in listed
    assert part.startswith('<div id="live"')
    assert f'data-events="/ui/jobs/{job.id}/events?after=' in page
    assert f"says {html.escape(NASTY)}" in html.unescape(page).replace("&#39;", "'").replace(NASTY, html.escape(NASTY))
    assert "<script>alert" not in page


async def test_events_come_to_whoever_is_logged_in(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    await api.jobs.request_cancel(job.id)
    async with logged_in(api) as client:
        answer = await client.get(f"/ui/jobs/{job.id}/events?after=0")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert re.findall(r'"state":"(\w+)"', answer.text) == ["queued", "cancelled"]


async def test_a_failed_job_says_what_to_do(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    await api.jobs.finish(job.id, claim.fence, state="failed", error=failure())
    async with logged_in(api) as client:
        text = text_of((await client.get(f"/ui/jobs/{job.id}")).text)
    assert "Failed: out-of-memory" in text and "device 0 ran out" in text and ADVICE["out-of-memory"] in text


def test_there_is_advice_for_every_error() -> None:
    assert set(ERRORS) <= set(ADVICE)


async def test_a_job_is_cancelled_by_its_button(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api) as client:
        token = csrf_of((await client.get(f"/ui/jobs/{job.id}")).text)
        answer = await client.post(f"/ui/jobs/{job.id}/cancel", data={"csrf": token})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/jobs/{job.id}")
        page = (await client.get(f"/ui/jobs/{job.id}")).text
    assert (await api.jobs.get(job.id)).state is JobState.CANCELLED
    assert "/cancel" not in page and "data-events" not in page


@pytest.mark.parametrize("path", ["", "/report"])
async def test_evidence_is_on_the_page(api: Api, path: str) -> None:
    job = await succeed(api, sample_report(job_spec(), bits=3.25, perplexity=18.9))
    async with logged_in(api) as client:
        page = (await client.get(f"/ui/jobs/{job.id}{path}")).text
    text = text_of(page)
    assert "Bits per weight 3.25" in text and "held-out.txt 18.000 18.900 +5.00 %" in text
    assert "mlp.experts.*.up_proj 0.003" in text, "the worse of two experts"
    assert "dead-columns" in text and NASTY in text and "<script>alert" not in page
    assert "calibrating 1:01" in text
    assert ("mlp.experts.1.up_proj 8 \N{MULTIPLICATION SIGN} 8 5.000 0.00900 2.00 %" in text) == (path == "/report")


async def test_files_of_the_artifact_come_with_hash_and_size(api: Api) -> None:
    job = await succeed(api, sample_report(job_spec()))
    async with logged_in(api) as client:
        page = (await client.get(f"/ui/jobs/{job.id}")).text
        assert f'href="/ui/jobs/{job.id}/artifacts/report.json"' in page and "a" * 64 in page
        answer = await client.get(f"/ui/jobs/{job.id}/artifacts/report.json")
        assert Report.model_validate_json(answer.content) == sample_report(job_spec())


async def test_a_report_of_another_version_says_so(api: Api) -> None:
    job = await api.succeeded_job({"report.json": b'{"version": 1}'})
    async with logged_in(api) as client:
        answer = await client.get(f"/ui/jobs/{job.id}/report")
        assert answer.status_code == 409 and "the report is of version 1" in text_of(answer.text)
        page = await client.get(f"/ui/jobs/{job.id}")
    assert page.status_code == 200 and "the report is of version 1" in text_of(page.text)


async def test_a_job_without_a_report_has_no_page_of_it(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api) as client:
        answer = await client.get(f"/ui/jobs/{job.id}/report")
    assert answer.status_code == 404 and "it is queued" in answer.text


async def test_jobs_side_by_side_are_told_apart_by_bits(api: Api) -> None:
    high = await succeed(api, sample_report(job_spec(4), bits=4.0, perplexity=18.5))
    low = await succeed(api, sample_report(job_spec(3), bits=3.0, perplexity=22.0))
    same = await succeed(api, sample_report(job_spec(2), bits=3.05, perplexity=21.0))
    waiting, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api) as client:
        offered = (await client.get("/ui/compare")).text
        assert {high.id, low.id, same.id} == set(re.findall(r'value="(job_\w+)"', offered))
        query = "&".join(f"job={job.id}" for job in (high, low, same, waiting, low))
        page = (await client.get(f"/ui/compare?{query}")).text
        alone = (await client.get(f"/ui/compare?job={high.id}&job={low.id}")).text
    text = text_of(page)
    assert "3 jobs by bits per weight" in text and "Bits per weight 3 3.05 4" in text
    assert "At equal stored bits (within 2 %): A, B" in text
    assert "Without a report, and left out: some (queued)" in text
    assert "A: 3 bits, perplexity 22" in text and "The model as it came: 18." in text
    assert page.count('class="interval"') == 3 and page.count(">front<") == 3, "each costs more bits and is better"
    assert 'class="front"' in page and "not evaluated alike" not in text
    assert "No two of them store equal bits" in text_of(alone)


async def test_nothing_to_compare_says_so(api: Api) -> None:
    async with logged_in(api) as client:
        assert "Nothing to compare yet" in (await client.get("/ui/compare")).text


def nasty_spec() -> JobSpec:
    long = "n" * 180
    return parse_spec(
        {
            "model": {"uri": f"/models/{NASTY}{long}", "revision": NASTY},
            "method": {"kind": "rtn", "bits": 4},
            "calibration": {"dataset": f"/texts/{NASTY}.txt"},
            "evaluation": {"datasets": [f"/held-out/{NASTY}.txt"]},
            "labels": {NASTY: NASTY},
        }
    )


async def test_whatever_a_user_wrote_is_text(api: Api) -> None:
    job = await succeed(api, sample_report(nasty_spec()))
    other = await succeed(api, sample_report(nasty_spec()))
    paths = ("jobs", "compare", f"compare?job={job.id}&job={other.id}", f"new?like={job.id}", f"jobs/{job.id}",
             f"jobs/{job.id}/report", "jobs?text=%3Cscript%3Ealert", "new?method=%3Cscript%3Ealert")  # fmt: skip
    async with logged_in(api) as client:
        for path in paths:
            answer = await client.get(f"/ui/{path}")
            assert answer.status_code == 200
            assert "<script>alert" not in answer.text, path
        for path in ("jobs/<script>alert", "compare?job=<script>alert"):
            answer = await client.get(f"/ui/{path}")
            assert answer.status_code == 404 and "<script>alert" not in answer.text


async def test_a_job_is_steered_by_its_buttons(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with logged_in(api) as client:

        async def press(action: str) -> set[str]:
            """The buttons that are there afterwards."""
            page = (await client.get(f"/ui/jobs/{job.id}")).text
            answer = await client.post(f"/ui/jobs/{job.id}/{action}", data={"csrf": csrf_of(page)})
            assert answer.status_code == 303
            page = (await client.get(f"/ui/jobs/{job.id}")).text
            return set(re.findall(rf'action="/ui/jobs/{job.id}/(\w+)"', page))

        assert await press("pause") == {"resume", "cancel"}
        assert (await api.jobs.get(job.id)).state is JobState.PAUSED
        assert await press("resume") == {"pause", "cancel"}
        assert await press("cancel") == {"retry", "delete"}
        assert await press("retry") == {"pause", "cancel"}
        assert (await api.jobs.get(job.id)).state is JobState.QUEUED
        refused = await client.post(
            f"/ui/jobs/{job.id}/delete", data={"csrf": csrf_of((await client.get("/ui/new")).text)}
        )
        assert refused.status_code == 409 and ADVICE["conflict"] in text_of(refused.text)
        await press("cancel")
        assert await press("delete") == set()
        assert (await client.get(f"/ui/jobs/{job.id}")).status_code == 404


def test_every_state_has_its_buttons() -> None:
    assert set(ACTIONS) == set(JobState)
