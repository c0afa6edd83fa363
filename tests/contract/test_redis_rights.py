"""The rights that deploy/make-secrets.sh gives the service in Redis are enough for all it does."""

import re
from contextlib import aclosing
from pathlib import Path

import pytest
import redis
from service_helpers import LEASE, block_record, job_spec

from bitpress.cluster import DispatcherReport
from bitpress.keys import KeyRequest
from bitpress.plans import PlanRequest
from bitpress.webhooks import WebhookRequest
from bitpress_service import embedded_redis
from bitpress_service.doctor import examine
from bitpress_service.jobstore import Capacity
from bitpress_service.keys import Keys, Rate
from bitpress_service.metrics import StoreMetrics
from bitpress_service.redis_client import connect
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_service.webhooks import Webhooks

SCRIPT = Path(__file__).parents[2] / "deploy" / "make-secrets.sh"


@pytest.fixture
def limited_url(own_redis_dir: Path) -> str:
    """URL of a Redis server for a user with these rights."""
    url = embedded_redis.start(own_redis_dir)
    rights = re.search(r"user bitpress on #\$hash (.+)", SCRIPT.read_text())
    assert rights is not None
    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "bitpress", "on", ">secret", *rights[1].split())
    return url.replace("unix://", "unix://bitpress@") + "?password=secret"


async def test_they_are_enough_for_all_that_the_service_does(limited_url: str, tmp_path: Path) -> None:
    client = connect(limited_url)
    keys, webhooks = Keys(client), Webhooks(client)
    async with aclosing(RedisJobStore(client)) as store:
        await store.ping()
        issued = await keys.issue(KeyRequest(tenant="local"))
        assert await keys.admit(issued.key, Rate(10, 10)) and await keys.get(issued.id) and await keys.listed()
        await webhooks.create("local", WebhookRequest(url="https://example.org", events=("job.succeeded",)))
        job, _ = await store.create("local", job_spec(), idempotency_key="once")
        await store.report(DispatcherReport(owner="a", cluster="ray", busy=False, devices=None), 60)
        claim = await store.claim("a", LEASE, Capacity("ray", 8))
        assert claim is not None and await store.holdings() and (await store.cluster()).running == 1
        await store.record(job.id, claim.fence, log="x", block=block_record(0))
        await store.renew(job.id, claim.fence, LEASE)
        await store.pause(job.id, "local")
        await store.release(job.id, claim.fence, delay_seconds=0)
        await store.resume(job.id, "local")
        again = await store.claim("a", 0)
        assert again is not None and await store.reap()
        last = await store.claim("a", LEASE)
        assert last is not None
        await store.finish(job.id, last.fence, state="succeeded", files={"manifest.json": "x"})
        assert len(await webhooks.claim(60, 10)) == 1
        assert (await store.list("local", limit=10)).data and await store.events(job.id)
        assert job.id in await store.new_events({job.id: "0"}, 1)
        plan = await store.ask_plan(PlanRequest.of(job_spec(), None), 60)
        assert (await store.claim_plan()) and (await store.plan_answer(plan, 0.01)) is None
        await StoreMetrics(client).read()
        await store.delete(job.id, "local")
        assert await store.trash()
        await keys.revoke(issued.id)
    settings = Settings(state_dir=tmp_path, redis_url=limited_url)
    checks = {check.name: check.state for check in await examine(settings)}
    assert {checks[name] for name in ("redis", "redis log", "redis rights")} == {"ok"}
