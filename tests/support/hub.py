"""A model hub on loopback that speaks what huggingface_hub asks for: one repository, at one commit."""

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, Response

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running hub. token: without it nobody reads anything. requests: what was asked, as "GET /path"."""

    address: str
    token: str | None
    requests: list[str] = field(default_factory=list)

    def files_read(self) -> set[str]:
        return {line.rpartition(f"/resolve/{COMMIT}/")[2] for line in self.requests if "/resolve/" in line}


@contextmanager
def serving(model: str, directory: Path, token: str | None = None) -> Iterator[Hub]:
    """Serve the files of a directory as `model` (org/name), whose branch `main` is at COMMIT."""
    listener = socket.create_server(("127.0.0.1", 0))
    hub = Hub(f"http://127.0.0.1:{listener.getsockname()[1]}", token)
    server = uvicorn.Server(uvicorn.Config(_app(hub, model, directory), log_level="warning"))
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _app(hub: Hub, model: str, directory: Path) -> FastAPI:
    app = FastAPI()

    def check(request: Request, revision: str) -> None:
        hub.requests.append(f"{request.method} {request.url.path}")
        if hub.token is not None and request.headers.get("Authorization") != f"Bearer {hub.token}":
            raise HTTPException(401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": f"{model} is gated"})
        if revision not in ("main", COMMIT):
            raise HTTPException(404, headers={"X-Error-Code": "RevisionNotFound"})

    @app.get(f"/api/models/{model}")
    @app.get(f"/api/models/{model}/revision/{{revision}}")
    def info(request: Request, revision: str = "main") -> dict[str, Any]:
        check(request, revision)
        return {"id": model, "sha": COMMIT, "siblings": [{"rfilename": path.name} for path in directory.iterdir()]}

    @app.get(f"/api/models/{model}/tree/{{revision}}")
    def tree(request: Request, revision: str) -> list[dict[str, Any]]:
        check(request, revision)
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _digest(path)}
            for path in sorted(directory.iterdir())
        ]

    @app.api_route(f"/{model}/resolve/{{revision}}/{{name}}", methods=["GET", "HEAD"])
    def resolve(request: Request, revision: str, name: str) -> Response:
        check(request, revision)
        path = directory / name
        if not path.is_file():
            raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound"})
        return FileResponse(path, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(path)}"'})

    return app


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
