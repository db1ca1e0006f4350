"""guard.py and access.py: guards that decide by the arguments of a run."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import HTTPException
from msgspec import Meta
from starlette.requests import Request

from streams import Source, StreamError, Streams, source, topic
from tests.support.servers import ROOT, client_of, connection, serving, until
from tests.test_access import ANN, BOB, by_header
from tests.test_asgi import problem

LOST = "x" * 22 + ".1"  # an event of a run that nobody knows


def own(request: Request, arguments: Any) -> None:
    if arguments["user"] != by_header(request):
        raise HTTPException(403, f"not yours: {sorted(arguments.items())}")


async def own_slowly(request: Request, arguments: Any) -> None:
    await asyncio.sleep(0)
    own(request, arguments)


def private(guard: Any) -> Source[..., Any]:
    @source(guard=guard)
    async def notes(user: str = "bob", size: Annotated[int, Meta(ge=1)] = 1) -> AsyncIterator[str]:
        yield f"only for {user}"
        await asyncio.Event().wait()

    return notes


def movable(guard: Any) -> Source[..., Any]:
    @source(guard=guard)
    async def notes(user: str = "bob", size: int = 1, *, after: int = 0) -> AsyncIterator[str]:
        if not after:
            yield f"only for {user}"
        await asyncio.Event().wait()

    return notes


def shared(guard: Any) -> Source[..., Any]:
    return source(shared=True, guard=guard)(private(guard).function)


def a_topic(guard: Any) -> Source[..., Any]:
    @topic(guard=guard)
    def notes(user: str = "bob", size: int = 1) -> None: ...

    return notes


@pytest.fixture(params=[None, "redis", "sqlite"])
def log_url(request: pytest.FixtureRequest) -> str | None:
    return request.param and str(request.getfixturevalue(f"{request.param}_url"))


@pytest.mark.parametrize("kind", [private, movable, shared, a_topic])
@pytest.mark.parametrize("guard", [own, own_slowly], ids=["sync", "async"])
async def test_a_guard_gets_the_arguments_of_the_run_wherever_the_request_reaches_it(
    kind: Any, guard: Any, log_url: str | None
) -> None:
    """Bob's are the defaults, so a guard that got those instead would let him in."""
    one = Streams([kind(guard)], log=log_url)
    other = Streams([kind(guard)], log=log_url) if log_url else one
    async with (
        serving(one) as url,
        serving(other) as other_url,
        httpx.AsyncClient(base_url=url) as client,
        httpx.AsyncClient(base_url=other_url) as elsewhere,
    ):
        if kind is a_topic:
            await one.publish("notes", "only for ann", user="ann")

        async def refused(method: str, path: str, **options: Any) -> None:
            headers = {**BOB, **options.pop("headers", {})}
            for each in (client, elsewhere):
                answer = await each.request(method, path, headers=headers, **options)
                if method == "HEAD":
                    assert answer.status_code == 403
                else:
                    expected = "not yours: [('size', 1), ('user', 'ann')]"
                    assert problem(answer, 403) == expected

        before = len(one.log)
        await refused("GET", "/streams/notes?user=ann")
        await refused("HEAD", "/streams/notes?user=ann")
        await refused("POST", "/streams/notes", json={"user": "ann"})
        assert len(one.log) == before
        user = "X-User: ann\r\n"
        async with connection(url, "/streams/notes?user=ann", headers=user) as stream:
            await stream.until(lambda s: b"only for ann" in s.body, "Ann has the first event")
            run = f"/runs/{stream.run}"

            async def nobody_else_has_it() -> None:
                last = {"Last-Event-ID": f"{stream.run}.1"}
                await refused("GET", "/streams/notes?user=ann", headers=last)
                await refused("POST", "/streams/notes", json={"user": "ann"}, headers=last)
                for method in ("GET", "HEAD", "POST"):
                    options: dict[str, Any] = {"json": {}} if method == "POST" else {}
                    await refused(method, "/streams/notes", headers=last, **options)
                mixed = await elsewhere.get("/streams/notes?user=bob", headers={**BOB, **last})
                assert "has other parameters" in problem(mixed, 422)
                for path in (run, f"{run}?user=bob"):
                    for headers in ({}, last, {"Accept": "application/json"}):
                        await refused("GET", path, headers=headers)
                    await refused("HEAD", path)
                    await refused("DELETE", path)

            await nobody_else_has_it()
            for path in ("/streams/notes", run):
                again = f"{user}Last-Event-ID: {stream.run}.0\r\n"
                async with connection(other_url, path, headers=again) as device:
                    await device.until(lambda s: b"only for ann" in s.body, "Ann resumes it")
            if kind is a_topic:
                await one.end("notes", user="ann")
            else:
                await other.runs.stop(stream.run)
            await stream.until(lambda s: b"event: end" in s.body, "the run has ended")
            await nobody_else_has_it()
            state = {**ANN, "Accept": "application/json"}
            assert (await elsewhere.get(run, headers=state)).json()["source"] == "notes"


@pytest.mark.parametrize("kind", [shared, a_topic])
async def test_who_resumes_a_lost_shared_run_is_asked_about_the_one_that_is_joined(
    kind: Any,
) -> None:
    async with client_of(Streams([kind(own)])) as client:
        last = {"Last-Event-ID": LOST}
        query = {"user": "ann"}
        answer = await client.get("/streams/notes", params=query, headers={**BOB, **last})
        assert "('user', 'ann')" in problem(answer, 403)
        answer = await client.get("/streams/notes", headers={**ANN, **last})
        assert "('user', 'bob')" in problem(answer, 403), "the defaults"


async def test_who_resumes_a_lost_shared_run_without_required_parameters_gets_a_422() -> None:
    @source(shared=True, guard=own)
    async def notes(user: str) -> AsyncIterator[str]:
        yield user

    async with client_of(Streams([notes])) as client:
        answer = await client.get("/streams/notes", headers={"Last-Event-ID": LOST})
        assert "user: is required" in problem(answer, 422)
        answer = await client.head("/streams/notes", headers={"Last-Event-ID": LOST})
        assert answer.status_code == 422


async def test_parameters_are_checked_before_a_guard_gets_them() -> None:
    asked: list[dict[str, Any]] = []

    def guard(request: Request, arguments: Any) -> None:
        asked.append(dict(arguments))
        arguments["size"] = 99  # It has a copy.

    async with client_of(Streams([shared(guard)])) as client:
        problem(await client.get("/streams/notes?size=0"), 422)
        problem(await client.post("/streams/notes", json={"size": "1"}), 422)
        assert asked == []
        async with asyncio.timeout(10):
            async with client.stream("GET", "/streams/notes?size=7") as first:
                async with client.stream("POST", "/streams/notes", json={"size": 7}) as second:
                    assert first.headers["content-location"] == second.headers["content-location"]
        assert asked == [{"user": "bob", "size": 7}] * 2


async def test_a_guard_of_a_model_gets_its_arguments() -> None:
    def guard(request: Request, arguments: Any) -> None:
        if arguments["prompt"] != by_header(request):
            raise StreamError("not yours", status=403)

    @source(guard=guard)
    async def model(prompt: str, size: int = 1) -> AsyncIterator[str]:
        yield prompt

    streams = Streams(models={"m": model})
    body = {"model": "m", "messages": [{"role": "user", "content": "ann"}]}
    async with client_of(streams) as client:
        refused = await client.post("/v1/chat/completions", json=body, headers=BOB)
        assert (refused.status_code, "not yours" in refused.text) == (403, True)
        answer = await client.post("/v1/chat/completions", json=body, headers=ANN)
        assert answer.status_code == 200
        ((log),) = await streams.runs.list()
        assert problem(await client.get(log.info.path, headers=BOB), 403) == "not yours"
        assert (await client.get(log.info.path, headers=ANN)).status_code == 200


async def test_a_list_has_the_runs_of_which_the_guard_lets_the_request_see_the_arguments(
    log_url: str | None,
) -> None:
    asked: list[str] = []

    def guard(request: Request, arguments: Any) -> None:
        asked.append(arguments["user"])
        own(request, arguments)

    @source(guard=guard)
    async def notes(user: str = "bob") -> AsyncIterator[str]:
        yield user

    streams = Streams([notes], log=log_url, identity=lambda request: "everybody")
    async with client_of(streams) as client:
        for user in ("ann", "bob", "ann", "cy"):
            path = f"/streams/notes?user={user}"
            assert (await client.get(path, headers={"X-User": user})).status_code == 200
        all_runs = await streams.runs.list()
        ann = [all_runs[1].info.run, all_runs[3].info.run]
        asked.clear()
        listed = (await client.get("/runs?source=notes&limit=4", headers=ANN)).json()
        assert ([run["run"] for run in listed["runs"]], listed["next"]) == (ann, None)
        assert sorted(asked) == ["ann", "bob", "cy"], "once for the same arguments"
        page = (await client.get("/runs?limit=1", headers=ANN)).json()
        assert page["runs"] == [], "a page may have fewer runs than there are"
        page = (await client.get(page["next"], headers=ANN)).json()
        assert [run["run"] for run in page["runs"]] == ann[:1]


@pytest.mark.parametrize("max_threads", [2, 1000])
async def test_the_guards_of_a_list_are_asked_at_the_same_time_a_few_at_a_time(
    max_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of those that may wait at a time lets all go on, so they do wait together."""
    at_once = min(max_threads, 10)
    barrier = threading.Barrier(at_once, timeout=20)
    lists = False

    def guard(request: Request, arguments: Any) -> None:
        if lists:
            barrier.wait()

    @source(guard=guard)
    async def notes(size: int) -> AsyncIterator[int]:
        yield size

    streams = Streams([notes], identity=lambda request: "ann", max_threads=max_threads)
    async with client_of(streams, lifespan="off") as client:
        for size in range(20):
            assert (await client.get(f"/streams/notes?size={size}")).status_code == 200
        lists = True
        assert len((await client.get("/runs", timeout=30)).json()["runs"]) == 20


async def test_the_guards_of_a_list_have_one_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = asyncio.Event()

    async def guard(request: Request, arguments: Any) -> None:
        if lists.is_set():
            await asyncio.Event().wait()

    @source(guard=guard)
    async def notes(size: int) -> AsyncIterator[int]:
        yield size

    streams = Streams([notes], identity=lambda request: "ann")
    async with client_of(streams) as client:
        for size in range(30):
            await client.get(f"/streams/notes?size={size}")
        lists.set()
        waits: list[float] = []
        timeout = asyncio.timeout

        def limit(seconds: float | None) -> asyncio.Timeout:
            waits.append(asyncio.get_running_loop().time())
            return timeout(seconds)

        monkeypatch.setattr("streams.access.asyncio.timeout", limit)
        monkeypatch.setattr("streams.access.ANSWER_SECONDS", 0.05)
        detail = problem(await client.get("/runs"), 504)
        assert detail == "the app's guard= function did not answer within 0.05 s"
        assert len(waits) <= 2 + 10, "three rounds of ten guards would have had a limit each"


async def test_a_list_that_cannot_ask_a_guard_is_a_503() -> None:
    def guard(request: Request) -> None: ...

    @source(guard=guard)
    async def once() -> AsyncIterator[int]:
        yield 1

    streams = Streams([once], identity=lambda request: "ann", max_threads=1)
    async with client_of(streams, lifespan="off") as client:
        assert (await client.get("/streams/once")).status_code == 200
        gate = threading.Event()
        waiting = asyncio.create_task(streams.runs.threads.call(lambda: gate.wait(20), "other"))
        await until(lambda: len(streams.runs.threads) == 1, "the only thread is taken")
        try:
            assert "limit 1" in problem(await client.get("/runs"), 503)
        finally:
            gate.set()
            await waiting


async def test_arguments_for_a_guard_count_in_the_bytes_of_the_log_as_long_as_the_run(
    log_url: str | None,
) -> None:
    @source(guard=own, retain=0.1)
    async def notes(user: str, text: str) -> AsyncIterator[str]:
        yield "a note"

    streams = Streams([notes], log=log_url)
    async with client_of(streams) as client:
        body = {"user": "ann", "text": "x" * 100_000}
        assert (await client.post("/streams/notes", json=body, headers=ANN)).status_code == 200
        assert 100_000 < streams.log.bytes < 102_000
        await until(lambda: not streams.log.bytes, "the run is forgotten", 20)


async def test_a_source_without_such_a_guard_keeps_no_arguments() -> None:
    streams = Streams([private(lambda request: True)])
    async with client_of(streams) as client:
        async with client.stream("GET", "/streams/notes"):
            ((log),) = await streams.runs.list()
            assert log.info.guard_arguments is None


async def test_nobody_has_a_run_whose_arguments_the_guard_does_not_know(sqlite_url: str) -> None:
    """An older version of the source had another guard, or other parameters."""

    @source(name="notes", guard=own)
    async def renamed(user: str, text: str) -> AsyncIterator[str]:
        yield text

    runs = []
    for older in (private(None), private(own)):
        async with client_of(Streams([older], log=sqlite_url)) as client:
            async with client.stream("GET", "/streams/notes?user=ann", headers=ANN) as stream:
                runs.append(stream.headers["content-location"])
    async with client_of(Streams([renamed], log=sqlite_url)) as client:
        for run in runs:
            detail = problem(await client.get(run, headers=ANN), 403)
            assert "is of another version of source notes, whose guard cannot say" in detail


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_guard_of_publishers_gets_the_parameters_of_the_topic(kind: str) -> None:
    publish: Any = own if kind == "sync" else own_slowly
    async with client_of(Streams([a_topic(None)], publish=publish)) as client:
        answer = await client.post("/topics/notes?user=ann", json=1, headers=BOB)
        assert problem(answer, 403) == "not yours: [('size', 1), ('user', 'ann')]"
        problem(await client.post("/topics/notes?usr=ann", json=1, headers=ANN), 422)
        problem(await client.post("/topics/unknown", json=1, headers=ANN), 404)
        answer = await client.post("/topics/notes?user=ann", json=1, headers=ANN)
        assert answer.status_code == 200
        assert (await client.post("/topics/notes", json=1, headers=BOB)).status_code == 200


async def test_the_example_of_a_guard_with_arguments_lets_only_its_user_in() -> None:
    text = (ROOT / "docs/access.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (block,) = [block for block in blocks if 'arguments["user"] !=' in block]
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, "example", "exec"), namespace)
    streams: Streams = namespace["streams"]
    async with client_of(streams) as client:
        published = await streams.publish("notifications", 1, user="ann")
        for path in ("/streams/notifications?user=ann", f"/runs/{published.partition('.')[0]}"):
            assert problem(await client.get(path), 403) == "these are not yours"
            async with client.stream("GET", path, headers={"Cookie": "session=s-1"}) as stream:
                assert stream.status_code == 200


class Methods:
    def one(self, request: Request) -> None: ...

    async def two(self, request: Request, arguments: Any) -> None: ...

    def __call__(self, request: Request, arguments: Any) -> None: ...


def with_default(request: Request, database: str = "users.db") -> None: ...


def anything(*given: Any) -> None: ...


@pytest.mark.parametrize(
    ("guard", "takes"),
    [
        (lambda request: None, False),
        (lambda request, arguments: None, True),
        (Methods().one, False),
        (Methods().two, True),
        (Methods(), True),
        (with_default, False),
        (anything, False),
        (print, False),
    ],
)
def test_a_second_parameter_without_a_default_is_for_the_arguments(guard: Any, takes: bool) -> None:
    assert private(guard).guard_takes_arguments is takes
    assert a_topic(guard).guard_takes_arguments is takes


@pytest.mark.parametrize("guard", [lambda: None, lambda a, b, c: None, lambda request, *, user: 1])
def test_a_guard_with_other_parameters_is_a_type_error(guard: Any) -> None:
    what = r"write guard\(request\) or guard\(request, arguments\), not <function .* with \("
    for declare in (private, a_topic):
        with pytest.raises(TypeError, match=r"guard= of source 'notes' takes the request.*" + what):
            declare(guard)
    with pytest.raises(TypeError, match=r"publish= of Streams takes the request.*" + what):
        Streams(publish=guard)
