"""All runs over one log: a run is written once, and read by any number of readers.

`Runs` starts, finds, resumes and cancels runs, takes over those of workers that died, and owns the
tasks of all runs that this worker produces.

Invariants:

1. A reader that disconnects ends itself, never the run.
2. No client gets a position in a run before the run has opened.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType

from streams.admission import Quota
from streams.errors import (
    InvalidEventId,
    InvalidParameters,
    RunGone,
    ShuttingDown,
    StreamError,
    Unavailable,
    UnknownRun,
)
from streams.event import NO_READER, SHUTDOWN, Encoder, End, EventId, run_id
from streams.job import Job
from streams.log import EventLog, RunLog, Selection, Status, unique_key
from streams.observer import Observer, Observers
from streams.policy import Policy
from streams.producing import Producing
from streams.run import CLEANUP_SECONDS
from streams.run_info import info_of, limits_of
from streams.source import Source
from streams.thread import Threads

logger = logging.getLogger("streams")


class Position(NamedTuple):
    """Where a reader begins, and what it has to be told first."""

    log: RunLog
    after: int
    joins_late: bool = False
    """Whether it begins later than the run, and has not had the `start` event."""
    lost_run: bool = False
    """Whether the run that it had read is lost, and this is another one."""


class Runs:
    """All runs over one log. `sources` are those whose runs can be taken over, by name."""

    def __init__(
        self,
        log: EventLog,
        sources: Mapping[str, tuple[Source[..., Any], Policy]],
        encoder: Encoder | None = None,
        max_threads: int = 1000,
        of_clients: Quota | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.since = datetime.now(UTC)
        self.stopping = False
        """Whether the server shuts down. If so, no run opens any more."""
        self.restarts = 0
        self.gaps = 0
        self._log = log
        self._sources = sources
        self.encoder = encoder or Encoder()
        self.threads = Threads(max_threads)
        of_clients = of_clients or Quota(None, "runs running")
        self.observers = Observers(observers)
        self._producing = Producing(of_clients, self.encoder, self.threads, self.observers)
        self._waiting: set[asyncio.Timeout] = set()  # of the clients that wait for openings
        log.register(self)

    async def attach(
        self, job: Job, last: EventId | None, resumed: RunLog | None = None
    ) -> Position | None:
        """Where the reader of a new, shared, keyed or resumed run begins.

        `last` is its last event, and `resumed` what `resumed` returned for it. Returns None if the
        reader has had the `end` event. Raises what `position` and `start` raise.
        """
        if resumed is not None:
            return await self.position(resumed, last)
        if last is not None:
            self.gaps += 1
            return (await self._join(job))._replace(lost_run=True)
        if job.shared:
            return await self._join(job)
        return Position(await self.start(job), -1)

    async def start(self, job: Job) -> RunLog:
        """Starts a run, unless a shared run, or one with the same key, is there. Returns its log.

        1. Create the log. From here on, others find the run by its unique key.
        2. In a task of the run, open the source. If that fails, refuse and raise.
        3. Append the `start` event.
        4. Let the source take its first step: to its first event, or until it waits. If it fails
           during that step, refuse and raise.

        Whoever finds the run by its key meanwhile waits for step 4, and gets the same error. Raises
        Unavailable, InvalidParameters if the run with the key has other parameters, and what the
        source raises in its first step.
        """
        log, _ = await self._start(job)
        return log

    async def _start(self, job: Job) -> tuple[RunLog, bool]:
        """Does what `start` does. Returns also whether the run had been open before."""
        info, can_attach = info_of(job, self._log), job.shared or job.key is not None
        if not can_attach:
            self._producing.of_clients.check(job.clients)
        log = await self._log.create(info, limits_of(job.policy))
        was_open, is_new, run = not log.opening, log.info.run == info.run, None
        if is_new:
            try:
                if self.stopping:
                    raise ShuttingDown
                run = self._producing.start(log, job)
            except Unavailable as error:
                log.refuse(error)
        elif job.arguments_hash not in (None, log.info.arguments_hash):
            raise InvalidParameters(
                f"the run with the key {job.key!r:.80} has other parameters; send the same ones, "
                "or another key"
            )
        try:
            await self._opened(log)
        except asyncio.CancelledError:
            if not can_attach and run is not None:
                run.cancel(NO_READER)
            raise
        except UnknownRun:
            if log.status == "refused":  # The source has raised it.
                raise
            # The log has lost the run. Those who wait for somebody else's start it again; whoever
            # has started it may not be able to open the source a second time.
            if is_new and not job.shared:
                retry = f"try again in {Unavailable.retry_after} s"
                raise Unavailable(f"the log has lost the run before it opened; {retry}") from None
            return await self._start(job)
        return log, was_open

    async def _opened(self, log: RunLog) -> None:
        """Waits until a run has opened. Raises its refusal, or ShuttingDown."""
        await asyncio.sleep(0)  # Most sources take their first step at once.
        if not log.opening:
            return await log.opened()
        waiting = asyncio.timeout(None)
        self._waiting.add(waiting)
        try:
            async with waiting:
                await log.opened()
        except TimeoutError:
            raise ShuttingDown from None
        finally:
            self._waiting.discard(waiting)

    async def adopt(self, log: RunLog) -> None:
        """Continues the run of a worker that died, or ends it if its source does not allow that.

        1. Open the source after the last event of the log. If that fails, close the log.
        2. Append the `start` event, if the worker died before it.
        3. Pump the source in a task.
        """
        if self.stopping:
            return  # Other workers take it over when this one has left.
        info, last = log.info, log.last
        source, policy = self._sources.get(info.source, (None, Policy()))
        try:
            if source is None or info.arguments is None or info.fingerprint != source.fingerprint:
                raise info.lost("the worker that produced this run died")
            arguments = source.from_json(info.arguments.encode())
        except StreamError as error:
            logger.warning("run %s of source %s is lost: %r", info.run, info.source, error)
            if log.producing:
                if log.opening:
                    log.refuse(Unavailable("the worker that opened this run died; try again"))
                else:
                    log.close(End.failed(error))
                self._producing.tell_end(log)
            return
        # Event 0 is `start`, so the source has yielded `last` events.
        open_source = partial(source.open, arguments, None, max(last, 0))
        self._producing.go_on(log, open_source, policy)
        with suppress(StreamError):  # It has been logged.
            await log.opened()
        if log.producing or log.status == "completed":
            logger.warning("run %s continues on this worker after event %d", info.run, last)
            self.restarts += 1

    async def _join(self, job: Job) -> Position:
        """The shared run of a job: its beginning if this starts it, else its newest events."""
        if job.topic:
            await job.open()
            log = await self._log.topic(info_of(job, self._log), limits_of(job.policy))
            was_open = True
        else:
            log, was_open = await self._start(job)
        newest = log.last if log.status == "running" else log.last - 1  # the last one is the end
        after = max(newest - job.replay, log.first - 1)
        if not was_open or (after < 1 and log.first < 1):
            return Position(log, -1)
        return Position(log, after, joins_late=True)

    async def resumed(self, job: Job, last: EventId) -> RunLog | None:
        """The run that a job resumes after its event `last`; None if it was shared and is lost.

        Raises RunGone if it cannot be resumed, and InvalidParameters for other parameters.
        """
        try:
            log = await self.find_resumed(last, job.source, job.route, job.owner, job.key)
        except UnknownRun:
            if not job.shared:
                raise RunGone(f"run {last.run} is no longer retained; start a new one") from None
            return None
        if job.gives_arguments and job.arguments_hash != log.info.arguments_hash:
            raise InvalidParameters(
                f"run {last.run} has other parameters; resume it with the same ones, or start "
                "a new run without a Last-Event-ID"
            )
        return log

    async def find_resumed(
        self,
        last: EventId,
        source: str | None,
        route: str | None,
        owner: str | None,
        key: str | None,
    ) -> RunLog:
        """The run of event `last`, for a client at this source (None: any) and route.

        Raises UnknownRun, and RunGone for another one's run, or one that does not have the key.
        """
        log = await self._log.find(last.run)
        info = log.info
        same_source = info.route == route and source in (None, info.source)
        if not same_source or info.owner not in (None, owner):
            raise RunGone(f"run {last.run} is not a run of source {source}; start a new one")
        if key not in (None, info.key):
            raise RunGone(
                f"run {last.run} does not have the key {key!r:.80}; without a Last-Event-ID, the "
                "key attaches to its run"
            )
        return log

    async def find(self, run: str, owner: str | UnsetType | None = UNSET) -> RunLog:
        """The log of a run. Raises UnknownRun, also if it belongs to somebody else than `owner`."""
        log = await self._log.find(run_id(run))
        if owner is not UNSET and log.info.owner not in (None, owner):
            raise UnknownRun.of(run)
        return log

    async def find_by_key(
        self, owner: str | None, source: str | None, route: str | None, key: str
    ) -> RunLog:
        """The log of the run that a key names; None: of any source. Raises UnknownRun."""
        sources = [source]
        if source is None:
            with_key = await self._log.select(Selection(owner=owner, key=key))
            sources = [log.info.source for log in with_key]
        for each in filter(None, sources):
            log = await self._log.find_by_key(unique_key(owner, each, route, key))
            if log is not None:
                return log
        raise UnknownRun(f"there is no run with the key {key!r:.80}, or it is no longer retained")

    async def select(self, selection: Selection) -> Sequence[RunLog]:
        return await self._log.select(selection)

    async def position(self, log: RunLog, last: EventId | None) -> Position | None:
        """Where a reader of a run begins whose last event is `last`; None: it has had the end.

        Waits for a run that is opening. Raises InvalidEventId for an event of another run, RunGone
        for one that does not exist, and what the source raises in its first step.
        """
        if log.opening:
            await self._opened(log)
        if last is None:
            return Position(log, -1)
        if last.run != log.info.run:
            raise InvalidEventId(f"event {last} is not an event of run {log.info.run}")
        if log.status != "running" and last.number == log.last:
            return None
        if last.number > log.last:
            raise RunGone(f"run {last.run} has no event {last.number}; start a new one")
        return Position(log, last.number)

    async def cancel(self, log: RunLog, reason: str = "stopped") -> None:
        """Stops a run, on whichever worker it is produced. Does nothing if it has ended."""
        is_elsewhere = not (log.producing or log.info.topic)
        if await log.cancel(End.cancelled(reason)) and is_elsewhere:
            self.observers.tell(Observer.ended_elsewhere, log.info, "cancelled")

    def cancel_openings(self) -> None:
        """Ends all openings, and the waits for others, because the server shuts down."""
        self.stopping = True
        for run in self._producing:
            if run.log.opening:
                run.cancel(SHUTDOWN)
        while self._waiting:
            self._waiting.pop().reschedule(0)

    async def abandon(self) -> None:
        """Forgets the runs of a closed event loop."""
        self._waiting.clear()
        for run in self._producing.abandon():
            if not self._log.shared:  # There, another worker takes it over.
                await self._log.discard(run.log.info.run)
        self._producing.tell_uncertain()

    async def aclose(self) -> None:
        """Ends the runs that no other worker can continue, and waits until sources are closed."""
        self.cancel_openings()
        runs = list(self._producing)
        for run in runs:
            if run.log.info.arguments is not None:
                run.hand_over()
            else:
                run.cancel(SHUTDOWN)
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=CLEANUP_SECONDS)
        await self._log.aclose()
        self._producing.tell_uncertain()

    def state(self, log: RunLog) -> dict[str, Any]:
        """What a client may know about a run."""
        return {
            "run": log.info.run,
            "source": log.info.source,
            "status": log.status,
            "started": log.info.started,
            "producer": log.producer,
            "first_event": log.first,
            "last_event": log.last,
            "readers": log.readers,
        }

    async def stop(self, run: str) -> None:
        """Stops a run, on whichever worker it is produced. Raises UnknownRun."""
        await self.cancel(await self.find(run))

    async def list(
        self,
        *,
        owner: str | UnsetType | None = UNSET,
        key: str | UnsetType = UNSET,
        key_prefix: str | UnsetType = UNSET,
        source: str | UnsetType = UNSET,
        status: Status | UnsetType = UNSET,
        after: RunLog | None = None,
        limit: int = 100,
    ) -> Sequence[RunLog]:
        """The logs of the newest `limit` runs that have all that is given, newest first.

        An `owner` of None lists the runs without one. The next ones are those `after` the last one,
        even if it is forgotten. Raises ValueError for an unknown status and for a negative limit.
        """
        return await self.select(
            Selection(
                owner=owner,
                key=key,
                key_prefix=key_prefix,
                source=source,
                status=status,
                after=UNSET if after is None else after.info.place,
                limit=limit,
            )
        )

    def health(self) -> dict[str, Any]:
        return {
            "worker": self._log.worker,
            "runs": len(self._log),
            "running": len(self._producing),
            "threads": len(self.threads),
            "readers": self._log.readers,
            "events": self._log.events,
            "bytes": self._log.bytes,
            "restarts": self.restarts,
            "gaps": self.gaps,
            "since": self.since,
        }
