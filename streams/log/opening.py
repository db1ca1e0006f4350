"""OpeningRun: a run in one process, for which clients wait until it has opened."""

import asyncio
from contextlib import suppress

from streams.errors import StreamError


class OpeningRun:
    """Begins as `opening`, and opens once, perhaps with a refusal."""

    def __init__(self) -> None:
        self.opening = True
        self._refusal: StreamError | None = None
        self._waiting: asyncio.Event | None = None  # made only if somebody waits

    def open(self, refusal: StreamError | None = None) -> None:
        """Lets those go on who wait. Does nothing if it has opened."""
        if self.opening:
            self.opening, self._refusal = False, refusal
        if self._waiting is not None:
            with suppress(RuntimeError):  # Those who wait may do so in a closed event loop.
                self._waiting.set()

    async def opened(self) -> None:
        """Waits until it has opened. Raises a copy of the refusal."""
        if self.opening:
            self._waiting = self._waiting or asyncio.Event()
            await self._waiting.wait()
        if self._refusal is not None:
            raise _copy(self._refusal)


def _copy(error: StreamError) -> StreamError:
    """A copy without the traceback, which refers to the request of whoever waited."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy
