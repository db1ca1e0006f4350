"""MemoryRun: the frames of one run in this process's memory, and its readers.

The law of this file: what an attached reader has not had stays, and all that is held is counted.
The frames lie back to back in one buffer, so that a reader takes any number of them in one piece.
It is a RunLog of memory_log.py; redis_run.py keeps in one what is here of a run in Redis.
"""

import asyncio
import os
import secrets
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from streams.errors import LogClosed, LostHistory
from streams.event import frame
from streams.log import RunInfo, Status

# One write of at most this many bytes (a larger event goes alone): a client that stops reading
# costs one such chunk on top of the server's own write buffer, which has the same size.
CHUNK = 64 * 1024

NO_PIECE = (-1, -1, b"")


class Store:
    """What the runs of one worker have in common: its name, and what they hold together."""

    def __init__(self, max_bytes: int) -> None:
        self.worker = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.events = 0
        self.bytes = 0
        self.readers = 0
        self.max_bytes = max_bytes
        self._waiting: set[MemoryRun] = set()

    def account(self, delta: int) -> None:
        self.bytes += delta
        if delta < 0 and self._waiting:
            for log in list(self._waiting):
                log.resume_producer()

    def wait_for_room(self, log: "MemoryRun", waits: bool) -> None:
        (self._waiting.add if waits else self._waiting.discard)(log)


class MemoryRun:
    """All frames back to back in one buffer, and where each one ends: a reader's next piece is
    one slice, whatever the number of events in it, and an event costs its bytes and eight more.

    Offsets count from the run's beginning, so trimming changes none of them. Readers get events
    up to number `shown`: in a MemoryLog, all; `awaited` says that some wait for more. `elsewhere`
    is where the readers in other processes are, `older` finds what is held elsewhere only: the
    frames behind an event, in a piece, and the number of the last of them.
    """

    def __init__(
        self,
        store: Store,
        info: RunInfo,
        *,
        after: int,
        window: int,
        retain: float,
        drops_oldest: bool,
        closed: Callable[["MemoryRun"], None],
    ) -> None:
        self.info = info
        self.status: Status = "running"
        self.closed = False
        self.first = after + 1
        self.last = after
        self.shown = after
        self.restarted = after >= 0
        self.retain = retain
        self.window = window
        self.elsewhere: dict[str, int] = {}
        self.older: Callable[[int], Awaitable[tuple[bytes, int]]] | None = None
        self.changed: Callable[[], None] = _nobody
        self.moved: Callable[[], None] | None = None
        self.gone = False
        self._store = store
        self._drops_oldest = drops_oldest
        self._closed = closed
        self._id = info.run.encode()
        self._frames = bytearray()
        self._ends = array("Q")
        self._start = 0
        self._readers: set[MemoryReader] = set()
        self.awaited = False
        self._newest = b""
        self.wanted_room: asyncio.Future[None] | None = None
        self._shared_piece = NO_PIECE

    @property
    def readers(self) -> int:
        return len(self._readers)

    @property
    def producer(self) -> str:
        return self._store.worker

    @property
    def producing(self) -> bool:
        return not self.closed

    def watch(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def append(self, name: bytes | None, data: bytes) -> bool:
        self.add(frame(self._id, self.last + 1, name, data))
        self._store.events += 1
        self.shown = self.last
        return self.awaited and self._wake()

    def add(self, frame_: bytes) -> None:
        """Adds the next event's frame, which show() makes visible. Raises LogClosed."""
        if self.closed:
            raise LogClosed(f"run {self.info.run} is {self.status}: nothing can be added")
        frames = self._frames
        frames += frame_
        self._newest = frame_
        self._ends.append(self._start + len(frames))
        self.last += 1
        self._store.bytes += len(frame_)
        if len(frames) > self.window or self._store.bytes >= self._store.max_bytes:
            self._trim()

    def show(self, number: int) -> None:
        """Gives readers the events up to this one."""
        self.shown = number
        self._wake()
        self.resume_producer()

    def take_back(self) -> None:
        """Drops what was not shown."""
        kept = self._offset(self.shown) - self._start
        self._store.account(kept - len(self._frames))
        del self._frames[kept:]
        del self._ends[max(self.shown + 1 - self.first, 0) :]
        self.last = self.shown
        self._newest = b"".join(self.frames(self.last - 1, 1, 1)) if self._ends else b""
        self.status, self.closed = "running", False

    def begin_after(self, number: int) -> None:
        """Drops all, and goes on with the event behind this one."""
        self._store.account(-len(self._frames))
        self._frames.clear()
        del self._ends[:]
        self.first, self.last, self.shown = number + 1, number, number
        self._shared_piece = NO_PIECE
        self._wake()

    def close(self, status: Status, data: bytes) -> None:
        self.append(b"end", data)
        self.end(status)
        self._closed(self)
        self.changed()

    def end(self, status: Status) -> None:
        """The newest event is the last."""
        self.status, self.closed = status, True
        self.resume_producer()

    async def cancel(self, data: bytes) -> None:
        if not self.closed:
            self.close("cancelled", data)

    @property
    def _limit(self) -> int:
        return self.window if self._store.bytes < self._store.max_bytes else 0

    @property
    def full(self) -> bool:
        if len(self._frames) < self.window and self._store.bytes < self._store.max_bytes:
            return False
        limit = self._limit
        ahead = self._start + len(self._frames) - self._offset(self.slowest)
        return ahead > 0 and ahead >= limit

    @property
    def slowest(self) -> int:
        """The event that all readers have had, and so may go; with no reader, see drops_oldest."""
        places = [reader.after for reader in self._readers]
        places += self.elsewhere.values()
        if places:
            return min(min(places), self.shown)
        return self.shown if self._drops_oldest else self.first - 1

    async def room(self) -> None:
        while self.full and not self.closed:
            self.wanted_room = asyncio.get_running_loop().create_future()
            self._store.wait_for_room(self, True)
            try:
                await self.wanted_room
            finally:
                self.wanted_room = None
                self._store.wait_for_room(self, False)

    def resume_producer(self) -> None:
        wanted = self.wanted_room
        if wanted is not None and not wanted.done() and (self.closed or not self.full):
            wanted.set_result(None)

    def read(self, after: int) -> "MemoryReader":
        return MemoryReader(self, after)

    def attach(self, reader: "MemoryReader") -> None:
        if reader.after < self.first - 1 and self.older is None:
            raise LostHistory(self.first - 1 - reader.after, self.first)
        self._readers.add(reader)
        self._store.readers += 1
        self.resume_producer()
        self.changed()

    def detach(self, reader: "MemoryReader") -> None:
        self._readers.discard(reader)
        self._store.readers -= 1
        if len(self._readers) < 2:
            self._shared_piece = NO_PIECE
        self.resume_producer()
        self.changed()

    def forgotten(self) -> None:
        """Ends it for readers, behind what they could see; what it holds counts no more."""
        self.gone = True
        status = self.status if self.closed else "cancelled"
        self.take_back()
        self.status, self.closed = status, True
        self._store.account(-len(self._frames))
        self._wake()
        self.resume_producer()
        self.changed()

    def _wake(self) -> bool:
        if not self.awaited:
            return False
        self.awaited = False
        for reader in self._readers:
            if (news := reader.news) is not None and not news.done():
                news.set_result(None)
        return True

    def _offset(self, number: int) -> int:
        """Where the frame of event `number` ends; before the first one held, where that begins."""
        return self._ends[number - self.first] if number >= self.first else self._start

    def size(self, after: int, last: int) -> int:
        """The bytes of the frames held that follow `after`, to the one numbered `last`."""
        return self._offset(last) - self._offset(after)

    def frames(self, after: int, most_bytes: int, most: int) -> list[bytes]:
        """Each frame that follows `after`, of about so many bytes together at most."""
        begin, frames = self._offset(after) - self._start, []
        for number in range(after + 1, min(self.last, after + most) + 1):
            end = self._offset(number) - self._start
            frames.append(bytes(self._frames[begin:end]))
            begin, most_bytes = end, most_bytes - len(frames[-1])
            if most_bytes <= 0:
                break
        return frames

    def piece(self, after: int) -> tuple[bytes, int]:
        """The frames that follow `after`, up to CHUNK bytes, and the number of the last of them."""
        if after == self.last - 1 and self.shown == self.last:  # it keeps up, as most do
            return self._newest, self.last
        begin, last, frames = self._shared_piece
        if begin == after + 1 and (last == self.shown or len(frames) >= CHUNK // 2):
            return frames, last
        start = self._offset(after)
        last = self.shown
        if self._offset(last) - start > CHUNK:
            fits = bisect_right(self._ends, start + CHUNK, after + 1 - self.first) + self.first - 1
            last = max(fits, after + 1)
        with memoryview(self._frames) as view:
            frames = bytes(view[start - self._start : self._offset(last) - self._start])
        if len(self._readers) > 1:  # one copy for all that stand at the same place
            self._shared_piece = (after + 1, last, frames)
        return frames, last

    def _trim(self) -> None:
        """Drops the oldest, an eighth more than needed so that it is seldom done."""
        goal = self._start + len(self._frames) - self._limit * 7 // 8
        last = min(self.slowest, bisect_left(self._ends, goal) + self.first)
        if last < self.first:
            return
        end = self._offset(last)
        dropped = end - self._start
        del self._frames[:dropped]
        del self._ends[: last + 1 - self.first]
        self._start = end
        self.first = last + 1
        self._store.account(-dropped)


def _nobody() -> None:
    """Nobody watches."""


class MemoryReader:
    def __init__(self, log: MemoryRun, after: int) -> None:
        self.after = after
        self._log = log
        self._given = after
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self.news: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._log.attach(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.detach(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        log = self._log
        if self._given > self.after:
            self.after = self._given
            if log.wanted_room is not None:
                log.resume_producer()
            if log.moved is not None:
                log.moved()
        while self.after >= log.shown and not self._stopped:
            if log.closed and log.shown == log.last:
                raise StopAsyncIteration
            self.news = self._loop.create_future()
            log.awaited = True
            await self.news
        if self._stopped:
            raise StopAsyncIteration
        if self.after < log.first - 1:
            assert log.older is not None, "what an attached reader has not had stays"
            frames, self._given = await log.older(self.after)
        else:
            frames, self._given = log.piece(self.after)
        return frames

    @property
    def ready(self) -> bool:
        log = self._log
        if self._given < log.shown:
            return self._given >= log.first - 1
        return log.closed and log.shown == log.last

    def stop(self) -> None:
        self._stopped = True
        if self.news is not None and not self.news.done():
            self.news.set_result(None)
