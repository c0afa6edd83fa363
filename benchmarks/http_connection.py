"""HTTP/1.1 over one connection, with next to no cost of its own: a load generator shares the cores it measures."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self


class Connection:
    """One keep-alive connection; use it as a context manager. Answers must carry a Content-Length, or be a stream."""

    def __init__(self, host: str, port: int, headers: Mapping[str, str] | None = None) -> None:
        self._address = host, port
        lines = {"Host": f"{host}:{port}", **(headers or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def request(self, method: str, path: str, body: object = None) -> Any:
        """The parsed answer. Raises RuntimeError when it is an error."""
        content = b"" if body is None else json.dumps(body).encode()
        length = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._headers}{length}\r\n".encode() + content)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        answer = await self._reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        if not head.startswith(b"http/1.1 2"):
            raise RuntimeError(f"{method} {path}: {answer.decode()}")
        return json.loads(answer)

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, until it ends."""
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._headers}\r\n".encode())
        async for line in self._reader:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
