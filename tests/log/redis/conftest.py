"""Fixtures for the tests of RedisLog: workers without a server, and the keys they use."""

from collections.abc import AsyncIterator, Callable

import pytest

from streams.log.redis import RedisLog

NewWorker = Callable[..., RedisLog]


@pytest.fixture
async def new_worker(redis_url: str) -> AsyncIterator[NewWorker]:
    """Makes a RedisLog with a short lease. The fixture closes all of them after the test."""
    made: list[RedisLog] = []

    def new_worker(**options: object) -> RedisLog:
        made.append(RedisLog(f"{redis_url}&lease=0.3", **options))  # type: ignore[arg-type]
        return made[-1]

    yield new_worker
    for log in made:
        await log.aclose()


@pytest.fixture
def prefix(redis_url: str) -> str:
    """The prefix of all keys of the test."""
    return redis_url.partition("prefix=")[2]
