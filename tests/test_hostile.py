"""Clients and upstreams that send odd things: ids, paths, and texts for the log."""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, NoReturn
from urllib.parse import unquote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message

from streams import StreamError, Streams, source
from streams.errors import UnknownRun, for_log
from streams.log.memory import MemoryLog
from streams.log.redis import RedisStore
from streams.log.shared import SharedLog
from streams.sources import clock, counter, tokens
from tests.support.servers import client_of, connection, every_event, serving
from tests.test_asgi import problem
from tests.test_topics import notifications

UNUSED = "A" * 22

NUMBERS = [
    "9007199254740991",  # 2^53 - 1
    "9007199254740992",
    "9007199254740993",
    str(2**63),
    str(2**64),
    "9" * 16,
    "9" * 5000,
    "-1",
    "00",
    "1e3",
    "٣",
    "",
]


@pytest.mark.parametrize("number", NUMBERS)
async def test_an_event_number_out_of_range_is_refused_and_keeps_no_slot(
    number: str, log_url: str | None
) -> None:
    streams = Streams([counter, notifications], max_runs=3, log=log_url)
    async with client_of(streams) as client:
        (start, *_) = await every_event(client, "/streams/counter?count=1&interval=0.01")
        run = start.id.partition(".")[0]
        for asked in (run, UNUSED):
            for path in ("/streams/counter", "/streams/notifications?user=ann", f"/runs/{run}"):
                for _ in range(2):
                    last = f"{asked}.{number}".encode()
                    async with client.stream("GET", path, headers={b"Last-Event-ID": last}) as got:
                        assert got.status_code in (200, 410, 422), got.status_code
                        if got.status_code == 200:  # The topic's own run, after a gap.
                            assert (asked, path) != (run, f"/runs/{run}")
        for _ in range(6):  # More than `max_runs`: no slot is taken for good.
            assert await every_event(client, "/streams/counter?count=1&interval=0.01")
        assert (await client.get("/health")).json()["running"] == 0


class Untouched(MemoryLog):
    """A log that is asked for no run."""

    async def find(self, run: str) -> NoReturn:
        raise AssertionError(f"the log is asked for {run!r}")


@pytest.mark.parametrize(
    "run",
    [
        "%ED%A0%80",
        "%ED%A0%80" * 22,
        "%00" * 22,
        "a",
        "a" * 21,
        "a" * 23,
        "a" * 21 + "%0A",
        "a" * 22 + "%0A",
        "a" * 21 + ":",
        "*" * 22,
        "%2E%2E",
        "%C3%A9" * 22,
        "%D9%A3" * 22,
    ],
)
async def test_the_log_is_not_asked_for_what_cannot_be_a_runs_id(run: str) -> None:
    streams = Streams([counter], log=Untouched())
    async with client_of(streams) as client:
        for method in ("GET", "HEAD", "DELETE"):
            answer = await client.request(method, f"/runs/{run}")
            assert answer.status_code == 404
    with pytest.raises(UnknownRun):
        await streams.runs.find(unquote(run))


async def test_a_host_that_decodes_paths_with_surrogates_gets_a_404() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    for path in ("/runs/\ud800", "/\ud800", "/streams/\ud800", "/page/\ud800"):
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [],
        }
        await Streams([counter])({**scope, "root_path": "/\udfff"}, receive, send)
        assert sent.pop(0)["status"] == 404
        sent.clear()


ODD_PATHS = [
    "%0D%0AX-Injected:%201",
    "%0d%0a%0d%0a<script>",
    '"quoted"',
    "%22%27%3C%3E%5C",
    "caf%C3%A9 %E2%98%83".replace(" ", "%20"),
    "%E2%80%AE%1B%5B31m",
    "%ED%A0%80",
    "%00",
    "..%2F..",
    "%2F%2Fevil.example",
    "a%3Fb%23c",
]


@pytest.mark.parametrize("tenant", ODD_PATHS)
@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_an_odd_mount_path_is_quoted_in_every_header_and_url(tenant: str, http: str) -> None:
    app = Starlette(routes=[Mount("/{tenant}", Streams([counter]))])
    async with serving(app, http=http) as url:
        path = f"/{tenant}/streams/counter?count=0"
        async with connection(url, path, headers="Connection: close\r\n") as stream:
            await stream.to_the_end()
            head = stream.received.partition(b"\r\n\r\n")[0].decode("ascii")
            if "%2F" in tenant.upper():  # The parameter of the mount ends at a slash.
                assert head.startswith("HTTP/1.1 404")
                return
            assert head.startswith("HTTP/1.1 200"), head
            assert "x-injected" not in [line.partition(":")[0].lower() for line in head.split("\n")]
            (location,) = re.findall(r"(?i)^content-location: (\S+)\r?$", head, re.MULTILINE)
            assert f'"url":"{location}"'.encode() in stream.body
        if "%ED" not in tenant:  # It cannot be told from U+FFFD any more.
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{url}{location}")).status_code == 200


@pytest.mark.parametrize("tenant", ODD_PATHS)
async def test_the_redirect_to_the_page_stays_on_the_server(tenant: str) -> None:
    app = Starlette(routes=[Mount("/app/{tenant}", Streams([counter]))])
    async with serving(app) as url:
        async with connection(url, f"/app/{tenant}", headers="Connection: close\r\n") as stream:
            await stream.to_the_end()
        head = stream.received.partition(b"\r\n\r\n")[0].decode("ascii")
        assert "\nx-injected" not in head.lower()
        for location in re.findall(r"(?i)^location: (.*?)\r?$", head, re.MULTILINE):
            assert httpx.URL(f"{url}/app/x").join(location).host == "127.0.0.1"


NASTY = "first\r\nERROR forged\x1b[2J\x85\u2028\u202e" + "y" * 300


def check_lines(caplog: pytest.LogCaptureFixture) -> str:
    """Checks each message: one line of printable characters. Returns all of them."""
    messages = [record.getMessage() for record in caplog.records if record.name == "streams"]
    assert messages
    for message in messages:
        assert message.isprintable(), message
        assert len(message) < 400, message
    return "\n".join(messages)


@pytest.mark.parametrize(
    "error", [StreamError(NASTY), StreamError(NASTY, status=404), RuntimeError(NASTY)]
)
@pytest.mark.parametrize("first", [True, False])
async def test_the_text_of_an_error_is_one_short_line_of_the_log(
    error: Exception, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    @source
    async def failing() -> AsyncIterator[int]:
        if not first:
            yield 1
            await asyncio.sleep(0.01)
        raise error
        yield 2

    with caplog.at_level(logging.INFO, "streams"):
        async with client_of(Streams([failing])) as client:
            await client.get("/streams/failing")
    assert r"failed: first\r\nERROR forged\x1b[2J\x85\u2028\u202eyyy" in check_lines(caplog)


async def test_a_parameter_that_a_source_puts_into_its_error_is_escaped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "streams"):
        async with client_of(Streams([tokens])) as client:
            await client.post("/streams/tokens", json={"prompt": NASTY, "fail_after": 0})
            await client.post("/streams/tokens", json={"prompt": "!fail\r\n\x1b", "fail_after": 1})
    check_lines(caplog)


def test_a_text_for_the_log_has_200_characters_at_most() -> None:
    assert for_log("x" * 200) == "x" * 200
    assert for_log("x" * 201) == "x" * 199 + "…"
    assert for_log("\n" * 101) == r"\n" * 99 + "\\…"
    assert for_log("a\ud800b") == r"a\ud800b"
    assert for_log("it's “fine”") == "it's “fine”"


class Talkative(StreamRequestHandler):
    """A Redis that answers everything with an error in its own words."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            if line.startswith(b"*"):  # A command begins. A second answer to it would be an error.
                self.wfile.write(b"-ERR secret words of \x1b[2J redis\r\n")


@contextmanager
def talkative_redis() -> Iterator[str]:
    with ThreadingTCPServer(("127.0.0.1", 0), Talkative) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def test_the_words_of_redis_reach_the_log_and_no_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with talkative_redis() as url:
        streams = Streams([counter, clock], log=SharedLog(RedisStore(url)))
        async with client_of(streams, lifespan="off") as client:
            for method, path in (
                ("GET", "/streams/counter"),
                ("GET", "/streams/clock"),
                ("GET", f"/runs/{UNUSED}"),
                ("DELETE", f"/runs/{UNUSED}"),
                ("GET", "/runs?key=" + "k" * 16),
            ):
                answer = await client.request(method, path)
                assert "try again in" in problem(answer, 503)
                assert "secret" not in answer.text
        await streams.log.aclose()
    assert r"secret words of \x1b[2J redis" in check_lines(caplog)


async def test_a_worker_has_a_random_name_which_the_log_connects_to_its_process(
    log_url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "streams"):
        async with client_of(Streams([clock], log=log_url)) as client:
            health = (await client.get("/health")).json()
            async with connection(str(client.base_url).rstrip("/"), "/streams/clock") as stream:
                await stream.until(lambda s: b"event: start" in s.body, "the start event")
                headers = {"Accept": "application/json"}
                state = (await client.get(f"/runs/{stream.run}", headers=headers)).json()
    assert re.fullmatch(r"[0-9a-f]{16}", health["worker"])
    assert state["producer"] == health["worker"]
    assert f"process {os.getpid()} is the worker {health['worker']}" in caplog.text


@pytest.mark.parametrize(
    ("path", "policy"),
    [
        ("/", "same-origin"),
        ("/page/event-stream.js", "same-origin"),
        ("/streams", "no-referrer"),
        ("/health", "no-referrer"),
        ("/nothing", "no-referrer"),
        ("/streams/counter?x=1", "no-referrer"),
        ("/runs/x", "no-referrer"),
        ("/v1/models", "no-referrer"),
        ("/v1/models/none", "no-referrer"),
    ],
)
async def test_no_browser_takes_an_answer_for_something_else(path: str, policy: str) -> None:
    async with client_of(Streams([counter], models={"mock": tokens})) as client:
        answer = await client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == policy
    assert ("content-security-policy" in answer.headers) == (policy == "same-origin")
