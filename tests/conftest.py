"""Fixtures for all tests: uvloop as the event loop, as in production, and a Valkey server."""

import json
import os
import secrets
from collections.abc import Awaitable, Callable, Generator, Iterator
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import settings

from tests.support.valkey import Valkey, running_valkey

# `app` and the servers that tests start keep nothing in the working directory.
os.environ["STREAMS_LOG"] = "memory"

# An HTTP client loads the authorities that it trusts, which takes 30 ms. No test needs any.
os.environ["SSL_CERT_DIR"] = os.fspath(Path(__file__).parent)
os.environ.pop("SSL_CERT_FILE", None)

# A busy machine may be slow, and no test measures time: examples have no deadline.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Replaces lone surrogates in reports: pytest-xdist sends them as UTF-8, which has none."""
    return json.loads(json.dumps((yield), ensure_ascii=False).encode(errors="replace"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Ends an async test that takes too long, 30 s before pytest-timeout does.

    The signal of pytest-timeout raises an error between two steps of uvloop, which loses it: the
    test would not fail, but hang for ever.
    """
    if iscoroutinefunction(pyfuncitem.obj):
        marker = pyfuncitem.get_closest_marker("timeout")
        seconds = marker.args[0] if marker else pyfuncitem.config.getini("timeout")
        pyfuncitem.obj = within(float(seconds) - 30, pyfuncitem.obj)


def within(seconds: float, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def limited(**fixtures: Any) -> None:
        with anyio.fail_after(seconds):
            await test(**fixtures)

    return limited


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


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that no other test uses."""
    return f"sqlite:{tmp_path}/runs.db"


@pytest.fixture(params=["redis", "sqlite"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of a store that no other test uses; the test runs on each kind of store."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["memory", "redis", "sqlite"])
def log_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of a log of its own; None is memory. The test runs on each kind of log."""
    if request.param == "memory":
        return None
    return str(request.getfixturevalue(f"{request.param}_url"))
