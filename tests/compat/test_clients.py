"""Clients: each reads a stream with heartbeats, one that is cut, and one that has ended."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx
import httpx_sse
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams import Streams
from streams.sources import counter
from tests.compat.browsers import pages, report_of
from tests.compat.processes import HERE, first_number, program, versions
from tests.support.servers import serving

NUMBERS = [{"number": number} for number in range(30)]
PATH = "/streams/counter?count=30&interval=0.03"
PARSER = "it leaves coming back to its user, who gave it the last id"
RAISES = "it comes back after an end, but raises at a cut; its user gave it the last id"
EAGER = "it takes an event's id before it has the event, and loses one that is cut in half"


class Client(NamedTuple):
    """A client, and what runs it."""

    name: str
    version: str
    kind: str
    by_hand: str = ""


def npm(package: str) -> str:
    """The installed version. Raises FileNotFoundError if there is none: see make compat."""
    file = HERE / "node_modules" / package / "package.json"
    return str(json.loads(file.read_text())["version"])


CLIENTS = [
    Client("Chromium, EventSource", first_number("chromium", "--version"), "chromium"),
    Client("Firefox, EventSource", first_number("firefox-esr", "--version"), "firefox-esr"),
    Client("@microsoft/fetch-event-source", npm("@microsoft/fetch-event-source"), "chromium"),
    Client("eventsource", npm("eventsource"), "node"),
    Client("eventsource-client", npm("eventsource-client"), "node"),
    Client("undici", npm("undici"), "node"),
    Client("eventsource-parser", npm("eventsource-parser"), "node", PARSER),
    Client("httpx-sse", versions("httpx-sse"), "python", PARSER),
    Client("sseclient-py", versions("sseclient-py"), "python", PARSER),
    Client("requests-sse", versions("requests-sse"), "python"),
    Client("aiohttp-sse-client2", versions("aiohttp-sse-client2"), "python", RAISES),
    Client("curl -N", first_number("curl", "--version"), "curl", PARSER),
]

every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


class Answers:
    """Around an app: which requests came, and how each was answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[tuple[str, int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append((scope["method"], message["status"]))
            await send(message)

        await self.app(scope, receive, answer)


@asynccontextmanager
async def cutting(url: str, last: bytes) -> AsyncIterator[str]:
    """A relay to the server at `url` that cuts the first connection behind these bytes."""
    uncut = True

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal uncut
        while data := await reader.read(65536):
            before, found, _ = data.partition(last)
            writer.write(before + found if uncut and found else data)
            if uncut and found:
                uncut = False
                await writer.drain()
                await asyncio.sleep(0.3)  # so that the client has all of it before it is cut
                return

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = url.removeprefix("http://").split(":")
        above, below = await asyncio.open_connection(host, int(port))
        pumps = [
            asyncio.create_task(pump(reader, below)),
            asyncio.create_task(pump(above, writer)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        writer.close()
        below.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def events_seen(client: Client, url: str, folder: Path) -> list[dict[str, str]]:
    """What the client saw of a stream until it ended by itself."""
    if client.kind in ("chromium", "firefox-esr"):
        name = client.name.rpartition("/")[2]
        async with pages() as site:
            return await report_of(client.kind, site, folder, client=name, url=url)
    if client.kind == "curl":
        return await seen_by_curl(url)
    script = HERE / "clients" / ("clients.mjs" if client.kind == "node" else "clients.py")
    runner = program("node") if client.kind == "node" else sys.executable
    lines = await output(runner, str(script), client.name, url)
    return [json.loads(line) for line in lines.splitlines()]


async def output(*command: str, codes: tuple[int, ...] = (0,)) -> bytes:
    """What a program prints until it ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        with anyio.fail_after(30):
            printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode in codes, complaint.decode()
    return printed


async def seen_by_curl(url: str) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    while not events or events[-1]["type"] != "end":
        last = events[-1]["id"] if events else ""
        body = await output(
            program("curl"), "-sN", "-H", f"Last-Event-ID: {last}", url, codes=(0, 18)
        )
        response = httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})
        for event in httpx_sse.EventSource(response).iter_sse():
            events.append({"type": event.event, "id": event.id, "data": event.data})
    return events


def is_whole(events: list[dict[str, str]]) -> None:
    """Every event once, in order, and none that is empty."""
    assert [event["type"] for event in events] == ["start", *["message"] * 30, "end"]
    assert [json.loads(event["data"]) for event in events[1:-1]] == NUMBERS
    run = json.loads(events[0]["data"])["run"]
    assert [event["id"] for event in events] == [f"{run}.{n}" for n in range(32)]


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[str, Answers]]:
    streams = Streams([counter], retry=(0.1, 0.1), heartbeat=0.01, origins=["*"])
    answers = Answers(streams)
    async with serving(answers) as url:
        yield url, answers


@every_client
@pytest.mark.column("every event once, none empty")
async def test_it_sees_every_event_once_and_no_heartbeat(client: Client, tmp_path: Path) -> None:
    async with answering() as (url, _):
        is_whole(await events_seen(client, f"{url}{PATH}", tmp_path))


@every_client
@pytest.mark.column("goes on after a cut")
async def test_it_goes_on_where_it_was_cut(
    client: Client, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    await is_whole_when_cut(client, tmp_path, b'{"number":7}\n\n')
    if client.by_hand:
        record_property("remark", client.by_hand)


@every_client
@pytest.mark.column("even in mid-event")
async def test_it_goes_on_where_it_was_cut_in_mid_event(
    client: Client, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if client.name == "@microsoft/fetch-event-source":
        request.applymarker(pytest.mark.xfail(reason=EAGER, raises=AssertionError))
    await is_whole_when_cut(client, tmp_path, b'data: {"number":7')


async def is_whole_when_cut(client: Client, folder: Path, last: bytes) -> None:
    async with answering() as (url, answers), cutting(url, last) as relay:
        is_whole(await events_seen(client, f"{relay}{PATH}", folder))
        assert answers.seen[0] == ("GET", 200)
        assert ("GET", 200) in answers.seen[1:]


@every_client
@pytest.mark.column("stops at the end")
async def test_it_stops_by_itself_at_the_end(client: Client, tmp_path: Path) -> None:
    async with answering() as (url, answers):
        events = await events_seen(client, f"{url}/streams/counter?count=0", tmp_path)
    assert [event["type"] for event in events] == ["start", "end"]
    assert answers.seen in ([("GET", 200)], [("GET", 200), ("GET", 204)])
