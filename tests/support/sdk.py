"""OpenAI's Python SDK as a client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from tests.support.servers import serving


@asynccontextmanager
async def sdk_of(app: Any, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    """Serves an app and yields an SDK client for it that does not retry."""
    async with (
        serving(app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", **{"max_retries": 0, **options}) as client,
    ):
        yield client
