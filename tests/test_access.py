"""access.py: whose a run is, and whom a source lets in, as the app says."""

import asyncio
import gc
import re
import threading
import weakref
from collections.abc import AsyncIterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import HTTPException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import Source, StreamError, Streams, source, topic
from streams.sources import counter
from tests.support.servers import ROOT, client_of, connection, serving, until
from tests.test_asgi import problem

ANN, BOB = {"X-User": "ann"}, {"X-User": "bob"}


def by_header(request: Request) -> str | None:
    return request.headers.get("x-user")


async def slowly_by_header(request: Request) -> str | None:
    await asyncio.sleep(0)
    return by_header(request)


@pytest.mark.parametrize("identity", [by_header, slowly_by_header], ids=["sync", "async"])
async def test_a_run_belongs_to_whom_identity_names(identity: Any) -> None:
    async with client_of(Streams([counter], identity=identity)) as client:
        response = await client.get("/streams/counter?count=1", headers=ANN)
        path = response.headers["content-location"]
        state = {"Accept": "application/json"}
        run = path.rpartition("/")[2]
        for stranger in (BOB, {}):
            assert run in problem(await client.get(path, headers=stranger), 404)
            problem(await client.get(path, headers={**stranger, **state}), 404)
            problem(await client.delete(path, headers=stranger), 404)
            last = {**stranger, "Last-Event-ID": f"{run}.0"}
            problem(await client.get(path, headers=last), 404)
            problem(await client.get("/streams/counter", headers=last), 410)
        last = {**ANN, "Last-Event-ID": f"{run}.0"}
        assert (await client.get("/streams/counter", headers=last)).status_code == 200
        assert (await client.get(path, headers={**ANN, **state})).json()["run"] == run
        assert (await client.delete(path, headers=ANN)).status_code == 204
        anonymous = await client.get("/streams/counter?count=1")
        path = anonymous.headers["content-location"]
        assert (await client.get(path, headers=BOB)).status_code == 200


@pytest.mark.parametrize("user", [SimpleNamespace(), SimpleNamespace(identity=None)])
async def test_a_user_without_an_identity_shares_no_run_with_another(user: Any) -> None:
    user.is_authenticated = True
    streams = Streams([counter])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await streams({**scope, "user": user}, receive, send)

    async with client_of(app) as client:
        response = await client.get("/streams/counter?count=1")
    assert "say who a client is with Streams(identity=…)" in problem(response, 500)
    assert not len(streams.log)


async def test_each_streams_asks_once_for_each_request_who_the_client_is() -> None:
    asked: list[str] = []

    def ask_as(name: str) -> Any:
        async def identity(request: Request) -> str:
            asked.append(name)
            return name

        return identity

    one, other = Streams(identity=ask_as("one")), Streams(identity=ask_as("other"))

    async def words() -> AsyncIterator[str]:
        yield "one"

    async def ask(request: Request) -> Response:
        for streams in (one, other):
            assert not await streams.resumes(request, words)
        await other.resumes(request, words)
        return one.response(request, words())

    async with client_of(Starlette(routes=[Route("/", ask)])) as client:
        run = (await client.get("/")).text.partition('"run":"')[2].partition('"')[0]
    assert asked == ["one", "other"]
    assert (await one.log.find(run)).info.owner == "one"


async def test_an_endpoint_names_the_owner_of_its_run() -> None:
    streams = Streams(identity=by_header)
    resumed: list[bool] = []

    async def words() -> AsyncIterator[str]:
        yield "one"

    async def ask(request: Request) -> Response:
        owner = request.query_params.get("owner")
        resumed.append(await streams.resumes(request, words, owner=owner))
        return streams.response(request, words(), owner=owner)

    app = Starlette(routes=[Route("/ask", ask), Mount("/live", streams)])
    async with client_of(app) as client:
        path = (await client.get("/ask?owner=ann", headers=BOB)).headers["content-location"]
        assert (await client.get(path, headers=ANN)).status_code == 200
        problem(await client.get(path, headers=BOB), 404)
        last = {"Last-Event-ID": f"{path.rpartition('/')[2]}.0"}
        assert (await client.get("/ask?owner=ann", headers=last)).status_code == 200
        problem(await client.get("/ask?owner=bob", headers=last), 410)
        problem(await client.get("/ask", headers=last), 410)
        assert (await client.get("/ask", headers={**ANN, **last})).status_code == 200
        assert resumed == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (HTTPException(401, "log in first", {"WWW-Authenticate": "Bearer"}), 401, "log in first"),
        (StreamError("not now", status=429, retry_after=7), 429, "not now"),
        (ValueError("secret"), 500, "identity= function failed with ValueError; see the server"),
    ],
)
async def test_what_identity_raises_is_the_answer(
    error: Exception, status: int, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def identity(request: Request) -> str | None:
        raise error

    streams = Streams([counter], identity=identity)

    async def ask(request: Request) -> Response:
        assert not await streams.resumes(request, name="x")
        return streams.response(request, iter([1]), name="x")

    app = Starlette(routes=[Route("/ask", ask), Mount("/live", streams)])
    async with client_of(app) as client:
        for path in ("/live/streams/counter", "/live/runs/x", "/ask"):
            response = await client.get(path)
            assert detail in problem(response, status)
            assert "secret" not in response.text
            if status == 401:
                assert response.headers["www-authenticate"] == "Bearer"
            if status == 429:
                assert response.headers["retry-after"] == "7"
    assert len(streams.log) == 0
    assert ("secret" in caplog.text) == (status == 500)


async def test_an_identity_that_does_not_answer_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.access.ANSWER_SECONDS", 0.01)

    async def identity(request: Request) -> str | None:
        await asyncio.Event().wait()
        return None

    async with client_of(Streams([counter], identity=identity)) as client:
        detail = problem(await client.get("/streams/counter"), 504)
    assert "did not answer within 0.01 s" in detail


@pytest.mark.parametrize("owner", ["", 7, "\ud800"])
async def test_a_user_without_a_name_is_an_error_that_says_what_to_give(
    owner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    what = r"with .*; give text, such as str\(user.id\), and None for an anonymous client"
    with pytest.raises(TypeError, match=what):
        Streams().response(request, iter([1]), name="x", owner=owner)
    streams = Streams([counter], identity=lambda request: owner)
    assert not await streams.resumes(request, name="x")
    async with client_of(streams) as client:
        detail = problem(await client.get("/streams/counter"), 500)
    assert "identity= function failed with TypeError; see the server's log" in detail
    assert re.search(what, caplog.text)
    with pytest.raises(TypeError, match="is a function of the request, not 'ann'"):
        Streams(identity="ann")  # type: ignore[arg-type]


async def test_the_key_of_a_client_with_an_identity_may_be_short() -> None:
    @source
    async def once() -> AsyncIterator[int]:
        yield 1

    async with client_of(Streams([once], identity=by_header)) as client:
        key = {"Idempotency-Key": "1"}
        runs = [
            (await client.get("/streams/once", headers={**user, **key})).headers["content-location"]
            for user in (ANN, BOB, ANN)
        ]
        assert "send 16 random" in problem(await client.get("/streams/once", headers=key), 422)
    assert runs[0] == runs[2] != runs[1]


def only_ann(request: Request) -> None:
    if by_header(request) != "ann":
        raise HTTPException(403, "only for Ann")


async def only_ann_slowly(request: Request) -> None:
    await asyncio.sleep(0)
    only_ann(request)


class OnlyAnn:
    async def __call__(self, request: Request) -> None:
        await only_ann_slowly(request)


def guarded(guard: Any, shared: bool = False) -> Source[..., Any]:
    @source(name="guarded", guard=guard, shared=shared)
    async def guarded(count: int = 1) -> AsyncIterator[int]:
        yield count
        await asyncio.Event().wait()

    return guarded


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "guard", [only_ann, only_ann_slowly, OnlyAnn()], ids=["sync", "async", "object"]
)
async def test_a_guard_is_asked_for_everyone_who_starts_reads_resumes_or_stops_a_run(
    guard: Any, shared: bool
) -> None:
    streams = Streams([guarded(guard, shared)])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:

        async def refused(method: str, path: str, **headers: str) -> None:
            response = await client.request(method, path, headers={**BOB, **headers})
            assert problem(response, 403) == "only for Ann"

        await refused("GET", "/streams/guarded")
        assert len(streams.log) == 0
        user = "X-User: ann\r\n"
        async with connection(url, "/streams/guarded", headers=user) as stream:
            await stream.until(lambda stream: b"\ndata: 1\n" in stream.body, "the run has begun")
            path = f"/runs/{stream.run}"
            await refused("GET", "/streams/guarded")
            await refused("GET", "/streams/guarded", **{"Last-Event-ID": f"{stream.run}.0"})
            await refused("GET", path)
            await refused("GET", path, **{"Last-Event-ID": f"{stream.run}.0"})
            await refused("GET", path, Accept="application/json")
            await refused("DELETE", path)
            async with connection(url, path, headers=user) as again:
                await again.until(lambda stream: b"\ndata: 1\n" in stream.body, "Ann reads it")
            stopped = await client.delete(path, headers=ANN)
            assert stopped.status_code == (403 if shared else 204)


async def test_a_guard_comes_before_anything_else_at_the_url_of_its_source() -> None:
    async with client_of(Streams([guarded(only_ann)])) as client:
        for method, options in [
            ("GET", {"params": {"nonsense": "1"}}),
            ("POST", {"content": b"no JSON"}),
            ("GET", {"headers": {"Accept": "text/html"}}),
            ("GET", {"headers": {"Last-Event-ID": "nonsense"}}),
            ("GET", {"headers": {"Idempotency-Key": ""}}),
        ]:
            response = await client.request(method, "/streams/guarded", **options)  # type: ignore[arg-type]
            assert problem(response, 403) == "only for Ann"
        assert (await client.head("/streams/guarded")).status_code == 403


async def test_parameters_of_another_run_do_not_let_a_client_into_this_one() -> None:
    def own(request: Request) -> None:
        if request.query_params.get("room") != request.headers.get("x-user"):
            raise StreamError("not your room", status=403)

    @source(shared=True, guard=own)
    async def rooms(room: str, size: int = 1) -> AsyncIterator[str]:
        yield f"only for {room}"

    async with client_of(Streams([rooms])) as client:
        start = await client.get("/streams/rooms?room=ann", headers=ANN)
        path = start.headers["content-location"]
        for method in ("GET", "DELETE"):
            for state in ({}, {"Accept": "application/json"}):
                spoofed = await client.request(method, f"{path}?room=bob", headers={**BOB, **state})
                assert "has other parameters; give the same ones" in problem(spoofed, 422)
        problem(await client.get(f"{path}?room=ann", headers=BOB), 403)
        problem(await client.get(f"{path}?room=ann&room=bob", headers=BOB), 422)
        for query in ("room=ann", "room=ann&size=1&other=1"):
            response = await client.get(f"{path}?{query}", headers=ANN)
            assert "only for ann" in response.text


async def test_a_guard_is_asked_for_a_model_too() -> None:
    @source(guard=only_ann)
    async def model(prompt: str) -> AsyncIterator[str]:
        yield prompt

    streams = Streams(models={"m": model})
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with client_of(streams) as client:
        response = await client.post("/v1/chat/completions", json=body)
        assert (response.status_code, "only for Ann" in response.text) == (403, True)
        assert len(streams.log) == 0
        response = await client.post("/v1/chat/completions", json=body, headers=ANN)
        assert response.status_code == 200


async def test_a_run_that_its_guard_does_not_show_is_not_listed() -> None:
    asked: list[str] = []

    def guard(request: Request) -> None:
        asked.append(request.url.path)
        if "closed" in request.headers:
            raise StreamError("closed", status=403)

    @source(guard=guard)
    async def sometimes() -> AsyncIterator[int]:
        yield 1

    streams = Streams([counter, sometimes], identity=by_header)

    async def own(request: Request) -> Response:
        return streams.response(request, iter([1]), name="sometimes")

    app = Starlette(routes=[Route("/own", own), Mount("/", streams)])
    async with client_of(app) as client:
        for path in (
            "/streams/counter?count=0",
            "/streams/sometimes",
            "/streams/sometimes",
            "/own",
        ):
            assert (await client.get(path, headers=ANN)).status_code == 200
        asked.clear()

        async def listed(**headers: str) -> list[str]:
            response = await client.get("/runs", headers={**ANN, **headers})
            return [run["source"] for run in response.json()["runs"]]

        assert await listed() == ["sometimes", "sometimes", "sometimes", "counter"]
        assert await listed(closed="yes") == ["sometimes", "counter"], "an endpoint has no guard"
        own_run, *_ = await streams.runs.list()
        response = await client.get(own_run.info.path, headers={**ANN, "closed": "yes"})
        assert response.status_code == 200
    assert asked == ["/runs", "/runs"], "once for each source"


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (HTTPException(401, "log in first", {"WWW-Authenticate": "Bearer"}), 401, "log in first"),
        (StreamError("not now", status=429, retry_after=7), 429, "not now"),
        (ValueError("secret"), 500, "guard= function failed with ValueError; see the server's log"),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_a_guard_raises_is_the_answer(
    error: Exception, status: int, detail: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def guard(request: Request) -> None:
        raise error

    async def slow_guard(request: Request) -> None:
        raise error

    served = guarded(guard if kind == "sync" else slow_guard)
    async with client_of(Streams([served])) as client:
        response = await client.get("/streams/guarded")
        assert detail in problem(response, status)
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
    assert "secret" not in response.text
    assert ("secret" in caplog.text) == (status == 500)


@pytest.mark.parametrize("answer", [None, True, False, "ann"])
async def test_a_guard_that_returns_false_lets_nobody_in(answer: Any) -> None:
    @source(guard=lambda request: answer)
    async def once() -> AsyncIterator[int]:
        yield 1

    async with client_of(Streams([once])) as client:
        response = await client.get("/streams/once")
    if answer is False:
        assert problem(response, 403) == "source once does not let you in"
    else:
        assert response.status_code == 200


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_guard_that_does_not_answer_is_a_504(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.access.ANSWER_SECONDS", 0.01)
    gate = threading.Event()

    def guard(request: Request) -> None:
        gate.wait(20)

    async def slow_guard(request: Request) -> None:
        await asyncio.Event().wait()

    streams = Streams([guarded(guard if kind == "sync" else slow_guard)])
    async with client_of(streams) as client:
        detail = problem(await client.get("/streams/guarded"), 504)
        assert "guard= function did not answer within 0.01 s" in detail
        assert len(streams.log) == 0
        threads = (await client.get("/health")).json()["threads"]
        assert threads == (kind == "sync"), "nothing can end the thread"
        gate.set()
        await until(lambda: len(streams.runs.threads) == 0, "the thread has ended")


async def test_a_sync_guard_has_the_context_of_its_request_and_a_limited_number_of_threads() -> (
    None
):
    user: ContextVar[str] = ContextVar("user")
    seen: list[str] = []
    gate, waiting = threading.Event(), threading.Event()

    def guard(request: Request) -> None:
        seen.append(user.get())
        waiting.set()
        assert gate.wait(20)

    @source(guard=guard)
    async def once() -> AsyncIterator[int]:
        yield 1

    streams = Streams([once], max_threads=1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        user.set("ann")
        await streams(scope, receive, send)

    async with client_of(app, lifespan="off") as client:
        first = asyncio.create_task(client.get("/streams/once"))
        await until(waiting.is_set, "the guard waits")
        assert "limit 1" in problem(await client.get("/streams/once"), 503)
        gate.set()
        assert (await first).status_code == 200
    assert seen == ["ann"]


def test_a_guard_must_be_a_function() -> None:
    what = "guard= of source 'guarded' is a function of the request, not 'ann'"
    with pytest.raises(TypeError, match=what):
        guarded("ann")


async def test_the_recipe_guards_a_whole_mount_in_fastapi() -> None:
    """Run from the page: without the cookie nothing answers, and runs keep their URLs."""
    text = (ROOT / "docs/access.md").read_text()
    (block,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class" in block
    ]
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(block, "recipe", "exec"), namespace)
    async with client_of(namespace["app"]) as client:
        for path in ("/", "/streams", "/streams/counter", "/runs", "/runs/x", "/health"):
            response = await client.get(f"/live{path}")
            assert (response.status_code, response.json()) == (401, {"detail": "log in first"})
        assert (await client.get("/ask")).status_code == 401
        cookie = {"Cookie": "session=s-1"}
        assert (await client.get("/live/health", headers=cookie)).status_code == 200
        asked = await client.get("/ask", headers=cookie)
        path = asked.headers["content-location"]
        assert path.startswith("/live/runs/")
        assert (await client.get(path, headers=cookie)).status_code == 200


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("option", ["guard", "identity", "publish"])
async def test_a_redirect_that_a_function_of_the_app_raises_is_the_answer(
    kind: str, option: str
) -> None:
    def to_login(request: Request) -> None:
        raise HTTPException(303, headers={"Location": "/login"})

    async def to_login_slowly(request: Request) -> None:
        to_login(request)

    function: Any = to_login if kind == "sync" else to_login_slowly
    options: Any = {} if option == "guard" else {option: function}
    served = [guarded(function if option == "guard" else None), topic(name="news")(lambda: None)]
    async with client_of(Streams(served, **options)) as client:
        if option == "publish":
            response = await client.post("/topics/news", json=1)
        else:
            response = await client.get("/streams/guarded")
        assert (response.status_code, response.headers["location"]) == (303, "/login")
        assert response.content == b""


async def test_a_list_leaves_out_a_run_whose_guard_redirects() -> None:
    lists = False

    def guard(request: Request) -> None:
        if lists:
            raise HTTPException(303, headers={"Location": "/login"})

    @source(guard=guard)
    async def once() -> AsyncIterator[int]:
        yield 1

    async with client_of(Streams([once], identity=by_header)) as client:
        assert (await client.get("/streams/once", headers=ANN)).status_code == 200
        lists = True
        assert (await client.get("/runs", headers=ANN)).json()["runs"] == []


@pytest.mark.parametrize("size", [100, 101])
@pytest.mark.parametrize("option", ["guard", "identity", "publish"])
async def test_a_function_of_the_app_cannot_read_more_of_the_body_than_max_body(
    option: str, size: int
) -> None:
    """The body comes in pieces, without a Content-Length."""
    seen: list[bytes] = []

    async def reads(request: Request) -> None:
        seen.append(await request.body())

    @topic(name="news")
    def news() -> None: ...

    @source(name="once", guard=reads if option == "guard" else None)
    async def once(text: str) -> AsyncIterator[str]:
        yield text

    options: Any = {} if option == "guard" else {option: reads}
    body = b'{"text":"' + b"x" * (size - 11) + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for index in range(0, size, 10):
            yield body[index : index + 10]

    async with client_of(Streams([once, news], max_body=100, **options)) as client:
        path = "/topics/news" if option == "publish" else "/streams/once"
        headers = {"Content-Type": "application/json"}
        response = await client.post(path, content=pieces(), headers=headers)
        if size > 100:
            assert "the body has more than 100 bytes" in problem(response, 413)
            assert seen == []
        else:
            assert (response.status_code, seen) == (200, [body]), response.text


@pytest.mark.parametrize("option", ["guard", "identity"])
def test_the_context_of_a_request_is_freed_before_the_limit_of_its_guard_is_over(
    option: str,
) -> None:
    """On asyncio's own event loop: it keeps a cancelled timer while an earlier one is there.

    uvloop drops it at once.
    """

    class Session:
        pass

    session: ContextVar[Session] = ContextVar("session")
    seen: list[weakref.ref[Session]] = []

    async def asked(request: Request) -> None:
        await asyncio.sleep(0)
        raise StreamError("not now", status=403)  # A stream would have timers of its own.

    options: Any = {} if option == "guard" else {option: asked}

    @source(guard=asked if option == "guard" else None)
    async def once() -> AsyncIterator[int]:
        yield 1

    streams = Streams([once], **options)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session.set(value := Session())
        seen.append(weakref.ref(value))
        await streams(scope, receive, send)

    async def ask() -> None:
        asyncio.get_running_loop().call_later(20, seen.clear)
        # Uvicorn's own timer for idle connections would keep the context, too.
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            problem(await asyncio.create_task(client.get("/streams/once")), 403)

        def is_freed() -> bool:
            gc.collect()
            return all(ref() is None for ref in seen)

        await until(is_freed, "the context is freed")

    asyncio.run(ask())
