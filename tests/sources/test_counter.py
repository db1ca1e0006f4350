"""The source `counter`."""

import time

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources import counter
from tests.support.sources import all_of, check_bounds


async def test_the_counter_counts_from_start() -> None:
    assert await all_of(counter(5, 3, 0)) == [{"number": n} for n in (5, 6, 7)]
    assert await all_of(counter(count=0)) == []


async def test_the_counter_pauses_only_between_numbers() -> None:
    before = time.monotonic()
    await all_of(counter(count=3, interval=0.05))
    assert time.monotonic() - before > 0.09
    with anyio.fail_after(5):
        assert await anext(counter(interval=60)) == {"number": 0}


@given(st.integers(0, 20), st.integers(0, 25))
async def test_a_restarted_counter_skips_the_numbers_that_were_sent(count: int, after: int) -> None:
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
def test_the_parameters_of_the_counter_have_bounds(
    name: str, below: float, least: float, most: float, above: float
) -> None:
    check_bounds(counter, name, below, least, most, above)
