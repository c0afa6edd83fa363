"""Fixtures every test may use: shared data, texts, small trained models, a disk that fills up."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Read by MKL when torch loads it, and set by every process of ours: a GEMM's bits must not depend on where its
# operands lie in memory.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import pytest
import torch

# One thread, as in a shard: what the tests compare bit by bit must not depend on the machine's cores.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, each else where chance has put it: the last worker does not end long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with calibration.txt and evaluation.txt, English prose."""
    from bitpress_workers.demo_model import write_demo_texts

    directory = tmp_path_factory.mktemp("texts")
    write_demo_texts(directory)
    return directory


@pytest.fixture(params=["opt-mini", "bloom-mini"])
def mini_model(request: pytest.FixtureRequest) -> Path:
    """A small trained model of each of two families."""
    return REPOSITORY / "tests" / "data" / str(request.param)


@pytest.fixture
def opt_mini() -> Path:
    return REPOSITORY / "tests" / "data" / "opt-mini"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.skip(f"no tiny file system: {result.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)
