"""Repeats what a store did not answer, after pauses that grow."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streams.errors import Unavailable

logger = logging.getLogger("streams")

MAX_PAUSE_SECONDS = 0.5
"""Less than a third of a usual lease: after an outage of the store, every worker renews its lease
before another worker counts it as dead."""

T = TypeVar("T")


class Backoff:
    """Growing pauses with jitter between the attempts of one operation."""

    def __init__(self) -> None:
        self._seconds = 0.025

    async def wait(self) -> None:
        self._seconds = min(2 * self._seconds, MAX_PAUSE_SECONDS)
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1))


async def repeat(loop: Callable[[], Awaitable[None]]) -> None:
    """Repeats the loop of a task for ever, after a pause if it failed."""
    backoff = Backoff()
    while True:
        try:
            await loop()
            backoff = Backoff()
        except Unavailable:
            await backoff.wait()
        except Exception:
            logger.exception("unexpected error in a task of the shared log: the task continues")
            await backoff.wait()


async def until_answered(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeats an operation of a store until the store has done it, and returns its result."""
    backoff = Backoff()
    while True:
        try:
            return await operation()
        except Unavailable:
            await backoff.wait()
