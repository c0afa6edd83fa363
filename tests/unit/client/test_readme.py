"""What the README says is so."""

import json
import re
from pathlib import Path

from bitpress.cli.exits import MEANINGS
from bitpress.jobs import parse_spec
from bitpress_service.settings import Settings

REPOSITORY = Path(__file__).parents[3]
README = (REPOSITORY / "README.md").read_text("utf-8")


def test_every_path_of_the_tree_exists() -> None:
    tree = README.split("## The tree")[1].split("```text\n")[1].split("```")[0]
    parent, paths = Path(), []
    for line in tree.strip().splitlines():
        name = line.split()[0]
        parent = parent if line.startswith(" ") else Path(name)
        paths.append(parent / name if line.startswith(" ") else parent)
    assert len(paths) > 15
    assert [str(path) for path in paths if not (REPOSITORY / path).exists()] == []


def test_the_example_is_a_valid_job() -> None:
    spec = README.split("```json")[1].split("```")[0]
    assert parse_spec(json.loads(spec)).method.kind == "spqr"


def test_exit_codes_are_the_command_lines_own() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANINGS


def test_every_setting_is_listed() -> None:
    listed = set(re.findall(r"`(BITPRESS_[A-Z_]+)`", README))
    assert {f"BITPRESS_{name.upper()}" for name in Settings.model_fields} <= listed


def test_every_make_target_is_there() -> None:
    named = README.split("Make targets:")[1].split(".\n")[0]
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", named)) <= set(targets)
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) <= set(targets)
