"""JSON Lines: programs that read lines, each with heartbeats, live events and a large export."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
import pytest

from streams import Streams, source
from streams.sources import counter
from tests.compat.processes import first_number, program, versions
from tests.support.servers import serving
from tests.support.sources import gated

PANDAS = """
import sys, pandas

accept = {"Accept": "application/jsonl"}
rows = pandas.read_json(sys.argv[1], lines=True, storage_options=accept)
print(rows.to_json(orient="records", lines=True))
"""


class Program(NamedTuple):
    """A program that prints each event of a URL as a line of JSON."""

    name: str
    version: str

    def command(self, url: str, rate: str = "1G") -> list[str]:
        if self.name == "pandas":
            return [sys.executable, "-c", PANDAS, url]
        curl = f"{program('curl')} -sN --limit-rate {rate} -H 'Accept: application/jsonl' '{url}'"
        return ["sh", "-c", f"{curl} | {program('jq')} --unbuffered -c ."]


JQ = Program("curl and jq", first_number("jq", "--version"))
PROGRAMS = [JQ, Program("pandas", versions("pandas"))]

every_program = pytest.mark.parametrize("reader", PROGRAMS, ids=lambda reader: reader.name)


async def printed_by(command: list[str]) -> list[Any]:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        with anyio.fail_after(40):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines() if line]


@every_program
@pytest.mark.column("every event once, none empty")
async def test_it_reads_every_event_once_and_no_heartbeat(reader: Program) -> None:
    async with serving(Streams([counter], heartbeat=0.01)) as url:
        path = "/streams/counter?count=30&interval=0.03"
        rows = await printed_by(reader.command(f"{url}{path}"))
    assert [row["event"] for row in rows] == ["start", *["message"] * 30, "end"]
    assert [row["data"] for row in rows[1:-1]] == [{"number": number} for number in range(30)]


@every_program
@pytest.mark.column("100,000 rows, slowly")
async def test_it_loses_no_row_of_an_export_that_it_reads_slowly(reader: Program) -> None:
    @source(window=100_000)
    async def table() -> AsyncIterator[dict[str, int]]:
        for number in range(100_000):
            yield {"row": number}

    async with serving(Streams([table])) as url:
        rows = await printed_by(reader.command(f"{url}/streams/table", rate="4M"))
    assert [row["data"] for row in rows[1:-1]] == [{"row": number} for number in range(100_000)]
    assert rows[-1]["data"] == {"status": "completed"}


@pytest.mark.parametrize("reader", [JQ], ids=lambda reader: reader.name)
@pytest.mark.column("shows events immediately")
async def test_it_shows_an_event_before_the_next_one(reader: Program) -> None:
    gate = asyncio.Event()
    async with serving(Streams([gated(gate)])) as url:
        command = reader.command(f"{url}/streams/gated")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            with anyio.fail_after(20):
                await process.stdout.readline()
                assert json.loads(await process.stdout.readline())["data"] == 1
                gate.set()
                assert json.loads(await process.stdout.readline())["data"] == 2
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
