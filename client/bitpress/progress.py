"""Progress of jobs on a terminal: one live bar per job, or plain lines where nobody watches."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from bitpress.jobs import JobState, Progress

LINE_STEPS = 20  # plain lines: one for every 5 %


class ProgressBars:
    """Show the progress of one or more jobs on standard error, by bars on a terminal, else by lines.

    with ProgressBars() as bars:
        bars.update("my job", progress, JobState.RUNNING)
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, label: str, progress: Progress, state: JobState) -> None:
        """Show where the job called `label` is now."""
        if self._console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=1.0, status="")
            self._bars.update(self._tasks[label], completed=progress.fraction, status=describe(progress, state))
        else:
            self._print_line(label, progress, state)

    def note(self, message: str) -> None:
        """Print a line above the bars."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _print_line(self, label: str, progress: Progress, state: JobState) -> None:
        word = progress.phase if state is JobState.RUNNING else state.value
        step = (word, int(progress.fraction * LINE_STEPS))
        if self._lines.get(label) != step:
            self._lines[label] = step
            self.note(f"{label}: {progress.fraction:.0%} {describe(progress, state)}")


def describe(progress: Progress, state: JobState) -> str:
    """The state in a few words: phase, blocks done, current linear and time left while it runs."""
    if state is not JobState.RUNNING:
        return state.value
    words: list[str] = [progress.phase]
    if progress.blocks_total:
        words.append(f"{progress.blocks_done}/{progress.blocks_total} blocks")
    if progress.linear:
        words.append(progress.linear)
    if progress.eta_seconds is not None:
        words.append(f"{duration(progress.eta_seconds)} left")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
