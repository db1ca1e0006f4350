"""MemoryLog: runs in this process's memory, the log that needs nothing.

The law of this file: what an attached reader has not had stays, and all that is held is counted.
A run's frames lie back to back in one buffer, so that a reader takes any number of them in one
piece. asgi.py makes one when it is given no other log.
"""

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from types import TracebackType
from typing import Self

from streams.errors import LogClosed, LostHistory, StoreFull, UnknownRun
from streams.event import frame
from streams.log import RunInfo, RunLog, Status

# One write of at most this many bytes (a larger event goes alone): a client that stops reading
# costs one such chunk on top of the server's own write buffer, which has the same size.
CHUNK = 64 * 1024

NO_PIECE = (-1, -1, b"")


class MemoryLog:
    """Runs in this process's memory: at most `max_runs` of them and, in all, `max_bytes` bytes.

    At a limit the oldest finished run without a reader goes first; if none is left to go, new
    runs are refused and producers wait until their readers have had what they have.
    """

    def __init__(self, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20) -> None:
        self.events = 0
        self.bytes = 0
        self.max_bytes = max_bytes
        self._max_runs = max_runs
        self._runs: dict[str, _MemoryRun] = {}
        self._finished: dict[str, asyncio.TimerHandle] = {}
        self._waiting: set[_MemoryRun] = set()

    def __len__(self) -> int:
        return len(self._runs)

    async def create(
        self, info: RunInfo, *, after: int = -1, window: int, drops_oldest: bool = False
    ) -> RunLog:
        if info.run in self._runs:
            raise ValueError(f"run {info.run} exists")
        self._make_room()
        log = _MemoryRun(self, info, after, window, drops_oldest)
        self._runs[info.run] = log
        return log

    async def find(self, run: str) -> RunLog:
        try:
            return self._runs[run]
        except KeyError:
            raise UnknownRun(f"there is no run {run!r} here (any more)") from None

    async def discard(self, run: str) -> None:
        self._forget(run)

    def _forget(self, run: str) -> None:
        log = self._runs.pop(run, None)
        if (timer := self._finished.pop(run, None)) is not None:
            timer.cancel()
        if log is not None:
            log.forgotten()

    def finished(self, run: str, retain: float) -> None:
        timer = asyncio.get_running_loop().call_later(retain, self._forget, run)
        self._finished[run] = timer

    def account(self, delta: int) -> None:
        self.bytes += delta
        if delta < 0 and self._waiting:
            for log in list(self._waiting):
                log.resume_producer()

    def _make_room(self) -> None:
        while len(self._runs) >= self._max_runs or self.bytes >= self.max_bytes:
            run = next((run for run in self._finished if not self._runs[run].readers), None)
            if run is None:
                raise StoreFull(
                    f"{len(self._runs)} runs (of {self._max_runs}) hold {self.bytes} bytes "
                    f"(of {self.max_bytes}): try again in {StoreFull.retry_after} s"
                )
            self._forget(run)

    def wait_for_room(self, log: "_MemoryRun", waits: bool) -> None:
        (self._waiting.add if waits else self._waiting.discard)(log)


class _MemoryRun:
    """All frames back to back in one buffer, and where each one ends: a reader's next piece is
    one slice, whatever the number of events in it, and an event costs its bytes and eight more.

    Offsets count from the run's beginning, so trimming changes none of them.
    """

    def __init__(
        self, store: MemoryLog, info: RunInfo, after: int, window: int, drops_oldest: bool
    ) -> None:
        self.info = info
        self.status: Status = "running"
        self.closed = False
        self.first = after + 1
        self.last = after
        self.restarted = after >= 0
        self._store = store
        self._window = window
        self._drops_oldest = drops_oldest
        self._id = info.run.encode()
        self._frames = bytearray()
        self._ends = array("Q")
        self._start = 0
        self._readers: set[_MemoryReader] = set()
        self.waiting: set[asyncio.Future[None]] = set()
        self._newest = b""
        self._room: asyncio.Future[None] | None = None
        self._shared_piece = NO_PIECE

    @property
    def readers(self) -> int:
        return len(self._readers)

    def append(self, name: bytes | None, data: bytes) -> bool:
        if self.closed:
            raise LogClosed(f"run {self.info.run} is {self.status}: nothing can be added")
        store, frames = self._store, self._frames
        self.last = number = self.last + 1
        self._newest = frame_ = frame(self._id, number, name, data)
        frames += frame_
        self._ends.append(self._start + len(frames))
        store.events += 1
        store.bytes += len(frame_)
        if len(frames) > self._limit:
            self._trim()
        return self._wake()

    def close(self, status: Status, data: bytes, retain: float) -> None:
        self.append(b"end", data)
        self.status, self.closed = status, True
        self.resume_producer()
        self._store.finished(self.info.run, retain)

    @property
    def _limit(self) -> int:
        return self._window if self._store.bytes < self._store.max_bytes else 0

    @property
    def full(self) -> bool:
        limit = self._limit
        if len(self._frames) < limit:
            return False
        if not self._readers and self._drops_oldest:
            return False
        had = min((reader.after for reader in self._readers), default=self.first - 1)
        had = min(had, self.last)
        ahead = self._start + len(self._frames) - self._offset(had)
        return ahead > 0 and ahead >= limit

    async def room(self) -> None:
        while self.full and not self.closed:
            self._room = asyncio.get_running_loop().create_future()
            self._store.wait_for_room(self, True)
            try:
                await self._room
            finally:
                self._room = None
                self._store.wait_for_room(self, False)

    def resume_producer(self) -> None:
        if self._room is not None and not self._room.done() and (self.closed or not self.full):
            self._room.set_result(None)

    def read(self, after: int) -> "_MemoryReader":
        return _MemoryReader(self, after)

    def attach(self, reader: "_MemoryReader") -> None:
        if reader.after < self.first - 1:
            raise LostHistory(self.first - 1 - reader.after, self.first)
        self._readers.add(reader)
        self.resume_producer()

    def detach(self, reader: "_MemoryReader") -> None:
        self._readers.discard(reader)
        self.waiting.discard(reader.woken)
        if len(self._readers) < 2:
            self._shared_piece = NO_PIECE
        self.resume_producer()

    def forgotten(self) -> None:
        if not self.closed:
            self.status, self.closed = "cancelled", True
        self._store.account(-len(self._frames))
        self._wake()
        self.resume_producer()

    def _wake(self) -> bool:
        if not self.waiting:
            return False
        for woken in self.waiting:
            if not woken.done():
                woken.set_result(None)
        self.waiting.clear()
        return True

    def _offset(self, number: int) -> int:
        """Where the frame of event `number` ends; before the first one held, where that begins."""
        return self._ends[number - self.first] if number >= self.first else self._start

    def piece(self, after: int) -> tuple[bytes, int]:
        """The frames that follow `after`, up to CHUNK bytes, and the number of the last of them."""
        if after == self.last - 1:  # it keeps up, as most do
            return self._newest, self.last
        begin, last, frames = self._shared_piece
        if begin == after + 1 and (last == self.last or len(frames) >= CHUNK // 2):
            return frames, last
        start = self._offset(after)
        last = self.last
        if self._ends[-1] - start > CHUNK:
            fits = bisect_right(self._ends, start + CHUNK, after + 1 - self.first) + self.first - 1
            last = max(fits, after + 1)
        with memoryview(self._frames) as view:
            frames = bytes(view[start - self._start : self._offset(last) - self._start])
        if len(self._readers) > 1:  # one copy for all that stand at the same place
            self._shared_piece = (after + 1, last, frames)
        return frames, last

    def _trim(self) -> None:
        """Drops the oldest, an eighth more than needed so that it is seldom done."""
        if self._readers:
            had = min(reader.after for reader in self._readers)
        else:
            had = self.last if self._drops_oldest else self.first - 1
        goal = self._start + len(self._frames) - self._limit * 7 // 8
        last = min(had, bisect_left(self._ends, goal) + self.first, self.last)
        if last < self.first:
            return
        end = self._offset(last)
        dropped = end - self._start
        del self._frames[:dropped]
        del self._ends[: last + 1 - self.first]
        self._start = end
        self.first = last + 1
        self._store.account(-dropped)


class _MemoryReader:
    def __init__(self, log: _MemoryRun, after: int) -> None:
        self.after = after
        self._log = log
        self._given = after
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self.woken = self._loop.create_future()

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
            log.resume_producer()
        while self.after >= log.last and not self._stopped:
            if log.closed:
                raise StopAsyncIteration
            self.woken = self._loop.create_future()
            log.waiting.add(self.woken)
            await self.woken
        if self._stopped:
            raise StopAsyncIteration
        frames, self._given = log.piece(self.after)
        return frames

    @property
    def ready(self) -> bool:
        return self._given < self._log.last or self._log.closed

    def stop(self) -> None:
        self._stopped = True
        if not self.woken.done():
            self.woken.set_result(None)
