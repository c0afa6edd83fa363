"""What /metrics tells: the state of the queue, read from Redis when it is asked for, and this process's requests.

Counters lie in Redis, where the scripts raise them within the step that they count: every process tells the same, and
none is lost with a process.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitpress.cluster import LOCAL, Dispatcher
from bitpress_service.event_feed import EventFeed
from bitpress_service.jobstore import Holding
from bitpress_service.redis_cluster import RedisCluster
from bitpress_service.redis_records import pairs

# Of lua/record.lua, in seconds: a block of a small model on a CPU, and one of a very large one.
BLOCK_BUCKETS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OUTCOMES = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, eq=False)  # a registry tells collectors apart by identity
class Snapshot:
    """The store at one moment. `waiting`: priority, number of jobs and age in seconds of the oldest.

    devices: all and busy ones by kind, as the dispatchers tell of them.
    """

    waiting: tuple[tuple[int, int, float], ...]
    delayed: int
    held_leases: int
    expired_leases: int
    pending_deliveries: int
    dispatchers: int
    devices: Mapping[str, tuple[int, int]]
    counters: Mapping[str, int]

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client's collectors do."""
        queued = GaugeMetricFamily("bitpress_queued_jobs", "Jobs that wait to be claimed", labels=["priority"])
        oldest = GaugeMetricFamily("bitpress_oldest_queued_seconds", "Age of the oldest of them", labels=["priority"])
        for priority, count, seconds in self.waiting:
            queued.add_metric([str(priority)], count)
            oldest.add_metric([str(priority)], seconds)
        leases = GaugeMetricFamily(
            "bitpress_leases", "Jobs that run, by whether their worker is heard", labels=["state"]
        )
        leases.add_metric(["held"], self.held_leases)
        leases.add_metric(["expired"], self.expired_leases)
        finished = CounterMetricFamily("bitpress_finished_jobs", "Jobs that ended", labels=["outcome"])
        for outcome in OUTCOMES:
            finished.add_metric([outcome], self.counters.get(f"finished:{outcome}", 0))
        yield from (queued, oldest, leases, finished)
        yield GaugeMetricFamily("bitpress_dispatchers", "Dispatchers that report", value=self.dispatchers)
        devices = GaugeMetricFamily("bitpress_devices", "Devices that jobs may have", labels=["kind"])
        busy = GaugeMetricFamily("bitpress_busy_devices", "Devices that jobs hold", labels=["kind"])
        for kind, (total, held) in self.devices.items():
            devices.add_metric([kind], total)
            busy.add_metric([kind], held)
        yield from (devices, busy)
        yield GaugeMetricFamily("bitpress_delayed_jobs", "Jobs that wait for a retry", value=self.delayed)
        yield GaugeMetricFamily(
            "bitpress_pending_deliveries", "Webhook messages still to be delivered", value=self.pending_deliveries
        )
        for name, text in (
            ("attempts", "Attempts that began"),
            ("takeovers", "Attempts whose worker was lost"),
            ("fenced_writes", "Writes refused because another attempt had taken over"),
        ):
            yield CounterMetricFamily(f"bitpress_{name}", text, value=self.counters.get(name, 0))
        yield self._blocks()

    def _blocks(self) -> Metric:
        counts = [self.counters.get(f"blocks:{bound}", 0) for bound in (*BLOCK_BUCKETS, "inf")]
        buckets = [
            (str(bound), float(sum(counts[: number + 1]))) for number, bound in enumerate((*BLOCK_BUCKETS, "+Inf"))
        ]
        seconds = self.counters.get("block_ms", 0) / 1000
        blocks = HistogramMetricFamily("bitpress_block_seconds", "From one published block to the next")
        blocks.add_metric([], buckets, seconds)
        return blocks


def device_use(dispatchers: Iterable[Dispatcher], holdings: Iterable[Holding]) -> dict[str, tuple[int, int]]:
    """All devices and the busy ones by kind; a cluster that several dispatchers share counts once."""
    held = Counter[str]()
    for holding in holdings:
        held[holding.cluster] += holding.devices
    use: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    for each in dispatchers:
        if each.devices is None or each.cluster in seen:
            continue
        found = each.devices
        if each.cluster == LOCAL:
            busy = found.total - found.free
        else:
            seen.add(each.cluster)
            busy = min(held[each.cluster], found.total)
        before = use.get(found.kind, (0, 0))
        use[found.kind] = before[0] + found.total, before[1] + busy
    return use


class StoreMetrics(RedisCluster):
    """Raises Unavailable when Redis cannot be reached."""

    async def read(self) -> Snapshot:
        dispatchers = (await self.cluster()).dispatchers
        waiting, delayed, held, expired, deliveries, counters = await self._run("metrics")
        return Snapshot(
            waiting=tuple((priority, count, milliseconds / 1000) for priority, count, milliseconds in waiting),
            delayed=delayed,
            held_leases=held,
            expired_leases=expired,
            pending_deliveries=deliveries,
            dispatchers=len(dispatchers),
            devices=device_use(dispatchers, await self.holdings()),
            counters={name: int(value) for name, value in pairs(counters).items()},
        )


class ProcessMetrics:
    """The requests and event streams of one API process."""

    def __init__(self, feed: EventFeed) -> None:
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "bitpress_http_request_seconds", "Time until an answer's header was sent", ["method", "route", "status"],
            buckets=REQUEST_BUCKETS, registry=self._registry,
        )  # fmt: skip
        streams = Gauge("bitpress_event_streams", "Event streams that are open", registry=self._registry)
        streams.set_function(lambda: feed.num_streams)

    def render(self, snapshot: Snapshot) -> bytes:
        """Everything in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(snapshot)
        return generate_latest(self._registry) + generate_latest(registry)


class MeasuredRequests:
    """Take the time of every request, by its route's pattern: paths with ids would be without number."""

    def __init__(self, app: ASGIApp, metrics: ProcessMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path_format", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                labels = method, route, str(message["status"])
                self._metrics.requests.labels(*labels).observe(time.perf_counter() - begin)
            await send(message)

        await self._app(scope, receive, send_measured)
