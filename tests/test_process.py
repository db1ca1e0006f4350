"""The server as a process: it is killed, terminated or misconfigured."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx
import pytest

from tests.support.servers import ROOT, connection, exit_of, free_port, server_process, until


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


def test_make_run_reports_an_invalid_setting_once_for_all_workers() -> None:
    options = ["-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "WORKERS=2"]
    made = subprocess.run(
        ["make", "run", *options],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": "", "STREAMS_HEARTBEAT": "often"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert made.returncode
    assert made.stderr.count("STREAMS_HEARTBEAT='often' is invalid") == 1
