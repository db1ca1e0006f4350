"""Bursts: how sources that never wait share the event loop with all others.

Invariants:

1. A source yields to the event loop at least every BURST_EVENTS events or BURST_SECONDS.
2. In one turn of the loop, however many sources have used up their burst, one of them begins the
   next one: the one that has waited longest.
"""

import asyncio
import time
from collections import deque

BURST_EVENTS = 64
BURST_SECONDS = 0.005

# While others wait for their next burst, a source that has waited for something else has an eighth
# of one: enough for a few events that come together.
USED = 7 / 8


class Bursts:
    """The sources of one event loop that have used up their burst."""

    def __init__(self) -> None:
        self.is_taken = False
        """Whether one of them begins its burst in the next turn."""
        self._waiting: deque[asyncio.Future[None]] = deque()  # the others, for the turns after it

    def begin(self) -> tuple[int, float]:
        """How many events a burst has had that begins with this one, and since when it counts."""
        if self.is_taken:
            return int(USED * BURST_EVENTS), time.monotonic() - USED * BURST_SECONDS
        return 1, time.monotonic()

    async def next(self) -> tuple[int, float]:
        """Waits for the next whole burst. Returns the same of it: it has had no event yet."""
        if not self.is_taken:
            self.is_taken = True
            try:
                await asyncio.sleep(0)
            finally:
                self._pass_on()
            return 0, time.monotonic()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn.done() and not turn.cancelled():
                self._pass_on()
        return 0, time.monotonic()

    def _pass_on(self) -> None:
        """Gives the turn after this one to the source that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # Its source has not been cancelled.
                turn.set_result(None)
                return
        self.is_taken = False

    def clear(self) -> None:
        """Forgets the sources that wait in a closed event loop, which can wake none of them."""
        self._waiting.clear()
