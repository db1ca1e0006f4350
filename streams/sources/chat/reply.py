"""A response of the model's server whose body is read in parts of bounded size."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

import httpx

from streams import StreamError

PART_BYTES = 2**13
"""The most of a body that is taken in one step: it may be thousands of empty lines."""

REFUSAL_BYTES = 2**16
"""The most bytes that are read of the body of a refusal."""

REFUSAL_SECONDS = 5.0
"""How long `chat` waits for the body of a refusal."""

DRAIN_SECONDS = 0.5
"""How long a connection may take to end a complete answer. Only then can it be used again."""

ACCEPT_ENCODING = "identity"
"""A compressed answer comes late, in blocks, and can be a million times as large."""


class Reply:
    """A response, until it is closed or drained."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._raw = response.aiter_raw()
        self.parts = self._decompressed()
        """The body. Raises StreamError for a compression that cannot be undone."""

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status <= 299 and self.status not in (204, 205)

    @property
    def media_type(self) -> str:
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    @property
    def foreign_charset(self) -> str:
        """The declared charset, unless UTF-8 includes it."""
        charset = (self._response.charset_encoding or "").lower()
        return "" if charset in ("", "utf-8", "utf8", "us-ascii", "ascii") else charset

    async def _decompressed(self) -> AsyncIterator[bytes]:
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            async for data in self._raw:
                yield data[:PART_BYTES]
                for begin in range(PART_BYTES, len(data), PART_BYTES):
                    await asyncio.sleep(0)
                    yield data[begin : begin + PART_BYTES]
        elif encoding in ("gzip", "x-gzip", "deflate"):
            inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by the header
            async for data in self._raw:
                for part in _inflated(inflater, data):
                    yield part
                    await asyncio.sleep(0)  # A decompression bomb must not block the event loop.
        else:
            raise StreamError(
                f"the model's server compresses its answer as {encoding!r}, unasked", status=502
            )

    async def beginning(self) -> bytes:
        """The first REFUSAL_BYTES of the body, or what has come of them in REFUSAL_SECONDS."""
        body = b""
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                async for part in self.parts:
                    body += part
                    if len(body) >= REFUSAL_BYTES:
                        break
        except (TimeoutError, httpx.TransportError, StreamError):
            pass  # The status is known, and more important.
        return body[:REFUSAL_BYTES]

    async def drain(self) -> None:
        """Reads to the end of the body, for at most DRAIN_SECONDS, and closes."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self._raw:
                    pass
        except (TimeoutError, httpx.TransportError):
            pass  # The answer is complete. Only the connection is lost.
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._response.aclose()


def _inflated(inflater: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    while data:
        try:
            part = inflater.decompress(data, PART_BYTES)
        except zlib.error as error:
            raise StreamError(
                f"the model's server sent an answer that cannot be decompressed: {error}",
                status=502,
            ) from None
        data = inflater.unconsumed_tail
        if part:
            yield part
