"""Fixtures for all tests: uvloop as the event loop, as in production, and a Valkey server."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.valkey import Valkey, running_valkey

# A busy machine may be slow, and no test measures time: examples have no deadline.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Valkey]:
    with running_valkey() as valkey:
        yield valkey


@pytest.fixture
def redis_url(shared_valkey: Valkey) -> str:
    """A Redis URL with a key prefix that no other test uses."""
    return f"{shared_valkey.url}?prefix=test-{secrets.token_hex(4)}"
