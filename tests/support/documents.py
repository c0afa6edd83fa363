"""The documents that users read, and the blocks in them."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "deploy/*.md", "tests/gpu/*.md")
    for path in REPOSITORY.glob(pattern)
)  # fmt: skip


def name(document: Path) -> str:
    return document.relative_to(REPOSITORY).as_posix()


def fences(document: Path) -> list[tuple[str, str]]:
    """Every fenced block: what stands behind its opening fence, and its text."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [(kind.strip(), text) for kind, text in found]


def anchors(document: Path) -> set[str]:
    """What links may name in a document, as GitHub derives it from headings."""
    outside = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
