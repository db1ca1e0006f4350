"""Bursts: how sources that never wait share the event loop with all others.

Invariants:

1. A source yields to the event loop at least every BURST_EVENTS events or BURST_SECONDS.
2. In one turn of the loop, however many sources have used up their burst, one of them begins the
   next one: the one that has waited longest.
"""

import asyncio
import contextvars
import time
from collections import deque

BURST_EVENTS = 64
BURST_SECONDS = 0.005

# While others wait for their next burst, a source that has waited for something else has an eighth
# of one: enough for a few events that come together.
USED = 7 / 8


class Bursts:
    """The sources of one event loop that wait for their next burst."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def begin(self) -> tuple[int, float]:
        """How many events a burst has had that begins with this one, and since when it counts."""
        if self._waiting:
            return int(USED * BURST_EVENTS), time.monotonic() - USED * BURST_SECONDS
        return 1, time.monotonic()

    async def next(self) -> tuple[int, float]:
        """Waits for the next whole burst. Returns the same of it: it has had no event yet."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._wake, loop, context=contextvars.Context())
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn
        return 0, time.monotonic()

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # Its source has not been cancelled.
                turn.set_result(None)
                break
        if self._waiting:
            loop.call_soon(self._wake, loop)
