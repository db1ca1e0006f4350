"""Fixtures for the tests of RedisStore."""

import pytest


@pytest.fixture
def store_url(redis_url: str) -> str:
    """The store of `new_worker`: no other one than Redis."""
    return redis_url


@pytest.fixture
def prefix(redis_url: str) -> str:
    """The prefix of all keys of the test."""
    return redis_url.partition("prefix=")[2]
