"""Uses of the public API that type checkers accept. test_typing.py runs mypy and pyright on it."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, assert_type

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from streams import Event, MemoryLog, Source, Streams, source
from streams.client import StreamEvent, stream, stream_sync
from streams.wires.ui_stream import UIStream


@source
async def plain(count: int = 3) -> AsyncIterator[int]:
    yield count


@source(name="other", shared=True, heartbeat=5, retry=(0.5, 2), linger=None)
async def tuned(count: Annotated[int, Meta(ge=1)], *, after: int = 0) -> AsyncIterator[Event]:
    yield Event({"count": count}, event="tick")


@source(window=2**16, retain=60, send_timeout=10)
def blocking() -> Iterator[str]:
    yield "a"


@source
async def opened(request: Request) -> AsyncIterator[int]:
    return plain(1)


# A decorated source keeps the signature of its function.
assert_type(plain(count=1), AsyncIterator[int])
assert_type(tuned(2, after=1), AsyncIterator[Event])
assert_type(blocking(), Iterator[str])

sources: list[Source[..., Any]] = [plain, tuned, blocking, opened]
streams = Streams(sources, log=MemoryLog(max_runs=10), heartbeat=5, linger=None, page=False)


async def endpoint(request: Request) -> Response:
    if await streams.resumes(request, plain) or await streams.resumes(request, name="plain"):
        return streams.response(request, lambda: plain(count=2), like=Response())
    streams.response(request, lambda: opened(request))
    streams.response(request, plain, wire="ui")
    streams.response(request, plain, wire=UIStream)
    streams.response(request, plain, wire=lambda run: UIStream(run, run.key))
    assert_type(await streams.resume(request, key_prefix="chat-7/", wire="ui"), Response)
    return streams.response(request, plain(count=2), name="plain", retain=10.0)


class Tick(Struct):
    number: int


async def client() -> None:
    events = stream("http://127.0.0.1/streams/plain", body={"count": 2}, retry=True, timeout=None)
    async for event in events:
        assert_type(event, StreamEvent[Any])
    async for tick in stream("http://127.0.0.1/streams/plain", type=Tick, key="chat-7/3"):
        assert_type(tick.data, Tick)
    for tick in stream_sync("http://127.0.0.1/streams/plain", type=Tick, headers={"x": "y"}):
        assert_type(tick.data, Tick)
    stream("http://127.0.0.1/streams/plain", type=Tick | int)
    await events.stop()
