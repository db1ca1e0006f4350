"""pace.py: joined() and join_text, mostly in virtual time."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext, suppress
from itertools import groupby, pairwise, zip_longest
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import Event, Policy, StreamError, Streams, join_text, joined, source
from streams.event import LoggedEvent, encode_json
from streams.wires.answer import Answer
from tests.support.servers import client_of, connection, serving, until
from tests.support.virtual_time import run_in_virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


CLEANUP = 0.01
"""Seconds that an iterator takes to close."""


class Piece(NamedTuple):
    """A text that an iterator yields `wait` seconds after the one before."""

    wait: float
    text: str
    name: str | None = None

    @property
    def value(self) -> Any:
        return self.text if self.name is None else Event(self.text, event=self.name)


class Timed(NamedTuple):
    time: float
    name: str | None
    text: str

    @classmethod
    def of(cls, value: Any) -> "Timed":
        if isinstance(value, Event):
            return cls(now(), value.event, value.data)
        return cls(now(), None, value)


class Iterator:
    """Yields pieces at their times, and records what it has yielded and how it was closed."""

    def __init__(self, pieces: list[Piece], error: BaseException | None = None) -> None:
        self.yielded: list[Timed] = []
        self.tasks: set[Any] = set()
        self.closed = 0
        self._pieces = pieces
        self._error = error

    async def values(self) -> AsyncIterator[Any]:
        self.tasks.add(asyncio.current_task())
        try:
            for piece in self._pieces:
                if piece.wait:
                    await asyncio.sleep(piece.wait)
                self.yielded.append(Timed.of(piece.value))
                yield piece.value
                self.tasks.add(asyncio.current_task())
            if self._error is not None:
                raise self._error
        finally:
            self.tasks.add(asyncio.current_task())
            await asyncio.sleep(CLEANUP)
            self.closed += 1


def texts(events: list[Timed]) -> list[tuple[str | None, str]]:
    """The texts, those next to each other under one name as one."""
    groups = groupby(events, key=lambda event: event.name)
    return [(name, "".join(event.text for event in group)) for name, group in groups]


def times_of_names(events: list[Timed]) -> list[float]:
    """When each name came that the event before did not have."""
    return [next(group).time for _, group in groupby(events, key=lambda event: event.name)]


def times_of_characters(events: list[Timed]) -> list[float]:
    return [event.time for event in events for _ in event.text]


WAITS = st.sampled_from([0.0, 0.0, 0.001, 0.02, 0.049, 0.05, 0.051, 0.3]) | st.floats(0, 0.2)
NAMES = st.sampled_from([None, None, None, "thought"])
PIECES = st.lists(st.builds(Piece, WAITS, st.text(min_size=1, max_size=3), NAMES), max_size=30)
EVERY = st.sampled_from([0.01, 0.05, 0.25])
TINY = 1e-6


@given(PIECES, EVERY, st.sampled_from([None, StreamError("broken")]))
def test_the_joined_text_is_the_text_and_comes_in_time(
    pieces: list[Piece], every: float, error: BaseException | None
) -> None:
    iterator, sent = Iterator(pieces, error), list[Timed]()

    async def main() -> float:
        with pytest.raises(StreamError) if error else nullcontext():
            async for value in joined(iterator.values(), every, merge=join_text):
                sent.append(Timed.of(value))
        return now()

    ended, came = run_in_virtual_time(main()), iterator.yielded
    assert texts(sent) == texts(came) == texts([Timed(0, p.name, p.text) for p in pieces])
    assert times_of_names(sent) == times_of_names(came), "nothing is held before another name"
    delays = zip(times_of_characters(sent), times_of_characters(came), strict=True)
    assert all(0 <= sent_at - came_at <= every + TINY for sent_at, came_at in delays)
    last = came[-1].time if came else 0
    assert ended == pytest.approx(last + CLEANUP), "nothing is held back at the end or at an error"
    at_once = {ended, *times_of_names(came)}
    for one, other in pairwise(sent):
        assert other.time in at_once or other.time - one.time >= every - TINY
    assert len(iterator.tasks) == iterator.closed == 1


@given(PIECES, EVERY, st.floats(0, 2))
def test_nothing_is_lost_when_it_is_cancelled_and_the_iterator_is_closed_in_its_task(
    pieces: list[Piece], every: float, cancelled: float
) -> None:
    iterator, sent = Iterator([*pieces, Piece(100, "never")]), list[Timed]()

    async def consume() -> None:
        async for value in joined(iterator.values(), every, merge=join_text):
            sent.append(Timed.of(value))

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(cancelled)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_in_virtual_time(main())
    assert texts(sent) == texts(iterator.yielded)
    assert len(iterator.tasks) <= 1
    assert iterator.closed == len(iterator.tasks)


async def collected(values: AsyncIterator[Any], into: list[Any] | None = None) -> list[Any]:
    """All values; `into` receives each, also before an error."""
    into = [] if into is None else into
    async for value in values:
        into.append(value)
    return into


def joined_in_virtual_time(values: AsyncIterator[Any], every: float = 0.05) -> list[Timed]:
    async def main() -> list[Timed]:
        return [Timed.of(value) async for value in joined(values, every, merge=join_text)]

    return run_in_virtual_time(main())


# What is joined


def test_values_that_come_slower_than_the_interval_are_not_delayed() -> None:
    iterator = Iterator([Piece(0.06, str(number)) for number in range(5)])
    assert joined_in_virtual_time(iterator.values()) == iterator.yielded


def test_a_merge_may_keep_the_newest_value() -> None:
    def newest(older: str, newer: str) -> str:
        return newer

    async def main() -> list[str]:
        values = Iterator([Piece(0.02, str(number)) for number in range(6)]).values()
        return await collected(joined(values, 0.05, merge=newest))

    assert run_in_virtual_time(main()) == ["0", "2", "4", "5"]


def test_values_that_do_not_merge_go_out_one_by_one() -> None:
    async def values() -> AsyncIterator[Any]:
        for value in ("a", "b", {"tool": 1}, "c", "d"):
            yield value

    async def main() -> list[Any]:
        return await collected(joined(values(), merge=join_text))

    assert run_in_virtual_time(main()) == ["a", "b", {"tool": 1}, "cd"]


CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "a"}}


def arguments(index: int, text: str) -> dict[str, Any]:
    """More of the arguments of a tool call."""
    return {"index": index, "function": {"arguments": text}}


def said(**members: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **members}, "done": False}


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        ("a", "b", "ab"),
        (Event(text="a"), Event(text="b"), Event(text="ab")),
        (Event("a", event="x"), Event("b", event="x"), Event("ab", event="x")),
        (
            {"message": {"role": "r", "content": "a"}, "done": False, "x": 1},
            {"message": {"content": "b"}, "done": True},
            {"message": {"role": "r", "content": "ab"}, "done": True, "x": 1},
        ),
        ("a", 1, NotImplemented),
        ("a", Event(text="b"), NotImplemented),
        (Event("a"), Event(text="b"), NotImplemented),
        (Event({"n": 1}), Event({"n": 2}), NotImplemented),
        ({"message": {"content": "a"}}, {"message": {"content": None}}, NotImplemented),
        ({"message": {"role": "a"}}, {"message": {"role": "b"}}, NotImplemented),
        (said(reasoning="a"), said(reasoning="b"), said(reasoning="ab")),
        (said(refusal="a"), said(refusal="b"), said(refusal="ab")),
        (said(reasoning="a"), said(content="b"), NotImplemented),
        (said(content="a"), said(reasoning="b"), NotImplemented),
        (said(content="a"), said(tool_calls=[CALL]), NotImplemented),
        (said(), said(tool_calls=[CALL]), said(tool_calls=[CALL])),
        (
            said(tool_calls=[CALL]),
            said(tool_calls=[arguments(0, "b")]),
            said(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "ab"}}]),
        ),
        (
            said(tool_calls=[CALL]),
            said(tool_calls=[arguments(1, "b")]),
            said(tool_calls=[CALL, arguments(1, "b")]),
        ),
        (said(tool_calls=[CALL]), said(tool_calls=[CALL]), said(tool_calls=[CALL, CALL])),
        (
            {**said(content="a"), "logprobs": {"content": [1], "refusal": None}},
            {**said(content="b"), "logprobs": {"content": [2]}},
            {**said(content="ab"), "logprobs": {"content": [1, 2], "refusal": []}},
        ),
        (
            {**said(content="a"), "logprobs": {"content": [1]}},
            {**said(content="b"), "logprobs": None},
            {**said(content="ab"), "logprobs": {"content": [1]}},
        ),
    ],
)
def test_join_text_joins_texts_and_nothing_else(older: Any, newer: Any, expected: Any) -> None:
    assert join_text(older, newer) == expected


PIECES = st.one_of(
    st.builds(
        lambda kind, text: said(**{kind: text}),
        st.sampled_from(["content", "reasoning", "refusal"]),
        st.text("ab", max_size=2),
    ),
    st.builds(
        lambda index, text: said(tool_calls=[arguments(index, text)]),
        st.integers(0, 1),
        st.text("ab", max_size=2),
    ),
    st.just(said(tool_calls=[CALL])),
    st.just(said(tool_calls=[CALL, {**CALL, "index": 1}])),
    st.just({**said(content="a"), "logprobs": {"content": [1]}}),
)


def read(values: list[Any]) -> list[tuple[str, Any]]:
    """What a wire reads from the events of an answer, character by character, then logprobs."""
    answer, parts = Answer(), list[tuple[str, Any]]()
    for number, value in enumerate(values):
        piece = answer.feed(LoggedEvent(number, "message", encode_json(value)))
        for kind in ("reasoning", "text", "refusal"):
            parts += [(kind, char) for char in getattr(piece, kind)]
        for call in piece.tool_calls:
            parts += [("call", (call.index, call.id, call.name))] if call.id else []
            parts += [("arguments", (call.index, char)) for char in call.arguments]
        parts += [("logprob", each) for each in (piece.logprobs or {}).get("content", ())]
    return sorted(parts, key=lambda part: part[0] == "logprob")


@given(st.lists(PIECES), st.lists(st.booleans()))
def test_a_joined_answer_is_read_as_the_one_of_single_pieces(
    single: list[Any], holds: list[bool]
) -> None:
    joined_values: list[Any] = []
    for value, held in zip_longest(single, holds[: len(single)], fillvalue=True):
        merged = join_text(joined_values[-1], value) if joined_values and held else NotImplemented
        joined_values[len(joined_values) - (merged is not NotImplemented) :] = [
            value if merged is NotImplemented else merged
        ]
    assert read(joined_values) == read(single)


# What it does not hold up


def test_it_asks_for_no_more_than_its_consumer_asks_for() -> None:
    iterator = Iterator([Piece(0.02, "a") for _ in range(100)])
    ahead = []

    async def main() -> None:
        async for value in joined(iterator.values(), 0.05, merge=join_text):
            before = len(iterator.yielded)
            await asyncio.sleep(10 if len(value) > 1 else 0)
            ahead.append(len(iterator.yielded) - before)

    run_in_virtual_time(main())
    assert set(ahead) == {0, 1}, "at most the value that it was waiting for"


async def test_a_generator_that_never_waits_does_not_stop_the_event_loop() -> None:
    turns = 0

    async def flood() -> AsyncIterator[str]:
        for _ in range(1000):
            yield "a"

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    events = await collected(joined(flood(), every=60, merge=join_text))
    task.cancel()
    assert events == ["a", "a" * 999]
    assert turns >= 1000


# How it ends


def test_what_the_iterator_holds_is_freed_with_it() -> None:
    kept: list[weakref.ref[Any]] = []

    async def failing() -> AsyncIterator[str]:
        local = Iterator([])
        kept.append(weakref.ref(local))
        yield "a"
        raise ValueError("broken", local)

    async def main() -> None:
        with pytest.raises(ValueError, match="broken"):
            await collected(joined(failing(), merge=join_text))

    gc.disable()
    try:
        run_in_virtual_time(main())
        assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()


async def test_a_system_exit_reaches_the_consumer_and_not_the_event_loop() -> None:
    async def leaving() -> AsyncIterator[str]:
        yield "a"
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await collected(joined(leaving(), merge=join_text))


async def test_an_error_in_merge_ends_it_after_what_it_holds() -> None:
    def broken(older: str, newer: str) -> str:
        raise ValueError("cannot merge")

    iterator, got = Iterator([Piece(0, text) for text in "abcd"]), list[str]()
    with pytest.raises(ValueError, match="cannot merge"):
        await collected(joined(iterator.values(), 60, merge=broken), got)
    assert got == ["a", "b"]
    assert iterator.closed == 1


async def within_asyncio(seconds: float, waiting: Awaitable[Any]) -> None:
    async with asyncio.timeout(seconds):
        await waiting


async def within_anyio(seconds: float, waiting: Awaitable[Any]) -> None:
    with anyio.fail_after(seconds):
        await waiting


@pytest.mark.parametrize("within", [within_asyncio, within_anyio])
def test_a_timeout_of_the_consumer_loses_nothing(within: Callable[..., Any]) -> None:
    iterator, got = Iterator([Piece(0.02, str(number)) for number in range(100)]), list[str]()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await within(1.01, collected(joined(iterator.values(), merge=join_text), got))

    run_in_virtual_time(main())
    assert "".join(got) == "".join(str(number) for number in range(50))
    assert iterator.closed == 1, "also what waits in its `finally` has ended"


def test_a_generator_gets_a_cancellation_where_it_is_suspended() -> None:
    seen = []

    async def values() -> AsyncIterator[str]:
        try:
            yield "a"
        except BaseException as error:
            seen.append((type(error), asyncio.current_task()))
            raise

    async def main() -> None:
        async with aclosing(joined(values(), merge=join_text)) as events:
            await anext(events)
            await asyncio.sleep(1)
        assert [kind for kind, _ in seen] == [asyncio.CancelledError]
        assert seen[0][1] is not asyncio.current_task()

    run_in_virtual_time(main())


def test_a_generator_that_is_forgotten_is_closed() -> None:
    iterator = Iterator([Piece(0, "a"), Piece(0, "b")])

    async def main() -> None:
        async for _ in joined(iterator.values(), merge=join_text):
            break
        await asyncio.sleep(1)

    run_in_virtual_time(main())
    assert iterator.closed == len(iterator.tasks) == 1


def test_a_generator_that_ignores_its_cancellation_is_closed() -> None:
    closed = []

    async def stubborn() -> AsyncIterator[str]:
        try:
            while True:
                try:
                    yield "a"
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    pass
        finally:
            closed.append(True)

    async def main() -> None:
        for seconds in (0, 0.5):
            async with aclosing(joined(stubborn(), 0.2, merge=join_text)) as events:
                await anext(events)
                with anyio.move_on_after(seconds):
                    await anext(events)

    run_in_virtual_time(main())
    assert closed == [True, True]


def test_a_second_cancellation_interrupts_the_cleanup_and_is_passed_on() -> None:
    reached = []

    async def slow_to_close() -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            try:
                await asyncio.sleep(1000)
            finally:
                reached.append(now())

    async def main() -> None:
        events = joined(slow_to_close(), merge=join_text)
        await anext(events)
        with pytest.raises(TimeoutError):
            await within_asyncio(10, events.aclose())

    run_in_virtual_time(main())
    assert reached == [10]


def test_an_error_in_the_cleanup_is_raised() -> None:
    async def broken() -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            raise ValueError("cannot close")

    async def main() -> None:
        events = joined(broken(), merge=join_text)
        await anext(events)
        with pytest.raises(ValueError, match="cannot close"):
            await events.aclose()

    run_in_virtual_time(main())


# Scopes, groups and contexts inside


def test_a_cancel_scope_around_a_yield_ends_in_the_generator() -> None:
    async def limited() -> AsyncIterator[str]:
        with anyio.move_on_after(1):
            while True:
                yield "a"
                await asyncio.sleep(0.3)
        yield "over"

    async def main() -> tuple[list[str], float]:
        got = []
        async for value in joined(limited(), 0.05, merge=join_text):
            got.append(value)
            if len(got) == 3:
                await asyncio.sleep(5)  # The scope is cancelled while nothing is asked for.
        return got, now()

    assert run_in_virtual_time(main()) == (["a", "a", "a", "over"], 5.6)


def test_a_task_group_around_a_yield_fails_in_the_consumer() -> None:
    async def broken() -> None:
        await asyncio.sleep(0.1)
        raise ValueError("broken")

    async def grouped() -> AsyncIterator[str]:
        async with asyncio.TaskGroup() as group:
            group.create_task(broken())
            yield "a"
            await asyncio.sleep(60)

    async def main() -> list[str]:
        got: list[str] = []
        with pytest.raises(ExceptionGroup):
            await collected(joined(grouped(), merge=join_text), got)
        assert now() == pytest.approx(0.1)
        return got

    assert run_in_virtual_time(main()) == ["a"]


def test_an_iterator_that_is_no_generator_is_iterated_too() -> None:
    class Letters:
        def __init__(self) -> None:
            self.left = list("abc")

        def __aiter__(self) -> "Letters":
            return self

        async def __anext__(self) -> str:
            await asyncio.sleep(0.01)
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    async def main() -> None:
        assert await collected(joined(Letters(), merge=join_text)) == ["a", "bc"]
        events = joined(Letters(), merge=join_text)
        await anext(events)
        await events.aclose()

    run_in_virtual_time(main())


async def test_the_generator_sees_the_context_of_its_consumer() -> None:
    variable = contextvars.ContextVar("variable", default="")

    async def values() -> AsyncIterator[str]:
        yield variable.get()

    variable.set("set")
    assert await collected(joined(values(), merge=join_text)) == ["set"]


# Wrong uses


def test_a_plain_generator_and_a_wrong_interval_are_refused() -> None:
    plain: Any = (text for text in "ab")
    with pytest.raises(TypeError, match="async iterator, not a generator; a plain generator"):
        joined(plain, merge=join_text)
    for every in (0, -1, float("nan"), float("inf")):
        values = Iterator([]).values()
        with pytest.raises(ValueError, match="seconds in which values are joined"):
            joined(values, every, merge=join_text)


class Connected:
    """An iterator that holds a connection from before its first step."""

    def __init__(self) -> None:
        self.steps = 0
        self.closed = 0

    def __aiter__(self) -> "Connected":
        return self

    async def __anext__(self) -> str:
        self.steps += 1
        return "a"

    async def aclose(self) -> None:
        self.closed += 1


async def test_closing_joined_values_before_the_first_step_closes_the_iterator_once() -> None:
    connected = Connected()
    values = joined(connected, merge=join_text)
    await values.aclose()
    await values.aclose()
    assert (connected.steps, connected.closed) == (0, 1)
    with pytest.raises(StopAsyncIteration):
        await anext(values)


async def test_an_error_before_the_first_step_closes_the_iterator() -> None:
    connected = Connected()
    values = joined(connected, merge=join_text)
    with pytest.raises(asyncio.CancelledError):
        await values.athrow(asyncio.CancelledError())
    await values.aclose()
    assert (connected.steps, connected.closed) == (0, 1)


# In a source


async def test_a_run_that_is_stopped_before_its_first_step_closes_what_is_joined() -> None:
    connected, gate = Connected(), asyncio.Event()

    @source
    async def answer() -> Any:
        with suppress(asyncio.CancelledError):  # Its server has answered just now.
            await gate.wait()
        return joined(connected, merge=join_text)

    runs = Streams([answer]).runs
    starting = asyncio.create_task(runs.start(await answer.job({}, None, policy=Policy())))
    await until(lambda: runs.health()["running"], "the source opens")
    starting.cancel()
    await until(lambda: not runs.health()["running"], "the run is over")
    assert (connected.steps, connected.closed) == (0, 1)


async def test_a_run_of_joined_events_streams_and_stops() -> None:
    iterator = Iterator([Piece(0, "a"), Piece(0, "b"), Piece(3600, "never")])

    @source
    async def answer() -> Any:
        return joined(iterator.values(), 0.01, merge=join_text)

    streams = Streams([answer])
    async with (
        serving(streams) as url,
        connection(url, "/streams/answer") as stream,
        httpx.AsyncClient(base_url=url) as client,
    ):
        await stream.until(lambda stream: b'data: "b"\n\n' in stream.body, "both have come")
        before = asyncio.all_tasks()
        await client.delete(f"/runs/{stream.run}")
        await stream.until(lambda stream: stream.terminated, "the stream has ended")
        await until(lambda: iterator.closed, "the iterator is closed")
        await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
        assert len(asyncio.all_tasks() - before) <= 1, "no task but sse-starlette's is new"
    assert b'"status":"cancelled"' in stream.body


async def test_joined_events_in_an_endpoint_have_the_name_of_their_generator() -> None:
    async def answer() -> AsyncIterator[str]:
        yield "a"

    values = joined(answer(), merge=join_text)
    assert values.__name__ == "answer"  # type: ignore[attr-defined]
    await values.aclose()


async def test_a_failure_in_the_first_step_of_a_joined_source_is_a_status() -> None:
    @source
    async def answer() -> AsyncIterator[str]:
        async with aclosing(joined(refusing(), merge=join_text)) as values:
            async for value in values:
                yield value

    async def refusing() -> AsyncIterator[str]:
        raise StreamError("no such job", status=404)
        yield ""

    async with client_of(Streams([answer])) as client:
        assert (await client.get("/streams/answer")).status_code == 404
