"""The mock model's answer as a plain StreamingResponse, to compare a run with.

It is what an app without this package would send: no event ids, so a client that reconnects gets
another answer from its beginning. It is not within `/page`, which is open to all.

Invariants:

1. Only the mock model `tokens` is served so, if the app serves it. Any other source may cost
   something, or have a guard.
2. At most MAX_PLAIN answers are sent at a time.
"""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from streams.errors import StreamError
from streams.event import encode_json

MOCK = "streams.sources.tokens"
MAX_PLAIN = 20


class Plain:
    """Answers for /plain/{source}. `streams` is a Streams."""

    def __init__(self, streams: Any) -> None:
        self._streams = streams
        self._sources: dict[str, Any] = {
            source.name: source for source in streams.sources.values() if source.__module__ == MOCK
        }
        self._open = 0

    @property
    def names(self) -> list[str]:
        return list(self._sources)

    async def answer(self, request: Request) -> Response:
        source = self._sources.get(request.path_params["source"])
        if source is None:
            raise StreamError(f"only {', '.join(self.names)} is served without a run", status=404)
        arguments = source.from_json(await self._streams.read_json(request))
        if self._open >= MAX_PLAIN:
            raise StreamError(
                f"{MAX_PLAIN} answers are being sent without a run; try again in 10 s",
                status=503,
                retry_after=10,
            )
        self._open += 1
        events = await source.open(arguments, request)
        try:
            first = await anext(events)  # What this raises is the status.
        except BaseException:
            await self._close(events)
            raise
        return self._streams.until_shutdown(self._response(first, events))  # type: ignore[no-any-return]

    def _response(self, first: Any, events: AsyncGenerator[Any, None]) -> ASGIApp:
        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                body = _event_stream(first, events)
                stream = StreamingResponse(body, media_type="text/event-stream")
                await stream(scope, receive, send)
            finally:
                await self._close(events)

        return respond

    async def _close(self, events: AsyncGenerator[Any, None]) -> None:
        self._open -= 1
        await events.aclose()


async def _event_stream(
    first: Any, following: AsyncGenerator[Any, None]
) -> AsyncGenerator[bytes, None]:
    yield b"data: %b\n\n" % encode_json(first)
    try:
        async for event in following:
            yield b"data: %b\n\n" % encode_json(event)
    except StreamError:
        return  # The mock fails on request. For its client, the response is complete.
