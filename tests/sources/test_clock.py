"""The source `clock`."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import anyio

from streams.sources import clock
from tests.support.sources import check_bounds


async def test_the_clock_sends_the_time_in_utc() -> None:
    began = datetime.now(UTC)
    events = clock(interval=0.01)
    with anyio.fail_after(5):
        times: list[datetime] = [(await anext(events))["time"] for _ in range(3)]
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert [began, *times] == sorted([began, *times])
    assert isinstance(events, AsyncGenerator)
    await events.aclose()


def test_the_interval_has_bounds() -> None:
    check_bounds(clock, "interval", 0.009, 0.01, 60, 60.1)
