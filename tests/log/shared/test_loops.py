"""One event loop after another, without a lifespan: each request of a test client has its own."""

import subprocess
import sys

from tests.support.stores import with_lease

SCRIPT = """
import re, sys
from starlette.testclient import TestClient
from streams import Streams
from streams.sources import counter

client = TestClient(Streams([counter], log=sys.argv[1]))
runs = []
for _ in range(3):
    body = client.get("/streams/counter?count=3&interval=0").text
    assert "completed" in body, body
    runs += re.findall('"run":"(.+?)"', body)
for run in runs:
    again = client.get(f"/runs/{run}", headers={"Last-Event-ID": f"{run}.1"}).text
    print(again.count('"number":'))
"""


def test_a_run_is_read_in_other_event_loops_than_the_one_that_it_ran_in(store_url: str) -> None:
    # In a process of its own: nobody can close the connections of a closed event loop.
    command = [sys.executable, "-c", SCRIPT, store_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ["2", "2", "2"], done.stderr


LEFT_RUNNING = """
import asyncio, sys
from streams import Streams, source

@source
async def numbers(*, after: int = 0):
    for number in range(after, 3):
        yield number
        if after == 0:
            await asyncio.sleep(3600)

streams = Streams([numbers], log=sys.argv[1])

async def start():
    await streams.__aenter__()  # and never out of it
    log = await streams.runs.start(await numbers.job({}, None, policy=streams.policy))
    await streams.log.written()
    return log.info.run

async def finish(run):
    async with streams:
        while (log := await streams.log.find(run)).status == "running":
            await asyncio.sleep(0.01)
        print(log.status, log.last)

loop = asyncio.new_event_loop()
run = loop.run_until_complete(start())
loop.close()
asyncio.run(finish(run))
"""


def test_a_run_that_a_closed_event_loop_left_is_taken_over(store_url: str) -> None:
    # In SQLite, the death of the old worker is certain: nobody waits for its lease.
    lease = 1000 if store_url.startswith("sqlite:") else 0.3
    command = [sys.executable, "-c", LEFT_RUNNING, with_lease(store_url, lease)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ["completed", "4"], done.stderr
