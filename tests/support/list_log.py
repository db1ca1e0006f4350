"""ListLog: the simplest event log that fulfils the protocols.

It keeps every frame in a list and wakes every waiter at each change. It imports only the names
that an implementer of a log has. The contract suite and whole streams run on it, which shows that
the protocols are enough.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streams.errors import LogClosed, LostHistory, RunGone, StoreFull, StreamError, UnknownRun
from streams.event import End, EventId, Payload, frame
from streams.log import Adopter, Histogram, Limits, RunInfo, RunLog, Selection, Status


class ListLog:
    def __init__(self, *, max_runs: int = 100, max_bytes: int = 2**20) -> None:
        self.worker = "list"
        self.shared = False
        self.events = 0
        self.bytes = 0
        self.evictions = 0
        self.latencies: dict[str, Histogram] = {}
        self.max_runs = max_runs
        self.max_bytes = max_bytes
        self.runs: dict[str, ListRun] = {}
        self.clock = 0

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def readers(self) -> int:
        return sum(log.readers for log in self.runs.values())

    def register(self, adopter: Adopter) -> None: ...

    async def open(self) -> None: ...

    async def check(self) -> None: ...

    async def aclose(self) -> None: ...

    async def create(self, info: RunInfo, limits: Limits) -> "ListRun":
        for log in self.runs.values():
            if info.unique_key == log.info.unique_key is not None and not log.freed_key:
                return log
        for log in sorted(self.runs.values(), key=ListRun.room_order):
            full = len(self.runs) >= self.max_runs or self.bytes >= self.max_bytes
            if full and log.may_go:
                await self.discard(log.info.run)
                self.evictions += 1
        if len(self.runs) >= self.max_runs or self.bytes >= self.max_bytes:
            raise StoreFull("full")
        self.runs[info.run] = ListRun(self, info, limits)
        return self.runs[info.run]

    async def find(self, run: str) -> RunLog:
        if run not in self.runs:
            raise UnknownRun.of(run)
        return self.runs[run]

    async def find_by_key(self, unique_key: str) -> RunLog | None:
        for log in self.runs.values():
            if log.info.unique_key == unique_key and not log.freed_key:
                return log
        return None

    async def select(self, selection: Selection) -> list[RunLog]:
        selected: list[RunLog] = []
        for log in sorted(self.runs.values(), key=lambda log: log.info.place, reverse=True):
            if selection.includes(log.info, log.status):
                selected.append(log)
        return selected[: selection.limit]

    async def topic(self, info: RunInfo, limits: Limits) -> "ListRun":
        log = await self.create(info, limits)
        if log.opening:
            log.append(b"start", info.start)
            log.open()
        log.expire()
        return log

    async def publish(self, info: RunInfo, limits: Limits, event: Payload) -> EventId:
        log = await self.topic(info, limits)
        log.append(*event)
        return EventId(log.info.run, log.last)

    async def end_topic(self, info: RunInfo, limits: Limits, end: End) -> None:
        await (await self.topic(info, limits)).cancel(end)

    async def discard(self, run: str) -> None:
        self.forget(run)

    def forget(self, run: str) -> None:
        if log := self.runs.pop(run, None):
            log.status = "cancelled" if log.status == "running" else log.status
            log.opening = False
            self.bytes -= log.size
            log.drop_arguments()
            log.changed()
            log.watching()


class ListRun:
    def __init__(self, store: ListLog, info: RunInfo, limits: Limits) -> None:
        self.info = info
        self.status: Status = "running"
        self.opening = True
        self.freed_key = False
        self.refusal: StreamError | None = None
        self.first = 0
        self.store = store
        self.limits = limits
        self.producer = store.worker
        self.watching: Callable[[], None] = lambda: None
        self.frames: list[bytes] = []
        self.attached: set[ListReader] = set()
        self.waiters: set[asyncio.Event] = set()
        self.expiry: asyncio.TimerHandle | None = None
        self.unwatched_since = 0
        self.argument_bytes = info.argument_bytes + len(info.arguments or "")
        store.bytes += self.argument_bytes

    def drop_arguments(self) -> None:
        self.info = self.info.without_arguments()
        self.store.bytes -= self.argument_bytes
        self.argument_bytes = 0

    @property
    def may_go(self) -> bool:
        is_private = not self.info.shared or self.info.topic
        return not (self.attached or self.opening) and (is_private or self.status != "running")

    def room_order(self) -> tuple[bool, bool, bool, int]:
        keeps = self.info.key is not None or self.limits.drops_oldest
        is_running = self.status == "running"
        return keeps, is_running, not self.info.topic, self.unwatched_since

    @property
    def producing(self) -> bool:
        return self.status == "running"

    @property
    def ended_here(self) -> bool | None:
        return None if self.status == "running" else True

    def open(self) -> None:
        self.opening = False
        self.unwatched()
        self.changed()

    def unwatched(self) -> None:
        self.store.clock += 1
        self.unwatched_since = self.store.clock

    def refuse(self, error: StreamError) -> None:
        self.status, self.refusal, self.opening = "refused", error, False
        self.store.runs.pop(self.info.run)
        self.store.bytes -= self.size
        self.drop_arguments()
        self.changed()
        self.watching()

    async def opened(self) -> None:
        while self.opening:
            await self.change()
        if self.refusal is not None:
            raise self.refusal
        if self.store.runs.get(self.info.run) is not self:
            raise UnknownRun.of(self.info.run)

    def watch(self, changed: Callable[[], None]) -> None:
        self.watching = changed

    @property
    def last(self) -> int:
        return self.first + len(self.frames) - 1

    @property
    def readers(self) -> int:
        return len(self.attached)

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))

    def changed(self) -> None:
        for waiter in self.waiters:
            waiter.set()

    async def change(self) -> None:
        waiter = asyncio.Event()
        self.waiters.add(waiter)
        try:
            await waiter.wait()
        finally:
            self.waiters.discard(waiter)

    def append(self, name: bytes | None, data: bytes) -> bool:
        if self.status != "running":
            raise LogClosed(self.info.run)
        self.frames.append(frame(self.info.run.encode(), self.last + 1, name, data))
        self.store.events += 1
        self.store.bytes += len(self.frames[-1])
        had = self.pacing_cursor(default=self.last if self.limits.drops_oldest else -1)
        if self.info.topic:
            had = self.last - 1
        while self.size > self.limit and self.first <= had:
            self.store.bytes -= len(self.frames.pop(0))
            self.first += 1
        woke = any(not waiter.is_set() for waiter in self.waiters)
        self.changed()
        return woke

    def pacing_cursor(self, default: int) -> int:
        pace = max if self.info.shared else min
        return pace((reader.after for reader in self.attached), default=default)

    @property
    def limit(self) -> int:
        return self.limits.window if self.store.bytes < self.store.max_bytes else 0

    def is_full(self) -> bool:
        if self.info.topic or (not self.attached and self.limits.drops_oldest):
            return False
        had = self.pacing_cursor(default=self.first - 1)
        ahead = sum(map(len, self.frames[max(had + 1 - self.first, 0) :]))
        return ahead > 0 and ahead >= self.limit

    async def room(self) -> None:
        while self.is_full() and self.status == "running":
            await self.change()

    def close(self, end: End) -> None:
        self.append(b"end", end.encode())
        self.status, self.opening = end.status, False
        self.freed_key = self.info.frees_key(end)
        self.drop_arguments()
        self.unwatched()
        self.changed()
        self.watching()
        self.expire()

    def expire(self) -> None:
        """Forgets the run when it has been finished or idle for its time."""
        if self.expiry is not None:
            self.expiry.cancel()
        loop = asyncio.get_running_loop()

        def discard() -> None:
            if self.status != "running" or not self.attached:
                self.store.forget(self.info.run)

        self.expiry = loop.call_later(self.limits.retain, discard)

    async def cancel(self, end: End) -> bool:
        if self.opening:
            self.refuse(RunGone.stopped(self.info.run))
        elif self.status == "running":
            self.close(end)
        else:
            return False
        return True

    @contextmanager
    def read(self, after: int) -> Iterator["ListReader"]:
        if after < self.first - 1:
            raise LostHistory(self.first - 1 - after, self.first)
        reader = ListReader(self, after)
        self.attached.add(reader)
        self.changed()
        self.watching()
        try:
            yield reader
        finally:
            self.attached.discard(reader)
            self.unwatched()
            if self.info.topic and self.status == "running":
                self.expire()
            self.changed()
            self.watching()


class ListReader:
    def __init__(self, log: ListRun, after: int) -> None:
        self.log = log
        self.after = after
        self.given = after
        self.stopped = False

    def __aiter__(self) -> "ListReader":
        return self

    async def __anext__(self) -> bytes:
        if self.given > self.after:
            self.after = self.given
            self.log.changed()
        while self.after >= self.log.last and self.log.status == "running" and not self.stopped:
            await self.log.change()
        if self.stopped or self.after >= self.log.last:
            raise StopAsyncIteration
        if self.after < self.log.first - 1:
            raise LostHistory(self.log.first - 1 - self.after, self.log.first)
        frames = self.log.frames[self.after + 1 - self.log.first]
        await asyncio.sleep(0)
        self.given = self.after + 1
        return frames

    @property
    def ready(self) -> bool:
        return self.given < self.log.last or self.log.status != "running"

    def stop(self) -> None:
        self.stopped = True
        self.log.changed()
