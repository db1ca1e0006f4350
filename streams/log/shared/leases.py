"""Leases: how a worker shows that it lives, and takes over the runs of those that died."""

import asyncio
import logging
import random
from abc import abstractmethod
from collections.abc import Iterable
from functools import partial

from streams.errors import Unavailable, for_log
from streams.log import Adopter
from streams.log.shared.repeat import Backoff, until_answered
from streams.log.shared.run import SharedRun
from streams.log.shared.topics import RENEWALS_PER_REFRESH, SharedTopics
from streams.log.shared.work import Work
from streams.log.store import Cursor, State, Workers

logger = logging.getLogger("streams")


class Leases(SharedTopics):
    """The part of a SharedLog that renews the lease of this worker, and looks for dead ones."""

    _adopter: Adopter | None
    _work: Work
    _produced: dict[str, SharedRun]
    _registered: asyncio.Event
    _renewals: int
    _unrenewed: Unavailable | None
    """Why the last renewal failed; None: it did not."""

    @abstractmethod
    def _keep(self, run: SharedRun) -> None: ...

    @abstractmethod
    def _run_of(self, state: State) -> SharedRun: ...

    @abstractmethod
    async def _refresh(self, runs: Iterable[SharedRun]) -> None: ...

    async def check(self) -> None:
        """Raises Unavailable if the store does not answer, or has not taken the last renewal.

        A renewal writes: a store can answer to readers and be full, for instance.
        """
        await self.open()
        if self._unrenewed is not None:
            raise self._unrenewed.with_traceback(None)  # It is raised many times.
        await self.store.load(["-"])

    async def _renew(self) -> Workers:
        try:
            workers = await self.store.renew(self._produced)
        except Unavailable as error:
            self._unrenewed = error
            raise
        self._unrenewed = None
        return workers

    async def _keep_lease(self) -> None:
        suspects: set[str] = set()
        handled: set[str] = set()
        while True:
            # The store knew the workers of these before their cursors.
            cursors = [(run, w) for run in self._produced.values() for w in run.remote_cursors]
            workers = await self._renew()
            self._registered.set()
            # A lease that has expired counts at two renewals in a row. After an outage of the store
            # all leases have expired, and each worker renews its own before the second.
            dead = (workers.dead & suspects) | workers.certain
            for worker in dead - handled - {self.worker}:
                handled.add(worker)
                self._work.in_background(self._take_over(worker))
            handled &= workers.dead
            suspects = workers.dead
            await self._remove_cursors([c for c in cursors if c[1] not in workers.all])
            if not workers.had_lease:  # others may have claimed the runs of this worker
                await self._refresh(self._produced.values())
            self._renewals += 1
            if self._renewals % RENEWALS_PER_REFRESH == 0 or not workers.had_lease:
                await self._refresh(self._work.followed.values())
                for run in self._work.followed.values():
                    run.send_cursor_again(force=not workers.had_lease)
            await asyncio.sleep(self.store.renew_interval)

    async def _remove_cursors(self, gone: list[tuple[SharedRun, str]]) -> None:
        if gone:
            cursors = [Cursor(run.info.run, worker, None, 0) for run, worker in gone]
            await self.store.set_cursors(cursors)
            for run, worker in gone:
                run.on_cursor(worker, None, 0)

    async def _take_over(self, worker: str) -> None:
        backoff = Backoff()
        while True:
            try:
                return await self._take_over_runs(worker)
            except Exception:
                name = for_log(worker)
                logger.exception("unexpected error while the runs of %s are taken over", name)
                await backoff.wait()

    async def _take_over_runs(self, worker: str) -> None:
        if self._adopter is None:
            return
        runs = await until_answered(partial(self.store.runs_of, worker))
        random.shuffle(runs)  # several workers claim at once: each gets a share
        for run in runs:
            state = await self._work.claim(run, worker)
            if state is not None and not (known := self._run_of(state)).is_producer:
                known.on_claimed(state)
                self._keep(known)
                self._work.in_background(self._adopter.adopt(known))
        await until_answered(partial(self.store.remove_worker, worker))
