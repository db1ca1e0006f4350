"""OpeningRun: a run in one process, for which clients wait until it has opened."""

import asyncio
from contextlib import suppress

from streams.errors import StreamError


class OpeningRun:
    """A run that begins as `opening` and opens once, perhaps with a refusal."""

    def __init__(self) -> None:
        self.opening = True
        self._refusal: StreamError | None = None
        self._waiting: asyncio.Event | None = None  # made only if somebody waits

    def open(self, refusal: StreamError | None = None) -> None:
        """Ends the wait of all clients, with the refusal if there is one, at the first call."""
        if self.opening:
            self.opening, self._refusal = False, refusal
        if self._waiting is not None:
            with suppress(RuntimeError):  # A client may wait in an event loop that is closed.
                self._waiting.set()

    async def opened(self) -> None:
        """Waits until it has opened. Raises a copy of the refusal."""
        if self.opening:
            self._waiting = self._waiting or asyncio.Event()
            await self._waiting.wait()
        if self._refusal is not None:
            raise _copy(self._refusal)


def _copy(error: StreamError) -> StreamError:
    """A copy without the traceback, which refers to the request of a client that waited."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy
