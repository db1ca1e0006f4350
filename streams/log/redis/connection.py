"""RedisLink: the connections of one worker to Redis.

Invariants:

1. Every failure between this worker and Redis is a StoreDown, whose message is meant for clients:
   the server's log has the details. The caller can repeat the call: the scripts allow that (see
   scripts.py).
2. The number of connections does not depend on the number of runs and readers: one connection
   waits for new stream entries, and CONNECTIONS carry all other calls.
"""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from streams.errors import StoreDown, for_log
from streams.log.redis.scripts import SCRIPTS, Script

logger = logging.getLogger("streams")

FAILURES = (RedisError, OSError, TimeoutError)

CALL_SECONDS = 5.0
"""A call without a reply after this time has failed."""

CONNECTIONS = 4
"""Connections for calls. One more waits for new stream entries."""

_DAMAGE = re.compile(r"WRONGTYPE|attempt to|bad argument|ID specified in XADD")

BLOCK_SECONDS = 10.0
"""An XREAD waits at most this long. A connection that stays silent for longer is broken."""


def is_damage(reply: Any) -> bool:
    """Whether a reply says that a script met what no script has written, such as another type."""
    return type(reply) is ResponseError and _DAMAGE.search(str(reply)) is not None


class RedisLink:
    """Calls scripts in Redis, and reads streams from it.

    `url` is redis://, rediss://, unix:// or redis+unix://. Its parameter `prefix` is the prefix of
    all keys. `parameters` are the names and defaults of the URL's parameters that redis-py does not
    know; their values are in `options`. Raises ValueError for an invalid URL.
    """

    def __init__(self, url: str, **parameters: str) -> None:
        url = url.replace("redis+unix:", "unix:", 1)
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        self.options = {name: query.pop(name, default) for name, default in parameters.items()}
        self.prefix = self.options["prefix"]
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        # Not urlunsplit(), which makes unix:/path of unix:///path. redis-py refuses that.
        self._url = f"{url.partition('?')[0]}?{urlencode(query)}"
        self._settings: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": CALL_SECONDS,
        }
        try:
            _ = parts.port
        except ValueError:  # its text can contain a part of the password
            raise ValueError(
                "the URL of Redis has an invalid port: if its password contains one of # / ? @ :, "
                "write that character %-encoded, for example %23 for #"
            ) from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                "the URL of Redis begins with redis://, rediss:// or redis+unix://, not "
                f"with {url.partition(':')[0]!r}"
            )
        self.open()

    def open(self) -> None:
        """Begins with new connections. Those of a closed event loop can be neither used nor closed.

        Raises ValueError for an invalid URL.
        """
        self._pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=CONNECTIONS,
            timeout=CALL_SECONDS,
            retry=Retry(NoBackoff(), 0),
            # With a timeout, redis-py sends inside asyncio.wait_for(). Before Python 3.12 that
            # loses a cancellation which comes just when the sending is done, and the task goes on.
            socket_timeout=None,
            **self._settings,
        )
        self._client = Redis(connection_pool=self._pool)
        self._reading: AbstractConnection | None = None
        self._works = True

    def check(self) -> None:
        """Asks Redis for its version, and blocks the thread meanwhile.

        Raises StoreDown if Redis does not answer or is older than 6.2.
        """
        try:
            with redis.Redis.from_url(
                self._url, socket_timeout=CALL_SECONDS, **self._settings
            ) as client:
                version = str(client.info("server")["redis_version"])
        except FAILURES as error:
            raise StoreDown(
                f"Redis at {self.address} cannot be used: {str(error).rstrip('.')}; start it, or "
                "correct the URL of the log"
            ) from None
        if tuple(map(int, version.split(".")[:2])) < (6, 2):
            raise StoreDown(f"Redis at {self.address} is version {version}: use 6.2 or newer")

    def failure(self, error: Exception) -> StoreDown:
        """The StoreDown to raise for an error of Redis. Logs only the first one of an outage."""
        if self._works:
            self._works = False
            what = for_log(f"{type(error).__name__}: {error}")
            logger.warning("Redis at %s cannot be used now: %s", self.address, what)
        return StoreDown(f"Redis cannot be used now; try again in {StoreDown.retry_after} s")

    async def call(self, script: Script, *arguments: Any) -> Any:
        """Runs a script and returns its reply. Raises StoreDown."""
        (reply,) = await self.call_all([(script, arguments)])
        if isinstance(reply, Exception):
            raise self.failure(reply)
        return reply

    async def call_all(self, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Any]:
        """Runs scripts in one round trip, and returns for each its reply or its exception.

        Raises StoreDown if there are no replies.
        """
        try:
            async with asyncio.timeout(CALL_SECONDS):
                replies = await self._pipelined(calls)
                if missing := [n for n, r in enumerate(replies) if isinstance(r, NoScriptError)]:
                    for script in SCRIPTS:
                        await self._client.script_load(script.text)
                    again = await self._pipelined([calls[n] for n in missing])
                    for n, reply in zip(missing, again, strict=True):
                        replies[n] = reply
        except FAILURES as error:
            raise self.failure(error) from error
        if not any(isinstance(reply, Exception) for reply in replies):
            self._works = True
        if any(isinstance(reply, redis.ReadOnlyError) for reply in replies):
            # The server was the primary and is a replica now. New connections resolve the address
            # again, and may reach the new primary.
            await self._pool.disconnect(inuse_connections=False)
        return replies

    async def _pipelined(self, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for script, arguments in calls:
                pipeline.evalsha(script.sha, 1, self.prefix, *arguments)
            return list(await pipeline.execute(raise_on_error=False))

    async def names(self, kind: str) -> list[str]:
        """The names of all keys of a kind, without the prefix. Raises StoreDown."""
        prefix = f"{self.prefix}:{kind}"
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        try:
            async with asyncio.timeout(CALL_SECONDS):
                keys = [key async for key in self._client.scan_iter(match=pattern, count=1000)]
        except FAILURES as error:
            raise self.failure(error) from error
        return [key.decode().removeprefix(prefix) for key in set(keys)]

    async def delete(self, *keys: str) -> None:
        """Deletes keys. Raises StoreDown."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._client.delete(*keys)
        except FAILURES as error:
            raise self.failure(error) from error

    async def without_stream(self, keys: Sequence[str]) -> list[str]:
        """Which of these keys exist, but are not streams. Raises StoreDown."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                types = [await self._client.type(key) for key in keys]
        except FAILURES as error:
            raise self.failure(error) from error
        return [k for k, kind in zip(keys, types, strict=True) if kind not in (b"stream", b"none")]

    async def read(self, cursors: Mapping[str, str]) -> list[Any]:
        """Waits for entries after the given ids, and returns them as XREAD does.

        `cursors` maps each stream to the id of its last entry that the caller has. Returns an empty
        list after BLOCK_SECONDS without an entry. Raises StoreDown, and ResponseError if one of
        the keys is not a stream.
        """
        try:
            async with asyncio.timeout(BLOCK_SECONDS + CALL_SECONDS):
                if self._reading is None:
                    self._reading = await self._connect()
                await self._reading.send_command(
                    "XREAD",
                    "COUNT",
                    "256",
                    "BLOCK",
                    str(int(BLOCK_SECONDS * 1000)),
                    "STREAMS",
                    *cursors,
                    *cursors.values(),
                )
                return await self._reading.read_response() or []
        except FAILURES as error:
            await self._stop_reading()
            if is_damage(error):
                raise
            raise self.failure(error) from error
        except asyncio.CancelledError:
            await self._stop_reading()
            raise

    async def _connect(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            await self._reading.disconnect(nowait=True)
            self._reading = None

    async def aclose(self) -> None:
        await self._stop_reading()
        await self._client.aclose()
        await self._pool.disconnect()
