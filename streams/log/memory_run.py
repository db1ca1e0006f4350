"""MemoryRun: the frames of one run in memory, and its readers.

Invariants:

1. Every event after the cursor that paces the run is held, or the run's backing can load it.
2. The cursor that paces a run is that of its slowest reader; of a shared run, that of its fastest;
   of a topic, its newest event: it waits for nobody.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, Self

from streams.errors import LogClosed, LostHistory, RunGone, StreamError, UnknownRun
from streams.event import End, frame
from streams.log import Limits, RunInfo, Status
from streams.log.backing import Backing
from streams.log.buffer import FrameBuffer
from streams.log.opening import OpeningRun
from streams.log.run_table import RunTable

# The most bytes of one piece, unless one event has more. A wire takes up to 5 ms for this much.
CHUNK = 16 * 1024
LARGE = CHUNK // 2

NO_PIECE = (-1, -1, b"")


class Holder(Protocol):
    """The log that holds a MemoryRun, with what it counts of all its runs."""

    events: int
    bytes: int
    readers: int
    max_bytes: int
    runs: "RunTable[MemoryRun]"
    paused: "set[MemoryRun]"

    @property
    def worker(self) -> str: ...

    def account(self, delta: int) -> None:
        """Counts bytes that a run has begun to hold, or (negative) has dropped."""

    def forget(self, run: str) -> None:
        """Forgets a run."""


class MemoryRun(OpeningRun):
    """The frames of one run in memory, and its readers.

    A MemoryLog's own runs commit each event as it is appended. A run with a `backing` is driven by
    it: `add` and `commit` are then two steps, and `finish` closes the run.
    """

    def __init__(
        self, log: Holder, info: RunInfo, limits: Limits, backing: Backing | None = None
    ) -> None:
        super().__init__()
        self.info = info
        self.limits = limits
        self.status: Status = "running"
        self.buffer = FrameBuffer()
        self.forgotten = False
        self.backing = backing
        self._log = log
        self._id = info.run.encode()
        self._readers: set[MemoryReader] = set()
        self._changed: Callable[[], None] = lambda: None
        self.wanted_room: asyncio.Future[None] | None = None
        self._shared_piece = NO_PIECE
        self.awaited = False  # whether a reader waits for the next event
        self._argument_bytes = 0

    @property
    def closed(self) -> bool:
        return self.status != "running"

    @property
    def first(self) -> int:
        return self.buffer.first

    @property
    def last(self) -> int:
        return self.buffer.last

    @property
    def readers(self) -> int:
        return len(self._readers)

    @property
    def producer(self) -> str:
        return self._log.worker

    @property
    def producing(self) -> bool:
        return not self.closed

    @property
    def ended_here(self) -> bool | None:
        return self.closed or None

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    # For the producer

    def open(self, refusal: StreamError | None = None) -> None:
        super().open(refusal)
        self.note_readers()

    def hold_arguments(self, info: RunInfo) -> None:
        """Keeps the arguments in `info`, and counts those of the source, until `drop_arguments`."""
        self.drop_arguments()
        self.info = info
        self._argument_bytes = info.argument_bytes + len(info.arguments or "")
        self._log.account(self._argument_bytes)

    def drop_arguments(self) -> None:
        """Notes that this worker no longer produces the run."""
        self._log.account(-self._argument_bytes)
        self._argument_bytes = 0
        self.info = self.info.without_arguments()

    def refuse(self, error: StreamError) -> None:
        self.open(error)
        self.finish("refused")
        self._log.forget(self.info.run)

    def append(self, name: bytes | None, data: bytes) -> bool:
        buffer = self.buffer
        self.add(frame(self._id, buffer.last + 1, name, data))
        self._log.events += 1
        buffer.committed = buffer.last
        return self.awaited and self._wake()

    def add(self, frame: bytes) -> None:
        """Adds the next event's frame, uncommitted. Raises LogClosed."""
        if self.status != "running":
            raise LogClosed(f"run {self.info.run} is {self.status}; nothing can be appended")
        log, buffer = self._log, self.buffer
        buffer.append(frame)
        log.bytes += len(frame)
        if buffer.held > self.limits.window or log.bytes >= log.max_bytes:
            # Drop an eighth more than needed, so that it happens less often
            log.account(-buffer.trim(self._limit * 7 // 8, self.pacing_cursor))

    def commit(self, number: int) -> None:
        """Lets readers see the events up to `number`."""
        self.buffer.committed = number
        self._wake()
        self.resume_producer()

    def close(self, end: End) -> None:
        self.append(b"end", end.encode())
        self.finish(end.status)
        self.open()
        if self.info.frees_key(end):
            self._log.runs.free_key(self)
        self._log.runs.expire(self, self.limits.retain)
        self._changed()

    def finish(self, status: Status) -> None:
        """Closes the run: its newest event is its last."""
        self.status = status
        self.drop_arguments()
        self.resume_producer()

    async def cancel(self, end: End) -> bool:
        if self.closed:
            return False
        if self.opening:
            self.refuse(RunGone.stopped(self.info.run))
        else:
            self.close(end)
        return True

    @property
    def _limit(self) -> int:
        return self.limits.window if self._log.bytes < self._log.max_bytes else 0

    def is_full(self) -> bool:
        buffer = self.buffer
        if buffer.held < self.limits.window and self._log.bytes < self._log.max_bytes:
            return False
        ahead = buffer.size(self.pacing_cursor, buffer.last)
        return ahead > 0 and ahead >= self._limit

    @property
    def pacing_cursor(self) -> int:
        """The newest event that may be dropped: the cursor of the reader that paces the run.

        Without readers, see `Limits.drops_oldest`. Finding it is O(readers).
        """
        if self.info.topic:
            return self.buffer.committed
        cursors = [reader.after for reader in self._readers]
        if self.backing is not None:
            cursors += self.backing.cursors()
        if cursors:
            pace = max(cursors) if self.info.shared else min(cursors)
            return min(pace, self.buffer.committed)
        return self.buffer.committed if self.limits.drops_oldest else self.buffer.first - 1

    async def room(self) -> None:
        while self.is_full() and not self.closed:
            self.wanted_room = asyncio.get_running_loop().create_future()
            self._log.paused.add(self)
            try:
                await self.wanted_room
            finally:
                self.wanted_room = None
                self._log.paused.discard(self)

    def resume_producer(self) -> None:
        """Ends the producer's wait if there is room, or if the run is closed."""
        room = self.wanted_room
        if room is not None and not room.done() and (self.closed or not self.is_full()):
            room.set_result(None)

    # For the log

    def discard_uncommitted(self) -> None:
        """Drops the events that no reader could see, and reopens the run if `end` is among them."""
        self._log.account(-self.buffer.discard_uncommitted())
        self.status = "running"

    def reset(self, after: int) -> None:
        """Drops all events. The next one has the number `after + 1`."""
        self._log.account(-self.buffer.reset(after))
        self._shared_piece = NO_PIECE
        self._wake()

    def forget(self) -> None:
        """Ends the iterations of the readers. The bytes of the run no longer count."""
        self.forgotten = True
        if not self.closed:
            self.status = "cancelled"
        self.drop_arguments()
        for reader in [r for r in self._readers if r.loop.is_closed()]:  # Nothing can wake them.
            self.detach(reader)
        self._log.account(-self.buffer.discard_uncommitted() - self.buffer.held)
        self.open(UnknownRun.of(self.info.run))
        self._wake()
        self._readers_changed()

    # For readers

    def read(self, after: int) -> "MemoryReader":
        return MemoryReader(self, after)

    def attach(self, reader: "MemoryReader") -> None:
        if reader.after < self.first - 1 and self.backing is None:
            raise LostHistory(self.first - 1 - reader.after, self.first)
        self._readers.add(reader)
        self._log.readers += 1
        self._readers_changed()

    def detach(self, reader: "MemoryReader") -> None:
        if reader not in self._readers:
            return
        self._readers.remove(reader)
        self._log.readers -= 1
        if len(self._readers) < 2:
            self._shared_piece = NO_PIECE
        if self.info.topic and not (self._readers or self.closed or self.backing):
            self._log.runs.expire(self, self.limits.retain)
        self._readers_changed()

    def piece(self, after: int) -> tuple[bytes, int]:
        """The committed frames after `after`, about CHUNK bytes, and the number of the last one.

        Readers at the same position get the same bytes object.
        """
        begin, last, frames = self._shared_piece
        if begin == after + 1 and (last == self.buffer.committed or len(frames) >= CHUNK // 2):
            return frames, last
        frames, last = self.buffer.slice(after, CHUNK)
        if len(self._readers) > 1:
            self._shared_piece = (after + 1, last, frames)
        return frames, last

    def note_readers(self) -> None:
        """Tells the producer and the log that readers have attached or detached, on any worker."""
        self.resume_producer()
        if self.info.shared or self.status != "running":
            return
        elsewhere = self.backing is not None and any(True for _ in self.backing.cursors())
        watched = self.opening or bool(self._readers) or elsewhere
        keeps = self.info.key is not None or self.limits.drops_oldest
        self._log.runs.note_readers(self, watched=watched, keeps=keeps)

    def _readers_changed(self) -> None:
        self.note_readers()
        if self.backing is not None:
            self.backing.readers_changed()
        self._changed()

    def _wake(self) -> bool:
        """Wakes all readers that wait. Returns whether there were any."""
        if not self.awaited:
            return False
        self.awaited = False
        for reader in self._readers:
            if (news := reader.news) is not None and not news.done():
                news.set_result(None)
        return True


class MemoryReader:
    """A Reader of a MemoryRun. `after` is its cursor: the last event that it has read."""

    def __init__(self, run: MemoryRun, after: int) -> None:
        self.after = after
        self._run = run
        self._buffer = run.buffer
        self._given = after
        self._stopped = False
        self.loop = asyncio.get_running_loop()
        self.news: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._run.attach(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._run.detach(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        run, buffer = self._run, self._buffer
        if self._given > self.after:
            self.after = self._given
            if run.wanted_room is not None:
                run.resume_producer()
            if run.backing is not None:
                run.backing.reader_advanced()
        while self.after >= buffer.committed and not self._stopped:
            if run.status != "running" and buffer.committed == buffer.last:
                raise StopAsyncIteration
            self.news = self.loop.create_future()
            run.awaited = True
            await self.news
        if self._stopped:
            raise StopAsyncIteration
        if self.after < buffer.first - 1:
            if run.backing is None:  # The run has not waited for this reader.
                raise LostHistory(buffer.first - 1 - self.after, buffer.first)
            frames, given = await run.backing.load_evicted(self.after)
        else:
            frames, given = run.piece(self.after)
        if len(frames) > LARGE:  # A reader that has to catch up lets others have their turns.
            await asyncio.sleep(0)  # If this is cancelled, nothing is given.
        self._given = given
        return frames

    @property
    def ready(self) -> bool:
        buffer = self._buffer
        if self._given < buffer.committed:
            return self._given >= buffer.first - 1
        return self._run.closed and buffer.committed == buffer.last

    def stop(self) -> None:
        self._stopped = True
        if self.news is not None and not self.news.done():
            self.news.set_result(None)
