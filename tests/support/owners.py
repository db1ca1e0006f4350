"""An app with runs that have owners, for the tests of API keys and of signed URLs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from streams import current_run, source, topic
from tests.support.servers import connection

KEY, OTHER_KEY = "key-" + "a" * 12, "key-" + "b" * 12
BEARER = {"Authorization": f"Bearer {KEY}"}
JSON = {"Accept": "application/json"}

COUNTER = "/streams/counter?count=2&interval=0"


@source
async def owner() -> AsyncIterator[Any]:
    yield {"owner": current_run().owner}
    await asyncio.Event().wait()


@topic
def news(user: str) -> None:
    """What a user should hear of."""


async def owner_of(url: str, path: str = "/streams/owner", headers: str = "") -> str | None:
    """Who owns the run that a request starts."""
    async with connection(url, path, headers=headers) as stream:
        await stream.until(lambda stream: b'"owner":' in stream.body, "the run says its owner")
    text = stream.body.partition(b'"owner":')[2].partition(b"}")[0].decode()
    return None if text == "null" else text.strip('"')
