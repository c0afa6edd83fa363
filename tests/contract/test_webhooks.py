"""Webhooks over real servers and a real receiver: what is sent, how often, by whom, and what is signed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from service_helpers import LEASE, block_record, failure, job_spec
from webhook_receiver import Receiver, receiving

from bitpress.errors import Conflict, NotFound, Unauthorized
from bitpress.webhooks import Delivery, WebhookRequest, WebhookSecret, sign, verify
from bitpress_service import webhooks as webhooks_module
from bitpress_service.outbound import PinnedTransport
from bitpress_service.redis_client import connect
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.webhook_sender import RETRY_SECONDS, WebhookSender
from bitpress_service.webhooks import Webhooks


@pytest.fixture
async def webhooks(redis_url: str) -> AsyncIterator[Webhooks]:
    client = connect(redis_url)
    yield Webhooks(client)
    await client.aclose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def sender(webhooks: Webhooks, private: bool = True) -> WebhookSender:
    return WebhookSender(webhooks, PinnedTransport(private))


async def registered(webhooks: Webhooks, receiver: Receiver, *events: str) -> WebhookSecret:
    request = {"url": receiver.url} | ({"events": events} if events else {})
    return await webhooks.create("local", WebhookRequest.model_validate(request))


async def only(webhooks: Webhooks, webhook: WebhookSecret) -> Delivery:
    (delivery,) = await webhooks.deliveries(webhook.id, "local")
    return delivery


def make_due(redis_url: str) -> None:
    """Let the time until the next try be over."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for delivery in client.zrange("{bp}:due", 0, -1):
            client.zadd("{bp}:due", {delivery: 0})


async def test_a_job_that_ends_is_told_once_and_signed(
    webhooks: Webhooks, job_store: RedisJobStore, receiver: Receiver
) -> None:
    webhook = await registered(webhooks, receiver)
    assert webhook.secret.startswith("whsec_")
    job, _ = await job_store.create("local", job_spec())
    claim = await job_store.claim("worker", LEASE)
    assert claim is not None
    await job_store.record(job.id, claim.fence, block=block_record(0))
    assert await sender(webhooks).send_due() == 0  # it was asked to tell of the end alone
    await job_store.finish(job.id, claim.fence, state="failed", error=failure())
    await job_store.finish(job.id, claim.fence, state="failed", error=failure())  # the reply was lost
    assert await sender(webhooks).send_due() == 1
    assert await sender(webhooks).send_due() == 0

    (message,) = receiver.messages
    verify(webhook.secret, message.headers, message.body)
    body = json.loads(message.body)
    assert (body["type"], body["data"]) == ("job.failed", {"job_id": job.id, "status": "failed"})
    with pytest.raises(Unauthorized):
        verify(webhook.secret, message.headers, message.body + b" ")
    delivery = await only(webhooks, webhook)
    assert (delivery.state, delivery.tries, delivery.status, delivery.error) == ("delivered", 1, 204, None)
    assert message.headers["webhook-id"] == delivery.id and "." not in delivery.id


async def test_every_state_can_be_told_and_nobody_elses(
    webhooks: Webhooks, job_store: RedisJobStore, receiver: Receiver
) -> None:
    told_of = ("job.queued", "job.paused", "job.running", "job.pausing", "job.cancelling", "job.cancelled")
    webhook = await registered(webhooks, receiver, *told_of)
    await job_store.create("other", job_spec(), priority=-1)
    job, _ = await job_store.create("local", job_spec())
    await job_store.pause(job.id, "local")
    await job_store.resume(job.id, "local")
    claim = await job_store.claim("worker", LEASE)
    assert claim is not None
    await job_store.pause(job.id, "local")
    await job_store.request_cancel(job.id)
    await job_store.finish(job.id, claim.fence, state="cancelled")
    await sender(webhooks).send_due()
    told = {json.loads(message.body)["type"] for message in receiver.messages}
    assert told == set(webhook.events) and len(receiver.messages) == 7


async def test_a_receiver_that_fails_is_tried_again_over_a_day_and_then_given_up(
    webhooks: Webhooks, receiver: Receiver, redis_url: str
) -> None:
    webhook = await registered(webhooks, receiver)
    receiver.answers = [500, 503, 429, 500]
    await webhooks.test(webhook.id, "local")
    waits = []
    for tries in range(1, len(RETRY_SECONDS) + 2):
        assert await sender(webhooks).send_due() == 1
        assert await sender(webhooks).send_due() == 0
        delivery = await only(webhooks, webhook)
        assert delivery.tries == tries == len(receiver.messages)
        if delivery.next_try_at is not None:
            waits.append((delivery.next_try_at - delivery.created_at).total_seconds())
        make_due(redis_url)
    assert (delivery.state, delivery.status, delivery.error) == ("failed", 500, "the receiver answered 500")
    assert len({message.headers["webhook-id"] for message in receiver.messages}) == 1
    assert len(waits) == 7 and waits == sorted(waits) and waits[-1] > 0.9 * RETRY_SECONDS[-1]
    assert 20 * 3600 < sum(RETRY_SECONDS) < 30 * 3600


async def test_a_receiver_that_comes_back_gets_what_was_for_it(
    webhooks: Webhooks, receiver: Receiver, redis_url: str
) -> None:
    webhook = await registered(webhooks, receiver)
    receiver.answers = [502, 200]
    await webhooks.test(webhook.id, "local")
    await sender(webhooks).send_due()
    assert (await only(webhooks, webhook)).state == "pending"
    make_due(redis_url)
    await sender(webhooks).send_due()
    assert (await only(webhooks, webhook)).state == "delivered"


async def test_one_that_is_gone_is_disabled_and_a_new_secret_enables_it(
    webhooks: Webhooks, job_store: RedisJobStore, receiver: Receiver
) -> None:
    webhook = await registered(webhooks, receiver, "job.queued")
    receiver.answers = [410, 200]
    await job_store.create("local", job_spec())
    await job_store.create("local", job_spec())
    await sender(webhooks).send_due()
    assert (await webhooks.get(webhook.id, "local")).disabled == "the receiver answered 410 Gone"
    num_told = len(receiver.messages)
    await job_store.create("local", job_spec())
    assert await sender(webhooks).send_due() == 0
    assert len(receiver.messages) == num_told
    assert (await webhooks.rotate(webhook.id, "local")).disabled is None
    await job_store.create("local", job_spec())
    assert await sender(webhooks).send_due() == 1


@pytest.mark.parametrize("answer", [301, 307, 400, 404])
async def test_an_answer_that_will_stay_so_is_not_asked_for_again(
    webhooks: Webhooks, receiver: Receiver, answer: int
) -> None:
    webhook = await registered(webhooks, receiver)
    receiver.answers = [answer]
    await webhooks.test(webhook.id, "local")
    await sender(webhooks).send_due()
    delivery = await only(webhooks, webhook)
    assert (delivery.state, delivery.status) == ("failed", answer)


async def test_a_forbidden_address_is_not_called_and_one_that_is_down_is_tried_again(
    webhooks: Webhooks, receiver: Receiver
) -> None:
    webhook = await webhooks.create("local", WebhookRequest(url=f"https://localhost:{receiver.port}/hook"))
    await webhooks.test(webhook.id, "local")
    await sender(webhooks, private=False).send_due()
    delivery = await only(webhooks, webhook)
    assert delivery.state == "failed" and "not a public one" in (delivery.error or "")
    assert receiver.messages == []
    down = await webhooks.create("local", WebhookRequest(url="http://127.0.0.1:1/hook"))
    await webhooks.test(down.id, "local")
    await sender(webhooks).send_due()
    assert (await only(webhooks, down)).state == "pending"


async def test_two_secrets_sign_during_a_rotation(
    webhooks: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await registered(webhooks, receiver)
    new = await webhooks.rotate(old.id, "local")
    assert new.secret != old.secret
    await webhooks.test(old.id, "local")
    await sender(webhooks).send_due()
    (both,) = receiver.messages
    for secret in (old.secret, new.secret):
        verify(secret, both.headers, both.body)

    monkeypatch.setattr(webhooks_module, "ROTATION_SECONDS", -1.0)
    newest = await webhooks.rotate(old.id, "local")
    await webhooks.test(old.id, "local")
    await sender(webhooks).send_due()
    last = receiver.messages[-1]
    verify(newest.secret, last.headers, last.body)
    with pytest.raises(Unauthorized):
        verify(new.secret, last.headers, last.body)


async def test_many_processes_send_each_message_once(
    webhooks: Webhooks, job_store: RedisJobStore, receiver: Receiver
) -> None:
    await registered(webhooks, receiver, "job.queued")
    await asyncio.gather(*(job_store.create("local", job_spec()) for _ in range(40)))
    senders = [sender(webhooks) for _ in range(5)]
    while sum(await asyncio.gather(*(one.send_due() for one in senders))):
        pass
    ids = [message.headers["webhook-id"] for message in receiver.messages]
    assert len(ids) == len(set(ids)) == 40


async def test_what_a_lost_process_had_claimed_is_sent_by_another(
    webhooks: Webhooks, receiver: Receiver, redis_url: str
) -> None:
    webhook = await registered(webhooks, receiver)
    await webhooks.test(webhook.id, "local")
    (lost,) = await webhooks.claim(lease_seconds=60, limit=10)
    assert await sender(webhooks).send_due() == 0
    make_due(redis_url)  # the lease runs out
    assert await sender(webhooks).send_due() == 1
    await webhooks.settle(lost, 500, "too late", retry_seconds=1)  # it was only frozen
    delivery = await only(webhooks, webhook)
    assert (delivery.state, delivery.tries, delivery.status) == ("delivered", 2, 204)


async def test_a_webhook_belongs_to_its_tenant_and_its_secret_is_shown_once(
    webhooks: Webhooks, receiver: Receiver
) -> None:
    webhook = await registered(webhooks, receiver)
    (listed,) = await webhooks.list("local")
    assert not hasattr(listed, "secret") and listed.id == webhook.id
    assert await webhooks.list("other") == []
    for call in (webhooks.get, webhooks.remove, webhooks.rotate, webhooks.test, webhooks.deliveries):
        with pytest.raises(NotFound):
            await call(webhook.id, "other")
    await webhooks.test(webhook.id, "local")
    await webhooks.remove(webhook.id, "local")
    assert await sender(webhooks).send_due() == 0
    assert receiver.messages == [] and await webhooks.list("local") == []


async def test_a_tenant_has_only_so_many(webhooks: Webhooks, receiver: Receiver) -> None:
    for _ in range(webhooks_module.MAX_WEBHOOKS):
        await registered(webhooks, receiver)
    with pytest.raises(Conflict, match="remove one first"):
        await registered(webhooks, receiver)


def test_an_old_message_is_refused() -> None:
    with pytest.raises(Unauthorized, match="timestamp"):
        verify("whsec_AAAA", {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,x"}, b"{}")


def test_signatures_are_those_of_the_convention() -> None:
    # The example of the specification's reference libraries.
    signature = sign(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
