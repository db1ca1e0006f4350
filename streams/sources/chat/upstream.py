"""The model's server, and the connections to it.

Invariants:

1. A request is repeated only if the server cannot have answered it: it refused a field, or closed
   a connection without a byte of a response (RFC 9112, section 9.3.1).
2. No run leaves anything for another one: no cookie, and no answer that is half read.
3. A text of the server is printable, bounded and without the key before anybody else gets it.
"""

import asyncio
import contextvars
import re
from collections.abc import AsyncIterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import count
from secrets import token_hex
from typing import Any

import httpx

from streams import StreamError, current_run
from streams.sources.chat.answer import Answer
from streams.sources.chat.event_stream import EventStream, NotUTF8, TooLong
from streams.sources.chat.reasons import Secrets, printable, reason_in, wait_of
from streams.sources.chat.reply import ACCEPT_ENCODING, Reply
from streams.sources.chat.sending import Sending

CONNECT_SECONDS = 10.0

KEEPALIVE_SECONDS = 4.0
"""An idle connection is not used after this: many servers close it after five seconds."""

NEW_NAMES: Mapping[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "stream_options": None,
}
"""Fields that some servers refuse, and the names that those know them by; None: by no name."""

OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "idempotency-key",
        "transfer-encoding",
    }
)
"""Headers that only this module sets."""


class Upstream:
    """Asks the model's server. Raises ValueError for an invalid URL, key, header or limit."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str,
        headers: Mapping[str, str],
        timeout: float,
        max_line: int,
    ) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{base_url!r} is not the URL of a server; example: https://host/v1")
        if url.userinfo:
            raise ValueError("the URL contains a password, and URLs are logged: pass an API key")
        if max_line < 1:
            raise ValueError(f"max_line is {max_line}; give a number of bytes, like 1048576")
        check_headers(api_key, headers)
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")
        self._headers = {
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            **headers,
            "Accept": "text/event-stream",
            "Accept-Encoding": ACCEPT_ENCODING,
        }
        self._secrets = Secrets(api_key, headers.values())
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        self._max_line = max_line
        self._refused_fields: set[str] = set()
        self._client: httpx.AsyncClient | None = None
        self._draining: set[asyncio.Task[None]] = set()

    async def ask(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Sends a request; returns the pieces of the answer before they have arrived.

        Raises StreamError if the server refuses, does not answer, or answers with something other
        than a stream or a completion.
        """
        try:
            reply = await self._reply(body)
            if reply.media_type == "text/event-stream":
                return self._pieces(reply)
            return await self._sniffed(reply)
        except httpx.TimeoutException:
            raise StreamError("the model's server did not answer in time", status=504) from None
        except httpx.TransportError as error:
            detail = f"the model's server cannot be reached: {type(error).__name__}"
            raise StreamError(detail, status=502) from None

    async def aclose(self) -> None:
        draining, client, self._client = list(self._draining), self._client, None
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        if client is not None:
            await client.aclose()

    async def _reply(self, body: dict[str, Any]) -> Reply:
        """A response that is an answer. Asks again without fields that the server refuses."""
        run_key, refused = _idempotency_key(), set(self._refused_fields)
        for number in count():
            # With the same key, another request would get the response to the first one.
            key = f"{run_key}-{number}" if number else run_key
            reply = await self._send(_renamed(body, refused), key)
            try:
                if reply.succeeded:
                    self._refused_fields |= refused
                    return reply
                said = await reply.beginning()
            except BaseException:
                await reply.aclose()
                raise
            await reply.aclose()
            field = _refused_field(reply.status, said, body.keys() - refused)
            if field is None:
                raise self._refusal(reply, reason_in(said))
            refused.add(field)
        raise AssertionError("each field is refused once")

    async def _send(self, body: dict[str, Any], key: str) -> Reply:
        """Sends a request, and once more if a connection turns out to be closed."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=self._timeout,
                limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS),
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
        client = self._client
        headers = {**self._headers, "Idempotency-Key": key}
        sending = Sending()
        while True:
            request = client.build_request(
                "POST", self._url, json=body, headers=headers, extensions={"trace": sending.trace}
            )
            try:
                with sending:
                    return Reply(await client.send(request, stream=True))
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if not sending.again():
                    raise

    def _refusal(self, reply: Reply, said: str) -> StreamError:
        detail = f"the model's server refuses with status {reply.status}"
        # The text of a 401 or 403 often has a part of the key.
        if said and reply.status not in (401, 403) and (text := self._clean(said)):
            detail += f": {text}"
        return StreamError(
            detail,
            status=reply.status if 400 <= reply.status <= 599 else 502,
            retry_after=wait_of(reply.headers),
        )

    async def _sniffed(self, reply: Reply) -> AsyncIterator[dict[str, Any]]:
        """The pieces of an answer whose media type is not that of an event stream.

        It may be one nevertheless. JSON and HTML are read to their end, because what they say
        decides about the status of the response.
        """
        begin = bytearray()
        try:
            async for part in reply.parts:
                begin += part.lstrip() if not begin else part
                if begin:
                    break
            if begin.startswith(b"<"):
                said = self._clean(reason_in(bytes(begin) + await reply.beginning()))
                detail = f"the model's server did not send an event stream; it said: {said}"
                raise StreamError(detail, status=502)
            if not begin.startswith((b"{", b"[")):
                return self._pieces(reply, bytes(begin))
            async for part in reply.parts:
                begin += part
                if len(begin) > self._max_line:
                    raise self._too_long()
            return _listed([piece async for piece in self._pieces(reply, bytes(begin))])
        except BaseException:
            await reply.aclose()
            raise

    async def _pieces(self, reply: Reply, begin: bytes = b"") -> AsyncIterator[dict[str, Any]]:
        """The pieces of an answer that begins with `begin`, then how it ended.

        Raises StreamError if it is incomplete.
        """
        charset = reply.foreign_charset
        events = EventStream(self._max_line, strict=bool(charset))
        answer = Answer()
        try:
            try:
                async for part in _after(begin, reply):
                    for event in events.feed(part):
                        if piece := answer.read(event):
                            yield piece
                        if answer.over:
                            break
                    if answer.over:
                        break
                else:
                    for event in events.finish():
                        if not answer.over and (piece := answer.read(event)):
                            yield piece
            except httpx.TransportError as error:
                if not answer.complete:
                    raise self._broken(error) from None
            for piece in answer.finish(reason_in(bytes(events.stray))):
                yield piece
        except TooLong:
            raise self._too_long() from None
        except NotUTF8:
            detail = f"the model's server sent its answer in {charset}; only UTF-8 is understood"
            raise StreamError(self._clean(detail), status=502) from None
        except StreamError as error:
            raise StreamError(self._clean(str(error)), status=error.status) from None
        finally:
            if answer.over:
                self._drain(reply)
            else:
                await reply.aclose()

    def _broken(self, error: httpx.TransportError) -> StreamError:
        if isinstance(error, httpx.TimeoutException):
            silence = self._timeout.read
            return StreamError(f"the model's server sent nothing for {silence:g} s", status=504)
        name = type(error).__name__
        return StreamError(f"the connection to the model's server broke: {name}", status=502)

    def _too_long(self) -> StreamError:
        detail = f"the model's server sent more than {self._max_line} bytes in one piece"
        return StreamError(detail, status=502)

    def _clean(self, text: str) -> str:
        return printable(self._secrets.left_out_of(text))

    def _drain(self, reply: Reply) -> None:
        """Lets the server end its response, so that the connection can be used again."""
        task = asyncio.get_running_loop().create_task(
            reply.drain(), name=f"drain {self._url}", context=contextvars.Context()
        )
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)


def check_headers(api_key: str, headers: Mapping[str, str]) -> None:
    """Raises ValueError for an invalid key or header."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("the API key has characters that are not printable ASCII")
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # RFC 9110, section 5.1
            raise ValueError(f"{name!r} is not the name of a header")
        if not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise ValueError(f"the value of the header {name!r} is not printable ASCII text")
        if name.lower() in OWN_HEADERS or (api_key and name.lower() == "authorization"):
            raise ValueError(f"extra_headers cannot set {name!r}: the source does")


def _idempotency_key() -> str:
    """The id of the run, if it is one of this source; else one that no other request has.

    Another source may ask several times in one run.
    """
    try:
        run = current_run()
    except RuntimeError:
        return token_hex(16)
    return run.run if run.source == "chat" else f"{run.run}-{token_hex(8)}"


def _renamed(body: Mapping[str, Any], refused: set[str]) -> dict[str, Any]:
    """A request with the names of fields that the server knows."""
    names = {name: NEW_NAMES[name] if name in refused else name for name in body}
    return {new: body[name] for name, new in names.items() if new is not None}


def _refused_field(status: int, said: bytes, fields: set[str]) -> str | None:
    """The field that the server refuses, if a request can do without it."""
    if status in (400, 422):
        for name, new in NEW_NAMES.items():
            if name in fields and new not in fields and (new or name).encode() in said:
                return name
    return None


async def _after(begin: bytes, reply: Reply) -> AsyncIterator[bytes]:
    if begin:
        yield begin
    async for part in reply.parts:
        yield part


async def _listed(pieces: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for piece in pieces:
        yield piece
