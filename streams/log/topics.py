"""LocalTopics: the topics of a log in one process.

Invariant: a topic without readers has a timer, which forgets it.
"""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Generic

from streams.errors import LogClosed
from streams.event import End, EventId, Payload
from streams.log import Limits, RunInfo
from streams.log.run_table import R, RunTable


class LocalTopics(ABC, Generic[R]):
    """The topics of a log in memory."""

    runs: RunTable[R]
    _loop: asyncio.AbstractEventLoop | None = None

    @abstractmethod
    async def create(self, info: RunInfo, limits: Limits) -> R: ...

    @abstractmethod
    async def discard(self, run: str) -> None: ...

    async def topic(self, info: RunInfo, limits: Limits) -> R:
        if (loop := asyncio.get_running_loop()) is not self._loop:
            await self._begin_in(loop)
        run = await self.create(info, limits)
        if run.opening:
            run.append(b"start", info.start)
            run.open()
        if run.status == "running":
            self.runs.expire(run, limits.retain)
        return run

    async def _begin_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forgets the topics of a closed event loop, with their readers and timers."""
        self._loop = loop
        for info in [run.info for run in self.runs]:
            if info.topic:
                await self.discard(info.run)

    async def publish(self, info: RunInfo, limits: Limits, event: Payload) -> EventId:
        run = await self.topic(info, limits)
        run.append(*event)
        return EventId(run.info.run, run.last)

    async def end_topic(self, info: RunInfo, limits: Limits, end: End) -> None:
        run = await self.topic(info, limits)
        with suppress(LogClosed):
            run.close(end)
