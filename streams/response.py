"""One reader of a run, as an HTTP response.

The law of this file: what goes out is the log's frames, from the reader's place to the end, and
a reader never sees a hole that is not announced. sse-starlette starts the response, sends the
heartbeat, and notices a disconnect and the server's shutdown; the frames are written with ASGI's
`send` from inside its content iterator, many in one write. asgi.py makes these.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import NoReturn, Self, cast

import anyio
import anyio.lowlevel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from streams.errors import LostHistory
from streams.event import encode_json
from streams.log import Reader
from streams.run import Place, Runs, start_frame
from streams.shutdown import StoppedWithTheServer
from streams.source import Policy

logger = logging.getLogger("streams")

# How long readers get to end their bodies at shutdown; they need one turn of the loop.
SHUTDOWN_SECONDS = 1.0

# anyio does not cancel a task whose wait is over but which has not run yet. Behind a source that
# never waits, that is a reader's state whenever anyio looks, so it has to look itself, this often.
CANCELLABLE_PIECES = 16


class Heartbeat(ServerSentEvent):
    """A comment line with no blank line behind it.

    With one, httpx-sse and fetch-event-source make an empty event of it, and openai's client
    fails. An event stream's comment needs none (WHATWG HTML, section 9.2.6).
    """

    def encode(self) -> bytes:
        return b":\n"


class _Shutdown:
    """Takes the place of sse-starlette's shutdown event: what it sets is a reader's stop()."""

    def __init__(self) -> None:
        self.reader: Reader | None = None
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if self.reader is not None:
            self.reader.stop()

    def stops(self, reader: Reader) -> None:
        self.reader = reader
        if self._is_set:
            reader.stop()


def event_stream_headers(location: str | None) -> dict[str, str]:
    """The headers of every event stream; `location` is the URL of its run."""
    headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
    if location is not None:
        headers["Content-Location"] = location
    return headers


class EventStreamResponse(EventSourceResponse):
    """Sends a run's events from `place` to the end, or until the client or the server goes."""

    def __init__(self, runs: Runs, place: Place, policy: Policy, location: str | None) -> None:
        self._runs = runs
        self._place = place
        self._policy = policy
        self._location = location
        self._shutdown = _Shutdown()
        self._send: Send
        super().__init__(
            self,
            ping=policy.heartbeat,
            ping_message_factory=Heartbeat,
            send_timeout=policy.send_timeout,
            shutdown_event=cast(anyio.Event, self._shutdown),
            shutdown_grace_period=SHUTDOWN_SECONDS,
        )

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Not sse-starlette's: they have a Connection, illegal in HTTP/2 (RFC 9113, 8.2.2)."""
        super().init_headers(event_stream_headers(self._location))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        try:
            with StoppedWithTheServer(self._shutdown.set):
                await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.warning(
                "run %s: a reader took nothing for %g s and is disconnected",
                self._place.log.info.run,
                self._policy.send_timeout,
            )
        except asyncio.CancelledError:
            # By the server, which is going down (hypercorn: 3 s after SIGTERM); the client is there
            if self._shutdown.reader is not None:
                with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NoReturn:
        """The content, as sse-starlette sees it: there is none, once all has been written.

        Each event's wake-up goes through every frame of the stack: a generator around this, and
        a function less flat, are a fifth of what an event costs.
        """
        send = self._send
        head, after = self._beginning()
        while True:
            try:
                with self._place.log.read(after) as reader:
                    self._shutdown.stops(reader)
                    if not reader.ready:
                        await send({"type": "http.response.body", "body": head, "more_body": True})
                        head = b""
                    pieces = 0
                    async for frames in reader:
                        body, head = head + frames, b""
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                        pieces += 1
                        if pieces % CANCELLABLE_PIECES == 0:
                            await anyio.lowlevel.checkpoint_if_cancelled()
                raise StopAsyncIteration
            except LostHistory as lost:  # which the log did not know at the beginning
                after = lost.first - 1
                head += self._gap(after - lost.missed, after)

    def _beginning(self) -> tuple[bytes, int]:
        """What goes before the first event, and behind which event that is."""
        log, after, head = self._place
        low, high = self._policy.retry
        head = b"retry: %d\n" % (1000 * random.uniform(low, high)) + head
        held = log.first - 1
        if after >= held:
            return head, after
        return head + self._gap(after, held), held

    def _gap(self, after: int, held: int) -> bytes:
        """What says that the events between these two are lost."""
        info = self._place.log.info
        # `start` is no event of the source's: it is sent anew rather than missed
        first = start_frame(info) if after < 0 else b""
        self._runs.gaps += 1
        return first + gap_frame(held - max(after, 0), f"{info.run}.{held}")


def gap_frame(missed: int | None, event_id: str | None = None) -> bytes:
    """The event that says that history was lost; `missed` is null where nobody can know it."""
    return ServerSentEvent(
        encode_json({"missed": missed}).decode(), event="gap", id=event_id, sep="\n"
    ).encode()
