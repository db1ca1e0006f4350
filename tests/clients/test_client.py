"""streams.client: what the table in cases.py does not say, for `stream` and for `stream_sync`."""

import asyncio
import logging
import subprocess
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio.to_thread
import httpx
import msgspec
import pytest
from msgspec import Struct

from streams import Event, Streams, source
from streams.client import (
    ClientError,
    ConnectionLost,
    InvalidData,
    Refused,
    RunFailed,
    StreamEvent,
    rules,
    stream,
    stream_sync,
)
from streams.sources import counter, tokens
from tests.support import script as scripted
from tests.support.script import NO_CONTENT, START, end, frame, problem, script
from tests.support.servers import ROOT, free_port, serving, until

Events = list[StreamEvent[Any]]


@pytest.fixture(params=[stream, stream_sync], ids=["stream", "stream_sync"])
def open_stream(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = rules.Rules.pause
    monkeypatch.setattr(rules.Rules, "pause", lambda *given: 0 * pause(*given))


async def read(events: Any) -> Events:
    """All events of a stream. A synchronous one is read in a thread."""

    async def read_async() -> Events:
        return [event async for event in events]

    with anyio.fail_after(20):
        if hasattr(events, "__aiter__"):
            return await read_async()
        return await anyio.to_thread.run_sync(lambda: list(events), abandon_on_cancel=True)


async def stop(events: Any) -> None:
    with anyio.fail_after(20):
        if hasattr(events, "__aiter__"):
            await events.stop()
        else:
            await anyio.to_thread.run_sync(events.stop, abandon_on_cancel=True)


# ---- with a real server


async def test_a_dropped_answer_is_read_to_its_end(open_stream: Any) -> None:
    reply = "one two three four five six"
    body = {"reply": reply, "drop_after": 3, "first_token": 0, "tokens_per_second": 1000}
    async with serving(Streams([tokens], retry=(0.01, 0.01))) as url:
        events = open_stream(f"{url}/streams/tokens", body={"prompt": "Hi", **body})
        given = await read(events)
        async with httpx.AsyncClient() as client:
            run = await client.get(events.run, headers={"Accept": "application/json"})
    assert "".join(event.data["message"]["content"] for event in given) == reply
    numbers = [int(event.id.rpartition(".")[2]) for event in given]
    assert numbers == list(range(1, len(given) + 1))
    assert events.status == run.json()["status"] == "completed"
    assert events.last_event_id.endswith(f".{len(given) + 1}")


@asynccontextmanager
async def losing(url: str, answers: int) -> AsyncIterator[str]:
    """Relays to the server at `url`, and loses as many answers before their first byte."""
    left = answers

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        host, port = url.removeprefix("http://").split(":")
        above, below = await asyncio.open_connection(host, int(port))
        sending = asyncio.create_task(copy(reader, below))
        first = await above.read(65536)
        if left:
            left -= 1
        else:
            writer.write(first)
            await copy(above, writer)
        sending.cancel()
        writer.close()
        below.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert left == 0, f"{left} answers were not lost"
    finally:
        server.close()


@pytest.mark.usefixtures("no_pauses")
async def test_three_posts_whose_answers_are_lost_are_one_run(open_stream: Any) -> None:
    runs = 0

    @source
    async def answer(prompt: str) -> AsyncIterator[str]:
        nonlocal runs
        runs += 1
        yield prompt

    async with serving(Streams([answer])) as url, losing(url, 3) as relay:
        events = open_stream(f"{relay}/streams/answer", body={"prompt": "Hi"}, retry=True)
        given = await read(events)
    assert [event.data for event in given] == ["Hi"]
    assert runs == 1


async def test_stop_ends_the_run_for_all(open_stream: Any) -> None:
    streams = Streams([counter])
    async with serving(streams) as url:
        events = open_stream(f"{url}/streams/counter?count=1000000")
        reading = asyncio.create_task(read(events))
        await until(lambda: events.last_event_id, "an event has come")
        await stop(events)
        await reading
        assert events.status == "cancelled"
        await until(lambda: streams.log.readers == 0, "nobody reads")


async def test_leaving_the_loop_closes_the_connection() -> None:
    streams = Streams([counter])
    async with serving(streams) as url:
        async for _ in stream(f"{url}/streams/counter?count=1000000"):
            break
        await until(lambda: streams.log.readers == 0, "nobody reads")

        def read_one() -> None:
            for _ in stream_sync(f"{url}/streams/counter?count=1000000"):
                break

        await anyio.to_thread.run_sync(read_one)
        await until(lambda: streams.log.readers == 0, "nobody reads")


async def test_a_cancelled_loop_closes_the_connection() -> None:
    streams = Streams([counter])
    async with serving(streams) as url:
        events = stream(f"{url}/streams/counter?count=1000000")
        reading = asyncio.create_task(read(events))
        await until(lambda: events.last_event_id, "an event has come")
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        await until(lambda: streams.log.readers == 0, "nobody reads")


# ---- data


class Tick(Struct):
    number: int


async def test_data_is_decoded_to_a_type(open_stream: Any) -> None:
    @source
    async def ticks() -> AsyncIterator[Any]:
        yield {"number": 1}
        yield Event({"number": 2}, event="last")

    async with serving(Streams([ticks])) as url:
        events = await read(open_stream(f"{url}/streams/ticks", type=Tick, control=True))
    assert [event.data for event in events[1:-1]] == [Tick(1), Tick(2)]
    assert [event.name for event in events] == ["start", "message", "last", "end"]
    assert events[-1].data == {"status": "completed"}
    assert events[1].text == '{"number":1}'


@pytest.mark.parametrize("type_", [Tick | None, list[int] | Tick])
async def test_the_type_may_be_any_that_msgspec_decodes(open_stream: Any, type_: Any) -> None:
    with script(scripted.stream(START, frame(1, '{"number":1}'), end(2))) as server:
        [event] = await read(open_stream(server.url, type=type_))
    assert event.data == Tick(1)


async def test_a_gap_has_its_own_data(open_stream: Any) -> None:
    gap = frame(4, '{"missed":4}', "gap")
    with script(scripted.stream(START, gap, frame(5, '{"number":5}'), end(6))) as server:
        events = await read(open_stream(server.url, type=Tick))
    assert [event.data for event in events] == [{"missed": 4}, Tick(5)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"number":"1"}', "the data of event r.1: Expected `int`, got `str` - at `$.number`"),
        ("one", "the data of event r.1: JSON is malformed"),
    ],
)
async def test_data_of_another_type_is_an_error(open_stream: Any, data: str, message: str) -> None:
    with script(scripted.stream(START, frame(1, data), end(2))) as server:
        with pytest.raises(InvalidData) as raised:
            await read(open_stream(server.url, type=Tick))
    assert str(raised.value).startswith(message)
    assert isinstance(raised.value.__cause__, msgspec.DecodeError)


# ---- errors


async def test_a_refusal_has_the_members_of_its_problem(open_stream: Any) -> None:
    with script(problem(422)) as server:
        with pytest.raises(Refused, match="it is 422") as raised:
            await read(open_stream(server.url))
    assert raised.value.status == raised.value.problem["status"] == 422
    assert raised.value.problem["errors"] == [1]


async def test_a_failed_run_raises_the_class_and_message_of_its_error(open_stream: Any) -> None:
    failure = {"type": "Broken", "message": "the source broke"}
    with script(scripted.stream(START, frame(1), end(2, "failed", error=failure))) as server:
        with pytest.raises(RunFailed, match=r"^the source broke$") as raised:
            await read(open_stream(server.url))
    assert raised.value.type == "Broken"
    assert isinstance(raised.value, ClientError)


async def test_a_server_that_does_not_listen_is_an_error(open_stream: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}/streams/s"
    with pytest.raises(ConnectionLost, match=f"{url} did not answer: ConnectError") as raised:
        await read(open_stream(f"{url}?token=secret"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ({"headers": {"no name": "1"}}, httpx.LocalProtocolError),
        ({"headers": {"name": "a\nb"}}, httpx.LocalProtocolError),
        ({"url": "ftp://127.0.0.1"}, httpx.UnsupportedProtocol),
        ({"url": "/streams/s"}, httpx.UnsupportedProtocol),
        ({"url": "http://127.0.0.1:port/"}, httpx.InvalidURL),
        ({"body": object()}, TypeError),
        ({"type": 3}, TypeError),
        ({"boby": {}}, TypeError),
        ({"timeout": 0}, ValueError),
    ],
)
async def test_a_request_that_no_retry_can_mend_is_an_error_at_once(
    open_stream: Any, mistake: dict[str, Any], error: type[Exception]
) -> None:
    with script() as server:
        with pytest.raises(error):
            await read(open_stream(**{"url": server.url, "last_event_id": "r.1", **mistake}))
    assert server.requests == []


async def test_a_second_loop_is_an_error(open_stream: Any) -> None:
    with script(scripted.stream(START, frame(1), end(2))) as server:
        events = open_stream(server.url)
        assert len(await read(events)) == 1
        with pytest.raises(RuntimeError, match="a stream is read once"):
            await read(events)
    assert len(server.requests) == 1


def test_without_its_extra_the_client_says_what_to_install() -> None:
    code = "import sys; sys.modules['httpx_sse'] = None; import streams.client"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 1
    assert (
        "ImportError: streams.client needs httpx and httpx-sse: pip install 'streams[client]'"
        in ran.stderr
    )


# ---- the connection


async def test_a_server_that_sends_nothing_for_long_is_lost(open_stream: Any) -> None:
    gate = asyncio.Event()
    requests = 0

    @source
    async def stalling() -> AsyncIterator[int]:
        yield 1
        await gate.wait()
        yield 2

    streams = Streams([stalling], retry=(0.01, 0.01))

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal requests
        requests += scope["type"] == "http"
        await streams(scope, receive, send)

    async with serving(counting) as url:
        events = open_stream(f"{url}/streams/stalling", timeout=1)
        reading = asyncio.create_task(read(events))
        await until(lambda: requests > 1, "the client has connected again", 10)
        gate.set()
        assert [event.data for event in await reading] == [1, 2]


async def test_each_pause_is_logged_without_the_query(
    open_stream: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streams.client")
    busy = problem(503, **{"Retry-After": "0.01"})
    answers = [busy, scripted.stream(START, frame(1)), scripted.stream(end(2))]
    with script(*answers) as server:
        await read(open_stream(f"{server.url}?token=secret"))
    assert [record.message for record in caplog.records if record.name == "streams.client"] == [
        f"{server.url}: status 503; the next request is in 0.0 s",
        f"{server.url}: the connection was lost; the next request is in 0.0 s",
    ]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(("urls", "tries"), [(2, 2), (1, 1)])
async def test_the_newest_urls_that_honour_keys_are_remembered(
    open_stream: Any, urls: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_HONOURING", urls)
    monkeypatch.setattr(rules, "_honouring", OrderedDict())
    started = scripted.stream(START, end(1))
    with script(started, started, *[scripted.CUT, started][:tries]) as server:
        await read(open_stream(server.url))
        await read(open_stream(f"{server.url}/other"))
        with suppress(ConnectionLost):
            await read(open_stream(server.url, body={}))
    assert len(server.requests) == 2 + tries
    assert server.answers == []


# ---- a client of the caller's

CREDENTIALS = {"cookie": "session=1", "x-key": "k", "authorization": "Basic YW5uOnNlY3JldA=="}


def client_for(open_stream: Any, **options: Any) -> Any:
    """A client of httpx that sends CREDENTIALS."""
    kind = httpx.AsyncClient if open_stream is stream else httpx.Client
    credentials: Any = {"cookies": {"session": "1"}, "auth": ("ann", "secret")}
    return kind(headers={"x-key": "k"}, **credentials, **options)


async def test_a_client_of_httpx_sends_its_credentials_to_its_base_url(open_stream: Any) -> None:
    answers = [scripted.stream(START, frame(1)), scripted.stream(end(2)), NO_CONTENT]
    with script(*answers) as server:
        client = client_for(open_stream, base_url=server.url.removesuffix("/streams/s"))
        events = open_stream("/streams/s", client=client)
        assert len(await read(events)) == 1
        await stop(events)
    paths = [request[:2] for request in server.requests]
    assert paths == [("GET", "/streams/s"), ("GET", "/runs/r"), ("DELETE", "/runs/r")]
    assert all(CREDENTIALS.items() <= headers.items() for headers in server.headers)
    assert not client.is_closed


async def test_a_run_url_of_another_origin_gets_a_warning(
    open_stream: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = scripted.stream(START, frame(1), end(2), **{"Content-Location": "//other.example/r"})
    with script(first) as server, caplog.at_level(logging.WARNING, "streams.client"):
        assert len(await read(open_stream(server.url))) == 1
    assert "ignored the run's URL '//other.example/r', because" in caplog.text


async def test_a_redirect_is_followed(open_stream: Any) -> None:
    redirect = 307, {"Location": "/streams/s"}, ""
    with script(redirect, scripted.stream(START, frame(1), end(2)), path="/old") as server:
        assert len(await read(open_stream(server.url, body={"n": 1}))) == 1
    assert [request[:2] for request in server.requests] == [
        ("POST", "/old"),
        ("POST", "/streams/s"),
    ]
    assert {body for *_, body in server.requests} == {'{"n":1}'}
