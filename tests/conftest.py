"""Fixtures every test may use: where shared data lies, and small models."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def shared_directory() -> Path | None:
    """Real text and small trained models, when this machine has them."""
    path = Path(os.environ.get("BITPRESS_SHARED", REPOSITORY.parent / "shared"))
    return path if (path / "models").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    path = shared_directory()
    if path is None:
        pytest.skip("no shared data: set BITPRESS_SHARED to a directory with models/ and data/")
    return path
