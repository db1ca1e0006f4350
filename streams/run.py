"""A run: one execution of a source, written once into the log, read by anyone from anywhere.

The law of this file: a run ends once, and its log says how; a reader that goes away ends itself,
never the run. Run pumps one source. Runs starts, finds, resumes and cancels them, goes on with
those of a worker that died, and owns their tasks. asgi.py calls Runs for each request, response.py
reads through it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import anyio

from streams.errors import (
    InvalidEventId,
    ProducerLost,
    RunExists,
    RunGone,
    StreamError,
    UnknownRun,
    described,
    refusal,
)
from streams.event import EventId, encode_json, frame, payload
from streams.log import EventLog, RunInfo, RunLog, Status
from streams.source import Policy, Source

logger = logging.getLogger("streams")

# A source that never waits gives way to everybody else at least this often.
BURST_EVENTS = 64
BURST_SECONDS = 0.005

CLEANUP_SECONDS = 10.0
"""How long a cancelled source's `finally` may take."""

FIRST_READER_SECONDS = 5.0
"""A new run waits at least this long for its first reader, however short `linger` is."""

Opener = Callable[[int], Awaitable[AsyncIterator[Any]]]
"""Opens a source behind its first n events."""


class Place(NamedTuple):
    """Where a reader begins: in which log, behind which event, and the frames it gets before."""

    log: RunLog
    after: int
    head: bytes = b""


class Run:
    """Pumps one source into its log, at the pace of its readers, until it ends or is cancelled."""

    def __init__(self, log: RunLog, events: AsyncIterator[Any], policy: Policy) -> None:
        self.log = log
        self.error: Exception | None = None
        self._events = events
        self._policy = policy
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if not log.readers:
            self._abandon_after(FIRST_READER_SECONDS)
        log.watch(self._changed)
        self.task = self._loop.create_task(self._produce(), name=f"run {log.info.run}")

    async def _produce(self) -> None:
        log, clock = self.log, time.monotonic
        burst, since = 0, clock()
        try:
            async for value in self._events:
                if self._over:  # and the source did not care: closing it is all that is left
                    break
                if log.append(*payload(value)):  # a reader waited, so others had their turn
                    burst, since = 0, clock()
                elif burst >= BURST_EVENTS or clock() - since > BURST_SECONDS:
                    await asyncio.sleep(0)
                    burst, since = 0, clock()
                burst += 1
                if log.full:
                    await log.room()
        except asyncio.CancelledError:
            self._end("cancelled", {"reason": "shutdown"})  # unless it has ended: see cancel()
        except Exception as error:
            self.error = error
            run, source = self.log.info.run, self.log.info.source
            trace = not isinstance(error, StreamError)  # which is raised on purpose
            logger.error("run %s of source %s failed: %s", run, source, error, exc_info=trace)
            self._end("failed", {"error": described(error)})
        else:
            self._end("completed", {})
        finally:
            self._disarm()
            await _close(self._events, self.log.info.run)

    def _end(self, status: Status, members: dict[str, Any]) -> None:
        over, self._over = self._over, True
        if not over and self.log.producing:
            self.log.close(status, encode_json({"status": status, **members}))

    def cancel(self, reason: str) -> None:
        """Ends the run as cancelled, at once for its readers; its source is closed meanwhile."""
        self._end("cancelled", {"reason": reason})
        self._stop()

    def hand_over(self) -> None:
        """Stops without an end: another worker goes on."""
        self._over = True
        self._stop()

    def _stop(self) -> None:
        self._disarm()
        if not self.task.done():
            self.task.cancel()
            self._timer = self._loop.call_later(CLEANUP_SECONDS, self._overdue)
            self.task.add_done_callback(lambda _: self._disarm())

    def _overdue(self) -> None:
        logger.error(
            "run %s: source %s did not stop within %g s, its cleanup is interrupted",
            self.log.info.run,
            self.log.info.source,
            CLEANUP_SECONDS,
        )
        self.task.cancel()

    def _changed(self) -> None:
        """Readers have come or gone; or somebody else has closed the log, or taken it over."""
        if self._over:
            return
        if not self.log.producing:
            self._over = True
            self._stop()
        elif self.log.readers:
            self._disarm()
        else:
            self._abandon_after(0)

    def _abandon_after(self, at_least: float) -> None:
        self._disarm()
        if self._policy.linger is not None:
            delay = max(self._policy.linger, at_least)
            self._timer = self._loop.call_later(delay, self.cancel, "no reader")

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Runs:
    """All runs over one log. `sources` are those that can be gone on with, by name."""

    def __init__(self, log: EventLog, sources: Mapping[str, tuple[Source, Policy]]) -> None:
        self.since = datetime.now(UTC)
        self.restarts = 0
        self.gaps = 0
        self._log = log
        self._sources = sources
        self._producing: dict[str, Run] = {}
        log.adopt = self._adopt

    @property
    def readers(self) -> int:
        return self._log.readers

    async def start(
        self,
        source: Source,
        policy: Policy,
        opener: Opener,
        owner: str | None,
        arguments: Mapping[str, Any] | None = None,
        *,
        again: EventId | None = None,
        key: str | None = None,
    ) -> RunLog:
        """A new run; or, `again`, one that had got to that event elsewhere, under its old id; or
        the one that is running with the same `key`.

        With `arguments`, another worker can go on with it if this one dies. Raises StoreFull,
        RunExists, and what the source raises before it first waits or yields.
        """
        movable = arguments is not None and source.movable
        info = RunInfo(
            run=again.run if again else secrets.token_urlsafe(16),
            source=source.name,
            started=datetime.now(UTC),
            owner=owner,
            key=key,
            arguments=encode_json(arguments).decode() if movable else None,
        )
        log = await self._log.create(
            info,
            after=again.number if again else -1,
            window=policy.window,
            retain=policy.retain,
            drops_oldest=policy.linger is None,
        )
        if log.info.run != info.run:
            return log
        try:
            events = await opener(again.number if again else 0)
        except BaseException as error:
            await self._log.discard(info.run)
            if isinstance(error, Exception) and not isinstance(error, StreamError):
                logger.exception("run %s: source %s failed to open", info.run, source.name)
                raise refusal(error) from error
            raise
        if not log.producing:
            await _close(events, info.run)
            raise RunGone(f"run {info.run} was stopped before it began: start anew")
        if again is None:
            log.append(b"start", _start_data(info))
        begun = log.last
        run = self._produce(log, events, policy)
        await asyncio.sleep(0)  # the source's first step is taken, up to where it waits
        if run.error is not None and log.last == begun + 1:
            await self._log.discard(info.run)
            raise refusal(run.error) from run.error
        return log

    def _produce(self, log: RunLog, events: AsyncIterator[Any], policy: Policy) -> Run:
        run = self._producing[log.info.run] = Run(log, events, policy)
        run.task.add_done_callback(lambda _: self._done(run))
        return run

    def _done(self, run: Run) -> None:
        if self._producing.get(run.log.info.run) is run:
            del self._producing[run.log.info.run]

    async def _adopt(self, log: RunLog) -> None:
        """Goes on with the run of a worker that died, or ends it where nobody can."""
        info = log.info
        source, policy = self._sources.get(info.source, (None, Policy()))
        try:
            if source is None or not source.movable or info.arguments is None:
                raise ProducerLost("the worker that produced it died, and no other can go on")
            opener = partial(source.open, source.from_json(info.arguments.encode()), None)
            events = await opener(max(log.last, 0))
        except Exception as error:
            logger.warning("run %s of source %s is lost: %r", info.run, info.source, error)
            if log.producing:
                log.close("failed", encode_json({"status": "failed", "error": described(error)}))
            return
        if not log.producing:
            await _close(events, info.run)
            return
        if log.last < 0:
            log.append(b"start", _start_data(info))
        logger.warning("run %s goes on here behind event %d", info.run, log.last)
        self.restarts += 1
        self._produce(log, events, policy)

    async def join(
        self, source: Source, policy: Policy, opener: Opener, arguments: Mapping[str, Any]
    ) -> Place:
        """The shared run for these arguments, started if there is none, at its newest event."""
        given = sorted({**source.defaults, **arguments}.items())
        key = f"{source.name} {encode_json(given).decode()}"
        log = await self.start(source, policy, opener, None, arguments, key=key)
        if log.last <= 1:
            return Place(log, -1)
        return Place(log, log.last - 1, start_frame(log.info))

    async def resume(
        self,
        last: EventId,
        source: Source,
        policy: Policy,
        opener: Opener,
        owner: str | None,
        arguments: Mapping[str, Any],
    ) -> Place | None:
        """Where a client goes on that has had everything up to `last`; None: it has it all.

        Raises RunGone if that cannot be done.
        """
        try:
            log = await self._log.find(last.run)
        except UnknownRun:
            if not source.restartable:
                raise RunGone(f"run {last.run} is not here (any more): start anew") from None
            try:
                log = await self.start(source, policy, opener, owner, arguments, again=last)
                self.restarts += 1
            except RunExists:  # another of its readers has been quicker
                log = await self._log.find(last.run)
            if log.status == "completed" and log.last == last.number + 1:
                await self._log.discard(last.run)
                return None
        if log.info.source != source.name or log.info.owner not in (None, owner):
            raise RunGone(f"run {last.run} is not one of source {source.name}: start anew")
        return self.place(log, last)

    async def knows(self, run: str) -> bool:
        """Whether the run is in the log."""
        try:
            await self._log.find(run)
        except UnknownRun:
            return False
        return True

    async def find(self, run: str, owner: str | None) -> RunLog:
        """The run's log. Raises UnknownRun, for another owner's too."""
        log = await self._log.find(run)
        if log.info.owner not in (None, owner):
            raise UnknownRun(f"there is no run {run!r} here (any more)")
        return log

    def place(self, log: RunLog, last: EventId | None) -> Place | None:
        """Where a reader begins in a run; None: it has had the end.

        Raises InvalidEventId for another run's event, RunGone for one that never was.
        """
        if last is None:
            return Place(log, -1)
        if last.run != log.info.run:
            raise InvalidEventId(f"event {last.run}.{last.number} is not of run {log.info.run}")
        if log.status != "running" and last.number >= log.last:
            return None
        if last.number > log.last and not log.restarted:
            raise RunGone(f"run {last.run} has no event {last.number} yet: start anew")
        return Place(log, last.number)

    async def cancel(self, log: RunLog, reason: str = "stopped") -> None:
        """Stops the run, wherever it is produced, if it is running."""
        await log.cancel(encode_json({"status": "cancelled", "reason": reason}))

    async def aclose(self) -> None:
        """Ends every run that no other worker can go on with, and waits until all are closed."""
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
        return  # a generator without a frame has ended
    try:
        with anyio.fail_after(CLEANUP_SECONDS):
            await aclose()
    except Exception:
        logger.exception("run %s: closing its source failed", run)


def _start_data(info: RunInfo) -> bytes:
    return encode_json({"run": info.run, "source": info.source})


def start_frame(info: RunInfo) -> bytes:
    """The run's first event, for a reader that begins later in it."""
    return frame(info.run.encode(), 0, b"start", _start_data(info))
