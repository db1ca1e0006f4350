"""The server as a process: killed, terminated, interrupted, with streams open."""

import asyncio
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

from tests.support.servers import ROOT, connection, exit_of, free_port, server_process


async def test_kill_9_in_mid_count_costs_one_reconnect_and_not_one_number() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    path = "/streams/counter?count=40&interval=0.02"
    numbers: list[int] = []
    last: str | None = None
    ended = False
    for _ in range(3):
        with server_process(port) as process:
            headers = f"Last-Event-ID: {last}\r\n" if last else ""
            async with connection(url, path, headers=headers) as stream:
                so_far = len(numbers)
                with anyio.fail_after(10):
                    while not ended and len(numbers) < so_far + 12:
                        data = await stream.reader.read(65536)
                        stream.received += data
                        blocks = stream.body.decode().split("\n\n")[:-1]
                        events = [
                            re.findall(r"id: (\S+)\n(?:event: .*\n)?data: (.*)", block)
                            for block in blocks
                        ]
                        fresh = [(i, json.loads(d)) for ((i, d),) in events]
                        numbers[so_far:] = [d["number"] for _, d in fresh if "number" in d]
                        if fresh:
                            last = fresh[-1][0]
                            ended = fresh[-1][1].get("status") == "completed"
                process.send_signal(signal.SIGKILL)
                process.wait(5)
    with server_process(port):
        async with httpx.AsyncClient(base_url=url) as client:
            rest = await client.get(path, headers={"Last-Event-ID": str(last)})
    numbers += [int(n) for n in re.findall(r'"number":(\d+)', rest.text)]
    assert numbers == list(range(40))
    assert rest.text.endswith('event: end\ndata: {"status":"completed"}\n\n')


@pytest.mark.parametrize(
    ("signal_", "options"),
    [
        (signal.SIGTERM, "--http httptools"),
        (signal.SIGINT, "--http httptools"),
        (signal.SIGTERM, "--http h11"),
    ],
)
async def test_one_signal_ends_50_open_streams_within_2_seconds_each_terminated(
    signal_: signal.Signals, options: str
) -> None:
    port = free_port()
    with server_process(port, "--log-level", "info", *options.split()) as process:
        url = f"http://127.0.0.1:{port}"
        async with anyio.create_task_group() as group:
            opened = 0
            terminated = []

            async def view(path: str) -> None:
                nonlocal opened
                async with connection(url, path) as stream:
                    await stream.until(lambda stream: stream.body.endswith(b"\n\n"))
                    opened += 1
                    await stream.to_the_end(10)
                    terminated.append(stream.terminated)

            for n in range(50):
                path = (
                    "/streams/counter?interval=60",
                    "/streams/clock",
                    "/streams/tokens?first_token=60",
                )[n % 3]
                group.start_soon(view, path)
            with anyio.fail_after(10):
                while opened < 50:
                    await asyncio.sleep(0.01)
            process.send_signal(signal_)
            code = await exit_of(process, 2)
        assert terminated == [True] * 50
        assert code in (0, -signal_, 128 + signal_)


async def test_a_source_of_ones_own_is_plugged_in_by_its_name() -> None:
    port = free_port()
    with server_process(
        port,
        STREAMS_SOURCES="streams.sources:clock, tests.test_settings:ticks",
        STREAMS_HEARTBEAT="5",
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            sources = (await client.get("/streams")).json()["sources"]
    assert [source["name"] for source in sources] == ["clock", "ticks"]


def test_a_setting_that_cannot_be_is_one_line_at_start() -> None:
    with (
        pytest.raises(AssertionError) as failed,
        server_process(free_port(), STREAMS_HEARTBEAT="often"),
    ):
        raise RuntimeError("it started")
    lines = str(failed.value).splitlines()[1:]
    assert lines == ["STREAMS_HEARTBEAT='often' cannot be: Expected `float`, got `str`"]


def test_make_run_starts_no_workers_where_none_could_start() -> None:
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
    assert made.stderr.count("STREAMS_HEARTBEAT='often' cannot be") == 1
