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
import random
from collections.abc import Mapping
from typing import Any, NoReturn, Self, cast

import anyio
import anyio.lowlevel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streams.encoding import LARGE
from streams.errors import (
    NOT_A_PAGE,
    LostHistory,
    StreamError,
    Unavailable,
    abbreviated,
    problem,
    shortened,
)
from streams.event import EventId, encode_json
from streams.lifetime import Lifetime
from streams.log import Reader
from streams.observer import Observer
from streams.policy import Policy
from streams.request import EVENT_STREAM, is_event_source
from streams.runs import Position
from streams.wires import Wire

logger = logging.getLogger("streams")

# How long a reader may take at shutdown to end its body; it needs one turn of the event loop.
SHUTDOWN_SECONDS = 1.0

# What is sent before the first event and, by sse-starlette, after the last one.
HEAD, TAIL = object(), object()

# anyio does not cancel a task that has been woken and has not run yet. A reader of a source that
# never waits is in that state whenever anyio looks, so it checks for a cancellation this often.
CANCELLABLE_PIECES = 16


def json_response(
    value: Any, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    headers = {"Cache-Control": "no-store", **NOT_A_PAGE, **(headers or {})}
    return Response(encode_json(value), status, headers, "application/json")


def stream_headers(location: str | None) -> dict[str, str]:
    """The headers of every stream. `location` is the URL of its run, if it has one.

    `Incremental` asks proxies to pass on each piece as it comes (RFC 10036).
    """
    headers = {
        "Cache-Control": "no-store, no-transform",
        "Vary": "Accept",
        "X-Accel-Buffering": "no",
        "Incremental": "?1",
    }
    if location is not None:
        headers["Content-Location"] = location
    return headers


def head_response(wire: Wire, location: str | None = None) -> Response:
    """The answer to HEAD: the headers of a stream. Starts no run."""
    headers = {**stream_headers(location), **wire.headers()}
    response = Response(headers=headers, media_type=wire.media_type)
    del response.headers["content-length"]
    return response


def refusal(error: StreamError, request: Request) -> Response:
    """A problem response, except for an EventSource that meets a limit.

    An EventSource gives up for good at any status but 200. A limit passes, so it gets a stream
    that ends at once, after which it reconnects: not all of them at the same time.
    """
    if not isinstance(error, Unavailable) or not is_event_source(request):
        return problem(error)
    milliseconds = 1000 * (error.retry_after or 1)
    body = b"retry: %d\n" % random.randint(milliseconds, 2 * milliseconds)
    return Response(body, media_type=EVENT_STREAM, headers=stream_headers(None))


def misdirected(error: HTTPException, scope: Scope) -> Response:
    """The answer to a request that no route takes, or that a function of the app redirects."""
    headers = dict(error.headers or {})
    if error.status_code < 400:  # A guard sends its client to a login, for instance.
        return Response(status_code=error.status_code, headers=headers)
    detail = f"there is nothing at {abbreviated(scope['path'])}"
    if allowed := headers.get("Allow"):
        detail = f"{shortened(scope['method'])} is not allowed here; use {allowed}"
    return problem(StreamError(detail, status=error.status_code), headers)


class RunResponse(EventSourceResponse):
    """Sends a run's events through a wire, from a position to the end of the run.

    It stops earlier if the wire is done, the client disconnects or the server shuts down.
    `location` is the run's URL, and `sent` is how many bytes of the body have been sent. For
    sse-starlette, this object is also its own content (`__anext__`) and the event that it sets at
    the server's shutdown (`set`).
    """

    def __init__(
        self,
        lifetime: Lifetime,
        position: Position,
        policy: Policy,
        wire: Wire,
        location: str | None,
    ) -> None:
        self.sending: object | None = HEAD
        self.sent = 0
        self._lifetime = lifetime
        self._position = position
        self._policy = policy
        self._wire = wire
        self._location = location
        self._reader: Reader | None = None
        self._stopped = False
        self._timed_out = False
        self._send: Send
        self._task: asyncio.Task[Any] | None
        super().__init__(
            self,
            media_type=wire.media_type,
            ping=policy.heartbeat,
            ping_message_factory=lambda: cast(ServerSentEvent, wire.heartbeat),
            send_timeout=policy.send_timeout,
            shutdown_event=cast(anyio.Event, self),
            shutdown_grace_period=SHUTDOWN_SECONDS,
        )

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Replaces sse-starlette's headers: HTTP/2 forbids their Connection (RFC 9113, 8.2.2)."""
        super().init_headers({**stream_headers(self._location), **self._wire.headers()})

    def stop(self) -> None:
        """Ends the stream, without an `end` event if the run has not ended."""
        self._stopped = True
        if self._reader is not None:
            self._reader.stop()

    set = stop

    def time_out(self) -> None:
        """Cancels the send that does not finish, and with it the response."""
        if self._task is not None:
            self._timed_out = True
            self._task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._task = task = asyncio.current_task()
        lifetime = self._lifetime
        responses = lifetime.responses(self._policy.send_timeout)
        responses.add(self)
        lifetime.runs.observers.tell(Observer.opened, self)
        if lifetime.runs.stopping:
            self.stop()
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            self._log_timeout()
        except asyncio.CancelledError:
            # If somebody else has cancelled the task too, it stays cancelled.
            if self._timed_out and task is not None and not task.uncancel():
                self._log_timeout()
                return
            # The server cancels this when it shuts down (hypercorn: 3 s after SIGTERM), while the
            # client is still connected.
            if self._reader is not None:
                with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise
        finally:
            responses.discard(self)
            lifetime.runs.observers.tell(Observer.closed, self)
            self._task = None
        if lifetime.closing is not None:  # Every server waits for an open response, for a time.
            await asyncio.wait([lifetime.closing])

    def _log_timeout(self) -> None:
        logger.warning(
            "run %s: a client accepted no data for %g s and is disconnected",
            self._position.log.info.run,
            self._policy.send_timeout,
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NoReturn:
        """The content, as sse-starlette sees it: an iterator that ends when all is written.

        The wake-up for an event passes through every frame of this stack. A generator around this
        function, or one more function inside it, would cost a fifth of an event.
        """
        send, wire, wire_feed = self._send, self._wire, self._wire.feed
        self.sending = None
        # If the client has left already, this is cancelled here, and no reader was attached.
        await asyncio.sleep(0)
        head, after = self._beginning()
        while not wire.done:
            try:
                with self._position.log.read(after) as reader:
                    self._reader = reader
                    if self._stopped:
                        reader.stop()
                    feed = self._start if after < 0 else wire_feed
                    if not reader.ready:
                        self.sending = head
                        await send({"type": "http.response.body", "body": head, "more_body": True})
                        self.sending = None
                        self.sent += len(head)
                        head = b""
                    pieces = 0
                    async for frames in reader:
                        if len(frames) > LARGE and feed is wire_feed:
                            body = head + await wire.feed_large(frames)
                        else:
                            body = head + feed(frames)
                        head, feed = b"", wire_feed
                        if body:
                            self.sending = body
                            await send(
                                {"type": "http.response.body", "body": body, "more_body": True}
                            )
                            self.sending = None
                            self.sent += len(body)
                        if wire.done:
                            break
                        pieces += 1
                        if pieces % CANCELLABLE_PIECES == 0:
                            await anyio.lowlevel.checkpoint_if_cancelled()
                break
            except LostHistory as lost:  # The log did not know this when the reader began.
                after = lost.first - 1
                head += self._gap(after - lost.missed, after)
        self.sending = TAIL
        if body := head + wire.finish():
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self.sent += len(body)
        raise StopAsyncIteration

    def _beginning(self) -> tuple[bytes, int]:
        """What is sent before the first event, and after which event the reader begins."""
        log, after, joins_late, lost_run = self._position
        head = self._wire.begin()
        if lost_run:
            head += self._wire.gap(None, None)
        if joins_late:
            head += self._start(log.info.start_frame)
        held = log.first - 1
        if after >= held or joins_late:  # Who joins late has missed nothing yet.
            return head, max(after, held)
        return head + self._gap(after, held), held

    def _gap(self, after: int, last: int) -> bytes:
        """Announces that the events after `after`, up to `last`, were dropped."""
        info = self._position.log.info
        # `start` is not an event of the source: a reader that missed it gets it, uncounted.
        start = self._start(info.start_frame) if after < 0 else b""
        self._lifetime.runs.gaps += 1
        return start + self._wire.gap(last - max(after, 0), EventId(info.run, last))

    def _start(self, frames: bytes) -> bytes:
        """What the frames from event 0 on become."""
        return self._wire.start(frames, self._location)
