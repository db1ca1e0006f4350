"""MemoryLog: runs in the memory of one process.

Invariants:

1. The bytes in all buffers, and of the arguments of running runs, are counted in `MemoryLog.bytes`.
2. At a limit, runs without readers are forgotten, those that nobody has used for longest first:
   finished ones, topics, running ones of one client; those with a key come last. No other run is.
"""

from heapq import nlargest

from streams.errors import StoreFull, UnknownRun
from streams.log import Adopter, Histogram, Limits, RunInfo, RunLog, Selection
from streams.log.memory_run import MemoryRun
from streams.log.run_table import RunTable
from streams.log.topics import LocalTopics
from streams.log.worker import WorkerName


class MemoryLog(LocalTopics[MemoryRun]):
    """Runs in the memory of this process: at most `max_runs` runs and `max_bytes` bytes.

    At a limit, runs without readers are forgotten: finished ones, topics, and running ones of one
    client; those with a key last. If that is not enough, new runs are refused, and producers wait
    until their readers have read what is there.
    """

    shared = False

    def __init__(self, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20) -> None:
        self._name = WorkerName()
        self.events = 0
        self.bytes = 0
        self.readers = 0
        self.evictions = 0
        self.latencies: dict[str, Histogram] = {}
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

    async def check(self) -> None:
        """Does nothing: memory can always be used."""

    async def aclose(self) -> None:
        """Does nothing: there is nothing to write."""

    async def create(self, info: RunInfo, limits: Limits) -> MemoryRun:
        if (held := self.runs.with_key(info.unique_key)) is not None:
            return held
        self.make_room()
        run = MemoryRun(self, info, limits)
        run.hold_arguments(info)
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
        """Forgets runs until there is room for a new one. Returns their ids.

        Raises StoreFull if no run without readers is left that may be forgotten.
        """
        forgotten = []
        while len(self) >= self._max_runs or self.bytes >= self.max_bytes:
            if (run := self.runs.first_to_forget()) is None:
                raise StoreFull(
                    f"this server holds {len(self)} runs (limit {self._max_runs}), {self.bytes} "
                    f"bytes (limit {self.max_bytes}); try again in {StoreFull.retry_after} s"
                )
            self.forget(run)
            self.evictions += 1
            forgotten.append(run)
        return forgotten

    def account(self, delta: int) -> None:
        """Counts bytes that a run has begun to hold, or (negative) has dropped."""
        self.bytes += delta
        if delta < 0 and self.paused:
            for run in list(self.paused):
                run.resume_producer()
