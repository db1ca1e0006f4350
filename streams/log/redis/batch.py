"""Batch: calls of one script that wait at the same time share a round trip to Redis."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any

from streams.errors import StoreDown
from streams.log.redis.connection import RedisLink
from streams.log.redis.scripts import Script

CALLS = 100
"""A round trip has this many calls at most, so that none waits long for its reply."""


class Batch:
    """Calls a script through a link: one round trip at a time, which takes all that wait for it."""

    def __init__(self, link: RedisLink, script: Script) -> None:
        self._link = link
        self._script = script
        self._waiting: dict[asyncio.Future[Any], Sequence[Any]] = {}
        self._turn = asyncio.Lock()

    async def call(self, *arguments: Any) -> Any:
        """Returns the reply. Raises StoreDown: the call may have had its effect then."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting[reply] = arguments
        try:
            async with self._turn:
                if not reply.done():  # Nobody before this call has taken it along.
                    await self._take_turn()
        finally:
            self._waiting.pop(reply, None)
        if isinstance(result := reply.result(), StoreDown):
            raise result
        if isinstance(result, Exception):
            raise self._link.failure(result)
        return result

    async def _take_turn(self) -> None:
        replies = list(islice(self._waiting, CALLS))
        calls = [(self._script, self._waiting.pop(reply)) for reply in replies]
        results: Sequence[Any] = [StoreDown("the call was cancelled")] * len(calls)
        try:
            results = await self._link.call_all(calls)
        except StoreDown as error:
            results = [error] * len(calls)
        finally:
            for reply, result in zip(replies, results, strict=True):
                reply.set_result(result)
