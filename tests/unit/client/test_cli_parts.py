"""The command line without a service: help, usage, specs, exit codes, what is passed on."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from http_answers import SPEC
from run_cli import bitpress

from bitpress import errors
from bitpress.cli.exits import MEANINGS, exit_code, outcome
from bitpress.cli.jobs import read_spec
from bitpress.cli.output import size
from bitpress.errors import InvalidJob
from bitpress.jobs import Failure, Job, JobState, parse_spec

GOLDEN = Path(__file__).parents[2] / "golden" / "cli_help.txt"
COMMANDS = ("submit", "list", "get", "watch", "logs", "cancel", "report", "compare", "pull", "methods")


@pytest.fixture(autouse=True)
def no_service_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_API_URL", "http://127.0.0.1:9")


def test_help_is_what_the_golden_file_says() -> None:
    """Regenerate with BITPRESS_UPDATE_GOLDEN=1 and read the difference."""
    pages = [bitpress("--help").stdout, *(bitpress(command, "--help").stdout for command in COMMANDS)]
    text = "\n".join(line.rstrip() for line in "".join(pages).splitlines()) + "\n"
    if os.environ.get("BITPRESS_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_help_names_every_exit_code() -> None:
    text = bitpress("--help").stdout
    for code, meaning in MEANINGS.items():
        assert f"{code}  {meaning}" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["get"],
        ["submit", "/nowhere.json"],
        ["submit", "-", "--timeout", "1"],
        ["list", "--state", "odd"],
    ],
)
def test_a_wrong_command_line_is_code_2_and_leaves_stdout_empty(arguments: list[str]) -> None:
    done = bitpress(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_version_is_the_installed_one() -> None:
    done = bitpress("--version")
    assert (done.returncode, done.stdout) == (0, f"bitpress {version('bitpress')}\n")


def test_no_service_is_code_6() -> None:
    done = bitpress("get", "job_1", "--json")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("error [unavailable]: no answer from http://127.0.0.1:9 ")


def test_a_bad_spec_is_code_5_with_a_line_for_each_field() -> None:
    spec = SPEC | {"method": {"kind": "spqr", "bits": 99}, "colour": "red"}
    done = bitpress("submit", "-", stdin=json.dumps(spec))
    assert (done.returncode, done.stdout) == (5, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error [invalid-job]: ")
    assert any(line.startswith("  /method/bits: ") for line in lines[1:])
    assert any(line.startswith("  /colour: ") for line in lines[1:])


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "", b"\xff{}", pytest.param("[" * 100_000, id="deep")])
def test_a_spec_that_is_no_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidJob):
        read_spec(text, [])


def test_a_file_that_is_no_text_is_an_invalid_job(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_bytes(b"\x93\xff")
    done = bitpress("submit", str(tmp_path / "spec.json"))
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error [invalid-job]: ") and "Traceback" not in done.stderr


def test_set_changes_fields_of_the_spec() -> None:
    assignments = ["method.bits=2", "model.uri=/other", 'evaluation.datasets=["ptb"]', "labels.note=a=b"]
    spec = read_spec(json.dumps(SPEC), assignments)
    assert spec.method.bits == 2
    assert spec.model.uri == "/other"
    assert spec.evaluation.datasets == ("ptb",)
    assert spec.labels == {"note": "a=b"}


@pytest.mark.parametrize("assignment", ["method.bits", "method.bits.low=1"])
def test_set_wants_a_path_and_a_value(assignment: str) -> None:
    with pytest.raises(typer.BadParameter, match="PATH=VALUE"):
        read_spec(json.dumps(SPEC), [assignment])


def test_set_of_an_unknown_field_is_an_invalid_job() -> None:
    with pytest.raises(InvalidJob, match="bitz"):
        read_spec(json.dumps(SPEC), ["method.bitz=2"])


@pytest.mark.parametrize(
    ("code", "expected"),
    [("not-found", 3), ("unauthorized", 4), ("forbidden", 4), ("invalid-job", 5), ("conflict", 5), ("unavailable", 6),
     ("too-many-jobs", 6), ("internal", 6), ("cancelled", 8), ("bad-artifact", 1), ("gate-failed", 9),
     ("evaluation-failed", 1), ("load-check-failed", 1), ("numerical-failure", 1)],
)  # fmt: skip
def test_every_error_has_its_exit_code(code: str, expected: int) -> None:
    assert exit_code(errors.ERRORS[code]("x")) == expected


def test_exit_codes_of_what_is_no_error_of_ours() -> None:
    assert exit_code(TimeoutError()) == 7
    assert exit_code(PermissionError()) == 1


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["succeeded"], 0), (["succeeded", "cancelled"], 8), (["cancelled", "failed", "succeeded"], 1),
        (["gate-failed", "cancelled"], 9), (["gate-failed", "failed"], 1),
    ],
)  # fmt: skip
def test_several_jobs_end_with_one_code(states: list[str], expected: int) -> None:
    def ended(state: str) -> Job:
        failed = state in ("failed", "gate-failed")
        code = state if state == "gate-failed" else "numerical-failure"
        error = Failure(code=code, message="x", retryable=False, attempt=1) if failed else None
        return Job(
            id="j", tenant="t", state=JobState("failed" if failed else state), spec=parse_spec(SPEC), error=error,
            created_at=datetime.now(UTC),
        )  # fmt: skip

    assert outcome([ended(state) for state in states]) == expected


def test_sizes_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_234_567, 5 * 10**12)] == ["0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 TB"]


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A `bitpress_workers` that shows what it was started with."""
    package = tmp_path / "bitpress_workers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys, os\nprint(os.getpid(), *sys.argv[1:], sep='|')\nsys.exit(77)\n")
    return tmp_path


@pytest.mark.parametrize("command", ["up", "run", "demo-model"])
def test_commands_that_compute_hand_over_everything(stand_in: Path, command: str) -> None:
    arguments = ["a b", "--out", "x", "--help", "-v", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from bitpress.cli import main; main()", command, *arguments],
        env=os.environ | {"PYTHONPATH": str(stand_in)},
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate()
    pid, *received = output.strip().split("|")
    assert received == [command, *arguments]
    assert int(pid) == process.pid
    assert process.returncode == 77


def test_without_the_local_parts_the_extra_is_named() -> None:
    code = (
        "import importlib.util as u, sys; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else found(name, *a)\n"
        "sys.argv[1:] = ['up']\n"
        "from bitpress.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "`bitpress up` needs torch: pip install 'bitpress[local]'\n"
