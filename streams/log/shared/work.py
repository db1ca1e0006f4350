"""Work: what all runs of one worker share."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from streams.log import Histogram
from streams.log.memory import MemoryLog
from streams.log.shared.repeat import until_answered
from streams.log.store import LOST, Damaged, Entry, State, Store, report_damage

if TYPE_CHECKING:
    from streams.log.shared.run import SharedRun

APPEND_BYTES = 256 * 1024
APPEND_EVENTS = 512
"""One operation appends about this many bytes and events of a run at most, and twice as many bytes
in all: a longer one would hold up all others."""

APPEND_RUNS = 32
"""One operation appends to this many runs at most. More events of the other runs gather meanwhile,
and one operation appends them together."""

CLOCK_SECONDS = 0.1
"""This worker keeps a finished run for this much longer than the store: their clocks differ."""

T = TypeVar("T")


class Work:
    """The store, the local log, and the queues of the loops that exchange events with the store.

    `appending` are the runs with frames that the store does not have yet. `moved` are those whose
    cursor has changed, `followed` those of other workers that have readers here.
    """

    def __init__(self, store: Store, local: MemoryLog) -> None:
        self.store = store
        self.local = local
        self.appending: dict[SharedRun, None] = {}
        self.moved: dict[SharedRun, None] = {}
        self.followed: dict[str, SharedRun] = {}
        self.background: set[asyncio.Task[None]] = set()
        self.latencies: dict[str, Histogram] = {}
        self.queued = asyncio.Event()
        self.done = asyncio.Event()
        self.done.set()

    @property
    def worker(self) -> str:
        return self.local.worker

    async def timed(self, operation: str, answering: Awaitable[T]) -> T:
        """Awaits an operation of the store, and counts how long it takes, even if it fails."""
        begin = time.monotonic()
        try:
            return await answering
        finally:
            took = time.monotonic() - begin
            self.latencies.setdefault(operation, Histogram()).observe(took)

    async def read(self, run: str, after: int, count: int) -> list[Entry]:
        """Does what Store.read does."""
        return await self.timed("read", self.store.read(run, after, count))

    async def claim(self, run: str, worker: str) -> State | None:
        """Claims a run of a dead worker, as Store.claim does. Ends one that cannot be read."""
        try:
            return await until_answered(partial(self.store.claim, run, worker))
        except Damaged as damaged:
            report_damage(run, damaged)
            await until_answered(partial(self.store.close, run, LOST, frees_key=True))
            return None

    def end_damaged(self, run: "SharedRun", number: int) -> None:
        """Lets the store end a run whose event `number` is damaged."""
        report_damage(run.info.run, f"event {number} is none of its own")
        end: Callable[[], Awaitable[object]] = partial(run.close_in_store, run.lost)
        if run.info.topic:  # The next publish starts it again.
            end = partial(self.store.discard, run.info.run)
        self.in_background(until_answered(end))

    def in_background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def queue_append(self, run: "SharedRun") -> None:
        """Queues the uncommitted frames of a run for the store."""
        self.appending[run] = None
        self.done.clear()
        self.queued.set()

    def next_appends(self) -> list["SharedRun"]:
        """Takes the runs from the queue to which the next operation appends."""
        runs: list[SharedRun] = []
        size = 0
        for run in self.appending:
            buffer = run.memory.buffer
            runs.append(run)
            size += buffer.size(run.committed, buffer.last)
            if len(runs) == APPEND_RUNS or size >= APPEND_BYTES:
                break
        for run in runs:
            del self.appending[run]
        return runs

    def queue_cursor(self, run: "SharedRun") -> None:
        """Queues the cursor of a run for the store."""
        self.moved[run] = None
        self.done.clear()
        self.queued.set()
