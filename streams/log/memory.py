"""MemoryLog: runs in this process's memory, the log that needs nothing.

The law of this file: at a limit the oldest finished run without a reader makes room, and never
another. asgi.py makes one when it is given no other log; redis_log.py keeps in one what this
process has of its runs.
"""

import asyncio

from streams.errors import RunExists, StoreFull, UnknownRun
from streams.log import Adopt, RunInfo, RunLog
from streams.log.memory_run import MemoryRun, Store


class MemoryLog:
    """Runs in this process's memory: at most `max_runs` of them and, in all, `max_bytes` bytes.

    At a limit the oldest finished run without a reader goes first; if none is left to go, new
    runs are refused and producers wait until their readers have had what they have.
    """

    def __init__(self, *, max_runs: int = 10_000, max_bytes: int = 256 * 2**20) -> None:
        self.adopt: Adopt | None = None
        self.shared = False
        self.store = Store(max_bytes)
        self._max_runs = max_runs
        self._runs: dict[str, MemoryRun] = {}
        self._by_key: dict[str, MemoryRun] = {}
        self._finished: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def events(self) -> int:
        return self.store.events

    @property
    def bytes(self) -> int:
        return self.store.bytes

    @property
    def readers(self) -> int:
        return self.store.readers

    @property
    def worker(self) -> str:
        return self.store.worker

    async def open(self) -> None:
        """There are no other workers."""

    async def aclose(self) -> None:
        """There is nothing to write."""

    async def create(
        self,
        info: RunInfo,
        *,
        after: int = -1,
        window: int,
        retain: float,
        drops_oldest: bool = False,
    ) -> RunLog:
        shared = self._by_key.get(info.key) if info.key is not None else None
        if shared is not None and not shared.closed:
            return shared
        if info.run in self._runs:
            raise RunExists(f"run {info.run} exists")
        self.make_room()
        log = MemoryRun(
            self.store,
            info,
            after=after,
            window=window,
            retain=retain,
            drops_oldest=drops_oldest,
            closed=self.finished,
        )
        self.keep(log)
        return log

    async def find(self, run: str) -> RunLog:
        try:
            return self._runs[run]
        except KeyError:
            raise UnknownRun(f"there is no run {run!r} here (any more)") from None

    async def discard(self, run: str) -> None:
        self.forget(run)

    def keep(self, log: MemoryRun) -> None:
        """Counts a run in."""
        self._runs[log.info.run] = log
        if log.info.key is not None:
            self._by_key[log.info.key] = log

    def let_go(self, run: str) -> MemoryRun | None:
        """Counts a run out, and leaves it as it is."""
        log = self._runs.pop(run, None)
        if (timer := self._finished.pop(run, None)) is not None:
            timer.cancel()
        if log is not None and log.info.key is not None and self._by_key.get(log.info.key) is log:
            del self._by_key[log.info.key]
        return log

    def forget(self, run: str) -> None:
        if (log := self.let_go(run)) is not None:
            log.forgotten()

    def finished(self, log: MemoryRun) -> None:
        """Forgets a run after `retain` seconds, or when its place is needed."""
        run = log.info.run
        self._finished[run] = asyncio.get_running_loop().call_later(log.retain, self.forget, run)

    def make_room(self) -> list[str]:
        """Forgets finished runs until another one has room; gives their names. Raises StoreFull."""
        gone = []
        while len(self._runs) >= self._max_runs or self.bytes >= self.store.max_bytes:
            run = next((run for run in self._finished if not self._runs[run].readers), None)
            if run is None:
                raise StoreFull(
                    f"{len(self._runs)} runs (of {self._max_runs}) hold {self.bytes} bytes "
                    f"(of {self.store.max_bytes}): try again in {StoreFull.retry_after} s"
                )
            self.forget(run)
            gone.append(run)
        return gone
