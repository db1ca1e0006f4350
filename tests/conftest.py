"""Fixtures for all tests: the event loop that the server uses, too, and a Valkey."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.valkey import Valkey, running_valkey

# No test measures time, and a machine may be busy.
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
    """A place of its own in a Redis: a prefix nobody else has."""
    return f"{shared_valkey.url}?prefix=test-{secrets.token_hex(4)}"
