"""The server as a process: it is killed, terminated or misconfigured."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from tests.log.shared.workers import MORTAL, TERMINATED, Condition, last_id, numbers
from tests.support.servers import (
    ROOT,
    connection,
    exit_of,
    free_port,
    kill_group,
    process_group,
    served,
    server_process,
    until,
)


async def test_a_client_loses_no_number_when_the_server_is_killed_and_restarted(
    tmp_path: Path,
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    path = "/streams/counter?count=400&interval=0.02"  # It outlasts the three servers.
    numbers: list[int] = []
    last: str | None = None
    log = f"sqlite:{tmp_path}/runs.db"
    for _ in range(3):
        with server_process(port, STREAMS_LOG=log) as process:
            headers = f"Last-Event-ID: {last}\r\n" if last else ""
            async with connection(url, path, headers=headers) as stream:
                await stream.until(
                    lambda stream: stream.body.count(b'"number":') >= 12,
                    "12 numbers have arrived",
                    10,
                )
                process.send_signal(signal.SIGKILL)
                process.wait(5)
                blocks = stream.body.decode().split("\n\n")[:-1]
                events = [
                    re.findall(r"id: (\S+)\n(?:event: .*\n)?data: (.*)", block) for block in blocks
                ]
                fresh = [(i, json.loads(d)) for ((i, d),) in events]
                numbers += [d["number"] for _, d in fresh if "number" in d]
                last = fresh[-1][0]
    with server_process(port, STREAMS_LOG=log):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            rest = await client.get(path, headers={"Last-Event-ID": str(last)})
    numbers += [int(n) for n in re.findall(r'"number":(\d+)', rest.text)]
    assert numbers == list(range(400))
    assert rest.text.endswith('event: end\ndata: {"status":"completed"}\n\n')


@pytest.mark.parametrize(
    ("signal_", "options"),
    [
        (signal.SIGTERM, "--http httptools"),
        (signal.SIGINT, "--http httptools"),
        (signal.SIGTERM, "--http h11"),
    ],
)
async def test_one_signal_completes_50_open_streams_and_ends_the_server(
    signal_: signal.Signals, options: str
) -> None:
    """None of these streams ends by itself within a minute."""
    port = free_port()
    with server_process(port, "--log-level", "info", *options.split()) as process:
        url = f"http://127.0.0.1:{port}"
        async with anyio.create_task_group() as group:
            opened = 0
            terminated = []

            async def view(path: str) -> None:
                nonlocal opened
                async with connection(url, path) as stream:
                    await stream.until(
                        lambda stream: stream.body.endswith(b"\n\n"), "an event has arrived", 20
                    )
                    opened += 1
                    await stream.to_the_end(30)
                    terminated.append(stream.terminated)

            for n in range(50):
                path = (
                    "/streams/counter?interval=60",
                    "/streams/clock",
                    "/streams/tokens?first_token=60",
                )[n % 3]
                group.start_soon(view, path)
            await until(lambda: opened == 50, "50 streams are open", 20)
            process.send_signal(signal_)
            code = await exit_of(process, 20)
        assert terminated == [True] * 50
        assert code in (0, -signal_, 128 + signal_)


async def test_streams_sources_imports_sources_by_name() -> None:
    port = free_port()
    with server_process(
        port,
        STREAMS_SOURCES="streams.sources:clock, tests.support.sources:ticks",
        STREAMS_HEARTBEAT="5",
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            sources = (await client.get("/streams")).json()["sources"]
    assert [source["name"] for source in sources] == ["clock", "ticks"]


def test_the_server_exits_with_one_line_about_an_invalid_setting() -> None:
    with (
        pytest.raises(AssertionError) as failed,
        server_process(free_port(), STREAMS_HEARTBEAT="often"),
    ):
        raise RuntimeError("the server started")
    lines = str(failed.value).splitlines()[1:]
    assert lines == ["STREAMS_HEARTBEAT='often' is invalid: Expected `float`, got `str`"]


# make run

MAKE = ["make", "-f", f"{ROOT}/Makefile", "-o", ".venv/installed"]
MAKE += [f"BIN={Path(sys.executable).parent}"]


@asynccontextmanager
async def made(
    folder: Path, *options: str, workers: int = 1, **environ: str
) -> AsyncIterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """`make run` with its defaults in a folder. Yields the URL, the log and the process."""
    port = free_port()
    environ |= {"MAKEFLAGS": "", "PYTHONPATH": str(ROOT), "PORT": str(port)}
    command = [*MAKE, "run", f"WORKERS={workers}", *options]
    log = folder.parent / f"{port}.log"
    with process_group(command, log, folder, STREAMS_LOG=None, **environ) as process:
        await served(process, log, port, workers)
        yield f"http://127.0.0.1:{port}", log, process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder in which `make run` is started."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def more_than(count: int) -> Condition:
    return lambda stream: len(numbers(stream.body)) > count, f"{count} numbers have come", 20


@pytest.mark.parametrize("workers", [1, 2])
async def test_after_make_run_was_killed_the_next_one_continues_what_can_be_continued(
    folder: Path, workers: int
) -> None:
    """Each run has two viewers, who have seen more or less of it. Each reads all that was shown."""
    sources = f"streams.sources:counter,{MORTAL}"
    paths = ["/streams/counter?count=150&interval=0.02", "/streams/mortal"]
    seen: list[list[bytes]] = [[], []]
    async with AsyncExitStack() as stack:
        url, _, process = await stack.enter_async_context(
            made(folder, workers=workers, STREAMS_SOURCES=sources)
        )
        streams = [await stack.enter_async_context(connection(url, path)) for path in paths]
        views = []
        for stream in streams:
            await stream.until(*more_than(12))
            view = await stack.enter_async_context(connection(url, f"/runs/{stream.run}"))
            await view.until(*more_than(4))
            views.append(view)
        kill_group(process)
        for each in (*streams, *views):
            with suppress(ConnectionError):
                await each.to_the_end(20)
        seen = [[stream.body, view.body] for stream, view in zip(streams, views, strict=True)]
    ends: list[set[bytes]] = [set(), set()]
    counts: list[set[int]] = [set(), set()]
    async with made(folder, workers=workers, STREAMS_SOURCES=sources) as (url, log, _):
        for kind, path in enumerate(paths):
            for before in seen[kind]:
                headers = f"Last-Event-ID: {last_id(before)}\r\n"
                async with connection(url, path, headers=headers) as stream:
                    await stream.until(*TERMINATED)
                whole = before[: before.rfind(b"\n\n") + 2] + stream.body
                assert numbers(whole) == list(range(len(numbers(whole))))
                counts[kind].add(len(numbers(whole)))
                ends[kind].add(stream.body.rpartition(b"data: ")[2].strip())
        assert "Traceback" not in log.read_text()
    assert counts[0] == {150}
    assert ends[0] == {b'{"status":"completed"}'}
    assert len(counts[1]) == 1
    assert max(counts[1]) >= max(len(numbers(before)) for before in seen[1])
    (end,) = map(json.loads, ends[1])
    assert (end["status"], end["error"]["type"]) == ("failed", "ProducerLost")
    assert {name.partition("-")[0] for name in os.listdir(folder)} == {"streams.db"}


SEPARATE = "2 workers serve this Streams, and each has a log of its own"


@pytest.mark.parametrize(
    ("workers", "options", "unwritable", "warnings"),
    [
        (2, [], False, []),
        (2, ["LOG=memory"], False, [SEPARATE]),
        (1, ["LOG=memory"], False, []),
        (2, [], True, ["streams.db cannot be written", SEPARATE]),
    ],
)
async def test_workers_without_a_shared_log_say_so_once(
    workers: int, options: list[str], unwritable: bool, warnings: list[str], folder: Path
) -> None:
    if unwritable:
        (folder / "streams.db-locks").touch()
    async with made(folder, *options, workers=workers) as (_, log, process):
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        lines = log.read_text().splitlines()
    # `streams run` says what it serves; uvicorn's lines have another format than our warnings.
    others = ("INFO:", "make", "streams 0", "  sources:", "  models:", "  log:")
    ours = [line for line in lines if not line.startswith(others)]
    assert len(ours) == len(warnings), ours
    assert all(sum(warning in line for line in ours) == 1 for warning in warnings), ours


def test_make_run_reports_an_invalid_setting_once_for_all_workers() -> None:
    made = subprocess.run(
        [*MAKE, "run", "WORKERS=2"],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": "", "STREAMS_HEARTBEAT": "often"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert made.returncode
    assert made.stderr.count("STREAMS_HEARTBEAT='often' is invalid") == 1
