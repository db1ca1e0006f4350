"""Bursts: how sources that never wait share the event loop with all others.

Invariants:

1. A source yields to the event loop at least every BURST_EVENTS events or BURST_SECONDS.
2. In one turn of the loop, of all sources that never wait, one begins its next burst: the one that
   has queued longest. A source that waits for its events does not queue.
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
    """The sources of one event loop that have used up their burst.

    A burst is how many events it has had, since when it counts, and how many turns had been given
    when it began.
    """

    def __init__(self) -> None:
        self.turns = 0
        """How many sources have got a turn of their own."""
        self.is_taken = False
        """Whether one of them begins its burst in the next turn."""
        self._waiting: deque[asyncio.Future[None]] = deque()  # the others, for the turns after it

    def begin(self) -> tuple[int, float, int]:
        """A burst that begins with this event."""
        if self.is_taken:
            since = time.monotonic() - USED * BURST_SECONDS
            return int(USED * BURST_EVENTS), since, self.turns
        return 1, time.monotonic(), self.turns

    async def next(self, turns: int) -> tuple[int, float, int]:
        """Waits for the next burst, after one that began after `turns` turns."""
        if turns != self.turns:  # Others got turns meanwhile, so its source waits for events.
            await asyncio.sleep(0)
            return self.begin()
        if not self.is_taken:
            self.is_taken = True
            try:
                await asyncio.sleep(0)
            finally:
                self._pass_on()
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
        self.turns += 1
        return 0, time.monotonic(), self.turns

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
