"""A client that reads an event stream with httpx, and resumes. Needs the extra `client`.

    async for event in stream("http://127.0.0.1:8000/streams/tokens", body={"prompt": "Hi"}):
        print(event.data)

`stream_sync` is the same without async. rules.py decides what to do, and readers.py does it.
"""

from typing import Any, Unpack, overload

try:
    import httpx
    import httpx_sse  # noqa: F401
except ImportError as error:
    raise ImportError(
        "streams.client needs httpx and httpx-sse: pip install 'streams[client]'",
        name="streams[client]",
    ) from error

from streams.client.readers import AsyncStream, SyncStream
from streams.client.rules import (
    ClientError,
    ConnectionLost,
    InvalidData,
    NoEventStream,
    NoRunURL,
    Options,
    Refused,
    Rules,
    RunFailed,
    StreamEvent,
    T,
)

__all__ = [
    "AsyncStream",
    "ClientError",
    "ConnectionLost",
    "InvalidData",
    "NoEventStream",
    "NoRunURL",
    "Options",
    "Refused",
    "RunFailed",
    "StreamEvent",
    "SyncStream",
    "stream",
    "stream_sync",
]


@overload
def stream(
    url: str,
    *,
    type: type[T],
    timeout: float | None = 60,
    client: httpx.AsyncClient | None = None,
    **options: Unpack[Options],
) -> AsyncStream[T]: ...
@overload
def stream(
    url: str,
    *,
    type: Any = Any,
    timeout: float | None = 60,
    client: httpx.AsyncClient | None = None,
    **options: Unpack[Options],
) -> AsyncStream[Any]: ...
def stream(
    url: str,
    *,
    type: Any = Any,  # noqa: A002
    timeout: float | None = 60,
    client: httpx.AsyncClient | None = None,
    **options: Unpack[Options],
) -> AsyncStream[Any]:
    """The events of a stream, for `async for`. It resumes when the connection is lost.

    msgspec decodes their data to `type`. A server that sends nothing for `timeout` seconds is lost.
    `client` sends the requests, for instance through a proxy. The loop raises the subclasses of
    ClientError, and httpx's errors for a request that cannot be right.
    """
    return AsyncStream(Rules(_whole(url, client), type, **options), timeout, client)


@overload
def stream_sync(
    url: str,
    *,
    type: type[T],
    timeout: float | None = 60,
    client: httpx.Client | None = None,
    **options: Unpack[Options],
) -> SyncStream[T]: ...
@overload
def stream_sync(
    url: str,
    *,
    type: Any = Any,
    timeout: float | None = 60,
    client: httpx.Client | None = None,
    **options: Unpack[Options],
) -> SyncStream[Any]: ...
def stream_sync(
    url: str,
    *,
    type: Any = Any,  # noqa: A002
    timeout: float | None = 60,
    client: httpx.Client | None = None,
    **options: Unpack[Options],
) -> SyncStream[Any]:
    """Does what `stream` does, for `for`."""
    return SyncStream(Rules(_whole(url, client), type, **options), timeout, client)


def _whole(url: str, client: httpx.Client | httpx.AsyncClient | None) -> httpx.URL:
    return client.build_request("GET", url).url if client else httpx.URL(url)
