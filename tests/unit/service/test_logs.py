"""Log lines: text for people, one JSON object for machines, each with the job it is about."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bitpress_service import logs

log = logging.getLogger("bitpress_service.some")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The handlers and the process' subject as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logs._process.clear()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_every_json_line_names_job_attempt_and_block(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    log.info("about nothing")
    with logs.about(job="job_1", attempt=2):
        log.warning("line 1\nline 2")
        with logs.about(block=7):
            log.info("block %d", 7)
    log.info("about nothing again")
    found = [(line["job"], line["attempt"], line["block"], line["message"]) for line in lines(capsys)]
    assert found == [
        (None, None, None, "about nothing"),
        ("job_1", 2, None, "line 1\nline 2"),
        ("job_1", 2, 7, "block 7"),
        (None, None, None, "about nothing again"),
    ]


def test_an_exception_is_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("a defect")
    (line,) = lines(capsys)
    assert line["level"] == "error" and "ValueError: broken" in str(line["error"])


async def test_tasks_do_not_mix_their_subjects(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")

    async def attempt(number: int) -> None:
        with logs.about(job=f"job_{number}"):
            await asyncio.sleep(0)
            log.info("%d", number)

    await asyncio.gather(*(attempt(number) for number in range(5)))
    found = [line for line in lines(capsys) if line["logger"] == log.name]
    assert [line["job"] for line in found] == [f"job_{line['message']}" for line in found] and len(found) == 5


def test_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    with logs.about(job="job_1", attempt=2):
        log.info("it starts")
    assert capsys.readouterr().err.endswith("INFO bitpress_service.some: job job_1: attempt 2: it starts\n")


def test_a_process_with_one_subject_names_it_in_all_threads() -> None:
    script = """
import logging, threading
from bitpress_service import logs
logs.configure("json")
logs.whole_process_about(job="job_1", attempt=1, block=3)
thread = threading.Thread(target=logging.getLogger("x").info, args=("hello",))
thread.start()
thread.join()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    line = json.loads(result.stderr)
    assert (line["job"], line["attempt"], line["block"]) == ("job_1", 1, 3)
