"""A run: one execution of a source, written once into the log and read by any number of readers.

`Run` pumps one source into its log. `Runs` starts, finds, resumes and cancels runs, takes over
those of workers that died, and owns the tasks of all runs that this worker produces.

Invariants:

1. A run ends once, and the last event of its log says how.
2. A reader that disconnects ends itself, never the run.
3. A source is closed in the task that iterated it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import anyio

from streams.errors import (
    InvalidEventId,
    ProducerLost,
    RunExists,
    RunGone,
    StreamError,
    UnknownRun,
    as_stream_error,
)
from streams.event import COMPLETED, End, EventId, payload
from streams.log import EventLog, Limits, RunInfo, RunLog
from streams.source import Job, Policy, Source

logger = logging.getLogger("streams")

# A source that never waits yields to the event loop at least this often.
BURST_EVENTS = 64
BURST_SECONDS = 0.005

CLEANUP_SECONDS = 10.0
"""How long the `finally` of a cancelled source may take."""

FIRST_READER_SECONDS = 5.0
"""A new run waits at least this long for its first reader, even if `linger` is shorter."""


class Position(NamedTuple):
    """Where a reader begins, and what it has to be told first."""

    log: RunLog
    after: int
    joins_late: bool = False
    """It begins later than the run and has not had the `start` event."""
    lost_run: bool = False
    """The run that it had read is lost, and this is another one."""


class Run:
    """Pumps one source into its log, at the pace of its readers, until it ends or is cancelled."""

    def __init__(self, log: RunLog, events: AsyncIterator[Any], policy: Policy) -> None:
        self.log = log
        self.error: Exception | None = None
        self._events = events
        self._linger = policy.linger
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if not log.readers:
            self._cancel_unread_after(FIRST_READER_SECONDS)
        log.watch(self._log_changed)
        self.task = self._loop.create_task(self._produce(), name=f"run {log.info.run}")

    async def _produce(self) -> None:
        log, clock = self.log, time.monotonic
        burst, since = 0, clock()
        try:
            async for value in self._events:
                if self._over:  # The source caught its cancellation; now it is closed.
                    break
                if log.append(*payload(value)):  # A reader was waiting, so others had a turn.
                    burst, since = 0, clock()
                elif burst >= BURST_EVENTS or clock() - since > BURST_SECONDS:
                    await asyncio.sleep(0)
                    burst, since = 0, clock()
                burst += 1
                if log.full:
                    await log.room()
        except asyncio.CancelledError:
            self._end(End.cancelled("shutdown"))
        except Exception as error:
            self.error = error
            run, source = self.log.info.run, self.log.info.source
            unexpected = not isinstance(error, StreamError)
            logger.error("run %s of source %s failed: %s", run, source, error, exc_info=unexpected)
            self._end(End.failed(error))
        else:
            self._end(COMPLETED)
        finally:
            self._stop_timer()
            await _close(self._events, self.log.info.run)

    def _end(self, end: End) -> None:
        over, self._over = self._over, True
        if not over and self.log.producing:
            self.log.close(end)

    def cancel(self, reason: str) -> None:
        """Ends the run for its readers at once, and closes its source meanwhile."""
        self._end(End.cancelled(reason))
        self._stop()

    def hand_over(self) -> None:
        """Stops the source without ending the run: another worker continues it."""
        self._over = True
        self._stop()

    def _stop(self) -> None:
        self._stop_timer()
        if not self.task.done():
            self.task.cancel()
            self._timer = self._loop.call_later(CLEANUP_SECONDS, self._interrupt_cleanup)
            self.task.add_done_callback(lambda _: self._stop_timer())

    def _interrupt_cleanup(self) -> None:
        logger.error(
            "run %s: source %s did not stop within %g s; its cleanup is interrupted",
            self.log.info.run,
            self.log.info.source,
            CLEANUP_SECONDS,
        )
        self.task.cancel()

    def _log_changed(self) -> None:
        """Readers attached or detached, or the log was closed or claimed by somebody else."""
        if self._over:
            return
        if not self.log.producing:
            self.hand_over()
        elif self.log.readers:
            self._stop_timer()
        else:
            self._cancel_unread_after(0)

    def _cancel_unread_after(self, at_least: float) -> None:
        self._stop_timer()
        if self._linger is not None:
            delay = max(self._linger, at_least)
            self._timer = self._loop.call_later(delay, self.cancel, "no reader")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Runs:
    """All runs over one log. `sources` are those whose runs can be taken over, by name."""

    def __init__(
        self, log: EventLog, sources: Mapping[str, tuple[Source[..., Any], Policy]]
    ) -> None:
        self.since = datetime.now(UTC)
        self.restarts = 0
        self.gaps = 0
        self._log = log
        self._sources = sources
        self._producing: dict[str, Run] = {}
        log.register(self)

    @property
    def readers(self) -> int:
        return self._log.readers

    async def attach(self, job: Job, last: EventId | None) -> Position | None:
        """Where the reader of a new, shared or resumed run begins. `last` is its last event.

        Returns None if the reader has had the `end` event. Raises RunGone if the run of `last`
        cannot be resumed, and what `start` raises.
        """
        if job.key is not None and not (last and await self._knows(last.run)):
            position = await self._join(job)
            if last is None:
                return position
            self.gaps += 1
            return position._replace(lost_run=True)
        if last is not None:
            return await self._resume(job, last)
        return Position(await self.start(job), -1)

    async def start(self, job: Job, *, restart_after: EventId | None = None) -> RunLog:
        """Starts a run; or, if a running run has the job's key, returns the log of that one.

        1. Create the log. From here on, others find the run by its key or, at a restart, its id.
        2. Open the source. If that fails, discard the log and raise.
        3. Append the `start` event. Readers see it at once.
        4. Pump the source in a task, and let that take its first step, to where it waits.
        5. If the source failed in it, discard the log and raise. Clients that found the run
           meanwhile get a stream that ends without an `end` event.

        `restart_after` restarts a lost run under its old id, after that event. Raises StoreFull,
        RunExists, and what the source raises in its first step.
        """
        info = RunInfo(
            run=restart_after.run if restart_after else secrets.token_urlsafe(16),
            source=job.source,
            started=datetime.now(UTC),
            owner=job.owner,
            key=job.key,
            arguments=job.arguments,
        )
        policy = job.policy
        limits = Limits(policy.window, policy.retain, drops_oldest=policy.linger is None)
        after = restart_after.number if restart_after else -1
        log = await self._log.create(info, limits, after=after)
        if log.info.run != info.run:
            return log
        try:
            events = await job.open(max(after, 0))
        except BaseException as error:
            await self._log.discard(info.run)
            if isinstance(error, Exception) and not isinstance(error, StreamError):
                logger.exception("run %s: source %s failed to open", info.run, info.source)
                raise as_stream_error(error) from error
            raise
        if not log.producing:
            await _close(events, info.run)
            raise RunGone(f"run {info.run} was stopped before it started; start a new one")
        if restart_after is None:
            log.append(b"start", info.start)
        first = log.last
        run = self._pump(log, events, policy)
        await asyncio.sleep(0)
        if run.error is not None and log.last == first + 1:
            await self._log.discard(info.run)
            raise as_stream_error(run.error) from run.error
        return log

    def _pump(self, log: RunLog, events: AsyncIterator[Any], policy: Policy) -> Run:
        run = self._producing[log.info.run] = Run(log, events, policy)
        run.task.add_done_callback(lambda _: self._done(run))
        return run

    def _done(self, run: Run) -> None:
        if self._producing.get(run.log.info.run) is run:
            del self._producing[run.log.info.run]

    async def adopt(self, log: RunLog) -> None:
        """Continues the run of a worker that died, or ends it if its source does not allow that.

        1. Open the source after the last event of the log. If that fails, close the log.
        2. Append the `start` event, if the worker died before it.
        3. Pump the source in a task.
        """
        info = log.info
        source, policy = self._sources.get(info.source, (None, Policy()))
        try:
            if source is None or not source.movable or info.arguments is None:
                raise ProducerLost("the worker that produced this run died; start a new run")
            arguments = source.from_json(info.arguments.encode())
            events = await source.open(arguments, None, max(log.last, 0))
        except Exception as error:
            logger.warning("run %s of source %s is lost: %r", info.run, info.source, error)
            if log.producing:
                log.close(End.failed(error))
            return
        if not log.producing:
            await _close(events, info.run)
            return
        if log.last < 0:
            log.append(b"start", info.start)
        logger.warning("run %s continues on this worker after event %d", info.run, log.last)
        self.restarts += 1
        self._pump(log, events, policy)

    async def _join(self, job: Job) -> Position:
        """The shared run of a job, at its newest event."""
        log = await self.start(job)
        if log.last <= 1:
            return Position(log, -1)
        return Position(log, log.last - 1, joins_late=True)

    async def _resume(self, job: Job, last: EventId) -> Position | None:
        """The run of `last`, after that event.

        1. Find the run. If the log does not have it and its source is restartable, restart it
           under its id after that event. Several readers may do so at once: one succeeds.
        2. If the restarted source completed without an event, discard the run: nothing was left.
        3. Check that the run is one of the same source and owner.
        """
        try:
            log = await self._log.find(last.run)
        except UnknownRun:
            if not job.restartable:
                raise RunGone(f"run {last.run} is no longer retained; start a new one") from None
            try:
                log = await self.start(job, restart_after=last)
                self.restarts += 1
            except RunExists:
                log = await self._log.find(last.run)
            if log.status == "completed" and log.last == last.number + 1:
                await self._log.discard(last.run)
                return None
        if log.info.source != job.source or log.info.owner not in (None, job.owner):
            raise RunGone(f"run {last.run} is not a run of source {job.source}; start a new one")
        return self.position(log, last)

    async def _knows(self, run: str) -> bool:
        try:
            await self._log.find(run)
        except UnknownRun:
            return False
        return True

    async def find(self, run: str, owner: str | None) -> RunLog:
        """The log of a run. Raises UnknownRun, also for a run of another owner."""
        log = await self._log.find(run)
        if log.info.owner not in (None, owner):
            raise UnknownRun(f"there is no run {run!r}, or it is no longer retained")
        return log

    def position(self, log: RunLog, last: EventId | None) -> Position | None:
        """Where a reader of a run begins whose last event is `last`; None: it has had the end.

        Raises InvalidEventId for an event of another run, RunGone for one that does not exist.
        """
        if last is None:
            return Position(log, -1)
        if last.run != log.info.run:
            raise InvalidEventId(f"event {last} is not an event of run {log.info.run}")
        if log.status != "running" and last.number >= log.last:
            return None
        if last.number > log.last and not log.restarted:
            raise RunGone(f"run {last.run} has no event {last.number}; start a new one")
        return Position(log, last.number)

    async def cancel(self, log: RunLog, reason: str = "stopped") -> None:
        """Stops a run, on whichever worker it is produced. Does nothing if it has ended."""
        await log.cancel(End.cancelled(reason))

    async def aclose(self) -> None:
        """Ends the runs that no other worker can continue, and waits until sources are closed."""
        runs = list(self._producing.values())
        for run in runs:
            if self._log.shared and run.log.info.arguments is not None:
                run.hand_over()
            else:
                run.cancel("shutdown")
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=CLEANUP_SECONDS)
        await self._log.aclose()

    def health(self) -> dict[str, Any]:
        return {
            "worker": self._log.worker,
            "runs": len(self._log),
            "running": len(self._producing),
            "readers": self.readers,
            "events": self._log.events,
            "bytes": self._log.bytes,
            "restarts": self.restarts,
            "gaps": self.gaps,
            "since": self.since,
        }


async def _close(events: AsyncIterator[Any], run: str) -> None:
    aclose = getattr(events, "aclose", None)
    if aclose is None or getattr(events, "ag_frame", events) is None:
        return  # A generator without a frame has ended.
    try:
        with anyio.fail_after(CLEANUP_SECONDS):
            await aclose()
    except Exception:
        logger.exception("run %s: closing its source failed", run)
