"""Uses of the public API that type checkers refuse: each line marked `# wrong`, and no other."""

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from streams import Event, Streams, source
from streams.client import stream, stream_sync


@source
async def plain(count: int = 3) -> AsyncIterator[int]:
    yield count


@source(hearbeat=3)  # wrong
async def misspelt() -> AsyncIterator[int]:
    yield 1


@source(linger="long")  # wrong
async def mistyped() -> AsyncIterator[int]:
    yield 1


plain(count="3")  # wrong
plain(cuont=3)  # wrong
Event({}, name="tick")  # wrong
Streams([plain], hearbeat=3)  # wrong
Streams([plain], heartbeat="x")  # wrong
Streams([plain], retry=3)  # wrong
Streams(plain)  # wrong
streams = Streams([plain])


async def endpoint(request: Request) -> Response:
    streams.response(request, plain(), linger="x")  # wrong
    streams.response(request, 3)  # wrong
    streams.response(request, plain(), wire=3)  # wrong
    streams.response(request, plain(), wire=plain)  # wrong
    return streams.response(request, plain(), lingr=3)  # wrong


stream("http://127.0.0.1", boby={})  # wrong
stream("http://127.0.0.1", headers="x: y")  # wrong
stream("http://127.0.0.1", retry=5)  # wrong
stream_sync("http://127.0.0.1", timeout="1")  # wrong
for _ in stream("http://127.0.0.1"):  # wrong
    pass
