"""One reader of a run, as an HTTP response.

sse-starlette starts the response, sends heartbeats, and notices a disconnect and the server's
shutdown. The events are written with ASGI's `send` from inside its content iterator, as many in
one write as the log has.

Invariants:

1. A reader gets every event after its position once and in order; a hole is announced as a gap.
2. A response that ends before its wire has finished is one that the server or the client cut.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn, Self, cast

import anyio
import anyio.lowlevel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streams.errors import LostHistory, StoreFull, StreamError, problem
from streams.event import EventId, encode_json
from streams.log import Reader
from streams.request import EVENT_STREAM, is_event_source
from streams.run import Position, Runs
from streams.source import Policy
from streams.wires import Wire

logger = logging.getLogger("streams")

# How long a reader may take at shutdown to end its body; it needs one turn of the event loop.
SHUTDOWN_SECONDS = 1.0

# anyio does not cancel a task that has been woken and has not run yet. A reader of a source that
# never waits is in that state whenever anyio looks, so it checks for a cancellation this often.
CANCELLABLE_PIECES = 16


def json_response(
    value: Any, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(encode_json(value), status, headers, "application/json")


def stream_headers(location: str | None) -> dict[str, str]:
    """The headers of every stream. `location` is the URL of its run, if it has one."""
    headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
    if location is not None:
        headers["Content-Location"] = location
    return headers


def refusal(error: StreamError, request: Request) -> Response:
    """A problem response, except for an EventSource that meets a limit.

    An EventSource gives up for good at any status but 200. A limit passes, so it gets a stream
    that ends at once, after which it reconnects.
    """
    if not isinstance(error, StoreFull) or not is_event_source(request):
        return problem(error)
    body = b"retry: %d\n" % (1000 * (error.retry_after or 1))
    return Response(body, media_type=EVENT_STREAM, headers=stream_headers(None))


class _Shutdown:
    """Replaces sse-starlette's shutdown event: setting it stops the reader."""

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


class _Watchdog:
    """A context that ends with SendTimeoutError when one send takes longer than `timeout` seconds.

    `since` is the time at which the current send began, in seconds; 0 between two sends. One timer
    looks at it: a timer for each send would be too expensive.
    """

    __slots__ = ("_loop", "_task", "_timed_out", "_timeout", "_timer", "since")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._timed_out = False

    def __enter__(self) -> None:
        self.since = time.monotonic()  # The head of the response is sent first.
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(self._loop)
        self._timer = self._loop.call_later(self._timeout, self._look)

    def _look(self) -> None:
        since, now = self.since, time.monotonic()
        left = (since or now) + self._timeout - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._task is not None:
            self._timed_out = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if not self._timed_out or self._task is None:
            return
        # If somebody else has cancelled the task too, it stays cancelled.
        if not self._task.uncancel() and kind is asyncio.CancelledError:
            raise SendTimeoutError


class RunResponse(EventSourceResponse):
    """Sends a run's events through a wire, from a position to the end of the run.

    It stops earlier if the wire is done, the client disconnects or the server shuts down.
    `location` is the run's URL.
    """

    def __init__(
        self, runs: Runs, position: Position, policy: Policy, wire: Wire, location: str | None
    ) -> None:
        self._runs = runs
        self._position = position
        self._policy = policy
        self._wire = wire
        self._location = location
        self._shutdown = _Shutdown()
        self._watchdog = _Watchdog(policy.send_timeout)
        self._send: Send
        super().__init__(
            self,
            media_type=wire.media_type,
            ping=policy.heartbeat,
            ping_message_factory=lambda: cast(ServerSentEvent, wire.heartbeat),
            send_timeout=policy.send_timeout,
            shutdown_event=cast(anyio.Event, self._shutdown),
            shutdown_grace_period=SHUTDOWN_SECONDS,
        )

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Replaces sse-starlette's headers: HTTP/2 forbids their Connection (RFC 9113, 8.2.2)."""
        super().init_headers({**stream_headers(self._location), **self._wire.headers()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        watchdog = self._watchdog
        stop, runs = self._shutdown.set, self._runs
        runs.responses.add(stop)
        if runs.stopping:
            stop()
        try:
            with watchdog:
                await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.warning(
                "run %s: a client accepted no data for %g s and is disconnected",
                self._position.log.info.run,
                self._policy.send_timeout,
            )
        except asyncio.CancelledError:
            # The server cancels this when it shuts down (hypercorn: 3 s after SIGTERM), while the
            # client is still connected.
            if self._shutdown.reader is not None:
                with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise
        finally:
            runs.responses.discard(stop)
        if runs.closing is not None:  # Every server waits for an open response, for a time.
            await asyncio.wait([runs.closing])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NoReturn:
        """The content, as sse-starlette sees it: an iterator that ends when all is written.

        The wake-up for an event passes through every frame of this stack. A generator around this
        function, or one more function inside it, would cost a fifth of an event.
        """
        send, wire, wire_feed = self._send, self._wire, self._wire.feed
        watchdog, clock = self._watchdog, time.monotonic
        watchdog.since = 0
        head, after = self._beginning()
        while True:
            try:
                with self._position.log.read(after) as reader:
                    self._shutdown.stops(reader)
                    feed = self._start if after < 0 else wire_feed
                    if not reader.ready:
                        watchdog.since = clock()
                        await send({"type": "http.response.body", "body": head, "more_body": True})
                        watchdog.since = 0
                        head = b""
                    pieces = 0
                    async for frames in reader:
                        body, head, feed = head + feed(frames), b"", wire_feed
                        if body:
                            watchdog.since = clock()
                            await send(
                                {"type": "http.response.body", "body": body, "more_body": True}
                            )
                            watchdog.since = 0
                        if wire.done:
                            break
                        pieces += 1
                        if pieces % CANCELLABLE_PIECES == 0:
                            await anyio.lowlevel.checkpoint_if_cancelled()
                watchdog.since = clock()  # The last send is that of sse-starlette.
                if body := head + wire.finish():
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                raise StopAsyncIteration
            except LostHistory as lost:  # The log did not know this when the reader began.
                after = lost.first - 1
                head += self._gap(after - lost.missed, after)

    def _beginning(self) -> tuple[bytes, int]:
        """What is sent before the first event, and after which event the reader begins."""
        log, after, joins_late, lost_run = self._position
        head = self._wire.begin()
        if lost_run:
            head += self._wire.gap(None, None)
        if joins_late:
            head += self._start(log.info.start_frame)
        held = log.first - 1
        if after >= held:
            return head, after
        return head + self._gap(after, held), held

    def _gap(self, after: int, last: int) -> bytes:
        """Announces that the events after `after`, up to `last`, were dropped."""
        info = self._position.log.info
        # `start` is not an event of the source: a reader that missed it gets it, uncounted.
        start = self._start(info.start_frame) if after < 0 else b""
        self._runs.gaps += 1
        return start + self._wire.gap(last - max(after, 0), EventId(info.run, last))

    def _start(self, frames: bytes) -> bytes:
        """What the frames from event 0 on become."""
        return self._wire.start(frames, self._location)
