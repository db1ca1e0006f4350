"""A run that this worker produces: one execution of a source, pumped into a log.

Invariants:

1. A run ends once, and the last event of its log says how.
2. A source is opened, iterated and closed in one task, the run's own.
3. After its end, nothing refers to the run: its source, its arguments and its context are freed.
"""

import asyncio
import contextvars
import functools
import logging
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from streams.bursts import BURST_EVENTS, BURST_SECONDS, Bursts
from streams.errors import (
    RunGone,
    ShuttingDown,
    StreamError,
    as_stream_error,
    for_clients,
    for_log,
    leaves,
)
from streams.event import COMPLETED, NO_READER, SHUTDOWN, Encoder, End, Payload
from streams.log import RunInfo, RunLog
from streams.observer import Observer, Observers, Production
from streams.policy import Policy
from streams.thread import ThreadIterator, close_iterator
from streams.tracebacks import with_safe_tracebacks

logger = with_safe_tracebacks(logging.getLogger("streams"))

_current: contextvars.ContextVar[RunInfo] = contextvars.ContextVar("streams.current_run")

CLEANUP_SECONDS = 10.0
"""How long the `finally` of a source may take when it is closed."""

FIRST_STEP_SECONDS = 0.05
"""How long the first step of a plain generator may delay the headers of the response."""

FIRST_READER_SECONDS = 5.0
"""A run waits this long for its first reader. Its client has left before it could learn of the run,
and can come back only with a key: then it waits for `linger` seconds, but never shorter."""

# A source's first step may take this many turns of the event loop before the response starts: a
# task group, for instance, needs a few to report that it failed.
OPENING_TURNS = 16


class Run:
    """Opens one source and pumps it into its log, until it ends or is cancelled.

    It opens the log when the source has taken its first step, to its first event or to where it
    waits; if the source fails in it, the log refuses the clients. `preface` is an event between
    `start` and the first one of the source. `ended` is called after the task has ended.
    """

    def __init__(
        self,
        log: RunLog,
        open_source: Callable[[], Awaitable[AsyncIterator[Any]]],
        policy: Policy,
        encoder: Encoder,
        preface: Payload | None,
        production: Production,
        context: contextvars.Context,
        *,
        bursts: Bursts,
        ended: Callable[["Run"], None],
        observers: Observers,
    ) -> None:
        self.log = log
        self._encoder = encoder
        self._bursts = bursts
        self._ended = ended
        self._observers = observers
        self.production = production
        self._preface = preface
        self._linger = policy.linger
        self._was_read = False
        starter = asyncio.current_task()
        self._starter = None if starter is None else weakref.ref(starter)
        self._is_new = log.last < 0
        self._can_be_found = log.info.key is not None or not self._is_new
        self._readers = log.readers
        self._events: AsyncIterator[Any] | None = None
        self._turns = 0
        self.handed_over = False
        """Whether another worker has ended or continues it."""
        self._over = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        log.watch(self._log_changed)
        name = f"run {log.info.run}"
        self.task = self._loop.create_task(self._produce(open_source), name=name, context=context)
        self.task.add_done_callback(self._finish)

    async def _produce(self, open_source: Callable[[], Awaitable[AsyncIterator[Any]]]) -> None:
        """Opens the source, appends what it yields, and closes it.

        An event passes through every coroutine between the task and the source, so this is one.
        """
        log, clock, payload = self.log, time.monotonic, self._encoder.payload
        bursts = self._bursts
        began = clock()
        _current.set(log.info)
        burst, since, turns = bursts.begin()
        encode: Callable[[Any], tuple[bytes | None, bytes]] = functools.partial(
            self._encoder.first_payload, source=log.info.source
        )
        try:
            self._events = events = await open_source()
            if self._over:
                return
            self._begin()
            async for value in events:
                while True:
                    if self._over:  # The source caught its cancellation; now it is closed.
                        return
                    try:
                        others_had_a_turn = log.append(*encode(value))
                        if encode is not payload:  # It is the first event.
                            encode = payload
                            log.open()
                            if self._is_new:
                                self._observers.tell(
                                    Observer.first_event, self.production, clock() - began
                                )
                        burst += 1
                        if others_had_a_turn and burst > 1:
                            if bursts.is_taken:
                                burst, since, turns = bursts.begin()
                            else:
                                burst, since, turns = 1, clock(), bursts.turns
                        elif burst >= BURST_EVENTS or clock() - since > BURST_SECONDS:
                            burst, since, turns = await bursts.next(turns)
                        if log.is_full():
                            await log.room()
                        break
                    except asyncio.CancelledError as error:
                        # The source is suspended at a `yield`. If that is inside a cancel scope, a
                        # timeout or a task group, the cancellation is probably meant for it. It may
                        # answer with another value, which is then appended.
                        if self._over or not isinstance(events, AsyncGenerator):
                            raise
                        try:
                            value = await events.athrow(error)
                        except StopAsyncIteration:
                            self._end(COMPLETED)
                            return
            self._end(COMPLETED)
        except asyncio.CancelledError as error:
            if self._over or self.task.cancelling():
                self._end(End.cancelled(SHUTDOWN))
            else:  # The source awaited something else that was cancelled.
                self._fail(error)
        except BaseException as error:
            if not self._loop.is_running():  # The garbage collector closes this coroutine.
                raise
            self._fail(error)
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            if self._loop.is_running():
                await self._close()

    def _begin(self) -> None:
        log = self.log
        if log.last < 0:
            log.append(b"start", log.info.start)
            if self._preface is not None:
                log.append(*self._preface)
        self._preface = None
        if not log.readers:
            self._cancel_without_readers()
        if isinstance(self._events, ThreadIterator):
            self._loop.call_later(FIRST_STEP_SECONDS, log.open)
        else:
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turns += 1
        if self._turns == OPENING_TURNS:
            self.log.open()
        elif self.log.opening:
            self._loop.call_soon(self._take_turn)

    def _fail(self, error: BaseException) -> None:
        self._log_failure(error)
        self._observers.tell(Observer.run_fails, self.production, error)
        if self.log.opening:
            refusal = as_stream_error(error)
            # Clients do not see these, and they would keep the source's variables.
            refusal.__cause__ = refusal.__context__ = refusal.__traceback__ = None
            self._refuse(refusal)
        else:
            self._end(End.failed(error))

    def _log_failure(self, error: BaseException) -> None:
        shown = for_clients(error)
        expected = shown is not None and len(leaves(error)) == 1
        level = logging.ERROR
        if shown is not None and expected and as_stream_error(shown).status < 500:
            level = logging.INFO  # The source refuses on purpose.
        logger.log(
            level,
            "run %s of source %s failed: %s",
            self.log.info.run,
            self.log.info.source,
            for_log(shown or error) or type(error).__name__,
            exc_info=None if expected else error,
        )

    def _end(self, end: End) -> None:
        if self._ends_now():
            self.log.close(end)

    def _refuse(self, error: StreamError) -> None:
        """Ends a run that has not opened."""
        if self._ends_now():
            self.log.refuse(error)

    def _ends_now(self) -> bool:
        """Marks the run as ended. Returns False if it had ended before, here or elsewhere."""
        over, self._over = self._over, True
        return not over and self.log.producing

    @property
    def is_unwatched(self) -> bool:
        """Whether it continues only until `linger` is over.

        As long as the request that has started it goes on, its first reader is still to come.
        """
        is_open = not (self._over or self.log.opening)
        is_open = is_open and not self.log.readers and self._linger is not None
        return is_open and (self._was_read or self._starter_is_done)

    @property
    def _starter_is_done(self) -> bool:
        starter = None if self._starter is None else self._starter()
        return starter is None or starter.done()

    def cancel(self, reason: str) -> None:
        """Ends the run for its readers at once, and closes its source meanwhile."""
        if not self.log.opening:
            self._end(End.cancelled(reason))
        elif reason == SHUTDOWN:
            self._refuse(ShuttingDown())
        else:
            self._refuse(RunGone.stopped(self.log.info.run))
        self._stop()

    def hand_over(self) -> None:
        """Stops the source without ending the run: another worker continues it."""
        if not self._over:
            self._leave()

    def _leave(self) -> None:
        self.handed_over = self._over = True
        self.log.watch(_ignore)  # From now on, another Run may watch it: this worker's next one.
        self._stop()

    def abandon(self) -> None:
        """Forgets a run whose event loop is closed: nothing of it can be awaited."""
        self._over = True
        self.task.remove_done_callback(self._finish)  # The loop may only have been stopped.
        self._ended(self)
        try:
            if (coroutine := self.task.get_coro()) is not None:
                coroutine.close()
        except Exception:  # A `finally` of the source waits for something, for instance.
            logger.exception(
                "run %s: its event loop is closed, its source is not", self.log.info.run
            )

    def _stop(self) -> None:
        if not self.task.done() and not self._closing:
            self.task.cancel()
            self._limit_cleanup()

    async def _close(self) -> None:
        """Closes the source, unless it has ended.

        A generator gets CancelledError at its `yield`, as it would at an `await`. A task group
        around the `yield` ends quietly then; GeneratorExit would come out of it in an exception
        group.
        """
        events = self._events
        if events is None or getattr(events, "ag_frame", events) is None:
            return  # An async generator without a frame has ended.
        self._limit_cleanup()
        try:
            # A cancellation that is still to come must not interrupt the cleanup.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            # Since Python 3.13, a task group that ends with an error cancels its task once more if
            # that counts as being cancelled: the first `await` of a `finally` would be interrupted.
            while self.task.uncancel():
                pass
            if isinstance(events, AsyncGenerator):
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await events.athrow(asyncio.CancelledError())
            await close_iterator(events)
        except asyncio.CancelledError:
            pass  # The cleanup took too long; that has been logged.
        except BaseException as error:
            if all(isinstance(leaf, GeneratorExit) for leaf in leaves(error)):
                return  # `aclosing` closed an inner generator, whose task group put it in a group.
            logger.exception("run %s: closing its source failed", self.log.info.run)
            if isinstance(error, KeyboardInterrupt):
                raise

    def _limit_cleanup(self) -> None:
        if not self._closing:
            self._closing = True
            self._set_timer(CLEANUP_SECONDS, self._interrupt_cleanup)

    def _interrupt_cleanup(self) -> None:
        is_thread = isinstance(self._events, ThreadIterator)
        logger.error(
            "run %s: source %s did not stop within %g s; %s",
            self.log.info.run,
            self.log.info.source,
            CLEANUP_SECONDS,
            "its thread is left running" if is_thread else "its cleanup is interrupted",
        )
        self.task.cancel()
        self._set_timer(CLEANUP_SECONDS, self._interrupt_cleanup)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._end(End.cancelled(SHUTDOWN))  # The task was cancelled before its first step.
        self._stop_timer()
        self._events = None
        if not self.handed_over:
            self.log.watch(_ignore)
        self._ended(self)
        if not task.cancelled():
            task.exception()  # It has been logged.

    def _log_changed(self) -> None:
        """Readers attached or detached, or the log was closed or claimed by somebody else."""
        if self.log.ended_here is False:
            self._leave()
        if self._over:
            return
        before, self._readers = self._readers, self.log.readers
        if not self.log.producing:
            self._over = True
            self._stop()
        elif self._readers:
            self._stop_timer()
            # Clients on other workers that wait for the opening count as readers meanwhile, but
            # have read nothing.
            if self._readers > before and not self.log.opening:
                self._was_read = True
        elif self._events is not None:
            self._cancel_without_readers()

    def _cancel_without_readers(self) -> None:
        if (seconds := self._linger) is None:
            return
        if not self._was_read:
            seconds = max(seconds if self._can_be_found else 0, FIRST_READER_SECONDS)
        self._set_timer(seconds, self.cancel, NO_READER)

    def _set_timer(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        self._stop_timer()
        # A cancelled timer keeps its context until it is due, which must not be a request's.
        context = contextvars.Context()
        self._timer = self._loop.call_later(delay, callback, *args, context=context)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def current_run() -> RunInfo:
    """The run whose source calls this: its `run` (the id), `path`, `key` and `owner`.

    Raises RuntimeError outside a source.
    """
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError("current_run() is for the function of a source, while it runs") from None


def _ignore() -> None:
    """The watcher of a log whose run has ended."""
