"""GET /health: 200 while the log can be used, else 503 with what to do, soon and at a low price."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.types import Receive, Scope, Send

import streams
from streams import EventLog, MemoryLog, Streams, health
from streams.errors import StoreFull
from streams.log.sqlite import link
from streams.sources import counter
from tests.support.servers import client_of, until
from tests.support.stores import with_lease
from tests.support.valkey import Valkey, running_valkey


@asynccontextmanager
async def asked(log: EventLog | str | None) -> AsyncIterator[httpx.AsyncClient]:
    app = Streams([counter], log=log, api_keys=["k" * 16], hosts=["streams.example.org"])
    async with app, client_of(app) as client:
        client.headers["Host"] = "another.example.org"
        yield client


async def until_status(client: httpx.AsyncClient, status: int, what: str) -> None:
    """Asks until the answer has a status; `what` names that state in words."""
    deadline = asyncio.get_running_loop().time() + 10
    while (found := (await client.get("/health")).status_code) != status:
        assert asyncio.get_running_loop().time() < deadline, f"not reached: {what}; got {found}"


async def test_health_is_200_while_the_log_can_be_used(log_url: str | None) -> None:
    async with asked(log_url) as client:
        response = await client.get("/health")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    state = response.json()
    assert (state["status"], state["version"]) == ("ok", streams.__version__)
    assert "detail" not in state


async def test_health_is_503_while_valkey_is_down_and_200_when_it_is_back() -> None:
    with running_valkey() as valkey:
        async with asked(with_lease(valkey.url, 0.3)) as client:
            assert (await client.get("/health")).status_code == 200
            valkey.kill()
            response = await client.get("/health")
            assert response.status_code == 503
            assert response.headers["content-type"] == "application/json"
            assert int(response.headers["retry-after"]) >= 3
            state = response.json()
            assert state["status"] == "unavailable"
            assert state["runs"] == 0
            assert state["detail"].startswith("Redis cannot be used now; try again in 3 s; ")
            assert "the server's log says what is wrong" in state["detail"]
            assert str(valkey.port) not in state["detail"]
            assert (await client.head("/health")).status_code == 503
            valkey.start()
            await until_status(client, 200, "the server is well again")


async def test_health_is_503_soon_while_valkey_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.1)
    with running_valkey() as valkey:
        async with asked(valkey.url) as client:
            await until_status(client, 200, "the server is well")
            await hung(valkey, client)
            await until_status(client, 200, "the server is well again")


async def hung(valkey: Valkey, client: httpx.AsyncClient) -> None:
    valkey.pause()
    try:
        for _ in range(6):  # More than there are connections: none of them is lost.
            response = await client.get("/health")
            assert response.status_code == 503
            assert response.json()["detail"].startswith("the log has not answered within 0.1 s; ")
    finally:
        valkey.unpause()


async def test_health_is_503_when_the_file_of_the_log_is_gone(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with asked(sqlite_url) as client:
        assert (await client.get("/health")).status_code == 200
        os.rename(tmp_path / "runs.db", tmp_path / "elsewhere.db")
        await until_status(client, 503, "the file is missed")
        state = (await client.get("/health")).json()
        assert state["detail"].startswith("the log's database cannot be used now")
        assert str(tmp_path) not in state["detail"]
        os.rename(tmp_path / "elsewhere.db", tmp_path / "runs.db")
        await until_status(client, 200, "the server is well again")


async def test_health_is_503_while_the_file_can_be_read_but_not_written(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BUSY_SECONDS", 0.1)
    async with asked(with_lease(sqlite_url, 0.3)) as client:
        other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await until_status(client, 503, "a renewal has failed")
        other.execute("ROLLBACK")
        other.close()
        await until_status(client, 200, "the server is well again")


class Hanging(MemoryLog):
    """A log that does not answer before it is `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = 0
        self.released = False

    async def check(self) -> None:
        self.checks += 1
        while not self.released:
            await asyncio.sleep(0.01)


async def test_many_probes_ask_a_log_that_hangs_once() -> None:
    log, arrived = Hanging(), 0
    app = Streams([counter], log=log)

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal arrived
        arrived += scope["type"] == "http"
        await app(scope, receive, send)

    async with client_of(counting, lifespan="on") as client:
        probes = [asyncio.ensure_future(client.get("/health")) for _ in range(50)]
        await until(lambda: arrived == 50, "all probes have arrived", 30)
        await anyio.wait_all_tasks_blocked()
        log.released = True
        answers = await asyncio.gather(*probes)
    assert {answer.status_code for answer in answers} == {200}
    assert log.checks == 1


async def test_a_log_that_hangs_is_an_answer_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.2)
    async with asked(Hanging()) as client:
        assert (await client.get("/health")).status_code == 503


async def test_a_probe_that_leaves_does_not_end_the_question_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.3)
    log = Hanging()
    async with asked(log) as client:
        first = asyncio.ensure_future(client.get("/health"))
        await until(lambda: log.checks == 1, "the log is asked")
        second = asyncio.ensure_future(client.get("/health"))
        first.cancel()
        assert (await second).status_code == 503
    assert log.checks == 1


class Full(MemoryLog):
    async def check(self) -> None:
        raise StoreFull("the disk is full")


async def test_health_says_what_is_wrong_with_the_log() -> None:
    async with asked(Full()) as client:
        response = await client.get("/health")
    assert response.status_code == 503
    assert response.json()["detail"].startswith("the disk is full; the server's log says what")


async def ask(app: Streams) -> None:
    """Asks without a server, as a host in the same process does."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.get("/health")


def test_health_asks_a_log_in_each_event_loop() -> None:
    """A check that an event loop has left behind keeps nobody waiting in the next one."""
    log = Hanging()
    app = Streams([counter], log=log)

    async def ask_and_leave() -> None:
        asking = asyncio.create_task(ask(app))
        await until(lambda: log.checks, "the log is asked")
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    for _ in range(2):
        log.checks = 0
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask_and_leave())
        loop.close()  # Unlike asyncio.run(), this leaves the check pending.
