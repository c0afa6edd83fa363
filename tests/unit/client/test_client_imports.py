"""The client stays light: what importing it brings along."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "redis", "fastapi", "transformers", "numpy", "bitpress_service", "bitpress_workers")


@pytest.mark.parametrize("module", ["bitpress.client", "bitpress.cli"])
def test_the_client_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
