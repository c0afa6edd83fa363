"""A real HTTP server on loopback that answers as a test says; no pauses, no service nearby."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from http_answers import Respond


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], str]]:
    """Start servers that answer every request by a function; returns each one's address."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(respond: Respond) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                respond(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                respond(self)

            def log_message(self, *_: object) -> None:
                """Tests look at answers, not at a log."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_service_nearby(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test may find the service, the key or the proxy of the machine it runs on."""
    for name in ("BITPRESS_API_URL", "BITPRESS_API_KEY", "BITPRESS_PROFILE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITPRESS_CONFIG", str(tmp_path_factory.mktemp("config") / "config.toml"))
    monkeypatch.setenv("BITPRESS_STATE_DIR", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as many as ever, without the waiting in between."""
    monkeypatch.setattr("bitpress.transport.RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("bitpress.pull.RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("bitpress.client.RECONNECT_SECONDS", (0.0,) * 4)
