"""Progress on a terminal and in a log file."""

from io import StringIO

from rich.console import Console

from bitpress.jobs import JobState, Progress
from bitpress.progress import ProgressBars, describe, duration

RUNNING = JobState.RUNNING


def test_a_log_gets_a_line_for_each_phase_and_every_five_percent() -> None:
    out = StringIO()
    with ProgressBars(Console(file=out, force_terminal=False)) as bars:
        bars.update("job_1", Progress(), JobState.QUEUED)
        bars.update("job_1", Progress(phase="preparing"), RUNNING)
        for percent in range(101):
            bars.update("job_1", Progress(phase="calibrating", fraction=percent / 100), RUNNING)
        bars.update("job_1", Progress(phase="calibrating", fraction=1.0), JobState.SUCCEEDED)
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["job_1: 0% queued", "job_1: 0% preparing", "job_1: 0% calibrating"]
    assert [line for line in lines if "calibrating" in line][1:3] == ["job_1: 5% calibrating", "job_1: 10% calibrating"]
    assert len(lines) == 2 + 21 + 1
    assert lines[-1] == "job_1: 100% succeeded"


def test_a_terminal_gets_a_bar_for_each_job() -> None:
    out = StringIO()
    with ProgressBars(Console(file=out, force_terminal=True, width=120)) as bars:
        progress = Progress(phase="calibrating", blocks_done=3, blocks_total=12, linear="mlp.up_proj", fraction=0.25)
        bars.update("spqr", progress, RUNNING)
        bars.update("septq [2]", Progress(), JobState.QUEUED)
        bars.note("a [word] on the way")
    shown = out.getvalue()
    for text in ("spqr", " 25%", "calibrating, 3/12 blocks, mlp.up_proj", "septq [2]", "queued", "a [word] on the way"):
        assert text in shown


def test_the_words_name_what_is_known() -> None:
    progress = Progress(phase="evaluating", blocks_done=1, blocks_total=2, fraction=0.5, eta_seconds=61.4)
    assert describe(progress, RUNNING) == "evaluating, 1/2 blocks, 1:01 left"
    assert describe(progress, JobState.CANCELLING) == "cancelling"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3600, 90061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]
