"""RedisLog: runs in Redis or Valkey, for any number of workers on any number of machines.

Invariants, whichever worker dies, pauses or loses its connection:

1. A running run has one producer, or another worker claims it soon.
2. A reader sees an event only when Redis has it, and never twice.

Three tasks do the work of one RedisLog: one sends to Redis what the runs here have appended, one
reads from Redis the runs that have readers here, and one renews this worker's lease and finds
workers whose lease has expired.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from streams.errors import RunExists, StoreDown, UnknownRun
from streams.event import encode_json
from streams.log import Adopter, Limits, RunInfo, RunLog
from streams.log.memory import MemoryLog
from streams.log.redis.connection import Backoff, RedisLink
from streams.log.redis.run import Entry, RedisRun, State, Work
from streams.log.redis.scripts import (
    APPEND,
    CLAIM,
    CREATE,
    DISCARD,
    EXTEND,
    LEAVE,
    LIST_RUNS,
    LOAD_STATE,
    REMOVE_WORKER,
    RENEW,
    SET_CURSOR,
)

logger = logging.getLogger("streams")

RENEWALS_PER_LEASE = 3
RENEWALS_PER_REFRESH = 10
RENEWALS_PER_EXTENSION = 1000

APPEND_RUNS = 32
"""One round trip appends to this many runs at most. More events of the other runs gather meanwhile,
and one call appends them together."""

LAST_WRITE_SECONDS = 5.0
"""aclose() waits this long for Redis to take what the runs here have appended."""


class RedisLog:
    """Runs in Redis (6.2 or newer) or Valkey.

    `url` is redis://, rediss:// or redis+unix://. It has two parameters of its own: `prefix`, the
    prefix of all keys (default: streams), and `lease`, the seconds after which a worker that does
    not renew its lease counts as dead (default: 2.5).

    `max_runs` and `max_bytes` limit the runs that this worker has started and the bytes that it
    holds, as in MemoryLog. Raises ValueError for an invalid URL. While Redis does not answer, new
    runs and new readers get StoreDown; running ones wait.
    """

    shared = True

    def __init__(self, url: str, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20) -> None:
        self._adopter: Adopter | None = None
        self._link = RedisLink(url, prefix="streams", lease="2.5")
        self._lease = self._link.seconds("lease")
        self._local = MemoryLog(max_runs=max_runs, max_bytes=max_bytes)
        self._work = Work(self._link, self._local)
        self._runs: WeakValueDictionary[str, RedisRun] = WeakValueDictionary()
        self._produced: dict[str, RedisRun] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._last_notification = "0-0"
        self._renewals = 0

    @property
    def readers(self) -> int:
        return self._local.readers

    @property
    def worker(self) -> str:
        return self._local.worker

    @property
    def events(self) -> int:
        return self._local.events

    @property
    def bytes(self) -> int:
        return self._local.bytes

    def __len__(self) -> int:
        return len(self._local)

    def check(self) -> None:
        """Asks Redis for its version, and blocks the thread meanwhile. Raises StoreDown."""
        self._link.check()

    def register(self, adopter: Adopter) -> None:
        self._adopter = adopter

    async def open(self) -> None:
        if not self._tasks:
            loops = (self._write, self._read, self._keep_lease)
            self._tasks = [asyncio.create_task(self._repeat(loop)) for loop in loops]

    async def create(self, info: RunInfo, limits: Limits, *, after: int = -1) -> RunLog:
        await self.open()
        await self._discard_all(self._local.make_room())
        key = "" if info.key is None else hashlib.sha256(info.key.encode()).hexdigest()
        lease, retain_ms = int(self._lease * 1000), max(int(limits.retain * 1000), 1)
        policy = (after, limits.window, retain_ms, int(limits.drops_oldest))
        arguments = (self.worker, info.run, encode_json(info), *policy, key, lease)
        try:
            reply = await self._link.call(CREATE, *arguments)
        except (StoreDown, asyncio.CancelledError):
            # Redis may have created the run although the reply was lost. Nobody would end it.
            self._in_background(self._link.call_until_answered(DISCARD, self.worker, info.run))
            raise
        if reply[0] == b"other":
            return await self.find(reply[1].decode())
        if reply[0] == b"exists":
            raise RunExists(f"run {info.run} exists already")
        state = State(info, "running", self.worker, after, after, after + 1, limits, {})
        run = self._runs[info.run] = RedisRun(self._work, state, is_producer=True)
        self._keep(run)
        return run

    def _keep(self, run: RedisRun) -> None:
        self._local.hold(run.memory)
        self._produced[run.info.run] = run

    async def find(self, run: str) -> RunLog:
        await self.open()
        state = State.of(await self._link.call(LOAD_STATE, self.worker, run))
        if state is None:
            if (known := self._runs.get(run)) is not None:
                self._update(known, None)
            raise UnknownRun(f"there is no run {run!r}, or it is no longer retained")
        return self._run_of(state)

    def _run_of(self, state: State) -> RedisRun:
        known = self._runs.get(state.info.run)
        if known is None or known.memory.forgotten:
            known = self._runs[state.info.run] = RedisRun(self._work, state, is_producer=False)
        else:
            self._update(known, state)
        return known

    def _update(self, run: RedisRun, state: State | None) -> None:
        """Takes over a reply of LOAD_STATE, which can be older than what this worker knows."""
        running_here = state and (state.producer, state.status) == (self.worker, "running")
        if self._produced.get(run.info.run) is run and not running_here:
            # An append settles it: Redis refuses the append unless the reply is outdated.
            self._work.queue_append(run)
        elif state is None and self._runs.get(run.info.run) is run:
            self._forget(run.info.run)
        if state is not None:
            run.on_state(state)

    async def discard(self, run: str) -> None:
        await self._discard_all([run])

    async def _discard_all(self, runs: Iterable[str]) -> None:
        for run in runs:
            self._forget(run)
            try:
                await self._link.call(DISCARD, self.worker, run)
            except (StoreDown, asyncio.CancelledError) as error:
                self._in_background(self._link.call_until_answered(DISCARD, self.worker, run))
                if isinstance(error, asyncio.CancelledError):
                    raise

    def _forget(self, run: str) -> None:
        self._produced.pop(run, None)
        if (known := self._runs.get(run)) is not None:
            self._local.release(run)
            known.on_forgotten()

    async def written(self) -> None:
        """Returns when Redis has everything that was appended here."""
        await self._work.done.wait()

    async def aclose(self) -> None:
        if self._tasks:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.written(), LAST_WRITE_SECONDS)
            tasks = [*self._tasks, *self._background]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks = []
            with suppress(StoreDown):
                await self._link.call(LEAVE, self.worker)
        await self._link.aclose()

    async def _repeat(self, loop: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff()
        while True:
            try:
                await loop()
                backoff = Backoff()
            except StoreDown as error:
                logger.debug("%s", error)
                await backoff.wait()
            except Exception:
                logger.exception("unexpected error in a task of the Redis log: the task continues")
                await backoff.wait()

    def _in_background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Sends what the runs here have appended, and the cursors of the readers here.

    async def _write(self) -> None:
        work = self._work
        await work.queued.wait()
        work.queued.clear()
        runs, moved = list(work.appending)[:APPEND_RUNS], list(work.moved)
        for run in runs:
            del work.appending[run]
        if work.appending:
            work.queued.set()
        work.moved.clear()
        calls = [*map(self._append_call, runs), *map(self._cursor_call, moved)]
        try:
            replies = await self._link.call_all(calls)
        except BaseException:
            self._queue_again(runs, moved)
            raise
        failed: Exception | None = None
        for run, reply in zip(runs, replies, strict=False):
            if isinstance(reply, Exception):
                failed = reply
                self._queue_again([run], [])
            else:
                self._on_append_reply(run, reply)
        for run, reply in zip(moved, replies[len(runs) :], strict=True):
            if isinstance(reply, Exception):
                failed = reply
                self._queue_again([], [run])
            elif reply == b"forgotten" and self._runs.get(run.info.run) is run:
                self._forget(run.info.run)
        if not work.appending and not work.moved:
            work.done.set()
        if failed is not None:
            raise StoreDown(f"Redis reports an error: {failed}") from failed

    def _queue_again(self, runs: list[RedisRun], moved: list[RedisRun]) -> None:
        for run in runs:
            if run.is_producer:
                self._work.queue_append(run)
        for run in moved:
            self._work.queue_cursor(run)
        self._work.queued.set()  # even if nothing is queued: _write() then sets `done`

    def _append_call(self, run: RedisRun) -> Any:
        frames, evict, status = run.uncommitted()
        number = run.committed + 1
        return APPEND, (self.worker, run.info.run, number, evict, status or "", *frames)

    def _cursor_call(self, run: RedisRun) -> Any:
        after = run.memory.slowest if run.memory.readers and not run.is_producer else ""
        arguments = (self.worker, run.info.run, self.worker, after, run.memory.readers, "1")
        return SET_CURSOR, arguments

    def _on_append_reply(self, run: RedisRun, reply: list[Any]) -> None:
        match reply:
            case [b"committed", last, first]:
                run.on_committed(int(last), int(first))
                if run.memory.closed and int(last) == run.memory.last:
                    self._produced.pop(run.info.run, None)
            case [b"gap", last]:
                run.on_gap(int(last))
            case [b"fenced"]:
                self._on_fenced(run)
            case _:
                if run.is_producer:
                    self._forget(run.info.run)

    def _on_fenced(self, run: RedisRun) -> None:
        if run.is_producer:
            self._produced.pop(run.info.run, None)
            self._local.release(run.info.run)
            run.on_fenced()

    # Reads what other workers have appended, and the notifications for this worker.

    async def _read(self) -> None:
        inbox = f"{self._link.prefix}:inbox:{self.worker}"
        prefix = f"{self._link.prefix}:log:"
        await self._refresh(self._work.followed.values())
        while True:
            cursors = {inbox: self._last_notification}
            for run in self._work.followed.values():
                if not run.backlogged:
                    cursors[prefix + run.info.run] = f"{run.memory.last + 1}-0"
            for key, entries in await self._link.read(cursors):
                if (name := key.decode()) != inbox:
                    if (followed := self._work.followed.get(name.removeprefix(prefix))) is not None:
                        followed.on_entries(map(Entry.of, entries))
                    continue
                for entry_id, fields in entries:
                    self._last_notification = entry_id.decode()
                    texts = [field.decode() for field in fields]
                    self._on_notification(**dict(zip(texts[::2], texts[1::2], strict=True)))

    def _on_notification(
        self, kind: str, run: str = "", worker: str = "", after: str = "", readers: str = ""
    ) -> None:
        known = self._runs.get(run)
        if kind == "left":
            self._in_background(self._take_over(worker))
        elif known is None:
            return
        elif kind == "cursor":
            known.on_cursor(worker, int(after) if after else None, int(readers))
        elif kind != "wake" and run in self._produced:  # closed, claimed or forgotten
            # Redis refuses this append, unless the run has been created again since.
            self._work.queue_append(known)
        elif kind == "forgotten":
            self._forget(run)

    async def _refresh(self, runs: Iterable[RedisRun]) -> None:
        runs = list(runs)
        calls = [(LOAD_STATE, (self.worker, run.info.run)) for run in runs]
        for run, reply in zip(runs, await self._link.call_all(calls) if calls else [], strict=True):
            if isinstance(reply, Exception):
                raise StoreDown(f"Redis reports an error: {reply}") from reply
            self._update(run, State.of(reply))

    # Renews the lease of this worker, and takes over the runs of dead workers.

    async def _keep_lease(self) -> None:
        suspects: set[str] = set()
        handled: set[str] = set()
        while True:
            reply = await self._link.call(RENEW, self.worker, int(self._lease * 1000))
            had_lease, *names = reply
            expired, left, all_ = ({name.decode() for name in group} for group in names)
            # A worker is dead when its lease has expired at two renewals in a row. After an outage
            # of Redis all leases have expired, and each worker renews its own before the second.
            for worker in ((expired & suspects) | left) - {self.worker}:
                if worker not in handled:
                    handled.add(worker)
                    self._in_background(self._take_over(worker))
            handled &= expired
            suspects = expired
            for run in list(self._produced.values()):
                for worker in run.remote_cursors.keys() - all_:
                    run.on_cursor(worker, None, 0)
                    call = (self.worker, run.info.run, worker, "", 0, "0")
                    await self._link.call(SET_CURSOR, *call)
            if not had_lease:  # others took this worker for dead, and may have claimed its runs
                await self._refresh(self._produced.values())
            self._renewals += 1
            if self._renewals % RENEWALS_PER_REFRESH == 0 or not had_lease:
                await self._refresh(self._work.followed.values())
                for run in self._work.followed.values():
                    run.send_cursor_again(force=not had_lease)
            if self._renewals % RENEWALS_PER_EXTENSION == 0 and self._produced:
                await self._link.call_all([(EXTEND, (self.worker, run)) for run in self._produced])
            await asyncio.sleep(self._lease / RENEWALS_PER_LEASE)

    async def _take_over(self, worker: str) -> None:
        if self._adopter is None:
            return
        reply = await self._link.call_until_answered(LIST_RUNS, self.worker, worker)
        runs = [run.decode() for run in reply]
        random.shuffle(runs)  # several workers claim at once: each gets a share
        for run in runs:
            reply = await self._link.call_until_answered(CLAIM, self.worker, run, worker)
            state = State.of(reply) if reply else None
            if state is not None and not (known := self._run_of(state)).is_producer:
                known.on_claimed(state)
                self._keep(known)
                self._in_background(self._adopter.adopt(known))
        await self._link.call_until_answered(REMOVE_WORKER, self.worker, worker)
