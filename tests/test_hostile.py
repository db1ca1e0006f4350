"""Clients that read nothing, leave at once or ask for too much: the others are served."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from streams import Streams, source
from tests.support.servers import connection, every_event, serving, until

EVENTS = 2000
TEXT = "x" * 10_000


@source(shared=True)
async def feed() -> AsyncIterator[Any]:
    """Yields as fast as its viewers allow: 20 MB, far more than all buffers hold."""
    for number in range(EVENTS):
        yield {"number": number, "text": TEXT}


def numbers(body: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb'"number":(\d+)', body)]


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:{tmp_path}/runs.db"


async def test_viewers_of_a_shared_run_that_read_nothing_hold_up_nobody(log: str | None) -> None:
    app = Streams([feed], log=log, window=2**17)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(app))
        stalled = [
            await stack.enter_async_context(connection(url, "/streams/feed", receive_buffer=4096))
            for _ in range(5)
        ]
        await until(lambda: app.log.readers == 5, "the stalled viewers are attached")
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url))
        events = await every_event(client, "/streams/feed")
        seen = [int(event.id.partition(".")[2]) for event in events if event.id]
        assert seen == [0, *range(seen[1], EVENTS + 2)], "after `start`, it misses nothing"
        assert [event.event for event in events].count("gap") == 0
        assert events[-1].event == "end"
        for viewer in stalled:
            await viewer.until(lambda viewer: viewer.terminated, "a stalled viewer goes on", 20)
            got = numbers(viewer.body)
            missed = re.findall(rb'event: gap\ndata: {"missed":(\d+)}', viewer.body)
            assert missed
            assert len(got) + sum(map(int, missed)) == EVENTS - got[0]
            assert got == sorted(set(got))
            assert got[-1] == EVENTS - 1
            assert b"event: end" in viewer.body
