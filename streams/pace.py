"""Pace: fewer, larger events from a source that yields many small ones.

Invariants of `joined`:

1. Every value goes out once and in order, alone or merged with its neighbours of the same name.
2. The first value of a name goes out at once, any other at most `every` seconds after it came.
3. The iterator is iterated and closed in one task, which ends before `joined` does.
"""

import asyncio
import math
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
)
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio

from streams.event import Event

T = TypeVar("T")


def joined(
    events: AsyncIterable[T], every: float = 0.05, *, merge: Callable[[T, T], T]
) -> AsyncGenerator[T, None]:
    """What `events` yields, with values that come within `every` seconds merged into one.

    The first value goes out at once, and nothing is held back at the end, at an error, when it is
    cancelled, or before an event of another name. `merge(older, newer)` gets two values as they
    were yielded. It may return NotImplemented: then the older one goes out, too.

    `events` is an async iterator; it advances only while the consumer waits for a value. A plain
    generator blocks, so it could not send a value that it holds. Raises TypeError for one, and
    ValueError for an interval that is not positive.
    """
    if not isinstance(events, AsyncIterable):
        raise TypeError(
            f"joined() takes an async iterator, not a {type(events).__name__}; a plain generator "
            "blocks while it waits, so make it an async one"
        )
    if not 0 < every < math.inf:
        raise ValueError(
            f"every is {every!r}; give the seconds in which values are joined, like 0.05"
        )
    return _Joined(events, _Joiner(events, every, merge))


class _Joined(AsyncGenerator[T, None]):
    """The generator of joined values. Closing it closes `events`, even if it has not begun.

    Python does not run the body of a generator that is closed before its first step.
    """

    def __init__(self, events: AsyncIterable[T], joiner: "_Joiner[T]") -> None:
        # A source without a name is named after its generator.
        self.__name__ = getattr(events, "__name__", "joined")
        self._events = events
        self._joiner = joiner
        self._values = _joined(joiner)

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._values.__anext__()

    def asend(self, value: None) -> Coroutine[Any, Any, T]:
        return self._values.asend(value)

    async def athrow(self, *error: Any) -> T:
        try:
            return await self._values.athrow(*error)
        finally:
            await self._close_unstarted()

    async def aclose(self) -> None:
        try:
            await self._values.aclose()
        finally:
            await self._close_unstarted()

    async def _close_unstarted(self) -> None:
        if not self._joiner.started:
            self._joiner.started = True
            await _close(self._events)


async def _close(events: Any) -> None:
    if (aclose := getattr(events, "aclose", None)) is not None:
        await aclose()


async def _joined(joiner: "_Joiner[T]") -> AsyncGenerator[T, None]:
    joiner.start()
    try:
        while await joiner.ready():
            yield joiner.take()
    except asyncio.CancelledError:
        while joiner.queue:
            yield joiner.take()
        raise
    finally:
        await joiner.close()


class _Joiner(Generic[T]):
    """Iterates in a task of its own, and merges what comes until it may go out."""

    def __init__(self, events: AsyncIterable[T], every: float, merge: Callable[[T, T], T]) -> None:
        self.queue: deque[T] = deque()
        self._events = events
        self._every = every
        self._merge = merge
        self._name: str | None = None  # of the newest value
        self._due = True  # Whether the oldest value may go out.
        self._asked = asyncio.Event()
        self._ready = asyncio.Event()
        self.started = False
        """Whether the task has begun, which closes the iterator then."""
        self._closing = False
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None]

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(aiter(self._events)))

    # The consumer's side

    async def ready(self) -> bool:
        """Waits for a value that may go out. False if there is none left.

        Raises what the iterator has raised.
        """
        self._asked.set()
        try:
            await self._ready.wait()
        finally:
            self._asked.clear()
        if not self.queue:
            self._raise_error()
        return bool(self.queue)

    def take(self) -> T:
        value = self.queue.popleft()
        if not self.queue and not self._task.done():
            self._due = False
            self._ready.clear()
            self._timer = asyncio.get_running_loop().call_later(self._every, self._let_out)
        return value

    async def close(self) -> None:
        """Ends the task. A cancellation meanwhile interrupts what the iterator does to close."""
        self._closing = True
        self._stop_timer()
        self._task.cancel()
        interrupted: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not self._task.done():
                try:
                    await asyncio.wait([self._task])
                except asyncio.CancelledError as error:
                    interrupted = error
                    self._task.cancel()
        if interrupted is not None:
            raise interrupted
        with suppress(asyncio.CancelledError):
            self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # Its traceback has this frame: a cycle would keep the iterator's variables.

    # The task's side

    async def _run(self, events: AsyncIterator[T]) -> None:
        self.started = True
        try:
            try:
                await self._iterate(events)
            finally:
                self._let_out()
                await _close(events)
        except StopAsyncIteration:
            pass
        except BaseException as error:
            # The consumer gets it. If the task raised a SystemExit, it would end the event loop.
            self._error = error
        self._ready.set()

    async def _iterate(self, events: AsyncIterator[T]) -> None:
        step: Awaitable[Any] = anext(events)
        while True:
            value = await step
            if self._closing:
                break  # The generator has ignored its cancellation.
            self._add(value)
            try:
                await asyncio.sleep(0)  # A generator that never waits must let the timer run.
                await self._asked.wait()
                step = anext(events)
            except asyncio.CancelledError as error:
                # The generator is suspended at a `yield`. It may be in a cancel scope or a task
                # group, whose cancellation this is.
                if not isinstance(events, AsyncGenerator):
                    raise
                step = events.athrow(error)

    def _add(self, value: T) -> None:
        name = value.event if isinstance(value, Event) else None
        merged: Any = NotImplemented
        if self.queue and name == self._name:
            merged = self._merge(self.queue[-1], value)
        if merged is NotImplemented:
            if self.queue or name != self._name:
                self._let_out()
            self.queue.append(value)
        else:
            self.queue[-1] = merged
        self._name = name
        if self._due:
            self._ready.set()

    def _let_out(self) -> None:
        self._stop_timer()
        self._due = True
        if self.queue:
            self._ready.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def join_text(older: Any, newer: Any) -> Any:
    """A merge for `joined`: the text of two pieces of an answer in one, all else as in the newer.

    It joins two strings, two texts of Events, and two objects with a `message` like those of the
    sources `tokens` and `chat`: content with content, reasoning with reasoning, a refusal with a
    refusal, tool calls with tool calls. For other values it returns NotImplemented, and for pieces
    of different kinds, whose order would be lost.
    """
    match older, newer:
        case str(), str():
            return older + newer
        case Event(text=str(begin)), Event(text=str(rest)):
            return Event(text=begin + rest, event=newer.event)
        case Event(text=None), Event(text=None):
            data = join_text(older.data, newer.data)
            return data if data is NotImplemented else Event(data, event=newer.event)
        case {"message": dict(begun)}, {"message": dict(added)}:
            message = _joined_messages(begun, added)
            if message is NotImplemented:
                return NotImplemented
            joined_value = {**older, **newer, "message": message}
            if logprobs := _joined_logprobs(older.get("logprobs"), newer.get("logprobs")):
                joined_value["logprobs"] = logprobs
            return joined_value
    return NotImplemented


TEXTS = ("content", "reasoning", "refusal")
"""Members of a message whose texts add up."""


def _joined_messages(older: dict[str, Any], newer: dict[str, Any]) -> Any:
    members = older.keys() | newer.keys()
    texts = [name for name in TEXTS if name in members]
    has_calls = "tool_calls" in members
    if not texts and not has_calls:
        return NotImplemented
    message = {**older, **newer}
    for name in texts:
        begin, rest = older.get(name, ""), newer.get(name, "")
        if not (isinstance(begin, str) and isinstance(rest, str)):
            return NotImplemented
        message[name] = begin + rest
    if has_calls:
        message["tool_calls"] = _joined_calls(
            older.get("tool_calls") or [], newer.get("tool_calls") or []
        )
    kinds = [name for name in (*TEXTS, "tool_calls") if message.get(name)]
    return message if len(kinds) <= 1 else NotImplemented


def _joined_calls(older: list[Any], newer: list[Any]) -> list[Any]:
    """The fragments of tool calls, where arguments that only continue a fragment are part of it."""
    calls = [*older]
    for call in newer:
        match calls, call:
            case (
                [*_, {"index": at, "function": {"arguments": str(begin)} as function} as last],
                {"index": index, "function": {"arguments": str(rest)} as more},
            ) if at == index and len(call) == 2 and len(more) == 1:
                calls[-1] = {**last, "function": {**function, "arguments": begin + rest}}
            case _:
                calls.append(call)
    return calls


def _joined_logprobs(older: Any, newer: Any) -> Any:
    """The log probabilities of both pieces: an object of lists, or null."""
    if not (isinstance(older, dict) and isinstance(newer, dict)):
        return newer or older
    names = older.keys() | newer.keys()
    return {name: [*(older.get(name) or ()), *(newer.get(name) or ())] for name in names}
