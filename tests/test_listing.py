"""run_endpoints.py and `streams.runs`: which runs there are, over HTTP and from Python."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import Source, Streams, current_run, source
from streams.errors import UnknownRun
from streams.sources import counter
from tests.log.shared.workers import until_async
from tests.support.servers import Connection, client_of, connection, serving, until
from tests.test_access import ANN, BOB, by_header
from tests.test_asgi import problem

KEY = "chat-7/6f8a1c52-7d3e"


@source
async def waits() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


async def listed(client: httpx.AsyncClient, user: dict[str, str], **query: str) -> list[Any]:
    response = await client.get("/runs", params=query, headers=user)
    assert response.status_code == 200, response.text
    runs: list[Any] = response.json()["runs"]
    return runs


async def start(
    client: httpx.AsyncClient, user: dict[str, str], key: str = "", path: str = "counter?count=0"
) -> str:
    headers = {**user, "Idempotency-Key": key} if key else user
    response = await client.get(f"/streams/{path}", headers=headers)
    assert response.status_code == 200, response.text
    return response.headers["content-location"].rpartition("/")[2]


async def test_a_user_sees_their_own_runs_newest_first() -> None:
    streams = Streams([counter, waits], identity=by_header)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        first = await start(client, ANN, "chat-7/1")
        await start(client, BOB, "chat-7/1")
        await start(client, {})
        second = await start(client, ANN)
        async with connection(
            url, "/streams/waits?idempotency_key=chat-7/2", headers="X-User: ann\r\n"
        ) as stream:
            await stream.until(lambda stream: b"\ndata: 1" in stream.body, "the run has begun")
            runs = await listed(client, ANN)
            assert [run["run"] for run in runs] == [stream.run, second, first]
            assert runs[2]["key"] == "chat-7/1"
            assert runs[2]["url"] == f"/runs/{first}"
            assert (runs[2]["source"], runs[2]["status"]) == ("counter", "completed")
            assert (await client.get(runs[2]["url"], headers=ANN)).status_code == 200
            for query, expected in [
                ({"key": "chat-7/1"}, [first]),
                ({"key_prefix": "chat-7/"}, [stream.run, first]),
                ({"key_prefix": "chat-7/", "status": "running"}, [stream.run]),
                ({"key_prefix": "chat-8/"}, []),
                ({"source": "counter"}, [second, first]),
                ({"status": "completed"}, [second, first]),
                ({"status": "failed"}, []),
            ]:
                assert [run["run"] for run in await listed(client, ANN, **query)] == expected
        assert len(await listed(client, BOB)) == 1
        assert await listed(client, {"X-User": "nobody"}) == []


async def test_an_anonymous_client_sees_only_the_run_whose_whole_key_it_gives() -> None:
    async with client_of(Streams([counter], identity=by_header)) as client:
        run = await start(client, {}, KEY)
        await start(client, ANN, KEY)
        assert [found["run"] for found in await listed(client, {}, key=KEY)] == [run]
        assert await listed(client, {}, key=KEY[:16]) == []
        assert await listed(client, {}, key=KEY, status="failed") == []
        for query in ({}, {"key": KEY[:15]}, {"key_prefix": KEY}, {"source": "counter"}):
            response = await client.get("/runs", params=query)
            assert "Log in, or give ?key=" in problem(response, 403)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"limit": "0"}, "limit='0' is not a number from 1 to 100"),
        ({"limit": "101"}, "limit='101' is not a number from 1 to 100"),
        ({"limit": "1e1"}, "limit='1e1' is not a number from 1 to 100"),
        ({"after": "r"}, "after='r' is not from the member `next` of a list; leave it out"),
        ({"after": "1." + "x" * 99}, "… (101 characters) is not from the member `next`"),
        (
            {"keyprefix": "chat-7/"},
            "'keyprefix' is not a parameter of this URL; parameters: key, k",
        ),
        ({"status": "refused"}, "no status 'refused'; there are: running, completed, failed, canc"),
        ({"key": ""}, "has 1 to 256 characters, not 0"),
        ({"key": "x" * 257}, "has 1 to 256 characters, not 257"),
        ({"key_prefix": "chät"}, "other characters than printable ASCII"),
    ],
)
async def test_an_invalid_query_is_a_422_that_says_what_to_do(
    query: dict[str, str], reason: str
) -> None:
    async with client_of(Streams(identity=by_header)) as client:
        assert reason in problem(await client.get("/runs", params=query, headers=ANN), 422)
        assert (await listed(client, ANN, key_prefix="")) == []


async def test_a_list_has_at_most_100_runs_and_the_url_of_the_next_ones() -> None:
    streams = Streams([counter], identity=by_header)
    app = Starlette(routes=[Mount("/my live", streams)])
    async with client_of(app) as client:
        client.base_url = client.base_url.join("/my%20live/")
        runs = [await start(client, ANN, "a&b")]
        runs += [await start(client, ANN) for _ in range(99)]
        assert (await client.get("/runs", headers=ANN)).json()["next"] is None
        runs.append(await start(client, ANN))

        async def pages(path: str) -> list[list[str]]:
            found = []
            client.base_url = client.base_url.join("/")
            while path:
                answer = (await client.get(path, headers=ANN)).json()
                found.append([run["run"] for run in answer["runs"]])
                path = answer["next"]
            return found

        assert await pages("/my live/runs") == [runs[:0:-1], runs[:1]]
        of_50 = await pages("/my live/runs?limit=50&source=counter")
        assert of_50 == [runs[:50:-1], runs[50:0:-1], runs[:1]]
        assert await pages("/my live/runs?limit=1&key_prefix=a%26") == [runs[:1]]
        logs = await streams.runs.list(limit=60)
        logs = [*logs, *await streams.runs.list(limit=60, after=logs[-1])]
        assert [log.info.run for log in logs] == runs[::-1]


async def test_any_worker_says_which_answer_of_a_chat_is_running_and_another_device_gets_it(
    store_url: str,
) -> None:
    one, other = (Streams([counter, waits], log=store_url, identity=by_header) for _ in range(2))
    path = "/streams/waits?idempotency_key=chat-7/3"
    async with (
        serving(one, lifespan="on") as url,
        serving(other, lifespan="on") as other_url,
        httpx.AsyncClient(base_url=url) as client,
        httpx.AsyncClient(base_url=other_url) as elsewhere,
        connection(url, path, headers="X-User: ann\r\n") as stream,
    ):
        await start(client, ANN, "chat-7/2")
        await stream.until(lambda stream: b"\ndata: 1" in stream.body, "the answer has begun")
        query = {"key_prefix": "chat-7/", "status": "running"}

        async def lists_only_the_running_one() -> bool:
            return [run["key"] for run in await listed(elsewhere, ANN, **query)] == ["chat-7/3"]

        await until_async(lists_only_the_running_one, "the finished answer is not listed")
        (run,) = await listed(elsewhere, ANN, **query)
        async with connection(other_url, run["url"], headers="X-User: ann\r\n") as device:
            await device.until(lambda stream: b"event: start" in stream.body, "it has the start")
            assert device.run == stream.run
        (log,) = await other.runs.list(key_prefix="chat-7/", status="running")
        assert other.runs.state(log)["run"] == stream.run
        await other.runs.stop(stream.run)
        await stream.until(lambda stream: b'"stopped"' in stream.body, "it is stopped")
        assert await listed(elsewhere, BOB, **query) == []


async def test_python_lists_finds_and_stops_the_runs_of_all() -> None:
    streams = Streams([counter, waits], identity=by_header)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        ann, nobody = await start(client, ANN, "chat-7/1"), await start(client, {})
        async with connection(url, "/streams/waits") as stream:
            await stream.until(lambda stream: b"\ndata: 1" in stream.body, "the run has begun")

            async def runs(**selection: Any) -> list[str]:
                return [log.info.run for log in await streams.runs.list(**selection)]

            assert await runs() == [stream.run, nobody, ann]
            assert await runs(limit=1) == [stream.run]
            assert await runs(owner="ann") == [ann]
            assert await runs(owner=None) == [stream.run, nobody]
            assert await runs(key="chat-7/1") == await runs(key_prefix="chat") == [ann]
            assert await runs(source="waits", status="running") == [stream.run]
            log = await streams.runs.find(ann)
            assert streams.runs.state(log)["status"] == "completed"
            await streams.runs.stop(stream.run)
            await stream.until(lambda stream: b'"stopped"' in stream.body, "it is stopped")
    for call in (streams.runs.stop, streams.runs.find):
        with pytest.raises(UnknownRun):
            await call("unknown")
    with pytest.raises(ValueError, match="status='runing' is not one of running, completed"):
        await streams.runs.list(status="runing")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit=-1 is negative; give the number of runs"):
        await streams.runs.list(limit=-1)


async def test_resumes_finds_the_run_of_a_key_without_its_name_unless_the_key_is_free() -> None:
    streams = Streams(linger=0.05)
    resumed: list[bool] = []

    async def words() -> AsyncIterator[str]:
        yield "one"
        await asyncio.Event().wait()

    async def ask(request: Request) -> Response:
        resumed.append(await streams.resumes(request))
        return streams.response(request, words())

    app = Starlette(routes=[Route("/ask", ask), Route("/other", ask), Mount("/live", streams)])
    async with serving(app) as url:

        def asking(path: str) -> AbstractAsyncContextManager[Connection]:
            return connection(url, f"{path}?idempotency_key={KEY}")

        async with asking("/other") as other, asking("/ask") as first, asking("/ask") as second:
            for stream in (other, first, second):
                await stream.until(lambda stream: b'"one"' in stream.body, "the run has begun")
            assert other.run != first.run == second.run
        assert sorted(resumed) == [False, False, True]
        log = await streams.runs.find(first.run)
        await until(lambda: log.status == "cancelled", "the run had no reader", 10)
        async with asking("/ask") as again:
            await again.until(lambda stream: b'"one"' in stream.body, "another run has begun")
        assert not resumed[-1]


def sources() -> list[Source[..., Any]]:
    @source
    async def generates() -> AsyncIterator[str]:
        yield current_run().path

    @source
    async def opens() -> Any:
        path = current_run().path

        async def events() -> AsyncIterator[str]:
            yield path

        return events()

    @source
    def threads() -> Iterator[str]:
        yield current_run().path

    @source(shared=True)
    async def shares() -> AsyncIterator[str]:
        yield current_run().path

    return [generates, opens, threads, shares]


@pytest.mark.parametrize("kind", sources(), ids=lambda source: source.name)
async def test_a_source_knows_its_run(kind: Source[..., Any]) -> None:
    async with client_of(Streams([kind])) as client:
        response = await client.get(f"/streams/{kind.name}")
    assert f'data: "{response.headers["content-location"]}"' in response.text


def test_outside_a_source_there_is_no_current_run() -> None:
    with pytest.raises(RuntimeError, match="is for the function of a source"):
        current_run()
