"""MemoryLog: runs in the memory of one process.

Invariants:

1. The bytes in all buffers are counted in `MemoryLog.bytes`.
2. At a limit, finished runs without readers are forgotten, oldest first, then topics without
   readers; those with a key come last. No other run is.
3. Every event after the cursor of an attached reader is held, or the run's backing can load it; a
   topic holds its newest events, read or not.
"""

import asyncio
from collections.abc import Callable
from heapq import nlargest
from typing import Self

from streams.errors import LogClosed, LostHistory, RunGone, StoreFull, StreamError, UnknownRun
from streams.event import End, frame
from streams.log import Adopter, Limits, RunInfo, RunLog, Selection, Status
from streams.log.backing import Backing
from streams.log.buffer import FrameBuffer
from streams.log.opening import OpeningRun
from streams.log.run_table import RunTable
from streams.log.topics import LocalTopics
from streams.log.worker import WorkerName

# The most bytes of one write, unless one event has more. A client that stops reading costs this
# much in addition to the server's own write buffer, which has the same size.
CHUNK = 64 * 1024

NO_PIECE = (-1, -1, b"")


class MemoryLog(LocalTopics["MemoryRun"]):
    """Runs in the memory of this process: at most `max_runs` runs and `max_bytes` bytes.

    At a limit, finished runs without readers are forgotten, oldest first and those with a key last.
    If that is not enough, new runs are refused, and producers wait until their readers have read
    what is there.
    """

    shared = False

    def __init__(self, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20) -> None:
        self._name = WorkerName()
        self.events = 0
        self.bytes = 0
        self.readers = 0
        self.max_bytes = max_bytes
        self._max_runs = max_runs
        self.runs: RunTable[MemoryRun] = RunTable(self.forget, self.account)
        self.paused: set[MemoryRun] = set()  # their producers wait for room

    @property
    def worker(self) -> str:
        return str(self._name)

    def __len__(self) -> int:
        return len(self.runs)

    def register(self, adopter: Adopter) -> None:
        """Does nothing: there are no other workers."""

    async def open(self) -> None:
        """Does nothing: there are no other workers."""

    async def aclose(self) -> None:
        """Does nothing: there is nothing to write."""

    async def create(self, info: RunInfo, limits: Limits) -> "MemoryRun":
        if (held := self.runs.with_key(info.unique_key)) is not None:
            return held
        self.make_room()
        run = MemoryRun(self, info, limits)
        self.runs.add(run)
        return run

    async def find(self, run: str) -> RunLog:
        if (held := self.runs.get(run)) is None:
            raise UnknownRun.of(run)
        return held

    async def find_by_key(self, unique_key: str) -> RunLog | None:
        return self.runs.with_key(unique_key)

    async def select(self, selection: Selection) -> list[RunLog]:
        selected = (run for run in self.runs if selection.includes(run.info, run.status))
        return list(nlargest(selection.limit, selected, key=lambda run: run.info.place))

    async def discard(self, run: str) -> None:
        self.forget(run)

    def forget(self, run: str) -> None:
        if (held := self.runs.remove(run)) is not None:
            held.forget()

    def make_room(self) -> list[str]:
        """Forgets finished runs until there is room for a new one. Returns their ids.

        Raises StoreFull if no finished run without readers is left.
        """
        forgotten = []
        while len(self) >= self._max_runs or self.bytes >= self.max_bytes:
            if (run := self.runs.first_to_forget()) is None:
                raise StoreFull(
                    f"this server holds {len(self)} runs (limit {self._max_runs}), {self.bytes} "
                    f"bytes (limit {self.max_bytes}); try again in {StoreFull.retry_after} s"
                )
            self.forget(run)
            forgotten.append(run)
        return forgotten

    def account(self, delta: int) -> None:
        """Counts bytes that a run has begun to hold, or (negative) has dropped."""
        self.bytes += delta
        if delta < 0 and self.paused:
            for run in list(self.paused):
                run.resume_producer()


class MemoryRun(OpeningRun):
    """The frames of one run in memory, and its readers.

    A MemoryLog's own runs commit each event as it is appended. A run with a `backing` is driven by
    it: `add` and `commit` are then two steps, and `finish` closes the run.
    """

    def __init__(
        self, log: MemoryLog, info: RunInfo, limits: Limits, backing: Backing | None = None
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

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    # For the producer

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
            log.account(-buffer.trim(self._limit * 7 // 8, self.slowest))

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
        self.resume_producer()

    async def cancel(self, end: End) -> None:
        if self.opening and not self.closed:
            self.refuse(RunGone.stopped(self.info.run))
        elif not self.closed:
            self.close(end)

    @property
    def _limit(self) -> int:
        return self.limits.window if self._log.bytes < self._log.max_bytes else 0

    def is_full(self) -> bool:
        buffer = self.buffer
        if buffer.held < self.limits.window and self._log.bytes < self._log.max_bytes:
            return False
        ahead = buffer.size(self.slowest, buffer.last)
        return ahead > 0 and ahead >= self._limit

    @property
    def slowest(self) -> int:
        """The newest event that may be dropped. (Without readers, see `Limits.drops_oldest`.)"""
        if self.info.topic:
            return self.buffer.committed
        cursors = [reader.after for reader in self._readers]
        if self.backing is not None:
            cursors += self.backing.cursors()
        if cursors:
            return min(*cursors, self.buffer.committed)
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

    def _readers_changed(self) -> None:
        self.resume_producer()
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
            if run.backing is None:  # A topic waits for nobody.
                raise LostHistory(buffer.first - 1 - self.after, buffer.first)
            frames, self._given = await run.backing.load_evicted(self.after)
        else:
            frames, self._given = run.piece(self.after)
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
