from pathlib import Path

import pytest
from small_models import build


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small LLaMA checkpoint, for tests to break."""
    build("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"
