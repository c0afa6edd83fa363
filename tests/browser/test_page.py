"""The page as people use it: a real Chromium, the whole service, a real model."""

import hashlib
import re
from pathlib import Path

import pytest
from embedded_service import EmbeddedService
from page_reader import DESKTOP, PHONE, Reader
from pipeline_helpers import make_spec
from playwright.sync_api import expect

from bitpress.jobs import JobState

pytestmark = pytest.mark.slow

JOB_MS = 180_000  # a job on a busy machine
PAGES = {
    "jobs": "/jobs",
    "jobs-none": "/jobs?text=nothing-has-this",
    "job": "/jobs/{spqr}",
    "job-failed": "/jobs/{failed}",
    "job-cancelled": "/jobs/{cancelled}",
    "report": "/jobs/{spqr}/report",
    "new": "/new?like={spqr}",
    "new-ptq161": "/new?method=ptq161",
    "compare-choose": "/compare",
    "compare": "/compare?job={spqr}&job={rtn}",
    "cluster": "/cluster",
    "keys": "/keys",
    "not-found": "/jobs/job_none",
}


def test_a_job_from_the_form_to_its_artifact(reader: Reader, opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    page = reader.open("/new")
    page.get_by_role("radio", name="GPTQ").check()
    expect(page.get_by_label("static groups")).to_be_visible()
    page.get_by_label("uri").fill(str(opt_mini))
    page.locator("[id='field.calibration.dataset']").fill(str(texts / "calibration.txt"))
    page.locator("[id='field.calibration.num_sequences']").fill("16")
    page.locator("[id='field.calibration.sequence_length']").fill("64")
    page.locator("[id='field.evaluation.datasets']").fill(str(texts / "evaluation.txt"))
    page.locator("[id='field.evaluation.sequence_length']").fill("64")
    page.locator("[id='field.evaluation.max_sequences']").fill("16")
    page.locator("[id='field.method.bits']").fill("9")
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.locator("[id='field.method.bits.error']")).to_contain_text("less than or equal to 8")
    reader.picture("new-refused")
    page.locator("[id='field.method.bits']").fill("3")
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.get_by_role("heading", name="Plan", exact=True)).to_be_visible()
    expect(page.locator("#outcome")).to_contain_text("Bits per weight")
    reader.picture("new-planned")
    page.get_by_role("button", name="Submit", exact=True).click()

    page.wait_for_url("**/ui/jobs/job_*")
    page.evaluate("() => window.isTheSamePage = true")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    expect(page.locator("#live .badge")).to_have_text("running", timeout=JOB_MS)
    expect(page.locator(".blocks li:not(.h-none)")).not_to_have_count(0, timeout=JOB_MS)
    assert page.evaluate("() => window.isTheSamePage"), "it filled without being loaded again"
    reader.picture("job-running")
    expect(page.locator("#live .badge")).to_have_text("succeeded", timeout=JOB_MS)
    expect(page.locator(".blocks li:not(.h-none)")).to_have_count(4)
    assert any(url.endswith("/linears") for url in asked), "every block brought its linears' figures"

    row = page.locator(".files li").filter(has_text="blocks/00000.safetensors")
    with page.expect_download() as download:
        row.get_by_role("link").click()
    download.value.save_as(tmp_path / "block")
    assert hashlib.sha256((tmp_path / "block").read_bytes()).hexdigest() == row.locator(".sha").inner_text()

    page.get_by_role("link", name="Whole report").click()
    expect(page.get_by_role("heading", name="Every linear")).to_be_visible()
    expect(page.locator("table.dense-rows tbody tr")).to_have_count(24)


def test_a_running_job_is_cancelled(reader: Reader, service: EmbeddedService, opt_mini: Path, texts: Path) -> None:
    with service.client() as client:
        job = client.submit(make_spec(opt_mini, texts, {"kind": "spqr", "bits": 3}, devices=1))
    page = reader.open(f"/jobs/{job.id}")
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.get_by_role("button", name="Cancel").click()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#live .badge")).to_have_text("cancelled", timeout=JOB_MS)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert asked == ["Cancel this job? It stops before its next linear."]
    with service.client() as client:
        assert client.get(job.id).state is JobState.CANCELLED


def test_the_list_is_current_without_being_loaded(
    reader: Reader, service: EmbeddedService, jobs: dict[str, str], opt_mini: Path, texts: Path
) -> None:
    page = reader.open("/jobs")
    page.evaluate("() => window.isTheSamePage = true")
    page.locator(f"#choose-{jobs['spqr']}").check()
    with service.client() as client:
        job = client.submit(make_spec(opt_mini, texts, {"kind": "rtn", "bits": 4}, labels={"is": "fresh"}))
        client.cancel(job.id)
    expect(page.locator(f"#open-{job.id}")).to_be_visible()
    expect(page.locator(f"#choose-{jobs['spqr']}")).to_be_checked()
    page.get_by_label("Text").fill(job.id[-8:].lower())
    expect(page.locator("table.jobs tbody tr")).to_have_count(1)
    page.wait_for_url("**/ui/jobs?text=*")
    page.get_by_label("Text").fill("")
    page.locator(f"#choose-{jobs['spqr']}").check()
    page.locator(f"#choose-{jobs['rtn']}").check()
    assert page.evaluate("() => window.isTheSamePage")
    page.get_by_role("button", name="Compare selected").click()
    expect(page.get_by_role("heading", name="2 jobs by bits per weight")).to_be_visible()
    expect(page.locator(".pareto circle")).to_have_count(2)


def test_all_of_it_can_be_read_without_scripts(reader: Reader, jobs: dict[str, str]) -> None:
    plain = reader.without_scripts()
    page = plain.open("/jobs?state=succeeded")
    page.locator(f"#choose-{jobs['spqr']}").check()
    page.locator(f"#choose-{jobs['rtn']}").check()
    page.get_by_role("button", name="Compare selected").click()
    expect(page.locator(".pareto circle")).to_have_count(2)
    page = plain.open(f"/jobs/{jobs['spqr']}")
    expect(page.locator(".tiles")).to_contain_text("Bits per weight")
    expect(page.locator("time").first).to_contain_text("UTC")
    expect(page.locator(".heat table")).to_have_count(3)
    page.get_by_role("link", name="New job like this").click()
    page.get_by_role("radio", name="SEPTQ").check()
    page.get_by_role("button", name="Show the parameters of this method").click()
    expect(page.locator("[id='field.method.retained_percent']")).to_have_value("1.0")
    expect(page.locator("[id='field.method.bits']")).to_have_value("3")
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.get_by_role("heading", name="Plan", exact=True)).to_be_visible()
    plain.picture("new-without-scripts")
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url("**/ui/jobs/job_*")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#live .badge")).to_have_text(re.compile("cancell(ing|ed)"))
    plain.close()
    assert plain.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_has_barriers_or_is_too_wide(
    reader: Reader, jobs: dict[str, str], size: tuple[int, int], scheme: str
) -> None:
    reader.look_like(size, scheme)
    for name, path in PAGES.items():
        reader.open(path.format(**jobs))
        reader.picture(f"{name}-{size[0]}-{scheme}")
        assert reader.barriers() == [], name
        assert reader.overflow() <= 0, name
    reader.page.get_by_role("button", name="Log out").click()
    reader.page.wait_for_url("**/ui/login")
    reader.picture(f"login-{size[0]}-{scheme}")
    assert reader.barriers() == [] and reader.overflow() <= 0
    reader.faults[:] = [fault for fault in reader.faults if "404" not in fault]  # the page that is not there


def test_a_keyboard_is_enough(reader: Reader, jobs: dict[str, str]) -> None:
    page = reader.open(f"/jobs/{jobs['spqr']}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    seen = []
    for _ in range(200):
        seen.append(page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)"))
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or seen[-1].startswith("<body"), seen[-1]
        page.keyboard.press("Tab")
        if seen[-1].startswith("<body") and len(seen) > 1:
            break
    assert seen[-1].startswith("<body"), "the end of the page is reached: nothing traps the focus"
    assert any("artifacts/manifest.json" in each for each in seen)


def test_colours_are_switched_and_stay(reader: Reader) -> None:
    page = reader.open("/jobs")
    reader.look_like(DESKTOP, "light")
    light = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    switch = page.get_by_role("button", name="colours")
    switch.click()
    with page.expect_response("**/ui/theme"):
        switch.click()
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != light
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != light
