"""The whole service as it runs on one machine: API, dispatcher, Redis, Ray."""

from collections.abc import Iterator

import pytest
from embedded_service import EmbeddedService


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("service") / "state")
    service.start()
    yield service
    assert service.stop() == 0
