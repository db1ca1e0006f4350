"""Keys: requests with one Idempotency-Key are one run, with memory and with many workers."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Message

from streams import MemoryLog, Policy, Source, StreamError, Streams, source
from streams.errors import Unavailable
from streams.job import Job
from streams.runs import Runs
from streams.sources import clock, counter
from tests.log.shared.workers import workers
from tests.support.servers import client_of, connection, every_event, serving, until
from tests.test_asgi import ByHeader, problem

KEY = "6f8a1c52-7d3e-4b90"
ASK = {"Idempotency-Key": KEY}


class Answers:
    """A source that counts its runs and waits for a gate between its two words."""

    def __init__(self, **policy: Any) -> None:
        self.runs = 0
        self.gate = asyncio.Event()

        @source(name="answer", **policy)
        async def answer(prompt: str = "") -> AsyncIterator[str]:
            self.runs += 1
            yield f"to {prompt}"
            await self.gate.wait()
            yield "the end"

        self.source: Source[..., Any] = answer


def run_of(response: httpx.Response) -> str:
    """The run of a response that was read to its end."""
    assert response.status_code == 200, response.text
    return response.headers["content-location"].rpartition("/")[2]


async def test_three_posts_whose_answers_were_lost_are_one_run() -> None:
    answers = Answers()
    runs = set()
    body = 'Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"prompt":"Hi"}'
    async with serving(Streams([answers.source])) as url:
        for _ in range(3):
            headers = f"Idempotency-Key: {KEY}\r\n{body}"
            async with connection(url, "/streams/answer", method="POST", headers=headers) as stream:
                await stream.until(lambda stream: b"to Hi" in stream.body, "the answer has begun")
                runs.add(stream.run)
        answers.gate.set()
        async with httpx.AsyncClient(base_url=url) as client:
            path = f"/streams/answer?idempotency_key={KEY}"
            events = await every_event(client, path, method="POST", json={"prompt": "Hi"})
    assert [event.data for event in events[1:]] == [
        '"to Hi"',
        '"the end"',
        '{"status":"completed"}',
    ]
    assert {events[0].json()["run"]} == runs
    assert answers.runs == 1


async def test_a_key_attaches_from_the_start_of_its_run_or_after_the_last_event_id() -> None:
    async with client_of(Streams([counter])) as client:
        url = "/streams/counter?count=2&interval=0"
        first = (await client.get(url, headers=ASK)).text
        again = await client.get(url, headers=ASK)
        assert again.text.partition("\n")[2] == first.partition("\n")[2]
        last = {**ASK, "Last-Event-ID": f"{run_of(again)}.1"}
        assert (await client.get(url, headers=last)).text.count("\ndata: ") == 2
        last = {**ASK, "Last-Event-ID": f"{run_of(again)}.3"}
        assert (await client.get(url, headers=last)).status_code == 204
        other = {"Idempotency-Key": uuid.uuid4().hex, "Last-Event-ID": f"{run_of(again)}.1"}
        assert "does not have the key" in problem(await client.get(url, headers=other), 410)


@pytest.mark.parametrize(
    "given",
    [
        {"headers": {"Idempotency-Key": f'"{KEY}"'}},
        {"headers": {"Idempotency-Key": f'"{KEY}";version=1'}},
        {"params": {"idempotency_key": KEY}},
        {"params": {"idempotency_key": f'"{KEY}"'}},
    ],
)
async def test_a_key_may_be_quoted_and_may_be_in_the_query(given: dict[str, Any]) -> None:
    async with client_of(Streams([counter])) as client:
        params = {"count": "1", **given.pop("params", {})}
        first = await client.get("/streams/counter?count=1", headers=ASK)
        again = await client.get("/streams/counter", params=params, **given)
    assert run_of(again) == run_of(first)


async def test_white_space_around_a_header_is_not_part_of_the_key() -> None:
    runs = set()
    async with serving(Streams([counter])) as url:
        for value in (KEY, f"{KEY} \t", f'"{KEY}" '):
            headers = f"Idempotency-Key:  {value}\r\n"
            async with connection(url, "/streams/counter?count=0", headers=headers) as stream:
                await stream.until(lambda stream: stream.terminated, "the stream has ended")
                runs.add(stream.run)
    assert len(runs) == 1


async def test_a_quoted_key_may_contain_escaped_quotes_and_backslashes() -> None:
    async with client_of(Streams([counter])) as client:
        bare, quoted = r"sixteen \ and q\"uote" + "s", r'"sixteen \\ and q\\\"uotes"'
        runs = [
            run_of(await client.get("/streams/counter?count=0", headers={"Idempotency-Key": key}))
            for key in (bare, quoted)
        ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "has 1 to 256 characters, not 0; send for example a UUID"),
        ('""', "has 1 to 256 characters, not 0; send for example a UUID"),
        ("x" * 257, "has 1 to 256 characters, not 257; send for example a UUID"),
        ('"' + "x" * 1024, "has 1 to 256 characters, not 1025; send for example a UUID"),
        ('"' + "x" * 1023, 'send it as "…"'),
        ("sixteen letters ä", "other characters than printable ASCII; send for example a UUID"),
        ("sixteen\tletters", "other characters than printable ASCII; send for example a UUID"),
        ('"sixteen letters of it', 'send it as "…"'),
        ('"sixteen letters" of it', 'send it as "…"'),
        (r'"sixteen \letters of it"', 'send it as "…"'),
        ("x" * 15, "send 16 random ones or more"),
        ("x" * 16, None),
        ("x" * 256, None),
    ],
)
@pytest.mark.parametrize("place", ["header", "query"])
async def test_an_invalid_key_is_a_422_that_says_what_to_do(
    key: str, reason: str | None, place: str
) -> None:
    streams = Streams([counter])
    async with client_of(streams) as client:
        url = "/streams/counter"
        given: dict[str, Any] = {"headers": {"Idempotency-Key": key.encode("latin-1")}}
        if place == "query":
            given = {"params": {"idempotency_key": key}}
        response = await client.post(url, json={"count": 0}, **given)
        if reason is None:
            assert response.status_code == 200
        else:
            assert reason in problem(response, 422)
            assert len(streams.log) == 0


async def test_two_keys_in_one_request_are_a_422() -> None:
    async with client_of(Streams([counter])) as client:
        two = [("Idempotency-Key", KEY), ("Idempotency-Key", f"{KEY}2")]
        assert "2 Idempotency-Key headers" in problem(
            await client.get("/streams/counter", headers=two), 422
        )


async def test_a_key_with_other_parameters_is_a_422() -> None:
    async with client_of(Streams([counter])) as client:
        first = await client.post("/streams/counter", json={"count": 1}, headers=ASK)
        same = await client.post("/streams/counter", json={"count": 1, "start": 0}, headers=ASK)
        assert run_of(same) == run_of(first)
        for other in ({"count": 2}, {}):
            response = await client.post("/streams/counter", json=other, headers=ASK)
            assert "other parameters" in problem(response, 422)


async def test_a_key_is_one_of_its_source_and_its_user() -> None:
    @source(name="other")
    async def other() -> AsyncIterator[int]:
        yield 1

    app = Starlette(
        routes=[Mount("/", Streams([counter, other]))],
        middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())],
    )
    async with client_of(app) as client:
        runs = []
        for user in ("ann", "bob", None):
            for name in ("counter?count=1", "other"):
                headers = ASK if user is None else {**ASK, "X-User": user}
                runs += [
                    run_of(await client.get(f"/streams/{name}", headers=headers)) for _ in range(2)
                ]
        short = {"X-User": "ann", "Idempotency-Key": "1"}
        assert (await client.get("/streams/other", headers=short)).status_code == 200
    assert len(set(runs)) == 6
    assert runs[::2] == runs[1::2]


async def test_a_refused_opening_frees_the_key_and_a_failed_run_is_replayed() -> None:
    attempts: list[str] = []

    @source
    async def fails(how: str) -> AsyncIterator[int]:
        attempts.append(how)
        if how == "refused" and len(attempts) == 1:
            raise StreamError("not yet", status=429)
        yield 1
        raise StreamError("half an answer")

    async with client_of(Streams([fails])) as client:
        refused = await client.get("/streams/fails?how=refused", headers=ASK)
        assert problem(refused, 429) == "not yet"
        runs = [await client.get("/streams/fails?how=refused", headers=ASK) for _ in range(2)]
        assert run_of(runs[0]) == run_of(runs[1])
        assert all("half an answer" in run.text for run in runs)
    assert len(attempts) == 2


async def test_a_run_that_ended_for_want_of_a_reader_frees_the_key() -> None:
    answers = Answers(linger=0.05)
    streams = Streams([answers.source])
    async with serving(streams) as url:
        path = f"/streams/answer?idempotency_key={KEY}"
        async with connection(url, path) as stream:
            await stream.until(lambda stream: b"to " in stream.body, "the answer has begun")
            first = stream.run
        log = await streams.log.find(first)
        await until(lambda: log.status == "cancelled", "the run is cancelled", 10)
        async with httpx.AsyncClient(base_url=url) as client:
            events = await every_event(client, f"/runs/{first}")
            assert events[-1].json() == {"status": "cancelled", "reason": "no reader"}
            answers.gate.set()
            again = await client.get(path)
            assert run_of(again) != first
            assert run_of(await client.get(path)) == run_of(again)
    assert answers.runs == 2


async def test_a_run_that_a_shutdown_has_ended_frees_its_key(
    sqlite_url: str,
) -> None:
    answers = Answers()
    async with serving(Streams([answers.source], log=sqlite_url), lifespan="on") as url:
        async with connection(url, f"/streams/answer?idempotency_key={KEY}") as stream:
            await stream.until(lambda stream: b"to " in stream.body, "the answer has begun")
    answers.gate.set()
    async with serving(Streams([answers.source], log=sqlite_url), lifespan="on") as url:
        async with httpx.AsyncClient(base_url=url) as client:
            events = await every_event(client, f"/streams/answer?idempotency_key={KEY}")
    assert events[-1].json() == {"status": "completed"}
    assert answers.runs == 2


async def test_a_run_that_was_stopped_keeps_its_key() -> None:
    answers = Answers()
    async with client_of(Streams([answers.source])) as client:
        async with client.stream("GET", "/streams/answer", headers=ASK) as response:
            path = response.headers["content-location"]
            assert (await client.delete(path)).status_code == 204
        events = await every_event(client, f"/streams/answer?idempotency_key={KEY}")
    assert events[-1].json() == {"status": "cancelled", "reason": "stopped"}


async def test_head_starts_nothing_with_a_key_either() -> None:
    streams = Streams([counter])
    async with client_of(streams) as client:
        assert (await client.head("/streams/counter", headers=ASK)).status_code == 200
    assert len(streams.log) == 0


async def test_the_viewers_of_a_shared_run_need_not_have_its_key() -> None:
    async with serving(Streams([clock])) as url:
        runs = set()
        for headers in ("", f"Idempotency-Key: {KEY}\r\n", f"Idempotency-Key: {KEY}2\r\n"):
            async with connection(url, "/streams/clock", headers=headers) as stream:
                await stream.until(lambda stream: b"\ndata: " in stream.body, "an event is there")
                runs.add(stream.run)
    assert len(runs) == 1


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_client_that_is_lost_while_a_keyed_run_opens_finds_it_again(
    key: str | None,
) -> None:
    """A server that cancels the request of a lost client, such as hypercorn, ends a run without a
    key; one with a key has the whole `linger`, and the source is opened once.
    """
    gate, openings, closed = asyncio.Event(), 0, 0

    @source
    async def slow() -> Any:
        nonlocal openings, closed
        openings += 1
        try:
            await gate.wait()
        except asyncio.CancelledError:
            closed += 1
            raise
        return numbers()

    async def numbers() -> AsyncIterator[int]:
        yield 1

    streams = Streams([slow])
    query = f"idempotency_key={key}".encode() if key else b""
    sent: list[Message] = []

    async def ask() -> None:
        path = {"path": "/streams/slow", "raw_path": b"/streams/slow", "query_string": query}
        scope = {"type": "http", "method": "GET", "headers": [], **path}

        async def send(message: Message) -> None:
            sent.append(message)

        await streams(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]

    async with streams:
        lost = asyncio.create_task(ask())
        await until(lambda: openings == 1, "the source opens")
        lost.cancel()
        await asyncio.wait([lost])
        again = asyncio.create_task(ask())
        await until(lambda: closed == (key is None), "the first opening goes on, or not")
        gate.set()
        await asyncio.wait_for(again, 5)
    assert openings == (1 if key else 2)
    assert b"data: 1\n" in b"".join(message.get("body", b"") for message in sent)


async def test_a_run_that_the_log_loses_while_it_opens_is_started_again_by_who_waits_for_it() -> (
    None
):
    """Not by who started it, since an iterator that has begun cannot begin again."""
    log, gate, openings = MemoryLog(), asyncio.Event(), []
    runs = Runs(log, {})

    def job(name: str) -> Job:
        async def open_source() -> Any:
            openings.append(name)
            await gate.wait()
            return counter(count=1)

        return Job(source="s", policy=Policy(), open=open_source, key=KEY)

    first, second = [asyncio.ensure_future(runs.start(job(name))) for name in ("first", "second")]
    await until(lambda: len(runs._waiting) == 2, "both wait")
    (lost,) = log.runs
    await log.discard(lost.info.run)
    with pytest.raises(Unavailable, match="lost the run before it opened; try again"):
        await asyncio.wait_for(first, 5)
    gate.set()
    assert (await asyncio.wait_for(second, 5)).info.key == KEY
    assert openings == ["first", "second"]
    await runs.aclose()


async def test_two_requests_with_one_key_at_once_are_one_run_on_any_worker(
    store_url: str,
) -> None:
    answers = Answers()
    async with workers(3, store_url, [answers.source]) as urls, httpx.AsyncClient() as client:
        asking = [
            asyncio.create_task(client.get(f"{url}/streams/answer", headers=ASK, timeout=20))
            for url in urls * 3
        ]
        await until(lambda: answers.runs, "a run has started")
        answers.gate.set()
        runs = {run_of(await answer) for answer in asking}
        assert len(runs) == 1
        assert answers.runs == 1
        other = await client.get(f"{urls[1]}/streams/answer?prompt=x", headers=ASK)
        assert "other parameters" in problem(other, 422)


async def test_a_private_run_with_a_key_is_read_and_stopped_on_any_worker(store_url: str) -> None:
    answers = Answers()
    async with workers(2, store_url, [answers.source]) as (one, other):
        path = f"/streams/answer?idempotency_key={KEY}"
        async with connection(one, path) as first, connection(other, path) as second:
            for stream in (first, second):
                await stream.until(lambda stream: b"to " in stream.body, "the answer has begun")
            assert first.run == second.run
            async with httpx.AsyncClient(base_url=other) as client:
                assert (await client.delete(f"/runs/{first.run}")).status_code == 204
            for stream in (first, second):
                await stream.until(lambda stream: b'"stopped"' in stream.body, "it is stopped")
    assert answers.runs == 1


async def test_an_endpoint_of_your_own_names_its_run_with_a_key() -> None:
    streams = Streams()
    calls: list[str] = []
    attached: list[bool] = []

    async def words(prompt: str) -> AsyncIterator[str]:
        calls.append(prompt)
        yield prompt

    async def ask(request: Request) -> Response:
        key, prompt = request.query_params.get("key"), request.query_params["prompt"]
        attached.append(await streams.resumes(request, name="words", key=key))
        return streams.response(
            request, lambda: words(prompt), name="words", key=key, arguments={"prompt": prompt}
        )

    app = Starlette(routes=[Route("/ask", ask), Route("/other", ask), Mount("/live", streams)])
    async with client_of(app) as client:
        first = await client.get("/ask?prompt=a&key=1")
        assert run_of(await client.get("/ask?prompt=a&key=1")) == run_of(first)
        assert attached == [False, True]
        assert run_of(await client.get("/other?prompt=a&key=1")) != run_of(first)
        assert "other parameters" in problem(await client.get("/ask?prompt=b&key=1"), 422)
        last = {"Last-Event-ID": f"{run_of(first)}.0"}
        assert (await client.get("/ask?prompt=a&key=1", headers=last)).status_code == 200
        problem(await client.get("/ask?prompt=b&key=1", headers=last), 422)
        problem(await client.get("/ask?prompt=a&key=2", headers=last), 410)
        assert not attached[-1]
        for _ in range(2):
            await client.get("/ask?prompt=c", headers=ASK)
        assert attached[-2:] == [False, True], "the client's key counts where the app gives none"
        assert calls == ["a", "a", "c"]
        for wrong in ("", "x" * 257):
            assert "1 to 256" in problem(await client.get(f"/ask?prompt=a&key={wrong}"), 422)
        problem(await client.get("/ask?prompt=c", headers={"Idempotency-Key": "short"}), 422)


async def test_a_generator_that_a_key_does_not_need_is_closed_unstarted() -> None:
    streams = Streams()
    closed: list[str] = []

    class Words:
        __name__ = "words"

        def __iter__(self) -> Iterator[str]:
            return iter(["one"])

        def close(self) -> None:
            closed.append("closed")

    async def ask(request: Request) -> Response:
        return streams.response(request, Words(), key="1")

    async with client_of(Starlette(routes=[Route("/", ask)])) as client:
        texts = [(await client.get("/")).text.partition("\n")[2] for _ in range(2)]
    assert texts[0] == texts[1]
    assert closed == ["closed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": uuid.UUID(int=1)}, r"takes text as the key, not UUID\(.*; give str"),
        ({"key": "k", "arguments": object()}, "arguments of response"),
    ],
)
def test_a_key_that_is_no_text_and_arguments_that_json_cannot_hold_are_type_errors(
    options: dict[str, Any], message: str
) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    events: Callable[[], Iterator[int]] = lambda: iter([1])  # noqa: E731
    with pytest.raises(TypeError, match=message):
        Streams().response(request, events, name="x", **options)
