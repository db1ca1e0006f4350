"""RedisRun: one run as this worker has it, be it the producer, a reader's worker, or both.

The law of this file: readers see only what Redis has; what Redis refuses was never there. What is
here of the run is in a MemoryRun: the producer's has what it appended, shown to readers when
Redis has it; another worker's has what came in since its first reader did. Readers that are
behind that get pieces from Redis. redis_log.py owns the loops that carry all this.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from streams.errors import LogClosed, LostHistory
from streams.event import frame
from streams.log import RunInfo, Status
from streams.log.memory_run import CHUNK, MemoryReader, MemoryRun, Store
from streams.log.redis.connection import RedisLink
from streams.log.redis.scripts import CLOSE, OLDER

MOST_BYTES = 256 * 1024
MOST_EVENTS = 512

CLOCKS_SECONDS = 0.1
"""What is finished is held here so much longer than in Redis, whose clock is another one."""


class State(msgspec.Struct, frozen=True):
    """A run as Redis has it."""

    info: RunInfo
    status: Status
    producer: str
    after: int
    last: int
    first: int
    window: int
    retain: float
    drops_oldest: bool
    places: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, reply: list[Any]) -> "State | None":
        """From what the scripts call a state; None if there is no such run."""
        if reply[0] is None:
            return None
        info, status, producer, *numbers = reply[:9]
        after, last, first, window, retain, drops = map(int, numbers)
        places = {}
        for worker, place in zip(reply[9][::2], reply[9][1::2], strict=True):
            at, count = place.split()
            places[worker.decode()] = (int(at), int(count))
        return cls(
            msgspec.json.decode(info, type=RunInfo),
            status.decode(),
            producer.decode(),
            after,
            last,
            first,
            window,
            retain / 1000,
            bool(drops),
            places,
        )


class Entry(msgspec.Struct, frozen=True):
    """One event as Redis has it."""

    number: int
    frame: bytes
    status: Status | None

    @classmethod
    def of(cls, reply: Any) -> "Entry":
        entry_id, fields = reply
        status = fields[3].decode() if len(fields) > 2 else None
        return cls(int(entry_id.partition(b"-")[0]) - 1, fields[1], status)


class Work:
    """What this worker has to tell Redis, and which runs it has to hear of."""

    def __init__(
        self, link: RedisLink, store: Store, finished: Callable[[MemoryRun], None]
    ) -> None:
        self.link = link
        self.store = store
        self.finished = finished
        self.unwritten: dict[RedisRun, None] = {}
        self.moved: dict[RedisRun, None] = {}
        self.followed: dict[str, RedisRun] = {}
        self.there_is_some = asyncio.Event()
        self.done = asyncio.Event()
        self.done.set()

    def write(self, run: "RedisRun") -> None:
        self.unwritten[run] = None
        self.done.clear()
        self.there_is_some.set()

    def tell_place(self, run: "RedisRun") -> None:
        self.moved[run] = None
        self.done.clear()
        self.there_is_some.set()


class RedisRun:
    """A RunLog. `mine` says whether Redis has this worker as its producer, for all we know."""

    def __init__(self, work: Work, state: State, mine: bool) -> None:
        self.info = state.info
        self.restarted = state.after >= 0
        self.producer = state.producer
        self.mine = mine
        self.first = state.first
        self.sent = state.last
        self.crowded = False
        self._work = work
        self._last = state.last
        self._status = state.status
        self._begin = state.last + 1
        self._id = state.info.run.encode()
        self._told = -1
        self._counts = {
            w: count for w, (_, count) in state.places.items() if w != work.store.worker
        }
        self._watcher: Callable[[], None] = lambda: None
        self._piece_events = 64
        self.memory = MemoryRun(
            work.store,
            state.info,
            after=state.last,
            window=state.window,
            retain=state.retain + CLOCKS_SECONDS,
            drops_oldest=state.drops_oldest,
            closed=work.finished,
        )
        if state.status != "running":
            self.memory.end(state.status)
        self.memory.older = self._older
        self.memory.changed = self._readers_changed
        self.memory.moved = self._readers_moved
        if mine:
            self.memory.elsewhere = {w: at for w, (at, _) in state.places.items()}

    @property
    def status(self) -> Status:
        return self.memory.status if self.mine or self.memory.closed else self._status

    @property
    def last(self) -> int:
        return self.memory.last if self.mine else max(self.memory.last, self._last)

    @property
    def readers(self) -> int:
        return self.memory.readers + sum(self._counts.values())

    @property
    def producing(self) -> bool:
        return self.mine and not self.memory.closed

    def watch(self, changed: Callable[[], None]) -> None:
        self._watcher = changed

    # The producer's side

    def append(self, name: bytes | None, data: bytes) -> bool:
        if not self.mine:
            raise LogClosed(f"run {self.info.run} is produced by worker {self.producer} now")
        self.memory.add(frame(self._id, self.memory.last + 1, name, data))
        self._work.store.events += 1
        self._work.write(self)
        return False

    @property
    def full(self) -> bool:
        return self.memory.full

    async def room(self) -> None:
        await self.memory.room()

    def close(self, status: Status, data: bytes) -> None:
        self.append(b"end", data)
        self.memory.end(status)
        self._watcher()

    async def cancel(self, data: bytes) -> None:
        if self.producing:
            self.close("cancelled", data)
        elif self.status == "running":
            head = b"id: %b." % self._id
            tail = frame(self._id, 0, b"end", data).removeprefix(head + b"0")
            await self._work.link.call(
                CLOSE, self._work.store.worker, self.info.run, "cancelled", head, tail
            )

    def unwritten(self) -> tuple[list[bytes], int, Status | None]:
        """The frames to send next, the event up to which all may be dropped, and the status if
        the end is among them."""
        memory = self.memory
        frames = memory.frames(self.sent, MOST_BYTES, MOST_EVENTS)
        trim = memory.first - 1 if memory.first > self._begin else -2
        ends = memory.closed and self.sent + len(frames) == memory.last
        return frames, trim, memory.status if ends else None

    def written(self, last: int, first: int) -> None:
        """Redis has it up to event `last`, and from `first` on."""
        if not self.mine:
            return
        self.sent, self.first = last, first
        memory = self.memory
        memory.show(max(last, memory.shown))
        if memory.closed and last == memory.last:
            self._work.finished(memory)
        elif last < memory.last:
            self._work.write(self)

    def behind(self, last: int) -> None:
        """Redis has lost its newest events. What is still here is sent again."""
        self.sent = last
        if last < self.memory.first - 1:
            self.gone()
        else:
            self._work.write(self)

    def place(self, worker: str, at: int | None, count: int) -> None:
        """Another worker has readers, of which the slowest has had event `at`; None: no more."""
        if at is None:
            self._counts.pop(worker, None)
            self.memory.elsewhere.pop(worker, None)
        else:
            self._counts[worker] = count
            if self.mine:
                self.memory.elsewhere[worker] = at
        if self.mine:
            self.memory.resume_producer()
            self._watcher()

    def superseded(self) -> None:
        """Somebody else has closed the log, or produces now: what Redis has not is void."""
        if self.mine:
            self.mine = False
            self.memory.take_back()
            self.memory.elsewhere.clear()
            self._work.unwritten.pop(self, None)
            self._readers_changed()
            self._watcher()

    def taken(self, state: State) -> None:
        """This worker produces now, behind what Redis has."""
        self._unfollow()
        self.mine, self.producer = True, self._work.store.worker
        self.first, self.sent = state.first, state.last
        if self.memory.last != state.last:
            self.memory.begin_after(state.last)
        self._begin = self.memory.first
        self._counts = {worker: count for worker, (_, count) in state.places.items()}
        self.memory.elsewhere = {worker: at for worker, (at, _) in state.places.items()}

    def gone(self) -> None:
        """The run is not in Redis any more: its readers' streams break."""
        self._unfollow()
        self._work.unwritten.pop(self, None)
        self._work.moved.pop(self, None)
        if not self.memory.gone:
            self.mine = False
            self.memory.forgotten()
            self._watcher()

    # The readers' side

    def read(self, after: int) -> MemoryReader:
        if after < self.first - 1:
            raise LostHistory(self.first - 1 - after, self.first)
        return self.memory.read(after)

    def look(self, state: State) -> None:
        """Redis was asked."""
        self.first, self._last, self._status = state.first, state.last, state.status
        me = self._work.store.worker
        self._counts = {w: count for w, (_, count) in state.places.items() if w != me}
        self.producer = state.producer
        if not self.mine and not self.memory.readers and not self.memory.closed:
            self.memory.begin_after(state.last)
            if state.status != "running":
                self.memory.end(state.status)

    def feed(self, entries: Iterable[Entry]) -> None:
        """Events that another worker has appended."""
        memory = self.memory
        for entry in entries:
            if entry.number <= memory.last or memory.closed:
                continue
            if entry.number > memory.last + 1:  # trimmed while this worker was not looking
                memory.begin_after(entry.number - 1)
            memory.add(entry.frame)
            if entry.status is not None:
                self._status = entry.status
                memory.end(entry.status)
        memory.show(memory.last)
        self.crowded = memory.full
        if memory.closed:
            self._unfollow()

    def _unfollow(self) -> None:
        if self._work.followed.get(self.info.run) is self:  # not one that began anew
            del self._work.followed[self.info.run]

    def _readers_changed(self) -> None:
        if self.mine:
            self._watcher()
            return
        memory = self.memory
        if memory.gone or memory.closed:
            self._unfollow()
        elif memory.readers:
            self._work.followed[self.info.run] = self
            self._tell_place()
        else:
            self._unfollow()
            self._work.tell_place(self)
        if not memory.readers and not memory.gone:
            memory.begin_after(memory.last)

    def _readers_moved(self) -> None:
        if self.mine or self.memory.closed:
            return
        memory, held = self.memory, self.memory.first - 1
        told, much = max(self._told, held), memory.window // 4
        if self._told >= held and not self.crowded and memory.size(told, memory.shown) <= much:
            return  # wherever the slowest is; to find it is to ask all, at each step of each
        at = memory.slowest
        came_in = self._told < held <= at
        if came_in or memory.size(told, at) > much or (self.crowded and not memory.full):
            self._tell_place()

    def tell_place_again(self, anyway: bool) -> None:
        """For what _readers_moved() held back; and anyway, where Redis has forgotten."""
        if anyway or self._told < self.memory.slowest:
            self._tell_place()

    def _tell_place(self) -> None:
        self.crowded = self.memory.full
        self._told = self.memory.slowest
        self._work.tell_place(self)

    async def _older(self, after: int) -> tuple[bytes, int]:
        reply = await self._work.link.patiently(
            OLDER, self._work.store.worker, self.info.run, after, self._piece_events
        )
        entries = [Entry.of(entry) for entry in reply]
        if not entries:
            self.gone()
            raise StopAsyncIteration
        if entries[0].number > after + 1:
            self.first = entries[0].number
            raise LostHistory(self.first - 1 - after, self.first)
        frames = b"".join([entry.frame for entry in entries])
        self._piece_events = max(1, min(1000, len(entries) * CHUNK // len(frames)))
        return frames, entries[-1].number
