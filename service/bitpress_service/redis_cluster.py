"""What dispatchers say of themselves, over Redis."""

import json
from collections.abc import Sequence

from bitpress.cluster import Cluster, Dispatcher, DispatcherReport, QueueLevel
from bitpress_service.jobstore import Holding
from bitpress_service.redis_records import Scripts, milliseconds, time_of


class RedisCluster(Scripts):
    """ClusterBoard over Redis."""

    async def report(self, report: DispatcherReport, keep_seconds: float) -> None:
        await self._run("report", report.owner, report.model_dump_json(), milliseconds(keep_seconds))

    async def cluster(self) -> Cluster:
        reports, levels, delayed, running = await self._run("cluster")
        return Cluster(
            dispatchers=tuple(Dispatcher(**json.loads(report), seen_at=time_of(at)) for report, at in reports),
            queue=tuple(QueueLevel(priority=priority, jobs=jobs) for priority, jobs in levels),
            delayed=delayed,
            running=running,
        )

    async def holdings(self) -> Sequence[Holding]:
        rows = await self._run("holdings")
        return tuple(
            Holding(job_id, tenant, owner, cluster, int(devices)) for job_id, tenant, owner, cluster, devices in rows
        )
