"""A model's server that sends too much: the run fails with a reason, and memory stays bounded."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest

from streams import StreamError
from streams.sources.chat import chat_with, reply
from tests.sources.test_chat_requests import ask
from tests.support.raw_upstream import (
    HELLO,
    STOP,
    STREAM,
    Answer,
    chunk,
    data,
    delta,
    http,
    raw_upstream,
    unfinished,
)

MIB = 2**20
MAX_LINE = 1000
JSON = "Content-Type: application/json"
TOO_LONG = f"the model's server sent more than {MAX_LINE} bytes in one piece"


class Endless:
    """Sends a head and then `part` again and again, until the client closes the connection."""

    def __init__(self, head: bytes, part: bytes, most: int = 512 * MIB) -> None:
        self.sent = 0
        self._head = head
        self._part = chunk(part)
        self._most = most

    async def __call__(self, writer: StreamWriter) -> None:
        writer.write(self._head)
        while self.sent < self._most and not writer.is_closing():
            writer.write(self._part)
            self.sent += len(self._part)
            await writer.drain()


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Fails if Python allocates more than `most` bytes at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.1f} MiB"


async def failure(*answers: Answer, **options: Any) -> StreamError:
    async with raw_upstream(*answers) as server:
        with pytest.raises(StreamError) as raised:
            await ask(chat_with(server.url, "m", **options))
    return raised.value


def head(*headers: str, status: str = "200 OK") -> bytes:
    return unfinished(b"\n", *(headers or [STREAM])).replace(b"200 OK", status.encode())


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ([STREAM], b"data: " + 65_530 * b"a"),
        ([STREAM], 64 * (b"data: " + 1000 * b"a" + b"\n")),
        ([STREAM], 8000 * b"data:\n"),
        ([STREAM], b'{"a":\n' + 65_530 * b"a"),
        ([JSON], b'{"a":' + 65_530 * b"a"),
        ([JSON], 8000 * b'{"a":1}\n'),
        (["Content-Type: text/plain"], b"data: " + 65_530 * b"a"),
    ],
    ids=["a line", "an event", "empty data", "JSON in a stream", "JSON", "lines of JSON", "text"],
)
async def test_what_never_ends_fails_at_max_line(headers: list[str], part: bytes) -> None:
    endless = Endless(head(*headers), part)
    with memory_below(8 * MIB):
        error = await failure(endless, max_line=2**16)
    assert str(error) == "the model's server sent more than 65536 bytes in one piece"
    assert endless.sent < 32 * MIB, "the connection is closed"


async def test_max_line_is_1_mib_by_default() -> None:
    endless = Endless(head(), b"data: " + 65_530 * b"a")
    with memory_below(16 * MIB):
        error = await failure(endless)
    assert str(error) == "the model's server sent more than 1048576 bytes in one piece"
    assert MIB < endless.sent < 32 * MIB


async def test_space_that_never_ends_takes_no_memory() -> None:
    endless = Endless(head(JSON), 65_000 * b" ", 32 * MIB)

    async def hang_up(writer: StreamWriter) -> None:
        await endless(writer)
        writer.close()

    with memory_below(8 * MIB):
        error = await failure(hang_up)
    assert error.status == 502


async def test_a_page_that_never_ends_is_cut() -> None:
    endless = Endless(
        head("Content-Type: text/html"), b"<title>Bad Gateway</title>" + 65_000 * b"a"
    )
    with memory_below(16 * MIB):
        error = await failure(endless)
    assert "it said: Bad Gateway" in str(error)
    assert endless.sent < 32 * MIB


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Error"])
async def test_of_an_error_64_kib_are_read(status: str) -> None:
    endless = Endless(head(JSON, status=status), b"out of memory " + 65_000 * b"a", 200 * MIB)
    with memory_below(16 * MIB):
        error = await failure(endless)
    assert str(error).startswith(f"the model's server refuses with status {status[:3]}: out of")
    assert endless.sent < 32 * MIB


@pytest.mark.parametrize(("size", "says"), [(2**16, "the end"), (2**16 + 1, "aaa")])
async def test_the_limit_of_an_error_is_64_kib(size: int, says: str) -> None:
    begin, end = b'{"a": "', b'", "error": "the end"}'
    body = begin + (size - len(begin) - len(end)) * b"a" + end
    error = await failure(http(body, JSON, status="400 Bad Request"))
    assert says in str(error)


async def test_an_error_that_never_ends_is_told_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reply, "REFUSAL_SECONDS", 0.3)
    begun = unfinished(b"out of memory", JSON).replace(b"200 OK", b"507 Full")
    with anyio.fail_after(20):
        error = await failure(begun, timeout=300)
    assert error.status == 507
    assert str(error).endswith(": out of memory")


def of_length(length: int) -> dict[str, Any]:
    """A chunk of this many bytes."""
    short = len(json.dumps(delta(content="")))
    return delta(content=(length - short) * "a")


def lines_of(document: Any, lines: int) -> bytes:
    """An event whose data is a document and as many empty lines as fit."""
    return b"data: " + json.dumps(document).encode() + b"\n" + (lines - 1) * b"data:\n" + b"\n"


@pytest.mark.parametrize(
    ("longest", "longer"),
    [
        (
            data(of_length(MAX_LINE - len("data: "))),
            data(of_length(MAX_LINE + 1 - len("data: "))),
        ),
        (lines_of(of_length(899), 101), lines_of(of_length(899), 102)),
    ],
    ids=["a line", "an event"],
)
async def test_max_line_is_the_longest_line_and_event(longest: bytes, longer: bytes) -> None:
    async with raw_upstream(http(longest + data(STOP), STREAM)) as server:
        assert await ask(chat_with(server.url, "m", max_line=MAX_LINE))
    error = await failure(http(longer + data(STOP), STREAM), max_line=MAX_LINE)
    assert str(error) == TOO_LONG


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("header", [JSON, STREAM])
async def test_max_line_is_the_longest_answer_that_is_not_streamed(
    header: str, indent: int | None
) -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop"}
    short = len(json.dumps({"choices": [choice]}, indent=indent))
    for length, fits in ((MAX_LINE, True), (MAX_LINE + 1, False)):
        choice["message"] = {"content": (length - short + 1) * "a"}
        body = json.dumps({"choices": [choice]}, indent=indent).encode()
        assert len(body) == length
        if fits:
            async with raw_upstream(http(body, header)) as server:
                assert await ask(chat_with(server.url, "m", max_line=MAX_LINE))
        else:
            error = await failure(http(body, header), max_line=MAX_LINE)
            assert str(error) == TOO_LONG


async def test_a_large_piece_of_a_body_is_taken_in_small_parts_between_turns() -> None:
    body, turns = b":\n" * 2**17, 0

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    parts = [part async for part in reply.Reply(httpx.Response(200, content=pieces())).parts]
    counter.cancel()
    assert b"".join(parts) == body
    assert max(map(len, parts)) == reply.PART_BYTES
    assert turns >= len(parts) - 1


# ---- compression, although none is asked for


def bomb(byte: bytes, mebibytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(MIB * byte) for _ in range(mebibytes)) + packer.flush()


@pytest.mark.parametrize("media_type", [STREAM, JSON])
async def test_a_gzip_bomb_fails(media_type: str) -> None:
    response = http(bomb(b"a", 64), media_type, "Content-Encoding: gzip")
    assert len(response) < MIB
    with memory_below(16 * MIB):
        error = await failure(response)
    assert "more than 1048576 bytes" in str(error)


async def test_a_gzip_bomb_in_an_error_is_cut() -> None:
    response = http(bomb(b"a", 64), "Content-Encoding: gzip", status="400 Bad Request")
    with memory_below(16 * MIB):
        error = await failure(response)
    assert str(error) == f"the model's server refuses with status 400: {200 * 'a'}…"


async def test_a_bomb_of_empty_lines_does_not_hold_up_others() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    error = await failure(http(bomb(b"\n", 1), STREAM, "Content-Encoding: gzip"))
    counter.cancel()
    assert "without a finish_reason" in str(error)
    assert turns >= MIB // reply.PART_BYTES


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)],
)
async def test_a_compressed_answer_is_read(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = pack(data(HELLO, STOP, "[DONE]"))
    for header in (STREAM, JSON):
        async with raw_upstream(http(body, header, f"Content-Encoding: {encoding}")) as server:
            assert await ask(chat_with(server.url, "m")) == "Hello"


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("br", "compresses its answer as 'br', unasked"),
        ("gzip, gzip", "compresses its answer as 'gzip, gzip', unasked"),
        ("gzip", "sent an answer that cannot be decompressed"),
    ],
)
async def test_an_answer_that_cannot_be_decompressed_fails(encoding: str, says: str) -> None:
    for header in (STREAM, JSON):
        encoded = http(data(HELLO, STOP), header, f"Content-Encoding: {encoding}")
        error = await failure(encoded)
        assert error.status == 502
        assert says in str(error)


async def test_a_compressed_answer_that_is_cut_fails() -> None:
    body = gzip.compress(data(HELLO, STOP))[:-30]
    error = await failure(http(body, STREAM, "Content-Encoding: gzip"))
    assert error.status == 502


# ---- charsets


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "utf-16-le", "shift_jis"])
async def test_an_answer_in_another_charset_fails(charset: str) -> None:
    body = data(delta(content="カ" if charset == "shift_jis" else "über"), STOP)
    encoded = body.decode().encode(charset)
    for header in (STREAM, JSON):
        error = await failure(http(encoded, f"{header}; charset={charset}"))
        assert error.status == 502
        assert f"in {charset}; only UTF-8 is understood" in str(error)


async def test_an_answer_in_utf_8_is_read_whatever_the_declared_charset_is() -> None:
    body = data(delta(content="über"), STOP)
    for charset in ("UTF8", "utf-8", "iso-8859-1", "none"):
        async with raw_upstream(http(body, f"{STREAM}; charset={charset}")) as server:
            assert await ask(chat_with(server.url, "m")) == "über"
