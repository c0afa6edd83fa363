"""A real browser before the whole service. Without a Chromium on this machine these tests are skipped.

BITPRESS_SCREENSHOTS names a directory for pictures of every page.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_service import EmbeddedService
from page_reader import Reader
from pipeline_helpers import make_spec
from playwright.sync_api import Browser, expect, sync_playwright

from bitpress.jobs import JobState

expect.set_options(timeout=300_000)  # a machine may be busy

SPQR = {"kind": "spqr", "bits": 3}
RTN = {"kind": "rtn", "bits": 3, "group_size": 16}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if path is None:
        pytest.skip("no chromium: apt-get install chromium, or `make browser`")
    # As root, in a container, Chromium's own sandbox is not to be had.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("service") / "state")
    service.start()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def jobs(service: EmbeddedService, texts: Path) -> dict[str, str]:
    """Ids of jobs that have ended: two with a report, one that failed, one that was cancelled."""
    model = Path(__file__).parents[1] / "data" / "opt-mini"
    specs = {
        "spqr": make_spec(model, texts, SPQR, devices=1),
        "rtn": make_spec(model, texts, RTN, devices=1),
        "failed": make_spec(model.with_name("no-such-model" * 12), texts, RTN, devices=1),
    }
    with service.client() as client:
        ids = {name: client.submit(spec).id for name, spec in specs.items()}
        ids["cancelled"] = client.submit(specs["rtn"]).id
        client.cancel(ids["cancelled"])
        states = {name: client.wait(job_id).state for name, job_id in ids.items()}
    assert states == {
        "spqr": JobState.SUCCEEDED, "rtn": JobState.SUCCEEDED, "failed": JobState.FAILED,
        "cancelled": JobState.CANCELLED,
    }  # fmt: skip
    return ids


@pytest.fixture
def reader(browser: Browser, service: EmbeddedService, tmp_path: Path) -> Iterator[Reader]:
    """Somebody who has logged in; nothing may have gone wrong in any of the pages they saw."""
    pictures = Path(os.environ.get("BITPRESS_SCREENSHOTS", tmp_path / "screenshots"))
    reader = Reader(browser, f"http://127.0.0.1:{service.port}", pictures)
    reader.log_in((service.state / "api-key").read_text().strip())
    yield reader
    reader.close()
    assert reader.faults == []
