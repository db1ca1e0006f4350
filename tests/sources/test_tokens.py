"""The mock LLM: its pieces, its pace, and the failures that a client can ask it for."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any, cast

import anyio.lowlevel
import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams import Policy, StreamError, Streams
from streams.sources import tokens
from streams.sources.pieces import TURN
from streams.sources.tokens import Pace
from streams.sources.turns import Call, Turn
from tests.support.servers import Connection, client_of, connection, every_event, serving, until
from tests.support.sources import all_of, check_bounds
from tests.support.virtual_time import run_in_virtual_time

QUICK: dict[str, Any] = {"tokens_per_second": 10_000, "first_token": 0}
QUERY = "tokens_per_second=10000&first_token=0"


def text_of(events: list[Any]) -> str:
    return "".join(event["message"]["content"] for event in events)


async def test_the_events_are_an_llms_answer() -> None:
    events = await all_of(tokens("What is {SSE}?", **QUICK))
    assert all(event["done"] is False for event in events[:-1])
    assert all(event["message"]["role"] == "assistant" for event in events)
    assert text_of(events).startswith("You asked: What is {SSE}?")
    assert events[1]["message"]["content"] == " asked"
    assert events[-1] == {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 6,
        "eval_count": len(events) - 1,
    }


async def test_reply_sets_the_answer() -> None:
    for reply in ("", " ", "Yes.", "你好,世界 👩‍👩‍👧‍👦 twice  spaced\r\n"):
        assert text_of(await all_of(tokens("Hm?", reply=reply, **QUICK))) == reply


async def test_the_last_message_of_a_conversation_is_answered() -> None:
    text = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Two?"}, {"type": "image"}, 5]}]
    for messages in (text, parts):
        events = await all_of(tokens(messages=messages, **QUICK))
        assert text_of(events).startswith("You asked: Two? Here")
    for nothing in ([], [{"role": "user"}]):
        assert text_of(await all_of(tokens(messages=nothing, **QUICK))).startswith(
            "You asked: nothing. Here"
        )


async def test_a_long_prompt_is_quoted_only_in_part() -> None:
    text = text_of(await all_of(tokens("é" * 5000, **QUICK)))
    assert text.startswith("You asked: " + "é" * 200 + "… Here")


async def test_max_tokens_ends_the_answer_with_the_reason_length() -> None:
    whole = await all_of(tokens(reply="one two three", **QUICK))
    for most in (1, 2):
        events = await all_of(tokens(reply="one two three", max_tokens=most, **QUICK))
        assert events[:-1] == whole[:most]
        assert events[-1]["done_reason"] == "length"
        assert events[-1]["eval_count"] == most
    assert await all_of(tokens(reply="one two three", max_tokens=3, **QUICK)) == whole


def schedule(count: int, first: float, per_second: float, jitter: float, seed: int) -> list[float]:
    """The times of `count` tokens and of the final event."""
    pace = Pace(first, per_second, jitter, seed)
    return [*islice(pace.times(), count), pace.due(count)]


async def test_the_seed_determines_the_rhythm() -> None:
    assert schedule(50, 0.3, 25, 1, 7) == schedule(50, 0.3, 25, 1, 7)
    assert schedule(50, 0.3, 25, 1, 7) != schedule(50, 0.3, 25, 1, 8)
    assert await all_of(tokens(seed=7, **QUICK)) == await all_of(tokens(seed=7, **QUICK))


@given(st.integers(0, 300), st.floats(0.1, 10_000), st.floats(0, 1), st.integers())
def test_jitter_does_not_change_the_average_pace(
    count: int, pace: float, jitter: float, seed: int
) -> None:
    times = schedule(count, 2, pace, jitter, seed)
    assert times[0] == 2
    assert times[-1] == pytest.approx(2 + count / pace)
    assert times == sorted(times)


class LateClock:
    """A clock with which every sleep ends at least `late` seconds late."""

    def __init__(self, late: float) -> None:
        self.now = 1000.0
        self.late = late

    def current_time(self) -> float:
        return self.now

    async def sleep_until(self, time: float) -> None:
        self.now = max(self.now, time) + self.late


@pytest.mark.parametrize("jitter", [0, 0.5, 1])
async def test_late_tokens_do_not_delay_the_answer(
    jitter: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LateClock(0.03)
    monkeypatch.setattr(anyio, "current_time", clock.current_time)
    monkeypatch.setattr(anyio, "sleep_until", clock.sleep_until)
    events = await all_of(tokens(reply="a " * 250, max_tokens=250, first_token=0, jitter=jitter))
    assert len(events) == 251
    assert clock.now - 1000 == pytest.approx(10, rel=0.02)


async def test_tokens_come_no_faster_than_the_pace() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    events = tokens(reply="a" + " a" * 49, first_token=0.1, tokens_per_second=250)
    await anext(events)
    assert loop.time() - before > 0.098  # The loop's clock has a resolution of 1 ms.
    assert len(await all_of(events)) == 50
    assert loop.time() - before > 0.098 + 50 / 250


async def test_a_restarted_answer_does_not_wait_for_its_first_token_again() -> None:
    with anyio.fail_after(5):
        await anext(tokens(first_token=60, after=1))


CALLS = [
    Turn(
        reasoning="Hm, rain",
        content="I look.",
        tool_calls=[Call("weather", {"city": "Ulm"}), Call("news", "{oops")],
    ),
    "It rains.",
]

FAULTS: list[dict[str, Any]] = [
    {"reply": CALLS},
    {"reply": CALLS, "fail_after": 8},
    {"reply": CALLS, "stall_after": 12},
    {"reply": CALLS, "max_tokens": 9},
    {},
    {"max_tokens": 5},
    {"fail_after": 0},
    {"fail_after": 4},
    {"stall_after": 4},
    {"drop_after": 4},
    {"max_tokens": 5, "fail_after": 5},
]


async def events_before_a_stall(**options: Any) -> list[Any]:
    """The events of an answer up to a stall; a failure is its message."""
    events: list[Any] = []
    stalls = options.get("stall_after")
    try:
        async for event in tokens(**{"reply": "a b c d e f g h", **QUICK, **options}):
            events.append(event)
            if stalls is not None and options.get("after", 0) + len(events) == stalls:
                break
    except StreamError as error:
        events.append(str(error))
    return events


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_restarted_answer_has_the_same_rest_and_the_same_end(fault: dict[str, Any]) -> None:
    whole = await events_before_a_stall(**fault)
    for after in range(len(whole)):
        assert await events_before_a_stall(**fault, after=after) == whole[after:]
    if "stall_after" not in fault:
        assert await events_before_a_stall(**fault, after=len(whole)) == []


def whole(events: list[Any]) -> dict[Any, Any]:
    """An answer from its pieces: its texts by kind, and its tool calls by index."""
    answer: dict[Any, Any] = {}
    for message in (event["message"] for event in events):
        for kind in ("reasoning", "content"):
            answer[kind] = answer.get(kind, "") + message.get(kind, "")
        for call in message.get("tool_calls", ()):
            function = call["function"]
            id_, name, begin = answer.get(call["index"]) or (call["id"], function["name"], "")
            answer[call["index"]] = (id_, name, begin + function["arguments"])
    return answer


async def test_an_answer_of_every_kind_is_counted_and_joined() -> None:
    single = await events_before_a_stall(reply=CALLS)
    together = await events_before_a_stall(reply=CALLS, every=10)
    assert single[-1]["eval_count"] == len(single) - 1
    assert single[-1]["reasoning_eval_count"] == 3
    assert single[-1]["done_reason"] == "tool_calls"
    assert len(together) < len(single) / 2
    assert (
        whole(together)
        == whole(single)
        == {
            "reasoning": "Hm, rain",
            "content": "I look.",
            0: ("call_1_0", "weather", '{"city":"Ulm"}'),
            1: ("call_1_1", "news", "{oops"),
        }
    )
    assert {**together[-1], "message": None} == {**single[-1], "message": None}


async def test_an_answer_cut_in_a_tool_call_ends_with_the_reason_length() -> None:
    events = await events_before_a_stall(reply=CALLS, max_tokens=9)
    assert events[-1]["done_reason"] == "length"
    assert "tool_calls" in events[-2]["message"]


@pytest.mark.parametrize("fault", [{}, {"max_tokens": 5}, {"max_tokens": 1}, {"fail_after": 4}])
async def test_joined_tokens_have_the_same_text_and_the_same_end(fault: dict[str, Any]) -> None:
    single = await events_before_a_stall(**fault)
    together = await events_before_a_stall(**fault, every=10)
    ends = [events.pop() for events in (single, together) if fault.get("fail_after")]
    assert len(together) == 2
    assert together[0] == single[0]
    assert text_of(together) == text_of(single)
    assert ends[1:] == ends[:1]
    if not ends:
        assert {**together[-1], "message": None} == {**single[-1], "message": None}


def test_50_tokens_a_second_joined_at_50_ms_are_less_than_half_of_the_events() -> None:
    async def answer(every: float) -> list[tuple[float, Any]]:
        clock = asyncio.get_running_loop().time
        events = tokens(reply="a " * 500, tokens_per_second=50, first_token=0.3, every=every)
        return [(clock(), event) async for event in events]

    single, together = (run_in_virtual_time(answer(every)) for every in (0, 0.05))
    assert text_of([event for _, event in together]) == "a " * 500
    assert len(together) < len(single) / 2
    assert together[0] == single[0], "the first token comes as early"
    (ended, last), (expected, last_single) = together[-1], single[-1]
    assert ended == expected, "the end comes as early"
    assert {**last, "message": None} == {**last_single, "message": None}


class CountedText(str):
    """A text of the request; `work` counts what is read of all of them."""

    work = 0

    def __iter__(self) -> Iterator[str]:
        for char in str.__iter__(self):
            CountedText.work += 1
            yield char

    def __getitem__(self, key: Any) -> str:
        part = str.__getitem__(self, key)
        CountedText.work += len(part) // 4  # It is counted by a regular expression.
        return part


class CountedMessages(list[dict[str, Any]]):
    """The messages of a request, which count as much as a character each."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for message in list.__iter__(self):
            CountedText.work += 1
            yield message


async def longest_step(events: AsyncIterator[Any]) -> int:
    """The most characters and messages that a source reads between two turns of the loop."""
    longest, before = 0, CountedText.work

    async def watch() -> None:
        nonlocal longest, before
        while True:
            longest = max(longest, CountedText.work - before)
            before = CountedText.work
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with anyio.fail_after(50):
            async for _ in events:
                pass
        group.cancel_scope.cancel()
    return max(longest, CountedText.work - before)


LONG = "word, " * 50_000


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": CountedText(LONG)},
        {"prompt": CountedText("a" * len(LONG))},
        {"messages": [{"role": "user", "content": CountedText(LONG)}]},
        {"messages": [{"role": "tool", "content": CountedText(LONG)}]},
        {"messages": [{"content": CountedMessages({"text": ""} for _ in range(100_000))}]},
        {"messages": CountedMessages({} for _ in range(100_000))},
        {"reply": CountedText(LONG), "after": 90_000, "max_tokens": 90_010},
        {"reply": CountedText("e\u0301" * len(LONG)), "after": 8_000, "max_tokens": 8_010},
    ],
)
async def test_no_step_of_the_mock_is_long(arguments: dict[str, Any]) -> None:
    events = tokens(**{**QUICK, "max_tokens": 10, **arguments})
    assert 0 < await longest_step(events) < 4 * TURN


async def test_a_long_reply_is_not_cut_before_it_is_sent() -> None:
    reply = CountedText(LONG)
    before = CountedText.work
    async with aclosing(cast(AsyncGenerator[Any, None], tokens(reply=reply, **QUICK))) as events:
        await anext(events)
    assert CountedText.work - before < TURN


async def test_only_an_answer_of_single_tokens_can_be_continued_by_another_worker() -> None:
    for arguments, restartable in (({}, True), ({"every": 0.0}, True), ({"every": 0.05}, False)):
        job = await tokens.job(arguments, None, policy=Policy())
        assert (job.arguments is not None) is restartable
        assert (job.fingerprint is not None) is restartable


async def test_fail_after_fails_the_run_after_so_many_tokens() -> None:
    async with client_of(Streams([tokens])) as client:
        for count in (0, 3):
            events = await every_event(client, f"/streams/tokens?{QUERY}&fail_after={count}")
            assert len(events) == count + 2
            assert events[-1].event == "end"
            assert events[-1].json() == {
                "status": "failed",
                "error": {
                    "type": "StreamError",
                    "message": f"the mock failed after {count} tokens, as requested",
                },
            }


async def test_the_heartbeat_continues_during_a_stall() -> None:
    def heartbeats_after_two_pieces(stream: Connection) -> bool:
        events, _, rest = stream.body.rpartition(b"\n\n")
        return events.count(b'"content"') == 2 and rest.startswith(b":\n:\n:\n")

    async with (
        serving(Streams([tokens], heartbeat=0.01)) as url,
        connection(url, f"/streams/tokens?{QUERY}&stall_after=2") as stream,
    ):
        await stream.until(heartbeats_after_two_pieces, "three heartbeats after two pieces")


@pytest.mark.parametrize(("status", "retry_after"), [(429, "1"), (503, "1"), (401, None)])
async def test_status_refuses_the_request_before_the_stream_starts(
    status: int, retry_after: str | None
) -> None:
    async with client_of(Streams([tokens])) as client:
        response = await client.get(f"/streams/tokens?status={status}")
        assert response.status_code == status
        assert response.headers.get("retry-after") == retry_after
        assert response.json()["detail"] == f"the mock refuses with status {status}, as requested"


@pytest.mark.parametrize("count", [0, 1, 30])
async def test_a_resume_after_a_dropped_connection_is_not_dropped_again(count: int) -> None:
    streams = Streams([tokens])
    path = f"/streams/tokens?{QUERY}&drop_after={count}"
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, path) as stream:
            await stream.to_the_end()
        assert not stream.terminated
        assert stream.body.count(b'"content"') == count
        assert stream.body.endswith(b"\n\n")
        run = stream.run
        rest = await every_event(client, path, f"{run}.{count}")
        whole = await every_event(client, f"/runs/{run}")
        assert [event.data for event in whole[count + 1 :]] == [event.data for event in rest]
        assert whole[-1].json() == {"status": "completed"}
        assert streams.runs.health()["runs"] == 1


async def test_the_run_continues_after_its_connection_is_dropped() -> None:
    streams = Streams([tokens])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, f"/streams/tokens?{QUERY}&drop_after=2") as stream:
            await stream.to_the_end()
        log = await streams.runs.find(stream.run, None)
        await until(lambda: log.status == "completed", "the run is completed")
        state = await client.get(f"/runs/{stream.run}", headers={"Accept": "application/json"})
        assert state.json()["last_event"] > 50


async def test_drop_after_works_in_an_endpoint_of_the_users() -> None:
    streams = Streams()

    async def answer(request: Request) -> Response:
        events = tokens(request=request, drop_after=2, **QUICK)
        return streams.response(request, events)

    app = Starlette(routes=[Route("/answer", answer)])
    async with serving(app) as url, connection(url, "/answer") as stream:
        await stream.to_the_end()
        assert not stream.terminated
        assert stream.body.count(b'"content"') == 2


async def test_drop_after_counts_reasoning_and_fragments_of_tool_calls() -> None:
    body = {**QUICK, "reply": msgspec.to_builtins(CALLS), "drop_after": 12}
    got = b""
    async with serving(Streams([tokens])) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/streams/tokens", json=body) as response:
            with suppress(httpx.RemoteProtocolError):
                async for part in response.aiter_bytes():
                    got += part
    assert got.count(b'"done":false') == 12
    assert got.count(b'"tool_calls"') > 3


async def test_drop_after_beyond_the_end_drops_nothing() -> None:
    path = f"/streams/tokens?{QUERY}&reply=Yes&drop_after=100"
    async with serving(Streams([tokens])) as url, connection(url, path) as stream:
        await stream.until(lambda stream: stream.terminated, "the body is complete")


@pytest.mark.parametrize(
    ("name", "below", "least", "most", "above"),
    [
        ("tokens_per_second", 0, 0.1, 10_000, 10_001),
        ("jitter", -0.1, 0, 1, 1.1),
        ("every", -0.1, 0, 10, 10.1),
        ("max_tokens", 0, 1, 10**6, 10**6 + 1),
        ("fail_after", -1, 0, 10**6, 10**6 + 1),
        ("status", 399, 400, 599, 600),
        ("temperature", -0.1, 0, 2, 2.1),
    ],
)
def test_the_parameters_of_tokens_have_bounds(
    name: str, below: float, least: float, most: float, above: float
) -> None:
    check_bounds(tokens, name, below, least, most, above)
