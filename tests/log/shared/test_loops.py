"""One event loop after another, without a lifespan: each request of a test client has its own."""

import subprocess
import sys

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
