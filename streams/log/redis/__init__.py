"""RedisLog: runs in Redis or Valkey, for any number of workers on any number of machines.

The law of this file: whoever dies, is paused or is cut off, every run has one producer or soon
gets one, and an event is shown when Redis has it and never twice. One task writes what the runs
here appended, one hears of all other runs with readers here, one keeps this worker's lease and
finds the workers whose lease is over. asgi.py makes one for a URL.
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
from streams.log import Adopt, RunInfo, RunLog
from streams.log.memory import MemoryLog
from streams.log.redis.connection import Pause, RedisLink
from streams.log.redis.run import Entry, RedisRun, State, Work
from streams.log.redis.scripts import (
    APPEND,
    BURY,
    CREATE,
    DISCARD,
    LEAVE,
    LOOK,
    PLACE,
    RUNS,
    STAY,
    TAKE,
    TICK,
)

logger = logging.getLogger("streams")

TICKS_PER_LEASE = 3
TICKS_PER_LOOK = 10
TICKS_PER_STAY = 1000

MOST_RUNS = 32
"""Written in one round trip. Others' events wait meanwhile, and then go many in one call."""

LAST_WRITE_SECONDS = 5.0
"""How long the end of a worker waits for Redis to take what its runs have appended."""


class RedisLog:
    """Runs in Redis (6.2 or newer) or Valkey, at a URL: redis://, rediss:// or redis+unix://, with
    `?prefix=` for all keys' names (default: streams) and `?lease=`, the seconds after which a
    worker that is not heard of counts as dead (default: 2.5).

    `max_runs` and `max_bytes` limit what this worker has started and holds, as in MemoryLog.
    Raises ValueError for a URL that cannot be. When Redis does not answer, new runs and readers
    get StoreDown, and those there are wait.
    """

    shared = True

    def __init__(self, url: str, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20) -> None:
        self.adopt: Adopt | None = None
        self._link = RedisLink(url, prefix="streams", lease="2.5")
        self._lease = float(self._link.options["lease"])
        self._here = MemoryLog(max_runs=max_runs, max_bytes=max_bytes)
        self._work = Work(self._link, self._here.store, self._here.finished)
        self._runs: WeakValueDictionary[str, RedisRun] = WeakValueDictionary()
        self._mine: dict[str, RedisRun] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._others: set[asyncio.Task[None]] = set()
        self._heard = "0-0"
        self._ticks = 0

    @property
    def readers(self) -> int:
        return self._here.readers

    @property
    def worker(self) -> str:
        return self._here.worker

    @property
    def events(self) -> int:
        return self._here.events

    @property
    def bytes(self) -> int:
        return self._here.bytes

    def __len__(self) -> int:
        return len(self._here)

    def check(self) -> None:
        """Blocks until Redis has answered, for a clear word at start. Raises StoreDown."""
        self._link.check()

    async def open(self) -> None:
        if not self._tasks:
            loops = (self._write, self._hear, self._live)
            self._tasks = [asyncio.create_task(self._for_ever(loop)) for loop in loops]

    async def create(
        self,
        info: RunInfo,
        *,
        after: int = -1,
        window: int,
        retain: float,
        drops_oldest: bool = False,
    ) -> RunLog:
        await self.open()
        await self._discard_all(self._here.make_room())
        key = "" if info.key is None else hashlib.sha256(info.key.encode()).hexdigest()
        lease, retain_ms = int(self._lease * 1000), max(int(retain * 1000), 1)
        policy = (after, window, retain_ms, int(drops_oldest))
        try:
            result = await self._link.call(
                CREATE,
                self.worker,
                info.run,
                encode_json(info),
                *policy,
                key,
                lease,
            )
        except (StoreDown, asyncio.CancelledError):
            # It may be there without an answer; nobody would ever end it
            self._later(self._link.patiently(DISCARD, self.worker, info.run))
            raise
        if result[0] == b"other":
            return await self.find(result[1].decode())
        if result[0] == b"exists":
            raise RunExists(f"run {info.run} exists")
        state = State(
            info, "running", self.worker, after, after, after + 1, window, retain, drops_oldest, {}
        )
        run = self._runs[info.run] = RedisRun(self._work, state, mine=True)
        self._keep(run)
        return run

    def _keep(self, run: RedisRun) -> None:
        self._here.keep(run.memory)
        self._mine[run.info.run] = run

    async def find(self, run: str) -> RunLog:
        await self.open()
        state = State.of(await self._link.call(LOOK, self.worker, run))
        if state is None:
            if (known := self._runs.get(run)) is not None:
                self._look(known, None)
            raise UnknownRun(f"there is no run {run!r} here (any more)")
        return self._known(state)

    def _known(self, state: State) -> RedisRun:
        known = self._runs.get(state.info.run)
        if known is None or known.memory.gone:
            known = self._runs[state.info.run] = RedisRun(self._work, state, mine=False)
        else:
            self._look(known, state)
        return known

    def _look(self, run: RedisRun, state: State | None) -> None:
        """Redis was asked, maybe before this worker began to produce the run."""
        running_here = state and (state.producer, state.status) == (self.worker, "running")
        if self._mine.get(run.info.run) is run and not running_here:
            self._work.write(run)  # is refused, unless the answer is old
        elif state is None and self._runs.get(run.info.run) is run:
            self._gone(run.info.run)
        if state is not None:
            run.look(state)

    async def discard(self, run: str) -> None:
        await self._discard_all([run])

    async def _discard_all(self, runs: Iterable[str]) -> None:
        for run in runs:
            self._gone(run)
            try:
                await self._link.call(DISCARD, self.worker, run)
            except (StoreDown, asyncio.CancelledError) as error:
                self._later(self._link.patiently(DISCARD, self.worker, run))
                if isinstance(error, asyncio.CancelledError):
                    raise

    def _gone(self, run: str) -> None:
        self._mine.pop(run, None)
        if (known := self._runs.get(run)) is not None:
            self._here.let_go(run)
            known.gone()

    async def written(self) -> None:
        """Returns when Redis has all that was appended here."""
        await self._work.done.wait()

    async def aclose(self) -> None:
        if self._tasks:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.written(), LAST_WRITE_SECONDS)
            tasks = [*self._tasks, *self._others]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks = []
            with suppress(StoreDown):
                await self._link.call(LEAVE, self.worker)
        await self._link.aclose()

    async def _for_ever(self, loop: Callable[[], Awaitable[None]]) -> None:
        pause = Pause()
        while True:
            try:
                await loop()
                pause = Pause()
            except StoreDown as error:
                logger.debug("%s", error)
                await pause.wait()
            except Exception:
                logger.exception("the log in Redis: this should not happen, going on")
                await pause.wait()

    def _later(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    # What the runs here have appended, and where their readers are

    async def _write(self) -> None:
        work = self._work
        await work.there_is_some.wait()
        work.there_is_some.clear()
        runs, moved = list(work.unwritten)[:MOST_RUNS], list(work.moved)
        for run in runs:
            del work.unwritten[run]
        if work.unwritten:
            work.there_is_some.set()
        work.moved.clear()
        calls = [*map(self._append, runs), *map(self._place, moved)]
        try:
            results = await self._link.call_all(calls)
        except BaseException:
            self._again(runs, moved)
            raise
        refused: Exception | None = None
        for run, result in zip(runs, results, strict=False):
            if isinstance(result, Exception):
                refused = result
                self._again([run], [])
            else:
                self._answered(run, result)
        for run, result in zip(moved, results[len(runs) :], strict=True):
            if isinstance(result, Exception):
                refused = result
                self._again([], [run])
            elif result == b"gone" and self._runs.get(run.info.run) is run:
                self._gone(run.info.run)
        if not work.unwritten and not work.moved:
            work.done.set()
        if refused is not None:
            raise StoreDown(f"Redis refuses: {refused}") from refused

    def _again(self, runs: list[RedisRun], moved: list[RedisRun]) -> None:
        for run in runs:
            if run.mine:
                self._work.write(run)
        for run in moved:
            self._work.tell_place(run)
        self._work.there_is_some.set()  # to look again, if only to find that all is done

    def _append(self, run: RedisRun) -> Any:
        frames, trim, status = run.unwritten()
        number = run.sent + 1
        return APPEND, (self.worker, run.info.run, number, trim, status or "", *frames)

    def _place(self, run: RedisRun) -> Any:
        at = run.memory.slowest if run.memory.readers and not run.mine else ""
        arguments = (self.worker, run.info.run, self.worker, at, run.memory.readers, "1")
        return PLACE, arguments

    def _answered(self, run: RedisRun, result: list[Any]) -> None:
        match result:
            case [b"written", last, first]:
                run.written(int(last), int(first))
                if run.memory.closed and int(last) == run.memory.last:
                    self._mine.pop(run.info.run, None)
            case [b"behind", last]:
                run.behind(int(last))
            case [b"refused"]:
                self._superseded(run)
            case _:
                if run.mine:
                    self._gone(run.info.run)

    def _superseded(self, run: RedisRun) -> None:
        if run.mine:
            self._mine.pop(run.info.run, None)
            self._here.let_go(run.info.run)
            run.superseded()

    # What other workers have appended, and have to tell

    async def _hear(self) -> None:
        inbox = f"{self._link.prefix}:inbox:{self.worker}"
        prefix = f"{self._link.prefix}:log:"
        await self._look_at(self._work.followed.values())
        while True:
            cursors = {inbox: self._heard}
            for run in self._work.followed.values():
                if not run.crowded:
                    cursors[prefix + run.info.run] = f"{run.memory.last + 1}-0"
            for key, entries in await self._link.news(cursors):
                if (name := key.decode()) != inbox:
                    if (followed := self._work.followed.get(name.removeprefix(prefix))) is not None:
                        followed.feed(map(Entry.of, entries))
                    continue
                for entry_id, fields in entries:
                    self._heard = entry_id.decode()
                    texts = [field.decode() for field in fields]
                    self._told(**dict(zip(texts[::2], texts[1::2], strict=True)))

    def _told(
        self, what: str, run: str = "", worker: str = "", at: str = "", count: str = ""
    ) -> None:
        known = self._runs.get(run)
        if what == "left":
            self._later(self._bury(worker))
        elif known is None:
            return
        elif what == "place":
            known.place(worker, int(at) if at else None, int(count))
        elif what != "wake" and run in self._mine:  # closed, taken or gone
            self._work.write(known)  # which is refused, unless the run began anew since
        elif what == "gone":
            self._gone(run)

    async def _look_at(self, runs: Iterable[RedisRun]) -> None:
        runs = list(runs)
        calls = [(LOOK, (self.worker, run.info.run)) for run in runs]
        for run, reply in zip(runs, await self._link.call_all(calls) if calls else [], strict=True):
            if isinstance(reply, Exception):
                raise StoreDown(f"Redis refuses: {reply}") from reply
            self._look(run, State.of(reply))

    # Life and death

    async def _live(self) -> None:
        suspects: set[str] = set()
        buried: set[str] = set()
        while True:
            reply = await self._link.call(TICK, self.worker, int(self._lease * 1000))
            had_lease, *names = reply
            over, left, all_ = ({name.decode() for name in group} for group in names)
            # A lease counts as over when it was at two looks: when Redis itself was away, all
            # workers' are, and each has had the time to renew its own at the second
            for worker in ((over & suspects) | left) - {self.worker}:
                if worker not in buried:
                    buried.add(worker)
                    self._later(self._bury(worker))
            buried &= over
            suspects = over
            for run in list(self._mine.values()):
                for worker in run.memory.elsewhere.keys() - all_:
                    run.place(worker, None, 0)
                    call = (self.worker, run.info.run, worker, "", 0, "0")
                    await self._link.call(PLACE, *call)
            if not had_lease:  # taken for dead: what is left of what was here?
                await self._look_at(self._mine.values())
            self._ticks += 1
            if self._ticks % TICKS_PER_LOOK == 0 or not had_lease:
                await self._look_at(self._work.followed.values())
                for run in self._work.followed.values():
                    run.tell_place_again(anyway=not had_lease)
            if self._ticks % TICKS_PER_STAY == 0 and self._mine:
                await self._link.call_all([(STAY, (self.worker, run)) for run in self._mine])
            await asyncio.sleep(self._lease / TICKS_PER_LEASE)

    async def _bury(self, worker: str) -> None:
        if self.adopt is None:
            return
        runs = [run.decode() for run in await self._link.patiently(RUNS, self.worker, worker)]
        random.shuffle(runs)  # others are at it, too: each gets its share
        for run in runs:
            reply = await self._link.patiently(TAKE, self.worker, run, worker)
            state = State.of(reply) if reply else None
            if state is not None and not (known := self._known(state)).mine:
                known.taken(state)
                self._keep(known)
                self._later(self.adopt(known))  # type: ignore[arg-type]
        await self._link.patiently(BURY, self.worker, worker)
