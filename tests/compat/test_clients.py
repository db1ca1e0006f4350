"""Clients: each reads a stream with heartbeats, a stream that is cut, and a stream that ends."""

import asyncio
import json
import sys
import tempfile
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
from tests.compat.relay import cutting, has_shown
from tests.support.servers import serving

NUMBERS = [{"number": number} for number in range(30)]
PATH = "/streams/counter?count=30&interval=0.03"
PARSER = "it does not reconnect by itself; the test reconnects with the last event id"
RAISES = "it reconnects after an end but raises at a cut; then the test reconnects"
EAGER = "it stores an event's id before the event is complete, so it loses an event that is cut"


class Client(NamedTuple):
    """A client, and what runs it. `by_hand` says why the test has to reconnect for it."""

    name: str
    version: str
    kind: str
    by_hand: str = ""


def npm(package: str) -> str:
    """The installed version of a package. `make compat` installs them all."""
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
    """Wraps an app and records the method and the status of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[tuple[str, int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append((scope["method"], message["status"]))
            await send(message)

        await self.app(scope, receive, answer)


async def events_read(
    client: Client, url: str, folder: Path, shown: bytearray | None = None
) -> list[dict[str, str]]:
    """Runs the client until it stops by itself; returns the events that it read.

    `shown` receives what the client prints or reports, as it comes.
    """
    shown = bytearray() if shown is None else shown
    if client.kind in ("chromium", "firefox-esr"):
        name = client.name.rpartition("/")[2]
        async with pages(shown) as site:
            return await report_of(client.kind, site, folder, client=name, url=url)
    if client.kind == "curl":
        return await read_by_curl(url, shown)
    script = HERE / "clients" / ("clients.mjs" if client.kind == "node" else "clients.py")
    runner = program("node") if client.kind == "node" else sys.executable
    lines = await output([runner, str(script), client.name, url], shown)
    return [json.loads(line) for line in lines.splitlines()]


async def output(command: list[str], shown: bytearray, codes: tuple[int, ...] = (0,)) -> bytes:
    """Runs a program until it ends; returns its output and adds it to `shown` as it comes."""
    printed = b""
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        try:
            with anyio.fail_after(40):
                while data := await process.stdout.read(65536):
                    printed += data
                    shown += data
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        errors.seek(0)
        assert process.returncode in codes, errors.read().decode()
    return printed


async def read_by_curl(url: str, shown: bytearray) -> list[dict[str, str]]:
    """Reads a stream with curl, again with the last event id until it has the `end` event."""
    events: list[dict[str, str]] = []
    while not events or events[-1]["type"] != "end":
        last = events[-1]["id"] if events else ""
        command = [program("curl"), "-sN", "-H", f"Last-Event-ID: {last}", url]
        body = await output(command, shown, codes=(0, 18))  # 18: the body was cut
        response = httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})
        for event in httpx_sse.EventSource(response).iter_sse():
            events.append({"type": event.event, "id": event.id, "data": event.data})
    return events


def assert_complete(events: list[dict[str, str]]) -> None:
    """Asserts that a client has read every event once, in order, and no empty event."""
    assert [event["type"] for event in events] == ["start", *["message"] * 30, "end"]
    assert [json.loads(event["data"]) for event in events[1:-1]] == NUMBERS
    run = json.loads(events[0]["data"])["run"]
    assert [event["id"] for event in events] == [f"{run}.{n}" for n in range(32)]


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[str, Answers]]:
    """Serves a counter with frequent heartbeats; gives its URL and its answers."""
    streams = Streams([counter], retry=(0.1, 0.1), heartbeat=0.01, origins=["*"])
    answers = Answers(streams)
    async with serving(answers) as url:
        yield url, answers


@every_client
@pytest.mark.column("every event once, none empty")
async def test_it_reads_every_event_once_and_no_heartbeat(client: Client, tmp_path: Path) -> None:
    async with answering() as (url, _):
        assert_complete(await events_read(client, f"{url}{PATH}", tmp_path))


@every_client
@pytest.mark.column("resumes after a cut")
async def test_it_resumes_after_a_cut_between_events(
    client: Client, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    await cut_and_resume(client, tmp_path, b'{"number":7}\n\n')
    if client.by_hand:
        record_property("remark", client.by_hand)


@every_client
@pytest.mark.column("resumes after a cut inside an event")
async def test_it_resumes_after_a_cut_inside_an_event(
    client: Client, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if client.name == "@microsoft/fetch-event-source":
        request.applymarker(pytest.mark.xfail(reason=EAGER, raises=AssertionError))
    await cut_and_resume(client, tmp_path, b'data: {"number":7')


async def cut_and_resume(client: Client, folder: Path, last: bytes) -> None:
    """Asserts that the client reads every event once although the stream is cut after `last`."""
    # The relay sends all bytes up to the cut together, so a client that shows number 6 has read
    # them. It need not show number 7: sseclient-py shows an event only when it reads more bytes.
    shown = bytearray()
    async with (
        answering() as (url, answers),
        cutting(url, last, lambda: has_shown(shown, 6)) as relay,
    ):
        assert_complete(await events_read(client, f"{relay}{PATH}", folder, shown))
        assert answers.seen[0] == ("GET", 200)
        assert ("GET", 200) in answers.seen[1:]


@every_client
@pytest.mark.column("stops at the end")
async def test_it_stops_by_itself_at_the_end(client: Client, tmp_path: Path) -> None:
    async with answering() as (url, answers):
        events = await events_read(client, f"{url}/streams/counter?count=0", tmp_path)
    assert [event["type"] for event in events] == ["start", "end"]
    assert answers.seen in ([("GET", 200)], [("GET", 200), ("GET", 204)])
