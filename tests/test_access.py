"""access.py: whose a run is, as the app says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import HTTPException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import StreamError, Streams, source
from streams.sources import counter
from tests.support.servers import client_of
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


@pytest.mark.parametrize("owner", ["", 7])
async def test_a_user_without_a_name_is_a_type_error_that_says_what_to_give(owner: Any) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    what = r"with .*; give text, such as str\(user.id\), and None for an anonymous client"
    with pytest.raises(TypeError, match=what):
        Streams().response(request, iter([1]), name="x", owner=owner)
    with pytest.raises(TypeError, match=what):
        await Streams(identity=lambda request: owner).resumes(request, name="x")
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
