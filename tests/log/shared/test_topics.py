"""Topics in a store: who publishes is no worker, may die at any time, and waits for the store."""

import asyncio
import re
import sys
from collections.abc import Sequence
from functools import partial

import pytest

import streams.log.shared
from streams import Streams
from streams.errors import LogClosed, StoreDown
from streams.event import EventId
from streams.log import Limits
from streams.log.shared import leases, topics
from streams.log.store import Cursor, Publication, Published
from tests.log.conftest import NewWorker
from tests.log.shared.publisher import chatter
from tests.log.shared.workers import until_async
from tests.log.test_contract import topic
from tests.support.servers import ROOT, Connection, connection, serving, until
from tests.support.stores import shared_log

LIMITS = Limits(2**20, 300)


def _matches(pattern: re.Pattern[bytes], stream: Connection) -> bool:
    return pattern.search(stream.received) is not None


async def test_publishers_that_are_killed_in_the_middle_harm_nobody(store_url: str) -> None:
    command = (sys.executable, "-m", "tests.log.shared.publisher", store_url)
    pipe = asyncio.subprocess.PIPE
    async with serving(Streams([chatter], log=store_url)) as url:
        async with connection(url, "/streams/chatter?room=test") as stream:
            publishers = [
                await asyncio.create_subprocess_exec(*command, name, stdout=pipe, cwd=ROOT)
                for name in "abc"
            ]
            acknowledged = []
            try:
                for name, publisher in zip("abc", publishers, strict=True):
                    enough = re.compile(rf'\{{"{name}":\d\d\d\}}'.encode())
                    await stream.until(partial(_matches, enough), f"{name} has published", 20)
                    publisher.kill()
                    printed, _ = await publisher.communicate()
                    acknowledged += re.findall(r"\S+(?=\n)", printed.decode())
            finally:
                for publisher in publishers:
                    if publisher.returncode is None:
                        publisher.kill()
                        await publisher.wait()
            async with Streams([chatter], log=store_url) as publishing:
                last = await publishing.publish("chatter", "the last one", room="test")
            await stream.until(lambda stream: b"the last one" in stream.received, "it goes on")
        ids = re.findall(r"^id: (\S+)$", stream.body.decode(), re.MULTILINE)
        run, _, number = last.partition(".")
        assert ids == [f"{run}.{n}" for n in range(int(number) + 1)]
        assert set(acknowledged) <= set(ids)
        for name in "abc":
            numbers = re.findall(rf'\{{"{name}":(\d+)\}}', stream.body.decode())
            assert [int(n) for n in numbers] == list(range(len(numbers)))


async def test_who_only_publishes_starts_no_task_and_becomes_no_worker(store_url: str) -> None:
    before = asyncio.all_tasks()
    async with Streams([chatter], log=store_url) as publishing:
        await publishing.publish("chatter", 1, room="test")
        await publishing.end("chatter", room="test")
        assert asyncio.all_tasks() == before
    other = shared_log(store_url)
    await other.open()
    await until_async(lambda: knows_only(other), "the other worker is the only one")
    await other.aclose()


async def test_a_server_that_has_only_topics_is_a_worker(store_url: str) -> None:
    serving = Streams([chatter], log=store_url)
    async with serving.lifespan():
        other = shared_log(store_url)
        await other.open()

        async def knows_both() -> bool:
            return (await other.store.renew([])).all == {other.worker, serving.log.worker}

        await until_async(knows_both, "the other worker knows it")
        await other.aclose()


async def knows_only(log: streams.log.shared.SharedLog) -> bool:
    return (await log.store.renew([])).all == {log.worker}


async def test_a_worker_with_readers_of_a_topic_sends_its_cursor_again_to_keep_it(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWALS_PER_REFRESH", 1)
    log = new_worker()
    set_cursors = log.store.set_cursors
    sent: list[Cursor] = []

    async def recording(cursors: Sequence[Cursor]) -> list[bool]:
        sent.extend(cursors)
        return await set_cursors(cursors)

    monkeypatch.setattr(log.store, "set_cursors", recording)
    with (await log.topic(topic(), LIMITS)).read(-1):
        await until(lambda: len(sent) >= 4, "its cursor was sent four times", 20)
    watched = topics.watched_seconds(log.store)
    assert watched >= 3 * log.store.renew_interval
    assert {cursor.keep for cursor in sent} == {LIMITS.retain + watched}
    await until(lambda: sent[-1].after is None, "its cursor is removed", 20)
    assert sent[-1] == Cursor("t", log.worker, None, 0, LIMITS.retain)


async def test_the_readers_of_a_topic_on_all_workers_are_counted(new_worker: NewWorker) -> None:
    one, other = new_worker(), new_worker()
    log = await one.topic(topic(), LIMITS)
    with log.read(-1), log.read(-1), (await other.topic(topic(), LIMITS)).read(-1):
        await one.written()
        await other.written()
        assert (await new_worker().find("t")).readers == 3


async def test_a_publish_waits_for_a_store_that_does_not_answer_and_is_published_once(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_worker()
    publish, calls = log.store.publish, []

    async def failing(publication: Publication) -> Published:
        calls.append(publication)
        if len(calls) < 3:
            raise StoreDown("it does not answer")
        return await publish(publication)

    monkeypatch.setattr(log.store, "publish", failing)
    assert await log.publish(topic(), LIMITS, (None, b"1")) == EventId("t", 1)
    assert [call.repeated for call in calls] == [False, True, True]
    assert len({call.token for call in calls}) == 1


async def test_a_publish_gives_up_when_the_store_does_not_answer_for_long(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_worker()

    async def failing(publication: Publication) -> Published:
        raise StoreDown("it does not answer")

    monkeypatch.setattr(topics, "PUBLISH_SECONDS", 0.1)
    monkeypatch.setattr(log.store, "publish", failing)
    with pytest.raises(StoreDown, match="it does not answer"):
        await log.publish(topic(), LIMITS, (None, b"1"))


async def test_a_topic_is_no_run_that_a_worker_appends_to(new_worker: NewWorker) -> None:
    log = await new_worker().topic(topic(), LIMITS)
    assert not log.producing
    with pytest.raises(LogClosed):
        log.append(None, b"1")
