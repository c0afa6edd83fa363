"""HTTP with the service: which address, which key, and every failure as one of our errors.

Every request of this API may be sent twice without harm: reads and steps in a job's life by nature, submit by
its Idempotency-Key. So one rule holds for all: a lost connection or a busy gateway is tried again.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2

from bitpress.errors import BitpressError, TooManyRequests, Unavailable, from_problem

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_SECONDS = (0.25, 1.0)
LONGEST_PAUSE_SECONDS = 30.0  # however long the service would have us wait
GATEWAY_STATUS = (502, 504)
# Keep-alive comments arrive on an open event stream every 15 s; a minute of silence means a dead peer.
TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
# A proxy named in the environment is for the world outside; this machine's own service is not behind it.
UNPROXIED = ("localhost", "127.0.0.1", "[::1]")


def state_directory() -> Path:
    """Where the embedded service keeps its files: BITPRESS_STATE_DIR, else the XDG state directory."""
    if chosen := os.environ.get("BITPRESS_STATE_DIR"):
        return Path(chosen)
    xdg = os.environ.get("XDG_STATE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".local" / "state") / "bitpress"


def find_service(url: str | None = None, key: str | None = None) -> tuple[str, str | None]:
    """The service's address and bearer key: argument, else environment, else the embedded service's files.

    The embedded service's key is offered to the embedded service alone: with another address
    and no key of its own, requests go out without one.
    """
    directory = state_directory()
    embedded_url = _read(directory / "url") or DEFAULT_URL
    url = (url or os.environ.get("BITPRESS_API_URL") or embedded_url).rstrip("/")
    key = key or os.environ.get("BITPRESS_API_KEY")
    if key is None and url in (embedded_url.rstrip("/"), DEFAULT_URL):
        key = _read(directory / "api-key")
    return url, key


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None


class Transport:
    """A connection pool to one service. `url` has no trailing slash; `key` may be absent."""

    def __init__(self, url: str, key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise Unavailable(f"expected an address that begins with http:// or https://, found {url!r}")
        self.url = url
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=TIMEOUT,
            mounts={f"all://{host}": None for host in UNPROXIED},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request and return its successful response, read to the end.

        Raises Unavailable when the service cannot be reached after the retries, else the error the service answered.
        """
        for pause in (*RETRY_SECONDS, None):
            try:
                with self._our_errors():
                    response = self._http.request(method, path, json=json, params=params, headers=headers)
                    _raise_for_status(response)
                    return response
            except (Unavailable, TooManyRequests) as error:
                if pause is None:
                    raise
                time.sleep(error.retry_after_seconds if isinstance(error, TooManyRequests) else pause)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], *, redirects: bool = False) -> Iterator[httpx2.Response]:
        """Open a successful GET response whose body is still to be read; one attempt.

        A redirect is followed only when asked for; the bearer key is not sent on to another origin.
        """
        with (
            self._our_errors(),
            self._http.stream("GET", path, headers=dict(headers), follow_redirects=redirects) as response,
        ):
            if not response.is_success:
                response.read()
            _raise_for_status(response)
            yield response

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx2.RequestError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(
                f"no answer from {self.url} ({reason}); `bitpress up` starts a service on this machine, "
                "BITPRESS_API_URL names one elsewhere"
            ) from error


def _raise_for_status(response: httpx2.Response) -> None:
    if not response.is_success:
        raise _error(response)


def _error(response: httpx2.Response) -> BitpressError:
    status, where = response.status_code, response.url.copy_with(query=None)
    if status in GATEWAY_STATUS:
        return Unavailable(f"HTTP {status} from {where}")
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        error = from_problem(response.json(), status)
        if (seconds := response.headers.get("retry-after", "")).isdigit():
            error.retry_after_seconds = min(float(seconds), LONGEST_PAUSE_SECONDS)
        return error
    return from_problem({"detail": f"HTTP {status} from {where}"}, status)
