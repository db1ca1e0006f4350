"""The event log: where runs keep what they produced, and every reader finds its place.

The law of every log: events are numbered from 0 without holes, are never changed, and leave only
at the old end; closed is a state of the log, set together with the last event. Protocols say here
what a log is, and memory_log.py is one. run.py appends, response.py reads.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol

import msgspec

Status = Literal["running", "completed", "failed", "cancelled"]


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run from its first moment on. `owner` is the user's identity, if any."""

    run: str
    source: str
    started: datetime
    owner: str | None = None


class Reader(Protocol):
    """One reader's place in a run: iterating gives all frames after it, in as few pieces as
    makes sense, waits for more, and ends when the log is closed and all of it was given.

    A piece counts as read when the next one is asked for.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    @property
    def ready(self) -> bool:
        """Whether the next piece is there, or the end, without waiting."""
        ...

    def stop(self) -> None:
        """Ends the iteration, also of one that waits: the server is going down."""
        ...


class RunLog(Protocol):
    """One run's events."""

    info: RunInfo

    @property
    def status(self) -> Status: ...

    @property
    def first(self) -> int:
        """The number of the oldest event held; while there is none, of the next."""
        ...

    @property
    def last(self) -> int:
        """The number of the newest event; while there is none, of the one before the first."""
        ...

    @property
    def restarted(self) -> bool:
        """Whether it did not begin at 0: an earlier process had produced what is missing."""
        ...

    @property
    def readers(self) -> int:
        """How many are attached."""
        ...

    def append(self, name: bytes | None, data: bytes) -> bool:
        """Adds an event under the next number. True if a reader was waiting for it.

        Raises LogClosed after the end.
        """
        ...

    @property
    def full(self) -> bool:
        """Whether the producer has to wait for room() before it appends more."""
        ...

    async def room(self) -> None:
        """Returns when the log is not full any more, or closed."""
        ...

    def close(self, status: Status, data: bytes, retain: float) -> None:
        """Adds the `end` event, closes the log, and forgets it after `retain` seconds.

        Raises LogClosed if it is closed already.
        """
        ...

    def read(self, after: int) -> AbstractContextManager[Reader]:
        """A reader of what follows event number `after` (-1: of all), attached while in context.

        What an attached reader has not had is kept. Raises LostHistory, when entered, if events
        after `after` are not held any more.
        """
        ...


class EventLog(Protocol):
    """All runs' events. `events` counts what was ever appended, `bytes` what is held now."""

    events: int
    bytes: int

    def __len__(self) -> int:
        """How many runs it holds, running and finished."""
        ...

    async def create(
        self, info: RunInfo, *, after: int = -1, window: int, drops_oldest: bool = False
    ) -> RunLog:
        """A new run's log, whose first event will have the number after + 1.

        `window`, in bytes, is how far its producer may be ahead of the slowest reader, or of
        nobody; with `drops_oldest` it never waits for nobody. Raises StoreFull at the limit of
        runs or bytes, and ValueError for a run that it holds already.
        """
        ...

    async def find(self, run: str) -> RunLog:
        """The run's log. Raises UnknownRun."""
        ...

    async def discard(self, run: str) -> None:
        """Forgets a run at once, known or not; its readers end."""
        ...
