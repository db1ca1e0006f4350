"""GET /metrics: what a worker did, as Prometheus' own parser reads it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

import streams as package
from streams import MemoryLog, Policy, StreamError, Streams, settings, source, topic
from streams.errors import StoreFull, Unavailable
from streams.log import RunInfo, RunLog
from streams.metrics import MAX_ENDPOINTS, Metrics
from streams.runs import Runs
from streams.sources import counter, tokens
from tests.log.shared.workers import claimed, kill
from tests.support.servers import client_of, connection, every_event, serving, until
from tests.support.sources import gated
from tests.support.stores import shared_log, with_lease

KEY = "k" * 16

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scrape:
    """The samples of one scrape."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        self.found: Found = {}
        for family in text_string_to_metric_families(response.text):
            assert family.type in ("counter", "gauge", "histogram"), family
            assert family.documentation
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.found
                self.found[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The value of a sample; 0 if there is none."""
        return self.found.get((f"streams_{name}", frozenset(labels.items())), 0)

    def labels(self, name: str, label: str) -> set[str]:
        samples = [dict(labels) for found, labels in self.found if found == f"streams_{name}"]
        return {labels[label] for labels in samples}


async def scraped(client: httpx.AsyncClient, path: str = "/metrics") -> Scrape:
    return Scrape(await client.get(path))


@asynccontextmanager
async def metered(*sources: Any, **options: Any) -> AsyncIterator[tuple[Streams, str]]:
    app = Streams(sources, metrics=True, **options)
    async with serving(app) as url:
        yield app, url


@source
async def failing() -> AsyncIterator[int]:
    """Fails after its first event."""
    yield 1
    raise StreamError("broken", status=502)


@source
async def refusing() -> AsyncIterator[int]:
    """Refuses each run."""
    raise StreamError("not today", status=409)
    yield


@source(shared=True)
async def news(count: int = 100) -> AsyncIterator[int]:
    for number in range(count):
        yield number
        await asyncio.sleep(0.001)


@topic
def room(name: str) -> None:
    """What is said in a room."""


async def test_the_metrics_say_what_was_done(log_url: str | None) -> None:
    app = Streams([counter, failing, refusing, news], log=log_url, metrics=True)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        empty = await scraped(client)
        await every_event(client, "/streams/counter?count=3&interval=0")
        assert (await every_event(client, "/streams/failing"))[-1].event == "end"
        assert (await client.get("/streams/refusing")).status_code == 409
        assert (await client.get("/streams/counter?count=x")).status_code == 422
        assert (await client.get("/streams/counter?count=y")).status_code == 422
        assert (await client.get("/nowhere")).status_code == 404
        async with connection(url, "/streams/counter?count=9&interval=60") as stream:
            await stream.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event is there")
            open_ = await scraped(client)
            assert (await client.delete(f"/runs/{stream.run}")).status_code == 204
            await stream.until(lambda stream: b"event: end" in stream.body, "the run has ended")
        await until(lambda: not app.runs.health()["running"], "no run is running")
        after = f"{stream.run}.0"
        resumed = await client.get("/streams/counter", headers={"Last-Event-ID": after})
        assert resumed.status_code == 200
        lost = await client.get("/streams/news?count=0", headers={"Last-Event-ID": f"{'A' * 22}.7"})
        assert '"missed":null' in lost.text
        await until(lambda: len(app.log) == 4, "the refused run is forgotten")
        final = await scraped(client)

    assert empty("worker_info", worker=app.log.worker, version=package.__version__) == 1
    assert empty("events_total") == empty("sent_bytes_total") == empty("readers_opened_total") == 0

    assert open_("runs_running", source="counter") == 1
    assert (open_("readers"), final("readers")) == (1, 0)
    assert open_("sent_bytes_total") > 0

    started = {name: final("runs_started_total", source=name) for name in app.sources}
    assert started == {"counter": 2, "failing": 1, "refusing": 1, "news": 1}
    ended = {
        (name, outcome): final("runs_ended_total", source=name, outcome=outcome)
        for name, outcome in [
            ("counter", "completed"),
            ("counter", "cancelled"),
            ("failing", "failed"),
            ("refusing", "refused"),
            ("news", "completed"),
        ]
    }
    assert set(ended.values()) == {1}
    assert len([name for name, _ in final.found if name == "streams_runs_ended_total"]) == 5
    assert {final("runs_running", source=name) for name in app.sources} == {0}
    assert final("runs_held") == len(app.log)

    assert final("first_event_seconds_count", source="counter") == 2
    assert final("first_event_seconds_count", source="failing") == 1
    assert final.labels("first_event_seconds_count", "source") == {"counter", "failing"}
    assert final("first_event_seconds_bucket", source="counter", le="+Inf") == 2
    assert 0 < final("first_event_seconds_sum", source="counter") < 60

    assert final("events_total") == app.log.events
    assert final("held_bytes") == app.log.bytes
    assert final("readers_opened_total") == 5
    assert final("readers_resumed_total") == 2
    assert final("gaps_total") == 1
    assert final("refused_total", status="422", reason="InvalidParameters") == 2
    assert final("refused_total", status="409", reason="StreamError") == 1
    assert final("refused_total", status="404", reason="StreamError") == 1
    assert final.labels("refused_total", "status") == {"404", "409", "422"}

    operations = final.labels("store_seconds_count", "operation")
    assert operations == (set() if log_url is None else {"append", "create", "load"})
    for operation in operations:
        assert final("store_seconds_count", operation=operation) > 0
        assert final("store_seconds_sum", operation=operation) > 0


async def test_the_bytes_are_those_that_clients_got() -> None:
    async with metered(counter) as (_, url), httpx.AsyncClient(base_url=url) as client:
        got = [
            await client.get("/streams/counter?count=3&interval=0", headers={"Accept": accept})
            for accept in ("text/event-stream", "application/jsonl")
        ]
        metrics = await scraped(client)
    assert metrics("sent_bytes_total") == sum(len(response.content) for response in got)


async def test_the_bytes_before_the_first_event_are_counted_too() -> None:
    async with metered(counter) as (_, url), httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/counter?count=9&interval=60") as first:
            await first.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event is there")
            before = await scraped(client)
            headers = f"Last-Event-ID: {first.run}.1\r\n"
            async with connection(url, f"/runs/{first.run}", headers=headers) as second:
                await second.until(lambda stream: stream.body.endswith(b"\n"), "it has begun")
                after = await scraped(client)
    assert after("sent_bytes_total") - before("sent_bytes_total") == len(second.body)


async def test_publishes_are_counted_by_topic(log_url: str | None) -> None:
    async with metered(room, log=log_url) as (app, url):
        for text in ("one", "two"):
            await app.publish("room", text, name="a")
        with pytest.raises(StreamError):
            await app.publish("room", "three", nobody="b")
        async with httpx.AsyncClient(base_url=url) as client:
            metrics = await scraped(client)
    assert metrics("events_published_total", source="room") == 2
    assert metrics("store_seconds_count", operation="publish") == (0 if log_url is None else 2)


async def test_a_replay_from_the_store_is_timed(sqlite_url: str) -> None:
    app = Streams([counter], log=sqlite_url, metrics=True)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        run = (await every_event(client, "/streams/counter?count=3&interval=0"))[0].json()["run"]
        other = Streams([counter], log=sqlite_url, metrics=True)
        async with client_of(other) as reader:
            await every_event(reader, f"/runs/{run}")
            metrics = await scraped(reader)
    assert metrics("store_seconds_count", operation="read") >= 1
    assert metrics("runs_started_total", source="counter") == 0


async def test_evictions_are_counted(log_url: str | None) -> None:
    async with metered(counter, log=log_url, max_runs=2) as (app, url):
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(5):
                await every_event(client, "/streams/counter?count=0")
                await until(lambda: not app.log.readers, "the reader has left")
            metrics = await scraped(client)
    assert metrics("runs_evicted_total") == 3
    assert metrics("runs_held") == 2


async def test_a_run_that_another_worker_stops_is_counted_there(sqlite_url: str) -> None:
    end_was_read = asyncio.Event()

    @source(name="counter")
    async def slow_to_close() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(60)
        finally:
            await end_was_read.wait()

    one, other = (Streams([slow_to_close], log=sqlite_url, metrics=True) for _ in range(2))
    async with serving(one) as url, client_of(other) as client:
        async with connection(url, "/streams/counter") as stream:
            await stream.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event is there")
            log = await other.runs.find(stream.run)
            for _ in range(2):
                await other.runs.cancel(log)
            await stream.until(lambda stream: b"event: end" in stream.body, "the run has ended")
        end_was_read.set()
        await until(lambda: not one.runs.health()["running"], "no run is running")
        there = await scraped(client)
        here = await scraped(client, f"{url}/metrics")
    assert there("runs_ended_total", source="counter", outcome="cancelled") == 1
    assert here.labels("runs_ended_total", "outcome") == {"handed_over"}
    assert here("runs_running", source="counter") == 0


async def test_a_run_that_another_worker_continues_is_counted_there(sqlite_url: str) -> None:
    one, other = (Streams([counter], log=sqlite_url, metrics=True) for _ in range(2))
    async with client_of(other) as client:
        async with serving(one) as url:
            async with connection(url, "/streams/counter?count=1000&interval=0.1") as stream:
                await stream.until(lambda stream: stream.body.count(b"\n\n") >= 2, "an event")
        await until(lambda: other.log.events, "the run continues")
        there = await scraped(client)
    assert there("runs_taken_over_total", source="counter") == 1
    assert there("runs_started_total", source="counter") == 0
    assert there("runs_running", source="counter") == 1
    assert there("first_event_seconds_count", source="counter") == 0


async def test_a_run_that_is_lost_with_its_worker_is_counted_as_failed(sqlite_url: str) -> None:
    """The other worker does not have the source, so it ends the run."""
    one, other = Streams([counter], log=sqlite_url), Streams([], log=sqlite_url, metrics=True)
    async with client_of(other) as client:
        async with serving(one) as url:
            async with connection(url, "/streams/counter?count=9&interval=60") as stream:
                await stream.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event")

        async def failed() -> float:
            metrics = await scraped(client)
            return metrics("runs_ended_total", source="counter", outcome="failed")

        deadline = asyncio.get_running_loop().time() + 5
        while not await failed():
            assert asyncio.get_running_loop().time() < deadline, "not reached: the run has failed"


class Worker:
    """A worker without a server, and what it has counted."""

    def __init__(self, url: str, *sources: Any) -> None:
        self.log = shared_log(with_lease(url, 0.3))
        self.metrics = Metrics([])
        by_name = {source.name: (source, Policy()) for source in sources}
        self.runs = Runs(self.log, by_name, observers=[self.metrics])

    async def start(self, source: Any) -> RunLog:
        return await self.runs.start(await source.job({}, None, policy=Policy()))

    @property
    def ended(self) -> dict[str, int]:
        """How many runs have ended, by outcome."""
        return {outcome: count for (_, outcome), count in self.metrics._ended.items()}


@pytest.fixture
async def worker(sqlite_url: str) -> AsyncIterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def worker(*sources: Any) -> Worker:
        made.append(Worker(sqlite_url, *sources))
        return made[-1]

    yield worker
    for each in made:
        await each.runs.aclose()


@source
async def endless() -> AsyncIterator[int]:
    yield 1
    await asyncio.sleep(60)


async def test_a_run_that_another_worker_stops_is_counted_once_however_this_one_learns_of_it(
    worker: Callable[..., Worker],
) -> None:
    """A state that is loaded says so before the store refuses an append."""
    one, other = worker(), worker()
    log = await one.start(endless)
    await one.log.written()
    await kill(one.log)
    await other.runs.stop(log.info.run)
    (state,) = await other.log.store.load([log.info.run])
    assert state is not None
    one.log._run_of(state)
    await one.log.open()
    await until(lambda: one.ended, "the run has ended there, too")
    assert (one.ended, other.ended) == ({"handed_over": 1}, {"cancelled": 1})


async def test_a_run_that_ends_while_another_worker_stops_it_is_counted_once(
    worker: Callable[..., Worker],
) -> None:
    """The store has the stop first, and refuses the end."""
    may_end = asyncio.Event()
    one, other = worker(), worker()
    log = await one.start(gated(may_end))
    await one.log.written()
    await kill(one.log)
    may_end.set()
    await until(lambda: not one.runs.health()["running"], "no run is running")
    assert not one.ended, "the store may refuse the end"
    await other.runs.stop(log.info.run)
    await one.log.open()
    await until(lambda: one.ended, "the end is refused")
    assert (one.ended, other.ended) == ({"handed_over": 1}, {"cancelled": 1})


@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_run_that_another_worker_stops_and_discards_is_counted_once(
    is_paused: bool, worker: Callable[..., Worker]
) -> None:
    """As DELETE /v1/responses/{response} does."""
    one, other = worker(), worker()
    log = await one.start(endless)
    await one.log.written()
    if is_paused:
        await kill(one.log)
    await other.runs.stop(log.info.run)
    await other.log.discard(log.info.run)
    await one.log.open()
    await until(lambda: one.ended, "the run has ended there, too")
    assert (one.ended, other.ended) == ({"handed_over": 1}, {"cancelled": 1})


async def test_an_opening_that_another_worker_stops_is_counted_once(
    worker: Callable[..., Worker],
) -> None:
    @source
    async def slow() -> AsyncIterator[int]:
        await asyncio.sleep(60)
        return endless()

    one, other = worker(), worker()
    starting = asyncio.create_task(one.start(slow))
    await until(lambda: one.log._produced, "the run is opening")
    await other.runs.stop(*one.log._produced)
    with pytest.raises(Unavailable):
        await starting
    await until(lambda: one.ended, "the opening has ended there, too")
    assert (one.ended, other.ended) == ({"handed_over": 1}, {"cancelled": 1})


async def test_a_run_that_two_workers_end_for_a_dead_one_is_counted_once(
    worker: Callable[..., Worker],
) -> None:
    """The second worker finds the first one dead before the store has its end."""
    one, other, third = worker(), worker(), worker()
    await one.start(endless)
    await one.log.written()
    log = await claimed(other.log, one.log)
    await kill(other.log)
    await other.runs.adopt(log)
    await third.log.open()
    await until(lambda: third.ended, "the run is lost with the dead workers", 10)
    await other.log.open()
    await until(lambda: log.ended_here is False, "the other worker learns of it")
    assert (other.ended, third.ended) == ({}, {"failed": 1})


async def test_an_end_that_the_store_did_not_get_is_counted_at_the_shutdown(
    worker: Callable[..., Worker],
) -> None:
    may_end = asyncio.Event()
    one = worker()
    await one.start(gated(may_end))
    await one.log.written()
    await kill(one.log)
    may_end.set()
    await until(lambda: not one.runs.health()["running"], "no run is running")
    await one.runs.aclose()
    assert one.ended == {"completed": 1}


async def test_requests_in_openais_formats_are_counted_too() -> None:
    app = Streams(models={"mock": tokens, "counter": counter}, metrics=True)
    body = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with client_of(app) as client:
        assert (await client.post("/v1/chat/completions", json={})).status_code == 400
        assert (await client.get("/v1/models/none")).status_code == 404
        assert (await client.get("/v1/none")).status_code == 404
        assert (await client.get("/v1/responses/none")).status_code == 404
        assert (await client.put("/v1/responses")).status_code == 405
        assert (await client.get("/v1")).status_code == 404
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        created = await client.post("/v1/responses", json={"model": "mock", "input": "Hi"})
        response = created.json()["id"]
        again = await client.get(f"/v1/responses/{response}?stream=true&starting_after=1")
        assert again.status_code == 200
        metrics = await scraped(client)
    assert metrics("runs_started_total", source="tokens") == 2
    assert metrics("sent_bytes_total") == len(answer.content) + len(again.content)
    assert metrics("readers_resumed_total") == 1
    assert metrics("refused_total", status="404", reason="StreamError") == 4
    assert metrics("refused_total", status="405", reason="StreamError") == 1
    assert metrics.labels("refused_total", "status") == {"400", "404", "405"}


async def test_endpoints_of_the_user_are_counted_by_their_name() -> None:
    app = Streams(metrics=True)

    async def own(request: Request) -> Response:
        return app.response(request, iter([1, 2]), name="own")

    host = Starlette(routes=[Route("/own", own), Mount("/live", app)], lifespan=app.lifespan)
    async with client_of(host) as client:
        assert (await client.get("/own")).status_code == 200
        bad = {"Last-Event-ID": "bad"}
        assert (await client.get("/own", headers=bad)).status_code == 422
        await until(lambda: not app.runs.health()["running"], "no run is running")
        metrics = await scraped(client, "/live/metrics")
    assert metrics("runs_ended_total", source="own", outcome="completed") == 1
    assert metrics("refused_total", status="422", reason="InvalidEventId") == 1


def info(name: str) -> RunInfo:
    return RunInfo(run="r", source=name, started=datetime.now(UTC))


def lines(metrics: Metrics, log: Any = None) -> Scrape:
    log = MemoryLog() if log is None else log
    text = "".join(metrics.lines(log, {"gaps": 0, "threads": 0}))
    headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
    return Scrape(httpx.Response(200, headers={**headers, "cache-control": "no-store"}, text=text))


def test_the_names_of_endpoints_are_bounded() -> None:
    metrics = Metrics(["counter"])
    for number in range(MAX_ENDPOINTS + 7):
        metrics.ended_elsewhere(info(f"endpoint-{number}"), "completed")
    metrics.ended_elsewhere(info("counter"), "completed")
    found = lines(metrics)
    assert len(found.labels("runs_ended_total", "source")) == MAX_ENDPOINTS + 2
    assert found("runs_ended_total", source="endpoint-99", outcome="completed") == 1
    assert found("runs_ended_total", source="endpoint-100", outcome="completed") == 0
    assert found("runs_ended_total", source="other", outcome="completed") == 7
    assert found("runs_ended_total", source="counter", outcome="completed") == 1


def test_an_error_of_the_app_counts_as_the_nearest_one_of_this_package() -> None:
    class Closed(StoreFull):
        status = 599

    metrics = Metrics([])
    metrics.refused(Closed("no"))
    assert lines(metrics)("refused_total", status="599", reason="StoreFull") == 1


def test_the_values_of_labels_are_escaped() -> None:
    class Odd(MemoryLog):
        @property
        def worker(self) -> str:
            return 'a"b\\c\nd\\n'

    found = lines(Metrics([]), Odd())
    assert found.labels("worker_info", "worker") == {'a"b\\c\nd\\n'}


async def test_two_streams_in_one_process_count_for_themselves() -> None:
    async with metered(counter) as (_, one), metered(counter) as (_, other):
        async with httpx.AsyncClient(base_url=one) as client:
            await every_event(client, "/streams/counter?count=0")
            counted = [await scraped(client, f"{url}/metrics") for url in (one, other)]
    assert [found("runs_started_total", source="counter") for found in counted] == [1, 0]


async def test_without_the_option_there_are_no_metrics() -> None:
    async with client_of(Streams([counter])) as client:
        assert (await client.get("/metrics")).status_code == 404


def test_the_settings_have_metrics_on() -> None:
    for given, is_on in (({}, True), ({"STREAMS_METRICS": "0"}, False)):
        app = settings.configured({"STREAMS_LOG": "memory", **given})
        routes = [getattr(route, "path", None) for route in app._router.routes]
        assert ("/metrics" in routes) is is_on


async def test_the_metrics_need_a_key_where_others_do() -> None:
    async with metered(counter, api_keys=[KEY]) as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/metrics")).status_code == 401
            client.headers["Authorization"] = f"Bearer {KEY}"
            found = await scraped(client)
    assert found("refused_total", status="401", reason="Unauthorized") == 1


async def test_the_metrics_are_for_no_other_site_and_no_other_host() -> None:
    async with metered(counter, hosts=["streams.example.org"]) as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            for headers, status in (
                ({"Sec-Fetch-Site": "cross-site"}, 403),
                ({"Origin": "https://evil.example"}, 403),
                ({"Host": "evil.example"}, 421),
                ({"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"}, 200),
                ({"Host": "streams.example.org"}, 200),
            ):
                assert (await client.get("/metrics", headers=headers)).status_code == status


async def test_head_and_other_methods_of_the_metrics() -> None:
    async with metered(counter) as (_, url), httpx.AsyncClient(base_url=url) as client:
        got, head = await client.get("/metrics"), await client.head("/metrics")
        assert head.status_code == 200
        assert head.headers["content-type"] == got.headers["content-type"]
        assert head.content == b""
        posted = await client.post("/metrics")
        assert posted.status_code == 405
        assert set(posted.headers["allow"].split(", ")) == {"GET", "HEAD"}
        assert posted.headers["content-type"] == "application/problem+json"
