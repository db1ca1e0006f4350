"""Topics: runs whose events come from whoever publishes, with one log and with many workers."""

import asyncio
import concurrent.futures
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import httpx
import pytest
from msgspec import Meta
from starlette.exceptions import HTTPException
from starlette.requests import Request

from streams import Event, Policy, Streams, Topic, lifetime, source, topic
from streams.errors import (
    BodyTooLarge,
    InvalidParameters,
    TopicEnded,
    UnencodableValue,
    UnknownSource,
)
from streams.sources import clock, counter
from tests.log.shared.workers import until_async
from tests.support.servers import Connection, connection, every_event, serving
from tests.test_asgi import problem


@topic
def notifications(user: str) -> None:
    """What a user should hear of."""
    raise AssertionError("the body of a topic is not run")


ANN = "/streams/notifications?user=ann"


@asynccontextmanager
async def two_workers(
    log_url: str | None, *sources: Any, **options: Any
) -> AsyncIterator[tuple[Streams, list[str]]]:
    """Yields one worker to publish with, and the URLs of two, which are one with memory."""
    async with AsyncExitStack() as stack:
        made = [
            Streams([*(sources or (counter, notifications))], log=log_url, **options)
            for _ in range(1 if log_url is None else 2)
        ]
        urls = [await stack.enter_async_context(serving(streams)) for streams in made]
        yield made[0], [urls[0], urls[-1]]


def texts(stream: Connection) -> list[str]:
    return re.findall(r'data: \{"text":"(.*)"\}', stream.body.decode())


def ids(stream: Connection) -> list[str]:
    return re.findall(r"^id: (\S+)$", stream.body.decode(), re.MULTILINE)


async def shows(stream: Connection, *expected: str) -> None:
    await stream.until(lambda stream: len(texts(stream)) >= len(expected), f"it has {expected}")
    assert texts(stream) == list(expected)


async def begun(stream: Connection) -> None:
    await stream.until(lambda stream: b"event: start" in stream.body, "the stream has begun")


async def test_viewers_of_a_topic_get_in_one_order_what_is_published_and_its_end(
    log_url: str | None,
) -> None:
    async with two_workers(log_url) as (streams, (one, other)):
        async with connection(one, ANN) as here, connection(other, ANN) as there:
            await begun(here)
            await begun(there)
            published = [
                await streams.publish("notifications", {"text": str(n)}, user="ann")
                for n in range(3)
            ]
            await streams.publish("notifications", {"text": "not for Ann"}, user="bob")
            for stream in (here, there):
                await shows(stream, "0", "1", "2")
                assert ids(stream)[1:] == published
            await streams.end("notifications", user="ann")
            for stream in (here, there):
                await stream.until(lambda stream: stream.terminated, "the stream has ended")
                assert 'data: {"status":"completed"}' in stream.body.decode()
    run = published[0].partition(".")[0]
    assert published == [f"{run}.{n}" for n in (1, 2, 3)]
    assert here.run == there.run == run


async def test_a_viewer_who_joins_gets_the_newest_events_that_replay_says(
    log_url: str | None,
) -> None:
    @topic(replay=2)
    def two(user: str) -> None: ...

    @topic(replay=0)
    def none(user: str) -> None: ...

    expected = {"notifications": ["2", "new"], "two": ["1", "2", "new"], "none": ["new"]}
    async with two_workers(log_url, notifications, two, none) as (streams, (_, url)):
        for name, shown in expected.items():
            for n in range(3):
                await streams.publish(name, {"text": str(n)}, user="ann")
            async with connection(url, f"/streams/{name}?user=ann") as stream:
                await begun(stream)
                await streams.publish(name, {"text": "new"}, user="ann")
                await shows(stream, *shown)
                assert b"event: gap" not in stream.body


async def test_a_viewer_resumes_a_topic_after_the_last_event_id(log_url: str | None) -> None:
    async with two_workers(log_url) as (streams, (_, url)):
        first, *_ = [
            await streams.publish("notifications", {"text": str(n)}, user="ann") for n in range(3)
        ]
        async with connection(url, ANN, headers=f"Last-Event-ID: {first}\r\n") as stream:
            await shows(stream, "1", "2")
        lost = f"Last-Event-ID: {'A' * 22}.7\r\n"
        async with connection(url, ANN, headers=lost) as stream:
            await shows(stream, "2")
            assert b'event: gap\ndata: {"missed":null}' in stream.body


async def test_a_viewer_who_resumes_may_leave_out_the_parameters_unless_the_run_is_lost() -> None:
    async with two_workers(None) as (streams, (url, _)):
        first = await streams.publish("notifications", {"text": "0"}, user="ann")
        await streams.publish("notifications", {"text": "1"}, user="ann")
        path = "/streams/notifications"
        async with connection(url, path, headers=f"Last-Event-ID: {first}\r\n") as stream:
            await shows(stream, "1")
        async with httpx.AsyncClient(base_url=url) as client:
            lost = await client.get(path, headers={"Last-Event-ID": f"{'A' * 22}.7"})
            assert "user: is required" in problem(lost, 422)
        assert len(streams.log) == 1


async def test_who_joins_a_topic_that_has_ended_gets_the_newest_event_and_the_end(
    log_url: str | None,
) -> None:
    async with two_workers(log_url) as (streams, (_, url)):
        await streams.publish("notifications", {"text": "old"}, user="ann")
        await streams.publish("notifications", {"text": "new"}, user="ann")
        await streams.end("notifications", user="ann")
        await streams.end("notifications", user="ann")
        async with httpx.AsyncClient(base_url=url) as client:
            events = await every_event(client, ANN)
            assert [event.event for event in events] == ["start", "message", "end"]
            assert events[1].json() == {"text": "new"}
            last = {"Last-Event-ID": events[-1].id}
            assert (await client.get(ANN, headers=last)).status_code == 204
        with pytest.raises(TopicEnded, match="has ended; it can be published to again when it is"):
            await streams.publish("notifications", {"text": "late"}, user="ann")
        assert (await streams.publish("notifications", 1, user="bob")).endswith(".1")


async def test_a_topic_that_ends_before_it_was_published_to_shows_its_end(
    log_url: str | None,
) -> None:
    async with two_workers(log_url) as (streams, (_, url)):
        await streams.end("notifications", user="ann")
        async with httpx.AsyncClient(base_url=url) as client:
            events = await every_event(client, ANN)
        assert [event.event for event in events] == ["start", "end"]


async def test_an_ended_topic_can_be_published_to_again_when_it_is_forgotten(
    log_url: str | None,
) -> None:
    async with two_workers(log_url, notifications, retain=0.1) as (streams, _):
        await streams.publish("notifications", 1, user="ann")
        await streams.end("notifications", user="ann")
        with anyio.fail_after(10):
            while True:
                try:
                    assert (await streams.publish("notifications", 2, user="ann")).endswith(".1")
                    break
                except TopicEnded:
                    await asyncio.sleep(0.01)


async def test_a_topic_without_viewers_is_forgotten_after_retain_and_is_there_again(
    log_url: str | None,
) -> None:
    async with two_workers(log_url, notifications, retain=0.1) as (streams, (_, url)):
        first = await streams.publish("notifications", {"text": "0"}, user="ann")
        run = f"/runs/{first.partition('.')[0]}"
        async with httpx.AsyncClient(base_url=url) as client:
            with anyio.fail_after(10):
                while (await client.get(run, headers={"Accept": "application/json"})).is_success:
                    await asyncio.sleep(0.01)
        async with connection(url, ANN) as stream:
            await begun(stream)
            again = await streams.publish("notifications", {"text": "1"}, user="ann")
            await shows(stream, "1")
        assert again.partition(".")[0] != first.partition(".")[0]


@asynccontextmanager
async def viewer(client: httpx.AsyncClient, url: str) -> AsyncIterator[Connection]:
    """A viewer of Ann's topic, of which the worker of `client` knows.

    It joins again if the topic was forgotten before it could read: a busy machine needs longer for
    that than `retain`.
    """
    for _ in range(100):
        async with connection(url, ANN) as stream:
            await begun(stream)
            state = await client.get(f"/runs/{stream.run}")
            while state.is_success and not state.json()["readers"]:
                state = await client.get(f"/runs/{stream.run}")
            if state.is_success:
                yield stream
                return
    raise AssertionError("not reached in 100 attempts: the topic has a viewer")


async def test_a_topic_with_a_viewer_is_not_forgotten(log_url: str | None) -> None:
    async with (
        two_workers(log_url, notifications, retain=0.1) as (streams, (one, url)),
        httpx.AsyncClient(base_url=one, headers={"Accept": "application/json"}) as client,
        viewer(client, url) as stream,
    ):

        async def forgotten(run: str) -> bool:
            return (await client.get(f"/runs/{run}")).status_code == 404

        other = (await streams.publish("notifications", 1, user="bob")).partition(".")[0]
        await until_async(lambda: forgotten(other), "a topic that nobody watches is forgotten")
        assert not await forgotten(stream.run)
        await streams.publish("notifications", {"text": "1"}, user="ann")
        await shows(stream, "1")
        stream.abort()
        await until_async(lambda: forgotten(stream.run), "the topic is forgotten")


async def test_viewers_cannot_stop_a_topic(log_url: str | None) -> None:
    async with two_workers(log_url) as (streams, (_, url)):
        published = await streams.publish("notifications", 1, user="ann")
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.delete(f"/runs/{published.partition('.')[0]}")
        assert "none of them can stop it" in problem(answer, 403)
        assert (await streams.publish("notifications", 2, user="ann")).endswith(".2")


def _has_received(part: bytes, stream: Connection) -> bool:
    return part in stream.received


async def test_a_slow_viewer_gets_a_gap_and_never_holds_a_publisher_up(
    log_url: str | None,
) -> None:
    text = "x" * 10_000
    async with two_workers(log_url, notifications, window=100_000) as (streams, (one, other)):
        async with (
            connection(other, ANN, receive_buffer=4096) as slow,
            connection(one, ANN) as fast,
        ):
            await begun(slow)
            await begun(fast)
            count = 0
            with anyio.fail_after(30):
                while count < 800:  # 8 MB: more than the window and the sockets hold
                    await streams.publish("notifications", {"text": text}, user="ann")
                    count += 1
                    newest = f".{count}\n".encode()
                    await fast.until(partial(_has_received, newest), "it keeps up")
                    fast.received = fast.received[-20_000:]
                last = await streams.publish("notifications", {"text": "last"}, user="ann")
            await slow.until(partial(_has_received, b'{"text":"last"}'), "it has the last", 20)
            events = slow.body.decode()
            gaps = [int(n) for n in re.findall(r'event: gap\ndata: \{"missed":(\d+)\}', events)]
            assert gaps
            got = len(texts(slow))
            assert got + sum(gaps) == count + 1, "what it has not had is counted"
            assert last in ids(slow)


async def test_publishing_to_a_topic_without_viewers_holds_no_more_than_the_window(
    log_url: str | None,
) -> None:
    async with two_workers(log_url, notifications, window=50_000) as (streams, (_, url)):
        for number in range(100):
            await streams.publish("notifications", {"text": "x" * 2000, "n": number}, user="ann")
        async with httpx.AsyncClient(base_url=url) as client:
            published = await streams.publish("notifications", 1, user="ann")
            path = f"/runs/{published.partition('.')[0]}"
            state = (await client.get(path, headers={"Accept": "application/json"})).json()
        assert state["last_event"] == 101
        assert 101 - 25 <= state["first_event"] <= 101 - 15
        if log_url is None:
            assert streams.runs.health()["bytes"] <= 50_000


async def test_an_event_larger_than_the_window_is_held_until_the_next(
    log_url: str | None,
) -> None:
    async with two_workers(log_url, notifications, window=1000) as (streams, (_, url)):
        await streams.publish("notifications", {"text": "small"}, user="ann")
        await streams.publish("notifications", {"text": "x" * 5000}, user="ann")
        async with connection(url, ANN) as stream:
            await shows(stream, "x" * 5000)


async def test_any_number_of_publishers_at_once_are_numbered_without_holes(
    log_url: str | None,
) -> None:
    async with two_workers(log_url) as (streams, (_, url)):
        async with connection(url, ANN) as stream:
            await begun(stream)
            published = await asyncio.gather(
                *(
                    streams.publish("notifications", {"text": f"{n}"}, user="ann")
                    for n in range(200)
                )
            )
            await stream.until(lambda stream: len(texts(stream)) == 200, "all have come")
        run = stream.run
        assert ids(stream) == [f"{run}.{n}" for n in range(201)]
        assert dict(zip(ids(stream)[1:], texts(stream), strict=True)) == {
            id_: f"{n}" for n, id_ in enumerate(published)
        }


async def test_events_with_a_name_and_multiline_text_are_published(log_url: str | None) -> None:
    async with two_workers(log_url) as (streams, (_, url)):
        async with connection(url, ANN) as stream:
            await begun(stream)
            await streams.publish("notifications", Event(1, event="count"), user="ann")
            await streams.publish("notifications", Event(text="one\ntwo"), user="ann")
            await stream.until(lambda stream: b"data: two\n" in stream.body, "both have come")
        run = stream.run
        expected = f"id: {run}.1\nevent: count\ndata: 1\n\nid: {run}.2\ndata: one\ndata: two\n\n"
        assert expected in stream.body.decode()


async def test_parameters_have_their_types_and_defaults_wherever_they_come_from(
    log_url: str | None,
) -> None:
    @topic
    def prices(market: str = "home", depth: Annotated[float, Meta(ge=0)] = 1.0) -> None: ...

    async with two_workers(log_url, prices) as (streams, (_, url)):
        published = await streams.publish("prices", 1, depth=1)
        run = published.partition(".")[0]
        for query in ("", "?market=home", "?depth=1", "?depth=1.0&market=home"):
            async with connection(url, f"/streams/prices{query}") as stream:
                await begun(stream)
                assert stream.run == run


async def test_what_cannot_be_published_raises_and_changes_nothing(log_url: str | None) -> None:
    async with two_workers(log_url) as (streams, _):
        first = await streams.publish("notifications", 0, user="ann")
        with pytest.raises(UnknownSource, match="no topic 'news'; there are: notifications"):
            await streams.publish("news", 1)
        with pytest.raises(UnknownSource, match="'counter' is a source"):
            await streams.publish("counter", 1)
        with pytest.raises(UnknownSource, match="no topic"):
            await streams.end("news")
        with pytest.raises(InvalidParameters, match="user: is required"):
            await streams.publish("notifications", 1)
        with pytest.raises(InvalidParameters, match="usr: is not a parameter"):
            await streams.publish("notifications", 1, user="ann", usr="ann")
        with pytest.raises(InvalidParameters, match="user: expected `str`"):
            await streams.publish("notifications", 1, user=7)
        for value in (object(), b"bytes", {"a": [b"bytes"]}):
            with pytest.raises(UnencodableValue, match="cannot be encoded as JSON"):
                await streams.publish("notifications", value, user="ann")
        with pytest.raises(UnencodableValue, match=r"^a dict cannot be encoded as JSON: a: object"):
            await streams.publish("notifications", {"a": object()}, user="ann")
        again = await streams.publish("notifications", 1, user="ann")
        assert (first[-2:], again[-2:]) == (".1", ".2")


async def test_the_list_of_sources_says_which_are_topics() -> None:
    async with serving(Streams([clock, notifications])) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            source, listed = (await client.get("/streams")).json()["sources"]
            assert "topic" not in source
            assert listed == {
                "name": "notifications",
                "description": "What a user should hear of.",
                "parameters": listed["parameters"],
                "events": None,
                "shared": True,
                "restartable": False,
                "url": "/streams/notifications",
                "topic": True,
            }
            assert listed["parameters"]["required"] == ["user"]
            assert "user: is required" in problem(await client.get("/streams/notifications"), 422)


def test_a_topic_says_what_is_wrong_with_its_declaration() -> None:
    with pytest.raises(TypeError, match="replay=-1 is no number of events"):
        topic(replay=-1)(notifications.function)
    with pytest.raises(TypeError, match="replay='1' is no number of events"):
        topic(replay="1")(notifications.function)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="linger has no effect"):
        topic(linger=3)(notifications.function)
    with pytest.raises(TypeError, match="did you mean 'replay'"):
        topic(replays=3)(notifications.function)  # type: ignore[call-overload]

    def continued(*, after: int = 0) -> None: ...

    with pytest.raises(TypeError, match="the parameter name 'after' is reserved"):
        topic(continued)

    def untyped(user) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(TypeError, match="'user' needs a type annotation"):
        topic(untyped)
    with pytest.raises(TypeError, match="two sources have the name 'notifications'"):
        Streams([notifications, notifications])
    with pytest.raises(TypeError, match="<Topic notifications> cannot be a model"):
        Streams(models={"m": notifications})


def test_a_topic_is_declared_with_its_name_and_policy() -> None:
    @topic(name="jobs", replay=3, retain=60)
    def job(number: int) -> None:
        """How far a job is.

        More of it.
        """

    assert isinstance(job, Topic)
    assert (job.name, job.replay, job.policy) == ("jobs", 3, {"retain": 60})
    assert job.description == "How far a job is."
    assert repr(job) == "<Topic jobs>"
    assert Policy().retain == 300


async def test_at_max_runs_the_topic_that_is_idle_for_longest_makes_room() -> None:
    streams = Streams([notifications], max_runs=2)
    async with serving(streams) as url, connection(url, ANN) as stream:
        await begun(stream)
        first = [await streams.publish("notifications", 0, user=user) for user in ("b", "c")]
        again = [await streams.publish("notifications", 0, user=user) for user in ("c", "b")]
        assert again[0] == first[1].replace(".1", ".2")
        assert again[1].endswith(".1"), "it was forgotten"
        await streams.publish("notifications", {"text": "1"}, user="ann")
        await shows(stream, "1")


async def test_at_max_bytes_a_topic_holds_its_newest_event_only() -> None:
    streams = Streams([notifications], max_bytes=10_000)
    async with serving(streams) as url:
        for _ in range(50):
            await streams.publish("notifications", {"text": "x" * 1000}, user="ann")
        assert streams.runs.health()["bytes"] < 12_000
        async with connection(url, ANN) as stream:
            await shows(stream, "x" * 1000)


async def test_with_the_log_in_memory_a_process_that_serves_nothing_cannot_publish() -> None:
    streams = Streams([notifications])
    async with streams:
        for publish in (
            streams.publish("notifications", 1, user="a"),
            streams.end("notifications", user="a"),
        ):
            with pytest.raises(RuntimeError, match="which serves nothing, so nobody could see"):
                await publish
    async with streams.lifespan():
        await streams.publish("notifications", 1, user="ann")
    async with serving(streams):
        await streams.publish("notifications", 1, user="ann")


def test_topics_of_an_event_loop_that_is_over_are_forgotten() -> None:
    streams = Streams([notifications])

    async def serve() -> str:
        async with serving(streams) as url:
            leaving = connection(url, ANN)
            stream = await leaving.__aenter__()
            await begun(stream)
            return await streams.publish("notifications", 1, user="ann")

    first, second = asyncio.run(serve()), asyncio.run(serve())
    assert first.endswith(".1")
    assert second.endswith(".1")
    assert first != second
    assert len(streams.log) == 1


async def test_a_thread_publishes_and_waits_until_the_log_has_the_event(
    log_url: str | None,
) -> None:
    async with two_workers(log_url) as (streams, (_, url)):

        def work() -> list[str]:
            return [
                streams.publish_from_thread("notifications", {"text": str(n)}, user="ann")
                for n in range(3)
            ]

        async with connection(url, ANN) as stream:
            await begun(stream)
            published = await asyncio.to_thread(work)
            await shows(stream, "0", "1", "2")
            assert ids(stream)[1:] == published
        with pytest.raises(UnknownSource, match="no topic 'news'"):
            await asyncio.to_thread(streams.publish_from_thread, "news", 1)


async def test_a_plain_generator_publishes_from_its_thread() -> None:
    @source
    def work() -> Iterator[str]:
        yield streams.publish_from_thread("notifications", {"text": "half"}, user="ann")

    streams = Streams([work, notifications])
    async with serving(streams) as url, connection(url, ANN) as stream:
        await begun(stream)
        async with httpx.AsyncClient(base_url=url) as client:
            events = await every_event(client, "/streams/work")
        await shows(stream, "half")
        assert events[1].json() == ids(stream)[1]


async def test_a_thread_cannot_publish_without_an_event_loop_of_another_thread() -> None:
    streams = Streams([notifications])
    with pytest.raises(RuntimeError, match="and none runs: open it first"):
        streams.publish_from_thread("notifications", 1, user="ann")
    async with streams.lifespan():
        with pytest.raises(RuntimeError, match="of its own thread, for ever; await"):
            streams.publish_from_thread("notifications", 1, user="ann")


def test_a_thread_cannot_publish_to_an_event_loop_that_is_over() -> None:
    streams = Streams([notifications])

    async def serve() -> None:
        async with streams.lifespan():
            await asyncio.to_thread(streams.publish_from_thread, "notifications", 1, user="ann")

    asyncio.run(serve())
    with pytest.raises(RuntimeError, match="and none runs: open it first"):
        streams.publish_from_thread("notifications", 1, user="ann")


def test_a_thread_does_not_wait_for_ever_for_an_event_loop_that_ends_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifetime, "LOOP_SECONDS", 0.01)
    streams = Streams([notifications])
    raised: list[RuntimeError] = []

    def work() -> None:
        try:
            streams.publish_from_thread("notifications", 1, user="ann")
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=work)

    def start_and_wait() -> None:
        thread.start()
        deadline = time.monotonic() + 5
        while not waits(thread):
            assert time.monotonic() < deadline, "not reached in 5 s: the thread waits"
            time.sleep(0.001)

    async def serve() -> None:
        await streams.lifespan().__aenter__()
        start_and_wait()  # The loop ends before it runs what the thread has given it.

    loop = asyncio.new_event_loop()
    loop.run_until_complete(serve())
    thread.join(5)
    assert "and none runs" in str(raised[0])
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def waits(thread: threading.Thread) -> bool:
    """Whether a thread is in `concurrent.futures.wait`."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code is not concurrent.futures.wait.__code__:
        frame = frame.f_back
    return frame is not None


async def own(request: Request) -> None:
    """A guard of topics, and of publishers: the user in the query is the one in the header."""
    if request.query_params.get("user") != request.headers.get("x-user"):
        raise HTTPException(403, "not yours")


POSTED = "/topics/notifications?user=ann"
AS_ANN = {"X-User": "ann"}


async def test_a_post_publishes_with_its_parameters_in_the_query(log_url: str | None) -> None:
    async with two_workers(log_url, publish=own) as (_, (one, other)):
        async with connection(other, ANN) as stream, httpx.AsyncClient(base_url=one) as client:
            await begun(stream)
            answer = await client.post(POSTED, json={"text": "Done"}, headers=AS_ANN)
            assert answer.status_code == 200
            await shows(stream, "Done")
            assert answer.json() == {"id": ids(stream)[1]}


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("/topics/news?user=ann", b"1", 404, "there is no topic 'news'; there are: notifications"),
        ("/topics/counter?user=ann", b"1", 404, "'counter' is a source"),
        ("/topics/notifications?user=ann&usr=1", b"1", 422, "usr: is not a parameter"),
        (POSTED, b"{'text': 'Done'}", 422, "the body must be JSON"),
        (POSTED, b"", 422, "the body must be JSON"),
        (POSTED, b"NaN", 422, "the body must be JSON"),
        (POSTED, b'"\xff"', 422, "the body must be JSON"),
        (POSTED, b'"\\ud800"', 422, "the body must be JSON"),
        (POSTED, b"[" * 10_000 + b"]" * 10_000, 422, "nested deeper than 64"),
        (POSTED, b'"' + b"x" * 99 + b'"', 413, "the body has more than 100 bytes"),
        (POSTED, b'"' + b"x" * 98 + b'"', 200, ""),
        (POSTED, b"123456789012345678901234567890", 200, ""),
    ],
)
async def test_what_cannot_be_posted_is_a_problem_and_changes_nothing(
    path: str, body: bytes, status: int, detail: str, log_url: str | None
) -> None:
    limit = {} if len(body) > 1000 else {"max_body": 100}
    async with two_workers(log_url, publish=own, **limit) as (streams, (url, _)):
        async with httpx.AsyncClient(base_url=url) as client:
            headers = {**AS_ANN, "Content-Type": "application/json"}
            answer = await client.post(path, content=body, headers=headers)
        if status == 200:
            assert answer.is_success, answer.text
        else:
            assert detail in problem(answer, status)
        number = 2 if status == 200 else 1
        assert (await streams.publish("notifications", 1, user="ann")).endswith(f".{number}")


async def test_python_publishes_at_most_max_body_bytes(log_url: str | None) -> None:
    async with two_workers(log_url, max_body=100) as (streams, _):
        await streams.publish("notifications", "x" * 98, user="ann")
        with pytest.raises(BodyTooLarge, match="the event has 101 bytes, and max_body"):
            await streams.publish("notifications", "x" * 99, user="ann")
        with pytest.raises(BodyTooLarge):
            await streams.publish("notifications", Event(text="x" * 101), user="ann")
        published = await streams.publish("notifications", 1, user="ann")
        assert published.endswith(".2"), "nothing of the others is there"


async def test_a_post_that_is_refused_or_comes_too_late_publishes_nothing() -> None:
    async with two_workers(None, publish=own) as (streams, (url, _)):
        async with httpx.AsyncClient(base_url=url) as client:
            refused = await client.post("/topics/unknown?user=bob", content=b"x", headers=AS_ANN)
            assert problem(refused, 403) == "not yours"
            cross_site = {**AS_ANN, "Sec-Fetch-Site": "cross-site"}
            assert problem(await client.post(POSTED, json=1, headers=cross_site), 403)
            text = {**AS_ANN, "Content-Type": "text/plain"}
            assert "send JSON" in problem(await client.post(POSTED, content="1", headers=text), 415)
            assert len(streams.log) == 0
            await streams.end("notifications", user="ann")
            late = await client.post(POSTED, json=1, headers=AS_ANN)
            assert "has ended" in problem(late, 409)
            assert problem(await client.get(POSTED), 405)


async def test_a_guard_of_publishers_may_be_sync_and_may_return_false() -> None:
    asked = []

    def nobody(request: Request) -> bool:
        asked.append(request.url.path)
        return False

    async with serving(Streams([notifications], publish=nobody)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            assert "does not let you publish" in problem(await client.post(POSTED, json=1), 403)
    assert asked == ["/topics/notifications"]
    with pytest.raises(TypeError, match="publish= of Streams is a function of the request"):
        Streams([notifications], publish="yes")  # type: ignore[arg-type]


async def test_without_a_guard_of_publishers_there_is_nothing_to_post_to() -> None:
    async with serving(Streams([notifications])) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            assert "there is nothing at" in problem(await client.post(POSTED, json=1), 404)


async def test_the_guard_of_a_topic_is_asked_for_everyone_who_joins_or_resumes_it() -> None:
    guarded = topic(guard=own)(notifications.function)
    streams = Streams([guarded])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        published = await streams.publish("notifications", 1, user="ann")
        run = f"/runs/{published.partition('.')[0]}"
        bob = {"X-User": "bob"}
        last = {**bob, "Last-Event-ID": published}
        for path, headers in ((ANN, bob), (ANN, last), (run, bob), (run, last)):
            assert problem(await client.get(path, headers=headers), 403) == "not yours"
        posted = await client.post(f"{ANN}", json={"user": "bob"}, headers=AS_ANN)
        assert "user: a POST has its parameters in the body" in problem(posted, 422)
        mixed = await client.get("/streams/notifications?user=bob", headers=last)
        assert "has other parameters" in problem(mixed, 422)
        async with connection(url, ANN, headers="X-User: ann\r\n") as stream:
            await stream.until(lambda stream: published in stream.body.decode(), "Ann sees it")


async def test_a_task_that_only_publishes_lets_others_have_their_turns(
    log_url: str | None,
) -> None:
    async with two_workers(log_url) as (streams, _):
        turn = asyncio.Event()
        asyncio.get_running_loop().call_soon(turn.set)
        await streams.publish("notifications", 1, user="ann")
        assert turn.is_set()
