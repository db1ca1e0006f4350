"""A run: one execution of a source, written once into the log, read by anyone from anywhere.

The law of this file: a run ends once, and its log says how; a reader that goes away ends itself,
never the run. Run pumps one source. Runs starts, finds, resumes and cancels them, and owns their
tasks. asgi.py calls Runs for each request, response.py reads through it.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import anyio

from streams.errors import InvalidEventId, LogClosed, RunGone, StreamError, UnknownRun
from streams.event import encode_json, frame, payload
from streams.log import EventLog, Reader, RunInfo, RunLog, Status
from streams.source import Policy, Source, shown

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


class EventId(NamedTuple):
    """An event's id on the wire, `<run>.<number>`: 22 characters of base64url and a decimal."""

    run: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Raises InvalidEventId for what this server cannot have sent."""
        match = re.fullmatch(r"([A-Za-z0-9_-]{22})\.(0|[1-9][0-9]{0,15})", text)
        if match is None:
            raise InvalidEventId(f"Last-Event-ID {shown(text)} is not an id of this server's")
        return cls(match[1], int(match[2]))


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
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._abandon_after(FIRST_READER_SECONDS)
        self.task = self._loop.create_task(self._produce(), name=f"run {log.info.run}")

    async def _produce(self) -> None:
        try:
            await self._pump()
        except LogClosed:
            pass  # cancelled, and the source did not care: closing it is all that is left
        except asyncio.CancelledError:
            self._end("cancelled", {"reason": "shutdown"})  # unless it has ended: see cancel()
        except Exception as error:
            self.error = error
            logger.error(
                "run %s of source %s failed: %s",
                self.log.info.run,
                self.log.info.source,
                error,
                exc_info=not isinstance(error, StreamError),  # which is raised on purpose
            )
            self._end("failed", {"error": _described(error)})
        else:
            self._end("completed", {})
        finally:
            self._disarm()
            await self._close_source()

    async def _pump(self) -> None:
        log, clock = self.log, time.monotonic
        burst, since = 0, clock()
        async for value in self._events:
            if log.append(*payload(value)):  # a reader waited, so others had their turn
                burst, since = 0, clock()
            elif burst >= BURST_EVENTS or clock() - since > BURST_SECONDS:
                await asyncio.sleep(0)
                burst, since = 0, clock()
            burst += 1
            if log.full:
                await log.room()

    async def _close_source(self) -> None:
        aclose = getattr(self._events, "aclose", None)
        if aclose is None or getattr(self._events, "ag_frame", self) is None:
            return  # a generator without a frame has ended
        try:
            with anyio.fail_after(CLEANUP_SECONDS):
                await aclose()
        except Exception:
            logger.exception("run %s: closing its source failed", self.log.info.run)

    def _end(self, status: Status, members: dict[str, Any]) -> None:
        if self.log.status == "running":
            data = encode_json({"status": status, **members})
            self.log.close(status, data, self._policy.retain)

    def cancel(self, reason: str) -> None:
        """Ends the run as cancelled, at once for its readers; its source is closed meanwhile."""
        self._end("cancelled", {"reason": reason})
        self.task.cancel()
        self._disarm()
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

    def attached(self) -> None:
        """A reader has come."""
        if self.log.status == "running":
            self._disarm()

    def detached(self) -> None:
        """A reader has gone; after the last one, `linger` begins."""
        if self.log.status == "running" and not self.log.readers:
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
    """All runs over one log."""

    def __init__(self, log: EventLog) -> None:
        self.since = datetime.now(UTC)
        self.restarts = 0
        self.gaps = 0
        self.readers = 0
        self._log = log
        self._producing: dict[str, Run] = {}
        self._shared: dict[Any, str] = {}
        self._joining: WeakValueDictionary[Any, asyncio.Lock] = WeakValueDictionary()

    async def start(
        self,
        source: Source,
        policy: Policy,
        opener: Opener,
        owner: str | None,
        again: EventId | None = None,
    ) -> RunLog:
        """A new run; or, `again`, one that had got to that event elsewhere, under its old id.

        Raises StoreFull, and what the source raises before it first waits or yields.
        """
        info = RunInfo(
            run=again.run if again else secrets.token_urlsafe(16),
            source=source.name,
            started=datetime.now(UTC),
            owner=owner,
        )
        log = await self._log.create(
            info,
            after=again.number if again else -1,
            window=policy.window,
            drops_oldest=policy.linger is None,
        )
        try:
            events = await opener(again.number if again else 0)
        except BaseException as error:
            await self._log.discard(info.run)
            if isinstance(error, Exception) and not isinstance(error, StreamError):
                logger.exception("run %s: source %s failed to open", info.run, source.name)
                raise _refusal(error) from error
            raise
        if again is None:
            log.append(b"start", _start_data(info))
        begun = log.last
        run = self._producing[info.run] = Run(log, events, policy)
        run.task.add_done_callback(lambda _: self._producing.pop(info.run, None))
        await asyncio.sleep(0)  # the source's first step is taken, up to where it waits
        if run.error is not None and log.last == begun + 1:
            await self._log.discard(info.run)
            raise _refusal(run.error) from run.error
        return log

    async def join(
        self, source: Source, policy: Policy, opener: Opener, arguments: dict[str, Any]
    ) -> Place:
        """The shared run for these arguments, started if there is none, at its newest event."""
        key = (source.name, encode_json(sorted({**source.defaults, **arguments}.items())))
        lock = self._joining.setdefault(key, asyncio.Lock())
        async with lock:
            try:
                log = await self._log.find(self._shared[key])
                live = log.status == "running"
            except (KeyError, UnknownRun):
                live = False
            if not live:
                log = await self.start(source, policy, opener, None)
                self._shared[key] = log.info.run
                self._producing[log.info.run].task.add_done_callback(
                    lambda _: self._shared.pop(key, None)
                )
        if log.last <= 1:
            return Place(log, -1)
        return Place(log, log.last - 1, start_frame(log.info))

    async def resume(
        self, last: EventId, source: Source, policy: Policy, opener: Opener, owner: str | None
    ) -> Place | None:
        """Where a client goes on that has had everything up to `last`; None: it has it all.

        Raises RunGone if that cannot be done.
        """
        try:
            log = await self._log.find(last.run)
        except UnknownRun:
            if not source.restartable:
                raise RunGone(f"run {last.run} is not here (any more): start anew") from None
            log = await self.start(source, policy, opener, owner, again=last)
            self.restarts += 1
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
        """Stops the run, if it is running."""
        if (run := self._producing.get(log.info.run)) is not None:
            run.cancel(reason)

    @contextmanager
    def reading(self, log: RunLog, after: int) -> Iterator[Reader]:
        """A reader of the log that keeps the run alive. Raises LostHistory when entered."""
        run = self._producing.get(log.info.run)
        self.readers += 1
        try:
            with log.read(after) as reader:
                if run is not None:
                    run.attached()
                yield reader
        finally:
            self.readers -= 1
            if run is not None:
                run.detached()

    async def aclose(self) -> None:
        """Cancels every run and waits until their sources are closed."""
        tasks = [run.task for run in self._producing.values()]
        for run in list(self._producing.values()):
            run.cancel("shutdown")
        if tasks:
            await asyncio.wait(tasks, timeout=CLEANUP_SECONDS)

    def health(self) -> dict[str, Any]:
        return {
            "runs": len(self._log),
            "running": len(self._producing),
            "readers": self.readers,
            "events": self._log.events,
            "bytes": self._log.bytes,
            "restarts": self.restarts,
            "gaps": self.gaps,
            "since": self.since,
        }


def _described(error: Exception) -> dict[str, str]:
    """An error as a client may see it: its class, and the message if it was meant for clients."""
    message = "the source failed; the server's log has the details, with the run's id"
    if isinstance(error, StreamError):
        message = str(error).encode(errors="replace").decode()
    return {"type": type(error).__name__, "message": message}


def _refusal(error: Exception) -> StreamError:
    """What a client is told when nothing has been sent yet."""
    if isinstance(error, StreamError):
        return error
    return StreamError(f"the source failed with {type(error).__name__}; see the server's log")


def _start_data(info: RunInfo) -> bytes:
    return encode_json({"run": info.run, "source": info.source})


def start_frame(info: RunInfo) -> bytes:
    """The run's first event, for a reader that begins later in it."""
    return frame(info.run.encode(), 0, b"start", _start_data(info))
