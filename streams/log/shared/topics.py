"""SharedTopics: the topics of a SharedLog.

A topic is a run that no worker produces, so nothing of it is lost when one dies. The store appends
what is published to it, and workers follow it like the run of another worker. It expires unless
somebody publishes to it, or a worker with readers of it sends its cursor again.
"""

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from contextlib import suppress

import msgspec

from streams.errors import LogClosed, Unavailable, UnknownRun
from streams.event import End, EventId, Payload
from streams.log import Limits, RunInfo, RunLog
from streams.log.memory import MemoryLog
from streams.log.shared.repeat import Backoff
from streams.log.shared.work import Work
from streams.log.store import Publication, Published, Store

RENEWALS_PER_REFRESH = 10
"""A worker refreshes the states of the runs that it follows, and the cursors, this rarely."""

PUBLISH_SECONDS = 10.0
"""A publish is repeated for this long while the store does not answer."""


def watched_seconds(store: Store) -> float:
    """For how long the cursor of a worker keeps a topic: three times until it is sent again."""
    return 3 * RENEWALS_PER_REFRESH * store.renew_interval


class SharedTopics(ABC):
    """The topics of a SharedLog.

    To publish, a process opens the store without becoming one of the workers that take over runs.
    """

    store: Store
    store_is_open: bool
    _loop: asyncio.AbstractEventLoop | None = None
    _opening_store: asyncio.Lock
    _local: MemoryLog
    _work: Work

    @property
    @abstractmethod
    def worker(self) -> str: ...

    @abstractmethod
    def _start_over(self) -> None: ...

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def find(self, run: str) -> RunLog: ...

    async def open_store(self) -> None:
        """Opens the store in the running event loop, unless it is open."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            if self._loop is not None:
                self._start_over()
            self._loop = loop
        if self.store_is_open:
            return
        async with self._opening_store:
            if not self.store_is_open:
                await self.store.open(self.worker)
                self.store_is_open = True

    async def topic(self, info: RunInfo, limits: Limits) -> RunLog:
        await self.open()
        keep = limits.retain + watched_seconds(self.store)
        while True:
            made = Publication(info=info, limits=limits, event=None, keep=keep)
            published = await self.store.publish(made)
            with suppress(UnknownRun):
                return await self.find(published.run)
            # It had ended, and has expired just now; or its state cannot be read.
            await self.store.discard(published.run)

    async def publish(self, info: RunInfo, limits: Limits, event: Payload) -> EventId:
        publication = Publication(info=info, limits=limits, event=event, keep=limits.retain)
        published = await self._publish(publication)
        if published.ended:
            raise LogClosed(f"topic {published.run} has ended; nothing can be appended")
        self._local.events += 1
        return EventId(published.run, published.last)

    async def end_topic(self, info: RunInfo, limits: Limits, end: End) -> None:
        event = (b"end", end.encode())
        await self._publish(
            Publication(
                info=info, limits=limits, event=event, keep=limits.retain, status=end.status
            )
        )

    async def _publish(self, publication: Publication) -> Published:
        await self.open_store()
        publication = msgspec.structs.replace(publication, token=secrets.token_urlsafe(8))
        backoff, deadline = Backoff(), time.monotonic() + PUBLISH_SECONDS
        while True:
            try:
                return await self._work.timed("publish", self.store.publish(publication))
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            publication = msgspec.structs.replace(publication, repeated=True)
            await backoff.wait()
