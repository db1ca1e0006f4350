"""Fixtures for the tests of SharedLog: workers without a server, on each store."""

from collections.abc import AsyncIterator, Callable

import pytest

from streams.log.shared import SharedLog
from tests.support.stores import shared_log, with_lease

NewWorker = Callable[..., SharedLog]


@pytest.fixture
async def new_worker(store_url: str) -> AsyncIterator[NewWorker]:
    """Makes a SharedLog with a short lease. The fixture closes all of them after the test."""
    made: list[SharedLog] = []

    def new_worker(**options: int) -> SharedLog:
        made.append(shared_log(with_lease(store_url, 0.3), **options))
        return made[-1]

    yield new_worker
    for log in made:
        await log.aclose()
