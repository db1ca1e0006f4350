"""Plain iterators as sources: each one runs in a thread of its own.

Invariants:

1. `iter`, `next` and `close` are called in one thread, which has one copy of the context.
2. The thread takes a step only when the run requests one, so a slow reader pauses the iterator.
3. The thread ends after it has closed the iterator. It is a daemon: a call that never returns does
   not keep the process alive.
4. At most `max_threads` threads exist, including those that outlive their run.
"""

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self

from anyio.lowlevel import EventLoopToken, current_token

from streams.errors import TooManyThreads

logger = logging.getLogger("streams")

END: Any = object()


def check_iterable(produced: Any) -> None:
    """Raises TypeError for a value that is neither an async iterable nor an iterable."""
    if not isinstance(produced, AsyncIterable | Iterable):
        raise TypeError(
            f"a source must return an async iterator or an iterator, "
            f"not a {type(produced).__name__}"
        )


async def close_iterator(iterator: Any) -> None:
    """Calls the iterator's `aclose`, or else its `close`, if it has one, and awaits the result."""
    close = getattr(iterator, "aclose", None) or getattr(iterator, "close", None)
    if close is not None and inspect.isawaitable(closing := close()):
        await closing


class Threads:
    """The threads of one Streams: at most `limit`, one for each plain iterator."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._running: set[ThreadIterator] = set()

    def __len__(self) -> int:
        return len(self._running)

    def iterate(self, produced: Any, name: str) -> AsyncIterator[Any]:
        """An async iterator over what a source's function returned.

        `name` names the run and its source in the server's log. Raises TypeError for a value that
        cannot be iterated, and TooManyThreads, after closing an iterator that gets no thread.
        """
        check_iterable(produced)
        if isinstance(produced, AsyncIterable):
            return aiter(produced)
        iterator = ThreadIterator(produced, name, self._running.discard)
        try:
            if len(self._running) >= self.limit:
                raise RuntimeError("max_threads is reached")
            self._running.add(iterator)
            iterator.start()
        except RuntimeError as error:  # The operating system may have a lower limit.
            self._running.discard(iterator)
            if (close := getattr(produced, "close", None)) is not None:
                close()
            raise TooManyThreads(
                f"this server runs {len(self)} plain generators or guards, each in a thread (limit "
                f"{self.limit}); try again in {TooManyThreads.retry_after} s"
            ) from error
        return iterator

    async def call(self, function: Callable[[], Any], name: str) -> Any:
        """What a plain function returns or raises, in a thread of its own. Raises TooManyThreads.

        If the caller is cancelled, the thread ends when the function returns.
        """
        iterator = self.iterate(_once(function), name)
        assert isinstance(iterator, ThreadIterator)
        try:
            answer = await anext(iterator)
        except asyncio.CancelledError:
            iterator.stop()
            raise
        except BaseException:
            await iterator.aclose()
            raise
        await iterator.aclose()  # Its place is free for another function.
        return answer


def _once(function: Callable[[], Any]) -> Iterator[Any]:
    yield function()


class ThreadIterator:
    """An async iterator over an iterable, which it iterates and closes in a thread of its own.

    `ended` is called in the thread, before `aclose` returns.
    """

    def __init__(
        self, iterable: Iterable[Any], name: str, ended: Callable[["ThreadIterator"], None]
    ) -> None:
        self._iterable = iterable
        self._name = name
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._token = current_token()
        self._steps: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.stopping = False

    def start(self) -> None:
        """Starts the thread. Raises RuntimeError if the operating system refuses."""
        in_context = copy_context().run
        Thread(target=in_context, args=(self._run,), name=self._name, daemon=True).start()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> asyncio.Future[Any]:
        step = self._loop.create_future()
        self._steps.put(step)
        return step

    async def aclose(self) -> None:
        """Waits until the current step has returned and the iterator is closed."""
        self.stop()
        await self._closed

    def stop(self) -> None:
        """Closes the iterator after the current step."""
        self.stopping = True
        self._steps.put(None)

    def _run(self) -> None:
        if sniffio := sys.modules.get("sniffio"):  # This thread runs no event loop.
            sniffio.current_async_library_cvar.set(None)
        with _worker_thread(_Backend(self, self._token), self._token.native_token):
            self._iterate()

    def _iterate(self) -> None:
        iterator: Any = None
        reported = True
        while reported and (step := self._steps.get()) is not None:
            outcome: tuple[Any, BaseException | None]
            try:
                if iterator is None:
                    iterator = iter(self._iterable)
                outcome = next(iterator), None
            except StopIteration:
                outcome = END, None
            except BaseException as error:
                outcome = None, error
            reported = self._report(step, *outcome)
            del step, outcome  # A thread that waits keeps no event and no traceback.
        self.stopping = False  # check_cancelled() must not raise in the cleanup.
        outcome = None, None
        try:
            close = getattr(self._iterable if iterator is None else iterator, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            outcome = None, error
        self._ended(self)
        self._report(self._closed, *outcome)

    def _report(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> bool:
        """Resolves a future from the thread. Returns False if its event loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._resolve, future, value, error)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            return False
        return True

    def _resolve(
        self, future: asyncio.Future[Any], value: Any, error: BaseException | None
    ) -> None:
        if isinstance(error, StopIteration | StopAsyncIteration | KeyboardInterrupt):
            # The first two would end the iteration. Ctrl-C reaches only the main thread, so the
            # third is not one, and must not end the event loop.
            message = f"a plain generator raised {type(error).__name__}"
            error = RuntimeError(message).with_traceback(error.__traceback__)
        if future.done():  # The run was stopped during the step, or waits no longer.
            if error is not None and not isinstance(error, asyncio.CancelledError):
                logger.error("%s failed after it was stopped", self._name, exc_info=error)
        elif error is not None:
            future.set_exception(error)
        elif value is END:
            future.set_exception(StopAsyncIteration())
        else:
            future.set_result(value)


class _Backend:
    """anyio's backend for one thread, whose `from_thread.check_cancelled` knows of the stop."""

    def __init__(self, iterator: ThreadIterator, token: EventLoopToken) -> None:
        self._iterator = iterator
        self._backend = token.backend_class

    def check_cancelled(self) -> None:
        if self._iterator.stopping:
            raise asyncio.CancelledError("the run was stopped")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _worker_thread(backend: Any, token: object) -> AbstractContextManager[None]:
    """A context in which `anyio.from_thread` works in the current thread.

    anyio has no public way to do that in a thread that it has not started. In a version that lacks
    the private one, the functions of `from_thread` need their argument `token`.
    """
    try:
        from anyio._core._eventloop import claim_worker_thread
    except ImportError:  # pragma: no cover
        return nullcontext()
    return claim_worker_thread(backend, token)
