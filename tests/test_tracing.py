"""One OpenTelemetry span for each run: its parent, its outcome, and its children."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import Policy, StreamError, Streams, source
from streams.runs import Runs
from streams.sources import counter, tokens
from streams.tracing import Tracing
from tests.log.shared.workers import claimed, kill
from tests.support.servers import client_of, connection, every_event, serving, until
from tests.support.stores import shared_log, with_lease

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Spans:
    """The finished spans, and the tracer with which a source makes its own."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        await until(lambda: self.named(name), f"the span {name} has ended")
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    spans = Spans()

    def traced(*_: Any) -> Tracing:
        return Tracing(spans.provider)

    monkeypatch.setattr("streams.tracing.Tracing", traced)
    yield spans
    spans.provider.shutdown()


@source
async def failing() -> AsyncIterator[int]:
    yield 1
    raise ValueError("broken")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@source
async def unprintable() -> AsyncIterator[int]:
    yield 1
    raise Unprintable


@source
async def unavailable() -> AsyncIterator[int]:
    raise StreamError("the model is down", status=502)
    yield


@source
async def refusing() -> AsyncIterator[int]:
    raise StreamError("not today", status=409)
    yield


async def test_a_run_is_a_span_that_continues_the_trace_of_its_request(
    spans: Spans, log_url: str | None
) -> None:
    async with client_of(Streams([counter], log=log_url)) as client:
        client.headers.update(TRACEPARENT)
        events = await every_event(client, "/streams/counter?count=20&interval=0")
        run = events[0].json()["run"]
        resumed = {"Last-Event-ID": f"{run}.3"}
        assert (await client.get("/streams/counter", headers=resumed)).status_code == 200
        span = await spans.one("run counter")
    assert len(spans.exporter.get_finished_spans()) == 1
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.get("vendor") == "1"
    assert span.attributes == {
        "streams.run.id": run,
        "streams.source": "counter",
        "streams.run.shared": False,
        "streams.run.outcome": "completed",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "streams"


async def test_a_trace_state_may_be_in_several_headers(spans: Spans) -> None:
    state = [("tracestate", "one=1"), ("tracestate", "other=2")]
    async with client_of(Streams([counter])) as client:
        headers = [("traceparent", TRACEPARENT["traceparent"]), *state]
        await client.get("/streams/counter?count=0", headers=headers)
        span = await spans.one("run counter")
    assert span.context is not None
    assert dict(span.context.trace_state) == {"one": "1", "other": "2"}


@pytest.mark.parametrize("header", ["", "rubbish", f"00-{'0' * 32}-{PARENT}-01", "x" * 5000])
async def test_a_run_without_a_valid_parent_begins_a_trace(spans: Spans, header: str) -> None:
    async with client_of(Streams([counter])) as client:
        headers = {"traceparent": header} if header else {}
        await client.get("/streams/counter?count=0", headers=headers)
        assert (await spans.one("run counter")).parent is None


@pytest.mark.parametrize(
    ("fails", "outcome", "kind", "status"),
    [
        (failing, "failed", "builtins.ValueError", StatusCode.ERROR),
        (unprintable, "failed", "tests.test_tracing.Unprintable", StatusCode.ERROR),
        (unavailable, "refused", "streams.errors.StreamError", StatusCode.ERROR),
        (refusing, "refused", "streams.errors.StreamError", StatusCode.UNSET),
    ],
)
async def test_the_span_says_how_a_run_failed(
    spans: Spans, fails: Any, outcome: str, kind: str, status: StatusCode
) -> None:
    async with client_of(Streams([fails])) as client:
        await client.get(f"/streams/{fails.name}")
        span = await spans.one(f"run {fails.name}")
    assert span.attributes is not None
    assert span.attributes["streams.run.outcome"] == outcome
    assert span.attributes["error.type"] == kind
    assert span.status.status_code is status
    if fails is not unprintable:
        assert len(span.events) == (1 if status is StatusCode.ERROR else 0)
    if fails is failing:
        assert span.status.description == "broken"


async def test_the_span_of_a_run_that_is_stopped_says_so(spans: Spans) -> None:
    async with serving(Streams([counter])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/counter?count=9&interval=60") as stream:
            await stream.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event is there")
            assert not spans.named("run counter")
            await client.delete(f"/runs/{stream.run}")
            span = await spans.one("run counter")
    assert span.attributes is not None
    assert span.attributes["streams.run.outcome"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("shared", [False, True])
async def test_what_a_source_does_is_in_the_span_of_its_run(spans: Spans, shared: bool) -> None:
    @source(shared=shared)
    async def asking() -> AsyncIterator[int]:
        with spans.tracer.start_as_current_span("asks a model"):
            yield 1
        with spans.tracer.start_as_current_span("asks again"):
            await asyncio.sleep(0)
        yield 2

    async with client_of(Streams([asking])) as client:
        await client.get("/streams/asking", headers=TRACEPARENT)
        run = await spans.one("run asking")
    assert run.context is not None
    for name in ("asks a model", "asks again"):
        inner = await spans.one(name)
        assert inner.parent is not None
        assert inner.parent.span_id == run.context.span_id
        assert inner.context is not None
        assert f"{inner.context.trace_id:032x}" == TRACE


async def test_a_plain_generator_is_in_the_span_of_its_run(spans: Spans) -> None:
    @source
    def reading() -> Iterator[int]:
        with spans.tracer.start_as_current_span("reads"):
            yield 1

    async with client_of(Streams([reading])) as client:
        await client.get("/streams/reading", headers=TRACEPARENT)
        run, inner = await spans.one("run reading"), await spans.one("reads")
    assert run.context is not None
    assert inner.parent is not None
    assert inner.parent.span_id == run.context.span_id


async def test_the_span_of_an_instrumented_server_is_the_parent(spans: Spans) -> None:
    """It comes before the header, of which it is a child itself."""
    app = Streams([counter])

    async def own(request: Request) -> Response:
        return app.response(request, iter([1]), name="own")

    host = Starlette(routes=[Route("/own", own), Mount("/live", app)], lifespan=app.lifespan)

    async def instrumented(scope: Any, receive: Any, send: Any) -> None:
        with spans.tracer.start_as_current_span(f"server {scope.get('path')}"):
            await host(scope, receive, send)

    async with client_of(instrumented) as client:
        for path, name in (("/live/streams/counter?count=0", "counter"), ("/own", "own")):
            await client.get(path, headers=TRACEPARENT)
            run = await spans.one(f"run {name}")
            server = await spans.one(f"server {path.partition('?')[0]}")
            assert server.context is not None
            assert run.parent is not None
            assert run.parent.span_id == server.context.span_id


async def test_an_endpoint_of_the_user_and_a_model_continue_the_trace(spans: Spans) -> None:
    app = Streams(models={"mock": tokens})

    async def own(request: Request) -> Response:
        return app.response(request, iter([1]), name="own")

    host = Starlette(routes=[Route("/own", own), Mount("/", app)], lifespan=app.lifespan)
    body = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}]}
    async with client_of(host) as client:
        client.headers.update(TRACEPARENT)
        await client.get("/own")
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        for name in ("run own", "run tokens"):
            span = await spans.one(name)
            assert span.parent is not None
            assert f"{span.parent.span_id:016x}" == PARENT


async def test_a_run_that_another_worker_continues_has_a_span_there(
    spans: Spans, sqlite_url: str
) -> None:
    one, other = (Streams([counter], log=sqlite_url) for _ in range(2))
    async with client_of(other):
        async with serving(one) as url:
            async with connection(url, "/streams/counter?count=9&interval=60") as stream:
                await stream.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event")
        first = await spans.one("run counter")
        await until(lambda: other.runs.health()["running"], "the run continues")
    await until(lambda: len(spans.named("run counter")) == 2, "the other span has ended")
    second = spans.named("run counter")[1]
    assert first.attributes is not None
    assert second.attributes is not None
    assert first.attributes["streams.run.outcome"] == "handed_over"
    assert second.attributes["streams.run.taken_over"] is True
    assert first.attributes["streams.run.id"] == second.attributes["streams.run.id"]
    assert second.parent is None


class BrokenSampler(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise ValueError("no sample")

    def get_description(self) -> str:
        return "raises"


class BrokenProcessor(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise ValueError("no export")


@pytest.mark.parametrize("fails", ["run_starts", "run_ended"])
async def test_a_sampler_or_processor_that_raises_harms_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    if fails == "run_starts":
        provider = TracerProvider(BrokenSampler(), shutdown_on_exit=False)
    else:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BrokenProcessor())
    monkeypatch.setattr("streams.tracing.Tracing", lambda: Tracing(provider))
    app = Streams([counter])
    async with client_of(app) as client:
        for _ in range(2):
            events = await every_event(client, "/streams/counter?count=1&interval=0")
            assert events[-1].json() == {"status": "completed"}
        await until(lambda: not app.runs.health()["running"], "no run is running")
    logged = [r.getMessage() for r in caplog.records if "Tracing." in r.getMessage()]
    assert logged == [f"Tracing.{fails} failed; further failures of it are not logged"]


async def test_a_run_that_a_worker_loses_and_takes_back_has_two_spans(
    spans: Spans, sqlite_url: str
) -> None:
    """The second one may end before the first, whose source is still closing."""
    may_close = asyncio.Event()

    @source
    async def slow_to_close(*, after: int = 0) -> AsyncIterator[int]:
        try:
            yield after
            if not after:
                await asyncio.sleep(60)
        finally:
            if not after:
                await may_close.wait()

    one, other = (shared_log(with_lease(sqlite_url, 0.3)) for _ in range(2))
    sources = {"slow_to_close": (slow_to_close, Policy())}
    runs = Runs(one, sources, observers=[Tracing(spans.provider)])
    log = await runs.start(await slow_to_close.job({}, None, policy=Policy()))
    await until(lambda: log.last == 1, "an event is there")
    await one.written()
    await claimed(other, one)
    await one.open()
    await until(lambda: not log.producing, "the run is lost")
    await kill(other)
    await until(lambda: log.status == "completed", "the run is taken back and completed", 10)
    second = await spans.one("run slow_to_close")
    assert len(runs._producing) == 1, "the first source is closing"
    may_close.set()
    await until(lambda: not len(runs._producing), "the first source has closed")
    _, first = spans.named("run slow_to_close")
    await runs.aclose()
    await other.aclose()
    for span, outcome, taken_over in ((first, "handed_over", None), (second, "completed", True)):
        assert span.attributes is not None
        assert span.attributes["streams.run.outcome"] == outcome
        assert span.attributes.get("streams.run.taken_over") is taken_over


async def test_without_an_sdk_the_trace_of_the_request_reaches_the_source() -> None:
    """The API alone passes a trace on, so that a model's client can send it further."""
    found = []

    @source
    async def asking() -> AsyncIterator[int]:
        found.append(trace.get_current_span().get_span_context().trace_id)
        yield 1

    async with client_of(Streams([asking])) as client:
        await client.get("/streams/asking", headers=TRACEPARENT)
    assert [f"{trace_id:032x}" for trace_id in found] == [TRACE]


async def test_without_an_sdk_and_a_trace_a_run_has_no_span() -> None:
    app = Streams([counter, failing])
    async with client_of(app) as client:
        async with connection(str(client.base_url), "/streams/counter?interval=60") as stream:
            await stream.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event is there")
            (tracing,) = app.runs.observers
            assert isinstance(tracing, Tracing)
            assert not tracing._spans
        assert (await client.get("/streams/failing")).status_code == 200


WITHOUT = """
import sys

sys.modules["opentelemetry"] = None  # Importing it raises ImportError.
from streams import Streams
from streams.sources import counter

assert not list(Streams([counter]).runs.observers)
assert "streams.metrics" not in sys.modules
"""


def test_without_the_api_nothing_is_traced() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=50)
