"""SharedLog: runs in a store that any number of workers share.

Invariants, whichever worker dies, pauses or loses the store for a while:

1. A running run has one producer, or another worker claims it soon.
2. A reader sees an event only when the store has it, and never twice.

Three tasks do the work of one SharedLog: one sends to the store what the runs here have appended,
one follows the runs that have readers here, and one renews this worker's lease and finds workers
that are dead.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from streams.errors import Unavailable, UnknownRun
from streams.log import Adopter, Histogram, Limits, RunInfo, RunLog, Selection
from streams.log.memory import MemoryLog
from streams.log.shared.leases import Leases
from streams.log.shared.repeat import repeat, until_answered
from streams.log.shared.run import SharedRun
from streams.log.shared.work import APPEND_EVENTS, Work
from streams.log.store import Committed, Fenced, Missing, Notice, Outcome, State, Store

logger = logging.getLogger("streams")

LAST_WRITE_SECONDS = 5.0
"""aclose() waits this long for the store to take what the runs here have appended."""


class SharedLog(Leases):
    """Runs in a store. `max_runs` and `max_bytes` limit the runs that this worker has started and
    the bytes that it holds, as in MemoryLog.

    While the store does not answer, new runs and new readers get StoreDown; running ones wait.
    """

    shared = True

    def __init__(
        self, store: Store, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20
    ) -> None:
        self.store = store
        self._adopter = None
        self._limits = {"max_runs": max_runs, "max_bytes": max_bytes}
        self._start_over()

    def _start_over(self) -> None:
        """Becomes a new worker, which knows no run: an event loop left nothing that can be used."""
        self.store_is_open = False
        self._local = MemoryLog(**self._limits)
        self._work = Work(self.store, self._local)
        self._runs: WeakValueDictionary[str, SharedRun] = WeakValueDictionary()
        self._produced: dict[str, SharedRun] = {}
        self._opening, self._opening_store = asyncio.Lock(), asyncio.Lock()
        self._registered = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._next_append = 0.0
        self._renewals = 0
        self._unrenewed = None

    @property
    def readers(self) -> int:
        return self._local.readers

    @property
    def worker(self) -> str:
        return self._work.worker

    @property
    def events(self) -> int:
        return self._local.events

    @property
    def bytes(self) -> int:
        return self._local.bytes

    @property
    def evictions(self) -> int:
        return self._local.evictions

    @property
    def latencies(self) -> Mapping[str, Histogram]:
        return self._work.latencies

    def __len__(self) -> int:
        return len(self._local)

    def register(self, adopter: Adopter) -> None:
        self._adopter = adopter

    async def open(self) -> None:
        await self.open_store()
        async with self._opening:
            if not self._tasks:
                self._registered = asyncio.Event()
                loops = (self._write, self._follow, self._keep_lease)
                self._tasks = [asyncio.create_task(repeat(loop)) for loop in loops]

    async def create(self, info: RunInfo, limits: Limits) -> RunLog:
        await self.open()
        while True:
            if info.unique_key and (found := await self.find_by_key(info.unique_key)):
                return found  # It needs no room.
            await self._discard_all(self._local.make_room())
            try:
                run = await self._work.timed("create", self.store.create(info, limits))
            except (Unavailable, asyncio.CancelledError):
                # The store may have created the run although it did not answer. Nobody would
                # end it.
                self._work.in_background(until_answered(partial(self.store.discard, info.run)))
                raise
            if run == info.run:
                break
        state = State(info, "running", self.worker, -1, 0, limits, {})
        created = self._runs[run] = SharedRun(self._work, state, is_producer=True)
        self._keep(created)
        return created

    def _keep(self, run: SharedRun) -> None:
        self._local.runs.add(run.memory)
        run.memory.note_readers()
        self._produced[run.info.run] = run

    async def find(self, run: str) -> RunLog:
        await self.open()
        (state,) = await self._work.timed("load", self.store.load([run]))
        if state is None or state.status == "refused":
            if (known := self._runs.get(run)) is not None:
                self._update(known, None)
            raise UnknownRun.of(run)
        return self._run_of(state)

    async def find_by_key(self, unique_key: str) -> RunLog | None:
        await self.open()
        run = await self.store.find_by_key(unique_key)
        with suppress(UnknownRun):  # It was refused just now, or discarded.
            return None if run is None else await self.find(run)
        return None

    async def select(self, selection: Selection) -> list[RunLog]:
        await self.open()
        runs = [self._run_of(state) for state in await self.store.select(selection)]
        # This worker may know of an end that the store does not have yet.
        selected: list[RunLog] = [r for r in runs if selection.includes(r.info, r.status)]
        if (missing := len(runs) - len(selected)) and len(runs) == selection.limit:
            place = runs[-1].info.place
            more = msgspec.structs.replace(selection, after=place, limit=missing)
            selected += await self.select(more)
        return selected

    def _run_of(self, state: State) -> SharedRun:
        known = self._runs.get(state.info.run)
        if known is None or known.memory.forgotten:
            known = self._runs[state.info.run] = SharedRun(self._work, state, is_producer=False)
        else:
            self._update(known, state)
        return known

    def _update(self, run: SharedRun, state: State | None) -> None:
        """Takes over a loaded state, which can be older than what this worker knows."""
        running_here = state and (state.producer, state.status) == (self.worker, "running")
        if (produces := self._produced.get(run.info.run) is run) and not running_here:
            # An append settles it: the store refuses the append unless the state is outdated.
            self._work.queue_append(run)
        elif state is None and self._runs.get(run.info.run) is run:
            self._forget(run.info.run)
        if state is not None:
            run.on_state(state)
            if produces and not run.is_producer:
                self._release(run)

    async def discard(self, run: str) -> None:
        await self.open()
        await self._discard_all([run])

    async def _discard_all(self, runs: Iterable[str]) -> None:
        for run in runs:
            self._forget(run)
            try:
                await self.store.discard(run)
            except (Unavailable, asyncio.CancelledError) as error:
                self._work.in_background(until_answered(partial(self.store.discard, run)))
                if isinstance(error, asyncio.CancelledError):
                    raise

    def _release(self, run: SharedRun) -> None:
        """Lets go of a run that this worker has produced. Its readers here may read on."""
        self._produced.pop(run.info.run, None)
        self._local.runs.remove(run.info.run)

    def _forget(self, run: str) -> None:
        self._produced.pop(run, None)
        if (known := self._runs.get(run)) is not None:
            self._local.runs.remove(run)
            known.on_forgotten()

    async def written(self) -> None:
        """Returns when the store has everything that was appended here."""
        await self._work.done.wait()

    async def aclose(self) -> None:
        if self._tasks:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.written(), LAST_WRITE_SECONDS)
            tasks = [*self._tasks, *self._work.background]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks = []
        if self.store_is_open:
            self.store_is_open = False
            with suppress(Unavailable):
                await self.store.leave()
        await self.store.aclose()

    # Sends what the runs here have appended, and the cursors of the readers here.

    async def _write(self) -> None:
        work = self._work
        # Others remove the cursors of a worker that they do not know.
        await self._registered.wait()
        await work.queued.wait()
        if interval := self.store.append_interval:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._next_append - loop.time())
            self._next_append = loop.time() + interval
        work.queued.clear()
        runs, moved = work.next_appends(), list(work.moved)
        if work.appending:
            work.queued.set()
        work.moved.clear()
        try:
            failed = await self._append(runs) if runs else None
            runs = []
            if moved:
                await self._set_cursors(moved)
        except BaseException:
            self._queue_again(runs, moved)
            raise
        if not work.appending and not work.moved:
            work.done.set()
        if failed is not None:
            raise failed

    def _queue_again(self, runs: list[SharedRun], moved: list[SharedRun]) -> None:
        for run in runs:
            if run.is_producer:
                self._work.queue_append(run)
        for run in moved:
            self._work.queue_cursor(run)
        self._work.queued.set()  # even if nothing is queued: _write() then sets `done`

    async def _append(self, runs: list[SharedRun]) -> Unavailable | None:
        """Returns the error of a run that has to be tried again, after the other runs."""
        failed = None
        appends = [run.uncommitted() for run in runs]
        outcomes = await self._work.timed("append", self.store.append(appends))
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, Committed) and outcome.last <= run.memory.last:
                run.on_committed(outcome.last, outcome.first)
                if run.memory.last - outcome.last >= APPEND_EVENTS:  # Nothing is gained by waiting.
                    self._next_append = 0.0
                if run.memory.closed and outcome.last == run.memory.last:
                    self._produced.pop(run.info.run, None)
                    # The store would fence another append, which `_update` may have queued.
                    self._work.appending.pop(run, None)
            elif isinstance(outcome, Unavailable):
                failed = outcome
                self._queue_again([run], [])
            else:
                self._on_refusal(run, outcome)
        return failed

    def _on_refusal(self, run: SharedRun, outcome: Outcome) -> None:
        match outcome:
            case Missing(last):
                if not run.on_missing(last):
                    self._release(run)
                    run.on_lost()
                    self._work.in_background(until_answered(partial(run.close_in_store, run.lost)))
            case Fenced():
                self._on_fenced(run)
            case Committed(last) if run.is_producer:  # It has not appended so many events.
                self._release(run)
                run.on_lost()
                self._work.end_damaged(run, last)
            case _:
                if run.is_producer:  # Another worker has discarded it.
                    run.ended_here = bool(run.ended_here)
                    self._forget(run.info.run)

    def _on_fenced(self, run: SharedRun) -> None:
        if not run.is_producer:
            return
        run.ended_here = bool(run.ended_here)
        if run.opening:  # Those who wait here look for the run again.
            self._forget(run.info.run)
        else:
            self._release(run)
            run.on_fenced()

    async def _set_cursors(self, runs: list[SharedRun]) -> None:
        known = await self.store.set_cursors([run.cursor() for run in runs])
        for run, is_known in zip(runs, known, strict=True):
            if not is_known and self._runs.get(run.info.run) is run:
                self._forget(run.info.run)

    # Follows what other workers append, and the notices for this worker.

    async def _follow(self) -> None:
        followed = self._work.followed
        await self._refresh(followed.values())
        while True:
            news = await self.store.follow(
                {name: run.memory.last for name, run in followed.items() if not run.backlogged}
            )
            for notice in news.notices:
                self._on_notice(notice)
            for name, entries in news.entries.items():
                if (run := followed.get(name)) is not None:
                    run.on_entries(entries)

    def _on_notice(self, notice: Notice) -> None:
        known = self._runs.get(notice.run)
        if notice.kind == "left":
            self._work.in_background(self._take_over(notice.worker))
        elif known is None:
            return
        elif notice.kind == "cursor":
            known.on_cursor(notice.worker, notice.after, notice.readers)
        elif notice.run in self._produced:  # closed, claimed or forgotten
            # The store refuses this append, unless this worker has claimed the run back since.
            self._work.queue_append(known)
        elif notice.kind == "forgotten":
            self._forget(notice.run)

    async def _refresh(self, runs: Iterable[SharedRun]) -> None:
        runs = list(runs)
        states = await self.store.load([run.info.run for run in runs]) if runs else []
        for run, state in zip(runs, states, strict=True):
            self._update(run, state)
