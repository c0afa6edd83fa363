"""What is wrong with a service as a client sees it, and how to mend it.

What only the service's own machine shows (its Redis, its disk) is looked at by `bitpress_service.doctor`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from bitpress.advice import advice
from bitpress.client import Client
from bitpress.cluster import Cluster
from bitpress.config import Service
from bitpress.errors import BitpressError, Forbidden, Unavailable
from bitpress.keys import USER_SCOPES, Caller
from bitpress.transport import Transport

SKEW_SECONDS = 60.0  # S3 refuses signatures that are 15 minutes off, receivers of webhooks ones of 5 minutes
SOON = timedelta(days=7)

State = Literal["ok", "warning", "failed", "skipped"]


class Check(BaseModel):
    """One thing that was looked at. `advice` is empty when there is nothing to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: State
    found: str
    advice: str = ""

    @classmethod
    def good(cls, name: str, found: str) -> Self:
        return cls(name=name, state="ok", found=found)

    @classmethod
    def bad(cls, name: str, found: str, advice: str, state: State = "failed") -> Self:
        return cls(name=name, state=state, found=found, advice=advice)


def examine(service: Service) -> Iterator[Check]:
    """Look at a service through its API; what cannot be looked at any more is left out."""
    try:
        with Transport(service.url, service.key) as transport:
            yield Check.good("service", _greet(transport, service))
            yield _clock(transport)
            yield from _readiness(transport)
    except BitpressError as error:
        found = f"{error.message} (named by {service.named_by})"
        yield Check.bad("service", found, advice(Unavailable.code))
        return
    with Client(service.url, service.key) as client:
        try:
            caller = client.whoami()
        except BitpressError as error:
            yield Check.bad("key", error.message, advice(error.code))
            return
        yield _key(caller)
        yield _versions(caller)
        yield from _work(client)


def _greet(transport: Transport, service: Service) -> str:
    transport.request("GET", "/livez")
    return f"{service.url} answers (named by {service.named_by})"


def _clock(transport: Transport) -> Check:
    """By an answer's Date, which is in whole seconds."""
    date = transport.request("GET", "/livez").headers.get("date")
    if date is None:
        return Check(name="clock", state="skipped", found="the answer does not say when it was sent")
    there = parsedate_to_datetime(date)
    off = (datetime.now(UTC) - there).total_seconds()
    if abs(off) <= SKEW_SECONDS:
        return Check.good("clock", f"within {SKEW_SECONDS:.0f} s of the service's")
    ahead = "ahead of" if off > 0 else "behind"
    found = f"this machine's is {abs(off):.0f} s {ahead} the service's"
    return Check.bad("clock", found, "Set both by NTP: signatures and expiries are checked against the clock.")


def _readiness(transport: Transport) -> Iterator[Check]:
    names = {"jobs": "job store", "artifacts": "artifact store"}
    down: dict[str, str] = {}
    try:
        transport.request("GET", "/readyz")
    except Unavailable as error:
        down = dict(error.details)
        if not down:
            raise
    for part, name in names.items():
        mend = {"jobs": "Start Redis, or correct BITPRESS_REDIS_URL and its settings; then this check again.",
                "artifacts": "Correct BITPRESS_STORAGE_URL and its credentials, or free its disk."}[part]  # fmt: skip
        if part in down:
            yield Check.bad(name, down[part], mend)
        else:
            yield Check.good(name, "answers the service")


def _key(caller: Caller) -> Check:
    found = f"{caller.id} of tenant {caller.tenant}: {' '.join(caller.scopes)}"
    if missing := [scope for scope in USER_SCOPES if scope not in caller.scopes]:
        mend = f"Without {', '.join(missing)} some commands are refused; an administrator makes keys that have them."
        return Check.bad("key", found, mend, "warning")
    if caller.expires_at and caller.expires_at - datetime.now(UTC) < SOON:
        mend = "Ask for a new one: `bitpress keys create`, by who may."
        return Check.bad("key", f"{found}; expires {caller.expires_at:%F %T} UTC", mend, "warning")
    return Check.good("key", found)


def _versions(caller: Caller) -> Check:
    """Before 1.0 the second number says what goes together."""
    own = version("bitpress")
    found = f"client {own}, service {caller.version}"
    if own.split(".")[:2] == caller.version.split(".")[:2]:
        return Check.good("versions", found)
    mend = f"Install the client of the service: pip install 'bitpress=={caller.version}'"
    return Check.bad("versions", found, mend, "warning")


def _work(client: Client) -> Iterator[Check]:
    try:
        cluster = client.cluster()
    except Forbidden as error:
        yield Check.bad("dispatchers", error.message, advice(error.code), "skipped")
        return
    yield _dispatchers(cluster)
    for each in cluster.dispatchers:
        devices, place = each.devices, f"{each.owner} on {each.cluster}"
        if devices is None:
            mend = "Start the Ray cluster, or correct the dispatcher's RAY_ADDRESS and RAY_AUTH_TOKEN."
            yield Check.bad("devices", f"{place}: the cluster is out of reach", mend)
        elif not devices.total:
            mend = "Join hosts with devices to the cluster (docs/operations.md)."
            yield Check.bad("devices", f"{place}: the cluster has none", mend)
        else:
            found = f"{place}: {devices.total} {devices.kind}, {devices.free} free"
            yield Check.good("devices", found)


def _dispatchers(cluster: Cluster) -> Check:
    waiting = sum(level.jobs for level in cluster.queue)
    counts = f"{cluster.running} jobs run, {waiting} wait"
    if cluster.dispatchers:
        return Check.good("dispatchers", f"{len(cluster.dispatchers)} report; {counts}")
    mend = "Nobody runs jobs. Start one: `bitpress up`, or `python -m bitpress_workers dispatch` on a cluster's host."
    return Check.bad("dispatchers", f"none reports; {counts}", mend)
