"""RedisLink: one worker's connections to Redis, and what to do when there are none.

The law of this file: whatever goes wrong between here and Redis is a StoreDown, after which the
same call may be made again: scripts are written to be repeated. One connection waits for news,
a few carry everything else, however many runs and readers there are. redis_log.py owns one.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from streams.errors import StoreDown
from streams.log.redis.scripts import SCRIPTS, Script

logger = logging.getLogger("streams")

FAILURES = (RedisError, OSError, TimeoutError)

ANSWER_SECONDS = 5.0
"""A call that takes longer has failed."""

CONNECTIONS = 4
"""For calls; one more waits for news."""

NEWS_SECONDS = 10.0
"""The connection that waits shows this often that it is alive."""

LONGEST_PAUSE = 0.5
"""Shorter than it takes to count a worker as dead when Redis is back: see RedisLog."""


class Pause:
    """Growing, jittered pauses between attempts."""

    def __init__(self) -> None:
        self._seconds = 0.025

    async def wait(self) -> None:
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE)
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1))


class RedisLink:
    """`url`: redis://, rediss://, unix:// or redis+unix://, with `?prefix=` for all keys' names."""

    def __init__(self, url: str, **ours: str) -> None:
        """`ours` are parameters of the URL that are not redis-py's, with their defaults.

        Raises ValueError for a URL that cannot be.
        """
        parts = urlsplit(url.replace("redis+unix:", "unix:", 1))
        query = dict(parse_qsl(parts.query))
        self.options = {name: query.pop(name, default) for name, default in ours.items()}
        self.prefix = self.options["prefix"]
        self.place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._url = urlunsplit(parts._replace(query=urlencode(query)))
        self._known: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": ANSWER_SECONDS,
        }
        try:
            _ = parts.port
        except ValueError:  # which would show it
            raise ValueError("in a password, # / ? @ and : have to be %-encoded") from None
        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=CONNECTIONS,
            timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
            # With one, redis-py sends in an asyncio.wait_for(), which before Python 3.12 loses a
            # cancellation that comes when the sending is done: a task would never end
            socket_timeout=None,
            **self._known,
        )
        self._pool = pool
        self._client = Redis(connection_pool=pool)
        self._listening: AbstractConnection | None = None

    def check(self) -> None:
        """Blocks until Redis has answered. Raises StoreDown if it does not, or is too old."""
        try:
            with redis.Redis.from_url(
                self._url, socket_timeout=ANSWER_SECONDS, **self._known
            ) as client:
                version = str(client.info("server")["redis_version"])
        except FAILURES as error:
            raise StoreDown(f"there is no Redis to talk to at {self.place}: {error}") from None
        if tuple(map(int, version.split(".")[:2])) < (6, 2):
            raise StoreDown(f"Redis at {self.place} is {version}: 6.2 is the oldest that will do")

    async def call(self, script: Script, *arguments: Any) -> Any:
        """What the script returns. Raises StoreDown."""
        (result,) = await self.call_all([(script, arguments)])
        if isinstance(result, Exception):
            raise StoreDown(f"Redis refuses: {result}") from result
        return result

    async def call_all(self, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Any]:
        """What each script returns, or the exception, in one round trip. Raises StoreDown."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                results = await self._pipelined(calls)
                if any(isinstance(result, NoScriptError) for result in results):
                    for script in SCRIPTS:
                        await self._client.script_load(script.text)
                    results = await self._pipelined(calls)
        except FAILURES as error:
            raise StoreDown(f"Redis does not answer: {error!r}") from error
        if any(isinstance(result, redis.ReadOnlyError) for result in results):
            # What is behind this address was the primary and is not now: look again who is
            await self._pool.disconnect(inuse_connections=False)
        return results

    async def _pipelined(self, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for script, arguments in calls:
                pipeline.evalsha(script.sha, 1, self.prefix, *arguments)
            return list(await pipeline.execute(raise_on_error=False))

    async def patiently(self, script: Script, *arguments: Any) -> Any:
        """What the script returns, however long it takes until Redis answers."""
        pause = Pause()
        while True:
            try:
                return await self.call(script, *arguments)
            except StoreDown as error:
                logger.debug("%s", error)
                await pause.wait()

    async def news(self, cursors: Mapping[str, str]) -> list[Any]:
        """Entries of streams behind the given ids, as soon as there are any. Raises StoreDown."""
        try:
            async with asyncio.timeout(NEWS_SECONDS + ANSWER_SECONDS):
                if self._listening is None:
                    self._listening = await self._connected()
                await self._listening.send_command(
                    "XREAD",
                    "COUNT",
                    "256",
                    "BLOCK",
                    str(int(NEWS_SECONDS * 1000)),
                    "STREAMS",
                    *cursors,
                    *cursors.values(),
                )
                return await self._listening.read_response() or []
        except FAILURES as error:
            await self._hang_up()
            raise StoreDown(f"Redis does not answer: {error!r}") from error
        except asyncio.CancelledError:
            await self._hang_up()
            raise

    async def _connected(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    async def _hang_up(self) -> None:
        if self._listening is not None:
            await self._listening.disconnect(nowait=True)
            self._listening = None

    async def aclose(self) -> None:
        await self._hang_up()
        await self._client.aclose()
        await self._pool.disconnect()
