"""Fixtures for all tests: the event loop that the server uses, too."""

from typing import Any

import pytest
from hypothesis import settings

# No test measures time, and a machine may be busy.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}
