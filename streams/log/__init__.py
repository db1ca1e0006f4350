"""The event log: where runs keep what they produced, and every reader finds its place.

The law of every log: events are numbered from 0 without holes, are never changed, and leave only
at the old end; closed is a state of the log, set together with the last event. A log may be of
one process or of many ("workers"): a run has one producer, and readers anywhere. Protocols say
here what a log is; memory_log.py and redis_log.py are two. run.py appends, response.py reads.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol

import msgspec

Status = Literal["running", "completed", "failed", "cancelled"]


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run from its first moment on."""

    run: str
    source: str
    started: datetime
    owner: str | None = None
    """The identity of the user who started it, if any."""
    key: str | None = None
    """Of all runs with the same key, only one is running: viewers share it."""
    arguments: str | None = None
    """JSON object of the arguments with which another worker can go on; None: none can."""


class Reader(Protocol):
    """One reader's place in a run: iterating gives all frames after it, in as few pieces as
    makes sense, waits for more, and ends when the log is closed and all of it was given.

    A piece counts as read when the next one is asked for. Iterating raises LostHistory where
    events are missing that only a look could show; the reader is of no use then.
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
        """How many are attached, as far as is known here."""
        ...

    @property
    def producer(self) -> str:
        """The worker that appends."""
        ...

    @property
    def producing(self) -> bool:
        """Whether that is this one, and the log open: if not, a producer here has to stop."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Calls `changed` when readers have come or gone, and when `producing` has ended."""
        ...

    def append(self, name: bytes | None, data: bytes) -> bool:
        """Adds an event under the next number. True if a reader was waiting and now has it.

        Raises LogClosed after the end, and where another worker produces.
        """
        ...

    @property
    def full(self) -> bool:
        """Whether the producer has to wait for room() before it appends more."""
        ...

    async def room(self) -> None:
        """Returns when the log is not full any more, or `producing` has ended."""
        ...

    def close(self, status: Status, data: bytes) -> None:
        """Adds the `end` event, closes the log, and forgets it `retain` seconds later.

        The producer's, like append. Raises LogClosed if it is closed already.
        """
        ...

    async def cancel(self, data: bytes) -> None:
        """Closes the log as cancelled, from wherever it is called, unless it is closed.

        What the producer has appended and no reader could see yet may be lost.
        """
        ...

    def read(self, after: int) -> AbstractContextManager[Reader]:
        """A reader of what follows event number `after` (-1: of all), attached while in context.

        What an attached reader has not had is kept. Raises LostHistory, when entered, if events
        after `after` are known to be held no more.
        """
        ...


Adopt = Callable[[RunLog], Awaitable[None]]
"""Goes on with a run, or ends it, whose producer died and whose log is this worker's now."""


class EventLog(Protocol):
    """All runs' events. `events` counts what was ever appended here, `bytes` what is held here,
    `readers` those that are attached here.

    `adopt` is for a log of many workers to call; Runs sets it.
    """

    adopt: Adopt | None

    @property
    def events(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def readers(self) -> int: ...

    @property
    def worker(self) -> str:
        """This process's name in the log."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other workers can go on with this one's runs when it ends."""
        ...

    def __len__(self) -> int:
        """How many runs it holds here, running and finished."""
        ...

    async def open(self) -> None:
        """Begins to look after the runs of workers that die. Never needed for anything else."""
        ...

    async def create(
        self,
        info: RunInfo,
        *,
        after: int = -1,
        window: int,
        retain: float,
        drops_oldest: bool = False,
    ) -> RunLog:
        """A new run's log, whose first event will have the number after + 1; or, if there is a
        running run with the same key, the log of that one.

        `window`, in bytes, is how far its producer may be ahead of the slowest reader, or of
        nobody; with `drops_oldest` it never waits for nobody. `retain`: see RunLog.close. Raises
        StoreFull at the limit of runs or bytes, and RunExists for a run that is held already.
        """
        ...

    async def find(self, run: str) -> RunLog:
        """The run's log. Raises UnknownRun."""
        ...

    async def discard(self, run: str) -> None:
        """Forgets a run at once, known or not; its readers end."""
        ...

    async def aclose(self) -> None:
        """Ends what open() began, when all is written; unfinished runs go to other workers."""
        ...
