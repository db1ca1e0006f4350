"""endpoint.py: `Streams.response` in endpoints of other apps."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi import Request as FastAPIRequest
from fastapi import Response as FastAPIResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router

from streams import StreamError, Streams
from streams.endpoint import route_of
from streams.sources import counter
from tests.support.servers import client_of, every_event, until
from tests.test_asgi import EVENT_SOURCE, UNKNOWN, problem


async def words(text: str = "one two") -> AsyncIterator[str]:
    for word in text.split():
        yield word


async def test_a_custom_endpoint_resumes_and_closes_the_generator_it_does_not_need() -> None:
    streams = Streams()
    started: list[str] = []
    closed: list[str] = []

    async def answer(prompt: str) -> AsyncIterator[dict[str, str]]:
        started.append(prompt)
        for word in prompt.split():
            yield {"word": word}

    class Watched:
        """A generator that records when it is closed."""

        __name__ = "answer"

        def __init__(self, prompt: str) -> None:
            self.events = answer(prompt)

        def __aiter__(self) -> AsyncIterator[dict[str, str]]:
            return self.events

        async def aclose(self) -> None:
            closed.append("closed")
            await self.events.aclose()  # type: ignore[attr-defined]

    async def ask(request: Request) -> Response:
        return streams.response(request, Watched(request.query_params["prompt"]), linger=None)

    app = Starlette(routes=[Route("/ask", ask), Mount("/live", streams)])
    async with client_of(app) as client:
        url = "/ask?prompt=one two three"
        response = await client.get(url)
        events = await every_event(client, url)
        run = events[0].json()["run"]
        assert events[0].json()["source"] == "answer"
        again = await every_event(client, url, f"{run}.1")
        assert [event.data for event in again] == [event.data for event in events[2:]]
        assert started == ["one two three"] * 2
        assert closed == ["closed"], "the resumed request closes its generator unused"
        assert response.headers["content-location"].startswith("/live/runs/")
        assert (await client.get(f"/live/runs/{run}")).status_code == 200
        gone = await client.get(url, headers={"Last-Event-ID": f"{UNKNOWN}.1"})
        assert problem(gone, 410)
        head = await client.head(url)
        assert head.headers["content-type"].startswith("text/event-stream")
        assert started == ["one two three"] * 2
        assert len(closed) == 3


async def test_a_fastapi_endpoint_streams_resumes_and_validates_parameters() -> None:
    streams = Streams()
    app = FastAPI()
    app.mount("/live", streams)

    async def count(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @app.get("/count")
    async def endpoint(request: FastAPIRequest, n: int) -> Response:
        return streams.response(request, count(n))

    async with client_of(app) as client:
        events = await every_event(client, "/count?n=3")
        assert [event.data for event in events[1:-1]] == ["0", "1", "2"]
        assert (await client.get("/count?n=three")).status_code == 422
        again = await every_event(client, "/count?n=3", f"{events[0].json()['run']}.2")
        assert [event.data for event in again] == ["2", '{"status":"completed"}']


async def test_a_response_accepts_plain_iterables_and_needs_no_mount() -> None:
    streams = Streams()
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append(True)

    async def endpoint(request: Request) -> Response:
        return streams.response(request, numbers(), name="numbers")

    async def listed(request: Request) -> Response:
        return streams.response(request, [1, 2])

    async def wrong(request: Request) -> Response:
        try:
            return streams.response(request, 3)  # type: ignore[arg-type]
        except TypeError as error:
            return PlainTextResponse(str(error))

    app = Starlette(routes=[Route("/n", endpoint), Route("/l", listed), Route("/w", wrong)])
    async with client_of(app) as client:
        response = await client.get("/n")
        assert "content-location" not in response.headers
        assert closed == [True]
        run = re.findall(r'"run":"(.+?)"', response.text)[0]
        again = await every_event(client, "/n", f"{run}.2")
        assert closed == [True], "a generator that never started runs no finally"
        assert [event.data for event in again] == ["2", '{"status":"completed"}']
        assert (await every_event(client, "/l"))[0].json()["source"] == "list"
        assert (await client.head("/l")).status_code == 200
        assert "not a int" in (await client.get("/w")).text


async def test_an_iterator_whose_close_is_async_is_closed_unstarted() -> None:
    closed: list[str] = []

    class Events:
        def __aiter__(self) -> AsyncIterator[int]:
            raise AssertionError("it is not started")

        async def close(self) -> None:
            closed.append("closed")

    async def ask(request: Request) -> Response:
        return streams.response(request, Events(), name="ask")

    streams = Streams()
    async with client_of(Starlette(routes=[Route("/", ask)])) as client:
        problem(await client.get("/", headers={"Last-Event-ID": f"{UNKNOWN}.1"}), 410)
    assert closed == ["closed"]


async def test_a_generator_with_any_name_is_a_source() -> None:
    async def größe() -> AsyncIterator[int]:
        yield 1

    async def 数() -> AsyncIterator[int]:  # noqa: N802
        yield 1

    async def size(request: Request) -> Response:
        return streams.response(request, größe() if request.query_params else 数())

    streams = Streams()
    async with client_of(Starlette(routes=[Route("/", size)])) as client:
        for query, name in [("?a=1", "gre"), ("", "endpoint")]:
            events = await every_event(client, f"/{query}")
            assert events[0].json()["source"] == name


@pytest.mark.parametrize("kind", ["stream", "head", "204", "410", "503"])
async def test_a_response_keeps_what_its_endpoint_sets(kind: str) -> None:
    streams = Streams(max_runs=0 if kind == "503" else 10)
    after: list[str] = []

    async def endpoint(request: Request) -> Response:
        response = streams.response(request, words())
        response.status_code = 201
        response.headers["X-Own"] = "yes"
        response.headers["Cache-Control"] = "private"
        response.headers["Content-Type"] = "text/plain"
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        response.background = BackgroundTask(after.append, "done")
        return response

    headers: dict[str, str] = {}
    async with client_of(Starlette(routes=[Route("/", endpoint)])) as client:
        if kind == "204":
            first = await client.get("/")
            headers["Last-Event-ID"] = re.findall(r"id: (\S+)", first.text)[-1]
            await until(lambda: after, "the background task of the first response has run")
            after.clear()
        if kind == "410":
            headers["Last-Event-ID"] = f"{UNKNOWN}.1"
        if kind == "503":
            headers = EVENT_SOURCE
        response = await client.request("HEAD" if kind == "head" else "GET", "/", headers=headers)
    is_stream = kind in ("stream", "head")
    expected = {"stream": 201, "head": 201, "204": 204, "410": 410, "503": 200}
    assert response.status_code == expected[kind]
    assert response.headers["x-own"] == "yes"
    assert response.headers.get_list("set-cookie") == [
        "a=1; Path=/; SameSite=lax",
        "b=2; Path=/; SameSite=lax",
    ]
    assert len(response.headers.get_list("cache-control")) == 1
    assert response.headers["cache-control"].startswith("private" if is_stream else "no-store")
    assert response.headers.get("content-type") != "text/plain"
    await until(lambda: after == ["done"], "the background task has run")


async def test_a_response_takes_over_what_fastapi_injects() -> None:
    streams = Streams()
    app = FastAPI()
    after: list[str] = []

    async def login(response: FastAPIResponse) -> None:
        response.set_cookie("session", "s")

    @app.get("/", dependencies=[Depends(login)])
    async def endpoint(
        request: FastAPIRequest, response: FastAPIResponse, tasks: BackgroundTasks
    ) -> Response:
        tasks.add_task(after.append, "done")
        response.headers["X-Own"] = "yes"
        return streams.response(request, words(), like=response)

    async with client_of(app) as client:
        response = await client.get("/")
    assert response.status_code == 200
    assert (response.cookies["session"], response.headers["x-own"]) == ("s", "yes")
    assert response.headers["content-type"].startswith("text/event-stream")
    await until(lambda: after == ["done"], "the background task has run")


async def test_a_function_is_called_only_when_a_run_starts() -> None:
    streams = Streams()
    calls: list[str] = []

    def called(name: str) -> AsyncIterator[str]:
        calls.append(name)
        return words()

    async def opened() -> AsyncIterator[str]:
        return called("opened")

    async def refused() -> AsyncIterator[str]:
        raise StreamError("no such answer", status=404)

    def threaded() -> Iterator[str]:
        calls.append("threaded")
        yield from ("one", "two")

    functions: dict[str, Callable[[], Any]] = {
        "called": partial(called, "called"),
        "lambda": lambda: called("lambda"),
        "opened": opened,
        "threaded": threaded,
        "refused": refused,
    }

    async def ask(request: Request) -> Response:
        return streams.response(request, functions[request.path_params["kind"]])

    async with client_of(Starlette(routes=[Route("/{kind}", ask)])) as client:
        for kind, name in [*zip(functions, functions, strict=True), ("lambda", "ask")][:5]:
            name = "ask" if kind == "lambda" else name
            if kind == "refused":
                assert problem(await client.get("/refused"), 404) == "no such answer"
                continue
            events = await every_event(client, f"/{kind}")
            assert events[0].json()["source"] == name
            assert [event.data for event in events[1:-1]] == ['"one"', '"two"']
            again = await every_event(client, f"/{kind}", events[1].id)
            assert [event.data for event in again] == [event.data for event in events[2:]]
            assert (await client.head(f"/{kind}")).status_code == 200
            assert calls == [kind]
            calls.clear()


async def test_resumes_says_whether_a_request_attaches_to_a_run() -> None:
    streams = Streams(max_body=10)
    answers: list[bool] = []

    async def ask(request: Request) -> Response:
        answers.append(await streams.resumes(request, words))
        answers.append(await streams.resumes(request, name="words"))
        answers.append(await streams.resumes(request))
        assert not await streams.resumes(request, name="other")
        return streams.response(request, words())

    async def other(request: Request) -> Response:
        assert not await streams.resumes(request)
        return streams.response(request, words())

    app = Starlette(routes=[Route("/ask", ask), Route("/other", other), Mount("/live", streams)])
    async with client_of(app) as client:

        async def resumed(**headers: str) -> bool:
            answers.clear()
            await client.get(
                "/ask", headers={name.replace("_", "-"): v for name, v in headers.items()}
            )
            assert len(set(answers)) == 1
            return answers[0]

        assert not await resumed()
        first, *_, end = await every_event(client, "/ask")
        run = first.json()["run"]
        assert await resumed(last_event_id=f"{run}.1")
        assert await resumed(last_event_id=end.id), "a client that has the end starts no run"
        assert not await resumed(last_event_id=f"{UNKNOWN}.1")
        assert not await resumed(last_event_id="nonsense")
        assert not await resumed(last_event_id=f"{run}.1", sec_fetch_site="cross-site")
        await client.get("/other", headers={"Last-Event-ID": f"{run}.1"})


async def test_a_run_is_resumed_only_by_the_route_that_started_it() -> None:
    streams = Streams([counter])
    router = APIRouter()
    fast = FastAPI()

    @router.get("/ask/{n}")
    async def routed(request: FastAPIRequest, n: int) -> Response:
        return streams.response(request, words(), name="counter")

    fast.include_router(router, prefix="/v1")
    fast.include_router(router, prefix="/v2")

    async def ask(request: Request) -> Response:
        return streams.response(request, words(), name="counter")

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        response = streams.response(Request(scope, receive, send), words(), name="counter")
        await response(scope, receive, send)

    app = Starlette(
        routes=[
            Route("/ask", ask),
            Route("/other", ask),
            Mount("/a", routes=[Route("/ask", ask)]),
            Mount("/b", routes=[Route("/ask", ask)]),
            Mount("/fast", fast),
            Mount("/bare", bare),
            Mount("/live", streams),
        ]
    )
    paths = ["/ask", "/other", "/a/ask", "/b/ask", "/fast/v1/ask/1", "/fast/v2/ask/1"]
    paths += ["/bare/ask", "/bare/other", "/live/streams/counter"]
    async with client_of(app) as client:
        for path in paths:
            start, event, *_ = await every_event(client, path)
            assert start.json()["source"] == "counter"
            for other in paths:
                response = await client.get(other, headers={"Last-Event-ID": event.id})
                assert response.status_code == (200 if other == path else 410), (path, other)
        _, event, *_ = await every_event(client, "/fast/v1/ask/1")
        assert await every_event(client, "/fast/v1/ask/2", event.id), "the template is the same"


async def test_a_run_is_resumed_only_by_the_endpoint_of_its_path_that_started_it() -> None:
    streams = Streams()
    fast = FastAPI()

    @fast.get("/ask")
    async def ask(request: FastAPIRequest) -> Response:
        return streams.response(request, words())

    @fast.post("/ask")
    async def admin(request: FastAPIRequest) -> Response:
        return streams.response(request, words())

    routes = [
        Route("/ask", lambda request: streams.response(request, words())),
        Route("/ask", lambda request: streams.response(request, words()), methods=["POST"]),
        Route("/both", lambda request: streams.response(request, words()), methods=["GET", "POST"]),
        Mount("/fast", fast),
    ]
    async with client_of(Starlette(routes=routes)) as client:
        for path in ("/ask", "/fast/ask", "/both"):
            for method, other in (("GET", "POST"), ("POST", "GET")):
                _, event, *_ = await every_event(client, path, method=method)
                resume = {"Last-Event-ID": event.id}
                assert (await client.request(method, path, headers=resume)).status_code == 200
                response = await client.request(other, path, headers=resume)
                assert response.status_code == (200 if path == "/both" else 410), (path, method)


def test_methods_tell_routes_apart_where_the_scope_does_not_name_the_route() -> None:
    read, write, both = (PlainTextResponse(name) for name in ("read", "write", "both"))
    inner = [Route("/ask", read), Route("/ask", write, methods=["POST"])]
    router = Router([Mount("/in", routes=inner), Route("/ask", both, methods=["GET", "POST"])])
    found = [
        route_of({"path": "/ask", "router": router, "endpoint": endpoint})
        for endpoint in (read, write, both)
    ]
    assert found == ["/ask", "POST /ask", "/ask"]


def test_the_route_is_the_template_that_a_framework_gives_or_the_path() -> None:
    assert route_of({"path": "/ask/5/"}) == "/ask/5"
    assert route_of({"path": "/ask/5", "path_template": "/ask/{n:int}"}) == "/ask/{n:int}"
    assert route_of({"path": "/v1/ask/", "path_template": "/ask"}) == "/v1/ask"
    assert route_of({"path": "/v1/", "path_template": "/"}) == "/v1"
    assert route_of({"path": "/a/b/c", "path_template": "/{rest:path}"}) == "/a/b/c"


async def _takes(text: str) -> AsyncIterator[str]:
    yield text


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (_takes, r"calls _takes without arguments, but: missing a required argument: 'text'"),
        (3, "not a int"),
    ],
)
def test_the_error_for_events_that_cannot_be_iterated_gives_the_reason(
    events: Any, message: str
) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    with pytest.raises(TypeError, match=message):
        Streams().response(request, events)


def test_a_function_without_a_signature_is_accepted() -> None:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    assert isinstance(Streams().response(request, vars), Response)


def test_the_error_for_a_coroutine_says_to_give_the_function() -> None:
    async def opened() -> AsyncIterator[str]:
        return words()

    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    with pytest.raises(TypeError, match=r"give the function: lambda: opened\(…\)"):
        Streams().response(request, opened())  # type: ignore[arg-type]


class ForeignRequest:
    """A request as Django and Quart have it: with the scope, but not Starlette's."""

    method = "GET"
    scope: ClassVar[dict[str, Any]] = {"type": "http", "method": "GET", "path": "/", "headers": []}


async def test_the_request_of_another_framework_is_an_error_that_says_what_to_do() -> None:
    streams = Streams()
    request: Any = ForeignRequest()
    what = r"Litestar, not a tests\.test_endpoint\.ForeignRequest; in another framework, serve"
    with pytest.raises(TypeError, match=what):
        streams.response(request, words)
    with pytest.raises(TypeError, match=what):
        await streams.resumes(request, words)
    with pytest.raises(TypeError, match=r"not a builtins\.dict; "):
        streams.response(request.scope, words)
