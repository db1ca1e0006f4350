"""Lifetime: opens a Streams in one event loop, and closes it when its server shuts down.

Invariants:

1. All runs and tasks of a Streams belong to one event loop. Those of a closed loop are forgotten.
2. At the server's shutdown the responses end first, without an `end` event, and then the runs.
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import wait
from contextvars import Context
from typing import Any, Protocol, Self, TypeVar

from streams.errors import ShuttingDown, StreamError
from streams.log import EventLog
from streams.runs import Runs
from streams.shutdown import tell, uvicorn_servers
from streams.source import Source
from streams.topic import Topic
from streams.worker_count import workers_of_first

logger = logging.getLogger("streams")

T = TypeVar("T")

NO_LIFESPAN = (
    "this Streams runs without its lifespan, so the server may end before its sources are closed; "
    "pass lifespan=streams.lifespan to the app that mounts it, or put `async with streams:` into "
    "the lifespan of that app"
)

SEPARATE_LOGS = (
    "%d workers serve this Streams, and each has a log of its own: a client that reconnects to "
    'another worker cannot resume. Give them one log: Streams(log="sqlite:runs.db"), or in the '
    "environment STREAMS_LOG=sqlite:streams.db; on several machines, redis://…"
)

NO_VIEWERS = (
    "the log is in the memory of this process, which serves nothing, so nobody could see what is "
    'published. Give this Streams the log of the server: Streams(…, log="sqlite:runs.db"). In a '
    "server, pass lifespan=streams.lifespan to the app that mounts it"
)

NO_LOOP = (
    "publish_from_thread needs the event loop in which this Streams is used, and none runs: open "
    "it first, with `async with streams:` or in a server"
)

OWN_LOOP = (
    "publish_from_thread would wait for the event loop of its own thread, for ever; "
    "await streams.publish(…) instead"
)

LOOP_SECONDS = 1.0
"""How often a thread looks whether the event loop that it waits for still runs."""

SEARCH_SECONDS = 1.0
"""How often a request searches for its server after no server was found: it may start later."""

# A send is looked at this often during its timeout; a timer for each send would cost far more.
LOOKS = 4


class OpenResponse(Protocol):
    """A response that is being sent."""

    sending: object | None
    """The message that is being sent; None between two sends."""

    def stop(self) -> None:
        """Ends the response because the server shuts down."""

    def time_out(self) -> None:
        """Ends the response because the client accepts no data."""


class OpenResponses:
    """The open responses with the same send timeout, in seconds.

    One timer looks at all. A send that lasts longer than the timeout ends its response, before it
    lasts a quarter longer.
    """

    def __init__(self, timeout: float) -> None:
        self._interval = timeout / LOOKS
        self._seen: dict[OpenResponse, tuple[object | None, int]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, response: OpenResponse) -> None:
        self._seen[response] = None, 0
        if self._timer is None:
            self._look_later()

    def discard(self, response: OpenResponse) -> None:
        self._seen.pop(response, None)

    def stop(self) -> None:
        for response in list(self._seen):
            response.stop()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval, self._look, context=Context())

    def _look(self) -> None:
        self._timer = None
        for response, (seen, times) in list(self._seen.items()):
            if response.sending is None or response.sending is not seen:
                self._seen[response] = response.sending, 0
            elif times + 1 < LOOKS:
                self._seen[response] = seen, times + 1
            else:
                self.discard(response)
                response.time_out()
        if self._seen:
            self._look_later()


class Lifetime:
    """Opens and closes the log, the runs and the sources of a Streams.

    `async with` does that; without it, the first request and the server's shutdown do. `sources`
    are all that it serves. If they are only topics, `async with` leaves the log closed until the
    first viewer comes: a process that only publishes is no worker, which would take over runs.
    """

    def __init__(self, log: EventLog, runs: Runs, sources: Iterable[Source[..., Any]]) -> None:
        self.runs = runs
        self.serves = False
        """Whether it is known that a server uses this, so that there can be viewers."""
        self.closing: asyncio.Task[None] | None = None
        """The task that closes everything at the server's shutdown if there is no lifespan."""
        self._log = log
        sources = list(sources)
        self._closers = [source.aclose for source in sources if source.aclose is not None]
        self._only_publishes = bool(sources) and all(isinstance(s, Topic) for s in sources)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entered = 0
        self._responses: dict[float, OpenResponses] = {}
        self._next_search = 0.0  # in the event loop's time
        self._warned = False

    async def __aenter__(self) -> Self:
        await self._move_to_this_loop()
        if not self._entered:
            if not self._only_publishes:
                await self._log.open()
            self._warn_of_separate_logs()
        self._entered += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        self._entered -= 1
        if not self._entered:
            try:
                await self._close()
            finally:
                self._expect_server()

    async def serve(self) -> None:
        """Prepares for a request. Raises StreamError if it cannot be served."""
        loop = await self._move_to_this_loop()
        if (now := loop.time()) >= self._next_search:
            self.serves = True
            self._next_search = math.inf if tell(self) else now + SEARCH_SECONDS
            if not self._entered and not self._warned:
                self._warned = True
                logger.warning(NO_LIFESPAN)
                self._warn_of_separate_logs()
        if self.runs.stopping:
            raise ShuttingDown

    async def expect_viewers(self) -> None:
        """Opens the log, because a server uses this: there can be viewers."""
        self.serves = True
        await self._log.open()

    async def publish(self) -> None:
        """Prepares for a publish. Raises RuntimeError if there cannot be a viewer."""
        await self._move_to_this_loop()
        if not (self.serves or self._log.shared):
            self.serves = bool(uvicorn_servers())
            if not self.serves:
                raise RuntimeError(NO_VIEWERS)

    def run_from_thread(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine in the event loop in which this is used, and waits for its result.

        Raises RuntimeError if there is no such event loop, or if it runs in the calling thread.
        """
        loop = self._loop
        if loop is None or not loop.is_running():
            raise RuntimeError(NO_LOOP)
        if running_loop() is loop:
            raise RuntimeError(OWN_LOOP)
        future = asyncio.run_coroutine_threadsafe(function(), loop)
        while not wait([future], LOOP_SECONDS).done:
            if not loop.is_running():
                raise RuntimeError(NO_LOOP)
        return future.result()

    def _warn_of_separate_logs(self) -> None:
        if not self._log.shared and (workers := workers_of_first()):
            logger.warning(SEPARATE_LOGS, workers)

    async def _move_to_this_loop(self) -> asyncio.AbstractEventLoop:
        """Raises StreamError without asyncio, and RuntimeError if another event loop runs, too."""
        if (loop := running_loop()) is None:
            raise StreamError(
                "streams needs asyncio; start the server with it, for instance: hypercorn -k "
                "asyncio or -k uvloop"
            )
        if loop is self._loop:
            return loop
        if self._loop is not None:
            if self._loop.is_running():
                raise RuntimeError(
                    "this Streams is used in two event loops at once; make one for each of them, "
                    "or, to publish to this one, call publish_from_thread"
                )
            self._entered = 0
            self._responses.clear()
            await self.runs.abandon()
        self._loop = loop
        # Clients see the name, but not the number.
        logger.info("process %d is the worker %s", os.getpid(), self._log.worker)
        self._expect_server()
        return loop

    def _expect_server(self) -> None:
        """Prepares for a server, perhaps after another one in the same event loop."""
        self._next_search = 0.0
        self.runs.stopping = self.serves = False
        self.closing = None

    def responses(self, timeout: float) -> OpenResponses:
        """The open responses with a send timeout."""
        if timeout not in self._responses:
            self._responses[timeout] = OpenResponses(timeout)
        return self._responses[timeout]

    def stop(self) -> asyncio.Task[None] | None:
        """The server shuts down: ends the responses and the openings, for which it would wait.

        In a lifespan, the rest is closed at its end; without one, by the task that this returns.
        """
        self.runs.cancel_openings()
        for responses in self._responses.values():
            responses.stop()
        if not self._entered and self.closing is None:
            self.closing = asyncio.create_task(self._close())
        return self.closing

    async def stopped(self) -> None:
        """Returns when the server may end: without a lifespan, when all sources are closed."""
        try:
            if self.closing is not None:
                await asyncio.wait([self.closing])
        finally:
            self._expect_server()

    async def _close(self) -> None:
        await self.runs.aclose()
        for close in self._closers:
            try:
                await close()
            except Exception:
                logger.exception("the `aclose` of a source failed")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
