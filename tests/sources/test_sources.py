"""The built-in sources."""

import time
from datetime import datetime
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources import clock, counter


async def all_of(events: Any) -> list[Any]:
    return [event async for event in events]


async def test_the_counter_counts() -> None:
    assert await all_of(counter(5, 3, 0)) == [{"number": n} for n in (5, 6, 7)]
    assert await all_of(counter(count=0)) == []


async def test_the_counter_pauses_between_two_numbers_only() -> None:
    before = time.monotonic()
    await all_of(counter(count=3, interval=0.05))
    assert time.monotonic() - before > 0.09
    with anyio.fail_after(1):
        assert await anext(counter(interval=60)) == {"number": 0}


@given(st.integers(0, 20), st.integers(0, 25))
async def test_the_counter_goes_on_behind_what_is_out(count: int, after: int) -> None:
    whole = await all_of(counter(count=count, interval=0))
    assert await all_of(counter(count=count, interval=0, after=after)) == whole[after:]


@pytest.mark.parametrize(
    ("name", "below", "least", "most", "above"),
    [
        ("count", -1, 0, 10**9, 10**9 + 1),
        ("interval", -0.1, 0, 60, 60.1),
        ("start", -(2**53), 1 - 2**53, 2**53 - 1 - 10**9, 2**53),
    ],
)
def test_the_bounds_of_the_counter(
    name: str, below: float, least: float, most: float, above: float
) -> None:
    for value in (least, most):
        assert counter.from_json(b'{"%s":%s}' % (name.encode(), str(value).encode()))
    for value in (below, above):
        with pytest.raises(Exception, match=name):
            counter.from_json(b'{"%s":%s}' % (name.encode(), str(value).encode()))


async def test_the_clock_tells_the_time_in_utc() -> None:
    events = clock(interval=0.01)
    times: list[datetime] = [(await anext(events))["time"] for _ in range(3)]
    assert all(time.isoformat().endswith("+00:00") for time in times)
    assert all(earlier < later for earlier, later in pairwise(times))
    await events.aclose()
