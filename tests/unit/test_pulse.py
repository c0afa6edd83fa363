"""A driver's sign of life."""

import threading
from pathlib import Path

import pytest

from bitpress_workers import pulse
from bitpress_workers.pulse import Listener, Pulse


def beats(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def next_beat(path: Path, after: int) -> int:
    while (now := beats(path)) == after:
        pass
    return now


def test_a_thread_that_gets_on_is_heard_and_one_that_waits_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LOOK_SECONDS", 0.001)
    path, stop, waiting = tmp_path / "pulse", threading.Event(), threading.Event()
    go_on = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number = number + 1 if number % 3 else number * 2 + 1
        waiting.set()
        go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    assert thread.ident is not None
    Pulse(path).follow(thread.ident)
    next_beat(path, next_beat(path, next_beat(path, 0)))
    listener = Listener(path)
    stop.set()
    waiting.wait()
    while listener.silence() < 0.3:  # it ends, as nobody gets on; before, it would not have
        pass
    go_on.set()
    thread.join()


def test_silence_begins_with_who_listens(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "pulse")
    while listener.silence() < 0.01:
        pass
    Pulse(tmp_path / "pulse").beat()
    before = listener._since
    listener.silence()
    assert listener._since > before
