"""What the documents say is so: commands are known, links lead somewhere, every alert has an entry, tables are those
of the results.
"""

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import sizing
import typer
import yaml
from documents import DOCUMENTS, REPOSITORY, anchors, fences, name

from bitpress import cli

ALERTS = yaml.safe_load((REPOSITORY / "deploy/prometheus/alerts.yml").read_text("utf-8"))
# How a block of commands is tried: read here, run by a test of the service, by `make test-compose`, or not at all,
# since it needs GPUs or several hosts.
MARKS = {"sh", "sh run", "sh docker", "sh gpu", "sh cluster"}
OTHERS = {"text", "json", "python", "yaml"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_block_says_what_it_is_and_how_it_is_tried(document: Path) -> None:
    assert {kind for kind, _ in fences(document)} <= MARKS | OTHERS


def commands() -> list[str]:
    """All lines of blocks that are neither run nor marked as needing other machines."""
    blocks = [text for document in DOCUMENTS for kind, text in fences(document) if kind == "sh"]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.partition(" #")[0].strip() for line in lines} - {""})


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("spec.json", "SPEC.json", "DEVICES.json"):
        Path(file).write_text("{}")
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets)
        return
    assert program == "bitpress", "not a command that is tried here: mark the block"
    command = typer.main.get_command(cli.app)
    context = command.make_context("bitpress", ["--help"], resilient_parsing=True)
    while hasattr(command, "resolve_command"):
        known, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, known
    with command.make_context("bitpress", arguments, parent=context):
        pass  # its types and choices have been looked at


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_python_block_imports_what_there_is(document: Path) -> None:
    for kind, text in fences(document):
        for node in ast.walk(ast.parse(text)) if kind == "python" else ():
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_alert_has_an_entry_that_says_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len(rules) > 5
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor == rule["alert"].lower() and anchor in anchors(REPOSITORY / page)


def test_the_sizing_table_is_that_of_the_results() -> None:
    results = json.loads((REPOSITORY / "benchmarks/results/sizing.json").read_text("utf-8"))
    assert sizing.BEGIN + sizing.table(results["sizes"]) + sizing.END in sizing.PAGE.read_text("utf-8")


@pytest.mark.parametrize(("document", "heading"), [("SECURITY.md", "threat"), ("docs/failures.md", "what fails")])
def test_every_row_names_tests_that_exist(document: str, heading: str) -> None:
    table = (REPOSITORY / document).read_text("utf-8").split(f"| {heading} |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", row)
        assert named, row
        for path, test in named:
            text = (REPOSITORY / path).read_text("utf-8")
            assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{path}::{test}"
