"""Real S3 servers on loopback: nanio, which checks signatures, and moto, which knows conditional writes.

Each runs in a thread of this process; nanio's buckets are directories.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
import uvicorn
from nanio.app import build_app
from nanio.auth.credentials import StaticCredentialResolver
from nanio.config import Settings

KEY, SECRET = "tester", "not so secret"

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Server:
    """A running S3 server. directory: where nanio's buckets lie.

    requests: what was asked, as "PUT /bucket/key?query". refused: a part of such a line; what has it is answered 403.
    held: the same; what has it is not answered for as long.
    """

    address: str
    directory: Path | None = None
    requests: list[str] = field(default_factory=list)
    refused: str | None = None
    held: str | None = None

    def environment(self, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
        """How clients are told of the server."""
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
        }

    def files(self) -> set[str]:
        """All that nanio keeps, but for what it notes of each object."""
        assert self.directory is not None
        found = (path.relative_to(self.directory) for path in self.directory.rglob("*") if path.is_file())
        return {str(path) for path in found if ".nanio-meta" not in path.parts}


@contextmanager
def nanio(directory: Path, port: int = 0) -> Iterator[Server]:
    """Serve `directory`; port 0 is any that is free."""
    app = build_app(Settings(data_dir=directory, credentials=StaticCredentialResolver({KEY: SECRET})))
    listener = socket.create_server(("127.0.0.1", port))
    served = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", directory)

    async def watched(scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] == "http":
            line = f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}"
            served.requests.append(line)
            while served.held is not None and served.held in line:
                await asyncio.sleep(0.01)
            if served.refused is not None and served.refused in line:
                while (await receive()).get("more_body"):
                    pass
                await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(watched, log_level="critical"))
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def moto(bucket: str) -> Iterator[Server]:
    """Serve one bucket, from memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        httpx2.put(f"{address}/{bucket}", trust_env=False).raise_for_status()
        yield Server(address)
    finally:
        server.stop()


@contextmanager
def serving(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve `directory`; inside, the environment says how the server is reached."""
    with nanio(directory) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
