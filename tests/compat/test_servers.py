"""Servers: each serves app:app as its users start it, and stops while streams are open."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import h2.connection
import h2.events
import httpx
import pytest

from tests.compat.processes import BIN, Process, listening, program, running, versions
from tests.support.servers import connection, every_event, free_port, until


class Server(NamedTuple):
    """A command that serves app:app on {port}.

    The server stops within `stops_in` seconds; then curl, with a stream open, exits with `curl`.
    `cuts` says whether the server cuts a connection whose app returns in mid-response, `waits`
    whether its `send` waits for a client that does not read.
    """

    name: str
    version: str
    command: str
    http2: bool = False
    stops_in: float = 2
    curl: int = 0
    cuts: bool = True
    waits: bool = True


HYPERCORN = versions("hypercorn")
GRANIAN = versions("granian")
UVICORN = versions("uvicorn")

SERVERS = [
    Server("uvicorn, httptools", UVICORN, "uvicorn app:app --port {port} --http httptools"),
    Server("uvicorn, h11", UVICORN, "uvicorn app:app --port {port} --http h11"),
    Server("uvicorn, 2 workers", UVICORN, "uvicorn app:app --port {port} --workers 2"),
    Server(
        "uvicorn --reload", UVICORN, "uvicorn app:app --port {port} --reload --reload-dir streams"
    ),
    Server(
        "gunicorn, uvicorn-worker",
        versions("gunicorn", "uvicorn-worker"),
        "gunicorn app:app -b 127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker"
        " --no-control-socket",
    ),
    Server("hypercorn", HYPERCORN, "hypercorn app:app -b 127.0.0.1:{port}", stops_in=5),
    Server(
        "hypercorn, HTTP/2",
        HYPERCORN,
        "hypercorn app:app -b 127.0.0.1:{port}",
        True,
        5,
        18,
        cuts=False,
        waits=False,
    ),
    Server("hypercorn --workers 0", HYPERCORN, "hypercorn app:app -b 127.0.0.1:{port} -w 0"),
    Server("granian", GRANIAN, "granian app:app --interface asgi --port {port}"),
    Server("granian, HTTP/2", GRANIAN, "granian app:app --interface asgi --port {port}", True),
    Server("daphne", versions("daphne"), "daphne app:app -p {port}", cuts=False, waits=False),
]
LATE = "after 3 s, because its worker processes learn of the stop only then; no body is cut"
CUT = "after 3 s, and bodies are cut, because it cancels its own sender together with the app"
BUFFERS = "it buffers without limit all that the source yields"
ENDED = "as a body that ends without the `end` event: an app cannot cut the connection here"

every_server = pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
over_http2 = pytest.mark.parametrize(
    "server", [server for server in SERVERS if server.http2], ids=lambda server: server.name
)

LONG_ENOUGH = 0.05
"""Seconds in which a server usually begins with a request. If it does not, a test proves less."""

IDLE = "/streams/counter?interval=60"
BUSY = "/streams/counter?interval=0.01&count=100000"


@asynccontextmanager
async def serving(
    server: Server, app: str = "app:app", **environ: str
) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """Runs a server. Its workers share a log, as they do by default."""
    port = free_port()
    command, *arguments = server.command.replace("app:app", app).format(port=port).split()
    async with (
        anyio.TemporaryDirectory() as folder,
        running(
            BIN / command,
            *arguments,
            ready=listening(port),
            **{"STREAMS_LOG": f"sqlite:{folder}/runs.db", **environ},
        ) as process,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            http1=not server.http2,
            http2=server.http2,
            timeout=20,
        ) as client,
    ):
        yield process, client


class Stream(NamedTuple):
    """An open stream whose first number has arrived."""

    response: httpx.Response
    run: str


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    async with client.stream("GET", path, headers=headers) as response:
        response.raise_for_status()
        received = b""
        chunks = response.aiter_bytes()
        with anyio.fail_after(10):
            while b'{"number":0}\n\n' not in received:
                received += await anext(chunks)
        yield Stream(response, response.headers["content-location"].rpartition("/")[2])


@every_server
@pytest.mark.column("sends events immediately")
async def test_an_event_arrives_before_the_next_one_is_sent(server: Server) -> None:
    async with serving(server) as (_, client):
        async with stream(client, IDLE):
            pass
        events = await every_event(client, "/streams/counter?count=50&interval=0.001")
        assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(50)]
        again = await every_event(client, "/streams/counter?count=50&interval=0.001", events[20].id)
        assert json.loads(again[0].data) == {"number": 20}


@every_server
@pytest.mark.column("page, URLs")
async def test_the_page_and_its_files_are_served_and_urls_are_right(server: Server) -> None:
    async with serving(server) as (_, client):
        for path in ("/", "/?source=counter", "/page/page.js"):
            assert (await client.get(path)).status_code == 200
        response = await client.get("/streams/counter/?count=1")
        run = re.findall('"run":"(.+?)"', response.text)[0]
        assert response.headers["content-location"] == f"/runs/{run}"


@every_server
@pytest.mark.column("notices a disconnect")
async def test_a_disconnect_is_noticed_before_the_next_heartbeat(server: Server) -> None:
    async with serving(server) as (_, client):
        for path in (IDLE, BUSY):
            async with httpx.AsyncClient(
                base_url=client.base_url, http1=not server.http2, http2=server.http2
            ) as gone:
                async with stream(gone, path) as opened:
                    with anyio.fail_after(5):  # Another worker may hear of the reader later.
                        while await readers(client, opened.run) != 1:
                            pass
            with anyio.fail_after(1):
                while await readers(client, opened.run):
                    pass


@every_server
async def test_a_client_that_leaves_amid_its_body_is_met_with_silence(server: Server) -> None:
    headers = "Content-Type: application/json\r\nContent-Length: 100000\r\n"
    async with serving(server) as (process, client):
        url = f"http://127.0.0.1:{client.base_url.port}"
        for path in ("/streams/counter", "/v1/chat/completions", "/v1/responses"):
            for body in (b"", b'{"count":', 60_000 * b" "):
                async with connection(url, path, method="POST", headers=headers) as leaving:
                    leaving.writer.write(body)
                    await leaving.writer.drain()
                    await anyio.sleep(LONG_ENOUGH)
        assert await every_event(client, "/streams/counter?count=1&interval=0.01")
        assert not re.search("Traceback|[Ee]rror|ERROR", process.log), process.log


async def readers(client: httpx.AsyncClient, run: str) -> int:
    """The number of readers of a run."""
    return int((await state(client, run))["readers"])


async def state(client: httpx.AsyncClient, run: str) -> dict[str, Any]:
    """The state of a run, as some worker knows it."""
    async with httpx.AsyncClient(base_url=client.base_url) as fresh:
        response = await fresh.get(f"/runs/{run}", headers={"Accept": "application/json"})
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found


class Buffered(Exception):
    """A run has completed although its client has not read it."""


@every_server
@pytest.mark.column("waits for a client that does not read")
async def test_a_source_waits_for_a_client_that_does_not_read(
    server: Server, request: pytest.FixtureRequest
) -> None:
    if not server.waits:
        request.applymarker(pytest.mark.xfail(reason=BUFFERS, raises=Buffered))
    stalled = stalled_over_http2 if server.http2 else stalled_over_http1
    async with (
        serving(server, STREAMS_WINDOW="65536") as (_, client),
        stalled(str(client.base_url), "/streams/counter?count=100000&interval=0") as run,
    ):
        last, seen = -1, await state(client, run)
        with anyio.fail_after(40):
            while seen["status"] == "running" and last != seen["last_event"]:
                last = seen["last_event"]
                await asyncio.sleep(0.5)
                seen = await state(client, run)
        if seen["status"] != "running":
            raise Buffered


@asynccontextmanager
async def stalled_over_http1(url: str, path: str) -> AsyncIterator[str]:
    """Starts a run and stops reading; gives the run's id."""
    async with connection(url, path, receive_buffer=4096) as viewer:
        await viewer.until(lambda viewer: b"/runs/" in viewer.received, "the run has an id")
        yield viewer.run


@asynccontextmanager
async def stalled_over_http2(url: str, path: str) -> AsyncIterator[str]:
    """Starts a run and leaves the window of its HTTP/2 stream closed; gives the run's id."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    http2 = h2.connection.H2Connection()
    http2.initiate_connection()
    headers = {":method": "GET", ":path": path, ":scheme": "http", ":authority": host}
    http2.send_headers(1, headers.items(), end_stream=True)
    received = b""

    async def read() -> None:
        nonlocal received
        while data := await reader.read(65536):
            for event in http2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    received += event.data
            writer.write(http2.data_to_send())

    writer.write(http2.data_to_send())
    task = asyncio.create_task(read())
    try:
        await until(lambda: b"/runs/" in received, "the run has an id")
        yield re.findall(rb"/runs/([\w-]+)", received)[0].decode()
    finally:
        task.cancel()
        writer.close()


@every_server
@pytest.mark.column("ends at SIGTERM")
async def test_sigterm_ends_open_streams_and_the_server(
    server: Server, record_property: Callable[[str, str], None]
) -> None:
    await ends(server, Process.terminate, record_property)


@every_server
@pytest.mark.column("ends at Ctrl-C")
async def test_ctrl_c_ends_open_streams_and_the_server(
    server: Server, record_property: Callable[[str, str], None]
) -> None:
    await ends(server, Process.interrupt, record_property)


async def ends(
    server: Server,
    tell: Callable[[Process], None],
    record_property: Callable[[str, str], None],
) -> None:
    async with serving(server) as (process, client):
        viewers = [await curl(server, f"{client.base_url}{path}") for path in (IDLE, BUSY)]
        tell(process)
        with anyio.fail_after(server.stops_in):
            codes = [await exit_code(viewer) for viewer in viewers]
            await process.exits(server.stops_in)
        assert codes == [server.curl] * 2
    if server.stops_in > 2:
        record_property("remark", CUT if server.curl else LATE)


@every_server
@pytest.mark.column("closes sources")
async def test_a_mounted_source_is_closed_at_sigterm(server: Server, tmp_path: Path) -> None:
    """Its `finally` waits for something. daphne runs no lifespan, and takes no less time."""
    saved = tmp_path / "saved"
    app = "tests.support.stopping:with_lifespan"
    async with serving(server, app, SAVED=str(saved)) as (process, client):
        viewer = await curl(server, f"{client.base_url}/ask", b"half an answer")
        process.terminate()
        await process.exits(server.stops_in + 2)
        await exit_code(viewer)
    assert saved.read_text() == "half an answer"


async def test_gunicorn_restarts_a_worker_after_max_requests_while_a_stream_is_open() -> None:
    command = (
        "gunicorn app:app -b 127.0.0.1:{port} -w 1 -k uvicorn_worker.UvicornWorker"
        " --no-control-socket --max-requests 2"
    )
    server = Server("gunicorn", "", command)
    async with serving(server) as (process, client):
        worker = (await client.get("/health")).json()["worker"]
        viewer = await curl(server, f"{client.base_url}{IDLE}")
        assert (await client.get("/health")).json()["worker"] == worker
        with anyio.fail_after(20):
            assert await exit_code(viewer) == 0
            async with httpx.AsyncClient(base_url=client.base_url, timeout=20) as fresh:
                assert (await fresh.get("/health")).json()["worker"] != worker
        assert "Traceback" not in process.log


async def test_the_first_worker_of_gunicorn_says_that_each_has_a_log_of_its_own() -> None:
    command = "gunicorn app:app -b 127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker"
    command += " --no-control-socket"
    async with serving(Server("gunicorn", "", command), STREAMS_LOG="memory") as (process, _):
        started = "Application startup complete"
        await until(lambda: process.log.count(started) == 2, "both workers serve", 20)
        assert process.log.count("2 workers serve this Streams") == 1


async def test_hypercorn_with_trio_gets_a_problem_that_says_what_to_do() -> None:
    server = Server("hypercorn", "", "hypercorn app:app -b 127.0.0.1:{port} -k trio")
    async with serving(server, "tests.support.stopping:mounted") as (process, client):
        for _ in range(2):
            response = await client.get("/live/streams/answer")
            assert response.status_code == 500
            assert "hypercorn -k asyncio" in response.json()["detail"]
        assert "Traceback" not in process.log


async def curl(
    server: Server, url: str, first: bytes = b'{"number":0}'
) -> asyncio.subprocess.Process:
    """Starts curl, which has received the first event. Its exit code says if the body is cut."""
    http = "--http2-prior-knowledge" if server.http2 else "--http1.1"
    viewer = await asyncio.create_subprocess_exec(
        program("curl"), "-sSfN", http, "--max-time", "20", url, stdout=asyncio.subprocess.PIPE
    )
    assert viewer.stdout is not None
    await asyncio.wait_for(viewer.stdout.readuntil(first), 10)
    return viewer


async def exit_code(viewer: asyncio.subprocess.Process) -> int:
    await viewer.communicate()
    return await viewer.wait()


@every_server
@pytest.mark.column("drop_after cuts")
async def test_drop_after_cuts_the_stream_and_a_resume_gets_the_rest(
    server: Server, record_property: Callable[[str, str], None]
) -> None:
    url = "/streams/tokens?drop_after=3&tokens_per_second=1000&first_token=0"
    async with serving(server) as (process, client):
        body, broke_off = await cut_body(client, "GET", url)
        assert body.count(b'"content":"') == 3
        assert body.endswith(b"\n\n")
        assert b"event: end" not in body
        assert broke_off is server.cuts
        assert "Traceback" not in process.log
        run = re.findall('"run":"(.+?)"', body.decode())[0]
        rest = await every_event(client, url, f"{run}.3")
        assert rest[0].id == f"{run}.4"
        assert rest[-2].json()["eval_count"] == 3 + len(rest[:-2])
        assert rest[-1].json() == {"status": "completed"}
    if not server.cuts:
        record_property("remark", ENDED)


@every_server
@pytest.mark.column("in JSON, too")
async def test_drop_after_cuts_a_chat_completion_in_json(server: Server) -> None:
    asked = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}]}
    options = {"drop_after": 3, "tokens_per_second": 1000, "first_token": 0}
    async with serving(server) as (process, client):
        url = "/v1/chat/completions"
        body, broke_off = await cut_body(client, "POST", url, json={**asked, **options})
        assert body.startswith(b'{"id":"chatcmpl-')
        assert not body.endswith(b"}")
        assert broke_off is server.cuts
        assert "Traceback" not in process.log


async def cut_body(
    client: httpx.AsyncClient, method: str, url: str, **options: Any
) -> tuple[bytes, bool]:
    """A body that the mock cuts, and whether the client sees that it is incomplete."""
    body = b""
    with anyio.fail_after(5):
        async with client.stream(method, url, **options) as response:
            try:
                async for data in response.aiter_raw():
                    body += data
            except httpx.RemoteProtocolError:
                return body, True
    return body, False


@over_http2
@pytest.mark.column("HTTP/2")
async def test_http2_has_no_connection_header(server: Server) -> None:
    async with serving(server) as (_, client), stream(client, IDLE) as opened:
        assert opened.response.http_version == "HTTP/2"
        assert "connection" not in opened.response.headers
