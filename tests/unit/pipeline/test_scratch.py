"""Directories of attempts: short, private, and swept when their dispatcher was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitpress_workers import scratch


def test_only_what_the_dead_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_scratch_base", lambda: tmp_path)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / f"bitpress-{int(ended.stdout)}-abc"
    dead.mkdir()
    (dead / "result.json").write_text("{}")
    mine = scratch.make_scratch()
    others = tmp_path / "bitpress-0"
    others.mkdir()
    scratch.sweep_scratch()
    assert not dead.exists()
    assert mine.exists()
    assert others.exists()
    assert mine.stat().st_mode & 0o077 == 0
    assert mine.name.startswith(f"bitpress-{os.getpid()}-")


def test_a_long_temporary_directory_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", "/var/folders/a-rather-long-name/of-a-batch-system")
    assert scratch._scratch_base() == Path("/tmp")
