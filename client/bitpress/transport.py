"""HTTP with the service: every failure is one of our errors.

Every request of this API may be sent twice without harm: reads and steps in a job's life by nature, submit by
its Idempotency-Key. So one rule holds for all: a lost connection or a busy gateway is tried again.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import httpx2

from bitpress.errors import BitpressError, TooManyRequests, Unavailable, from_problem

RETRY_SECONDS = (0.25, 1.0)
LONGEST_PAUSE_SECONDS = 30.0  # however long the service would have us wait
GATEWAY_STATUS = (502, 504)
# Keep-alive comments arrive on an open event stream every 15 s; a minute of silence means a dead peer.
TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
HURRIED = httpx2.Timeout(2.0)
# A proxy named in the environment is for the world outside; this machine's own service is not behind it.
UNPROXIED = ("localhost", "127.0.0.1", "[::1]")


class Transport:
    """A connection pool to one service. `url` has no trailing slash; `key` may be absent.

    hurry: what does not come at once is not waited for, nor asked for again.
    """

    def __init__(self, url: str, key: str | None, *, hurry: bool = False) -> None:
        if not url.startswith(("http://", "https://")):
            raise Unavailable(f"expected an address that begins with http:// or https://, found {url!r}")
        self.url = url
        self._hurry = hurry
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=HURRIED if hurry else TIMEOUT,
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
        for pause in (None,) if self._hurry else (*RETRY_SECONDS, None):
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
