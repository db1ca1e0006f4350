"""The connections of the source `chat` to the model's server, over real sockets."""

import asyncio
from asyncio import StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from streams import StreamError, Streams
from streams.sources.chat import chat_with, reply, upstream
from tests.sources.test_chat_requests import ANSWER, ask
from tests.support.raw_upstream import (
    END,
    HELLO,
    STOP,
    STREAM,
    chunk,
    data,
    http,
    raw_upstream,
    unfinished,
)
from tests.support.servers import client_of, every_event, until

COMPLETE = unfinished(data(HELLO, STOP, "[DONE]"))
"""A complete answer, after which the server does not end its response."""


def drains() -> list[asyncio.Task[Any]]:
    """The tasks that wait for the end of a response."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("drain ")]


async def drained() -> None:
    await until(lambda: not drains(), "no response is waited for")


async def hang_up(writer: StreamWriter) -> None:
    writer.close()


async def reset(writer: StreamWriter) -> None:
    writer.transport.abort()


def send_and_hang_up(begin: bytes) -> Callable[[StreamWriter], Awaitable[None]]:
    async def answer(writer: StreamWriter) -> None:
        writer.write(begin)
        writer.close()

    return answer


async def test_a_run_is_completed_at_done_though_the_connection_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reply, "DRAIN_SECONDS", 300)
    async with raw_upstream(COMPLETE) as server:
        chat = chat_with(server.url, "m", timeout=300)
        async with client_of(Streams([chat]), lifespan="on") as client:
            events = await every_event(client, "/streams/chat?prompt=Hi")
            assert events[-1].json() == {"status": "completed"}
            assert server.open_connections == 1
            assert len(drains()) == 1
        assert not drains(), "the app closes what is still open"
        await until(lambda: not server.open_connections, "the connection is closed")


async def test_a_connection_that_stays_open_after_done_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reply, "DRAIN_SECONDS", 0.01)
    async with raw_upstream(COMPLETE) as server:
        chat = chat_with(server.url, "m", timeout=300)
        assert await ask(chat, close=False) == "Hello"
        await until(lambda: not server.open_connections, "the connection is closed")
        assert await ask(chat) == "Hello"
        assert [asked.connection for asked in server.asked] == [1, 2]


async def test_a_connection_whose_response_ends_after_done_is_used_again() -> None:
    async def end_later(writer: StreamWriter) -> None:
        writer.write(COMPLETE)
        await writer.drain()
        await until(drains, "the client has read [DONE]")
        writer.write(chunk(1000 * b":\n") + END)

    async with raw_upstream(end_later, ANSWER) as server:
        chat = chat_with(server.url, "m")
        assert await ask(chat, close=False) == "Hello"
        await drained()
        assert await ask(chat) == "Hello"
        assert [asked.connection for asked in server.asked] == [1, 1]


async def test_a_response_that_breaks_after_done_is_a_complete_answer() -> None:
    async with raw_upstream(send_and_hang_up(COMPLETE)) as server:
        chat = chat_with(server.url, "m")
        assert await ask(chat, close=False) == "Hello"
        await drained()
        assert await ask(chat) == "Hello"


async def test_an_idle_connection_is_not_used_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert upstream.KEEPALIVE_SECONDS < 5
    monkeypatch.setattr(upstream, "KEEPALIVE_SECONDS", 0)
    async with raw_upstream(ANSWER) as server:
        chat = chat_with(server.url, "m")
        for _ in range(2):
            assert await ask(chat, close=False) == "Hello"
            await drained()
        assert await ask(chat) == "Hello"
        assert [asked.connection for asked in server.asked] == [1, 2, 3]


@pytest.mark.parametrize("leave", [hang_up, reset])
async def test_a_request_on_a_connection_that_the_server_closes_is_sent_once_more(
    leave: Callable[[StreamWriter], Awaitable[None]],
) -> None:
    async with raw_upstream(ANSWER, leave, ANSWER) as server:
        chat = chat_with(server.url, "m")
        assert await ask(chat, close=False) == "Hello"
        await drained()
        assert await ask(chat) == "Hello"
        first, second, third = server.asked
        assert [asked.connection for asked in server.asked] == [1, 1, 2]
        assert second.body == third.body
        assert second.headers == third.headers
        assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


async def test_a_request_is_sent_once_more_only_once() -> None:
    async with raw_upstream(ANSWER, hang_up, hang_up, ANSWER) as server:
        chat = chat_with(server.url, "m")
        await ask(chat, close=False)
        await drained()
        with pytest.raises(StreamError, match="cannot be reached: RemoteProtocolError") as raised:
            await ask(chat)
        assert raised.value.status == 502
        assert len(server.asked) == 3


async def test_a_request_is_not_sent_a_third_time_on_another_idle_connection() -> None:
    async def both_asked(writer: StreamWriter) -> None:
        await until(lambda: len(server.asked) == 2, "two requests are open")
        writer.write(ANSWER)

    async with raw_upstream(both_asked, both_asked, hang_up, hang_up, ANSWER) as server:
        chat = chat_with(server.url, "m")
        await asyncio.gather(ask(chat, close=False), ask(chat, close=False))
        await drained()
        with pytest.raises(StreamError, match="cannot be reached"):
            await ask(chat)
        assert {asked.connection for asked in server.asked} == {1, 2}
        assert len(server.asked) == 4


async def test_a_request_on_a_new_connection_is_sent_once() -> None:
    async with raw_upstream(hang_up, ANSWER) as server:
        with pytest.raises(StreamError, match="cannot be reached"):
            await ask(chat_with(server.url, "m"))
        assert len(server.asked) == 1


@pytest.mark.parametrize("begin", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_is_sent_once_if_a_byte_of_a_response_has_come(begin: bytes) -> None:
    async with raw_upstream(ANSWER, send_and_hang_up(begin), ANSWER) as server:
        chat = chat_with(server.url, "m")
        await ask(chat, close=False)
        await drained()
        with pytest.raises(StreamError, match="cannot be reached"):
            await ask(chat)
        assert len(server.asked) == 2


async def test_no_cookies_are_kept() -> None:
    answer = http(data(HELLO, STOP, "[DONE]"), STREAM, "Set-Cookie: session=ann; Path=/")
    refusal = http(b"", "Set-Cookie: session=bob", status="429 No")
    async with raw_upstream(answer, refusal, answer) as server:
        chat = chat_with(server.url, "m")
        await ask(chat, close=False)
        with pytest.raises(StreamError):
            await ask(chat, close=False)
        await ask(chat)
        assert len(server.asked) == 3
        assert all("cookie" not in asked.headers for asked in server.asked)


@pytest.mark.parametrize(
    "answer",
    [
        unfinished(data(HELLO, {"error": "out of memory"})),
        unfinished(data(HELLO, "{")),
        http(b"", status="500 Error"),
        unfinished(b"{", "Content-Type: application/json", "X: y").replace(b"200 OK", b"500 No"),
    ],
)
async def test_a_failure_leaves_no_response_open(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "REFUSAL_SECONDS", 0.01)
    async with raw_upstream(answer) as server:
        chat = chat_with(server.url, "m", timeout=300)
        with pytest.raises(StreamError):
            await ask(chat, close=False)
        whole = answer.endswith(b"Content-Length: 0\r\n\r\n")
        await until(lambda: server.open_connections == whole, "only a whole response is kept")
        assert not drains()
        assert chat.aclose
        await chat.aclose()


async def test_a_reader_that_leaves_closes_the_connection() -> None:
    async with raw_upstream(unfinished(data(HELLO))) as server:
        chat = chat_with(server.url, "m", timeout=300)
        events = await chat(prompt="Hi")
        assert (await anext(events))["message"]["content"] == "Hello"
        await events.aclose()
        await until(lambda: not server.open_connections, "the connection is closed")
        assert chat.aclose
        await chat.aclose()


async def test_a_server_that_falls_silent_fails_the_run() -> None:
    async with raw_upstream(unfinished(data(HELLO))) as server:
        with pytest.raises(StreamError, match=r"the model's server sent nothing for 0\.1 s"):
            await ask(chat_with(server.url, "m", timeout=0.1))


async def test_a_server_that_falls_silent_after_a_complete_answer_completes_the_run() -> None:
    async with raw_upstream(unfinished(data(HELLO, STOP))) as server:
        assert await ask(chat_with(server.url, "m", timeout=0.1)) == "Hello"


async def test_the_pieces_arrive_as_the_server_sends_them() -> None:
    asked = anyio.Event()

    async def wait(writer: StreamWriter) -> None:
        writer.write(unfinished(data(HELLO)[:-20]))
        writer.write(chunk(data(HELLO)[-20:]))
        await asked.wait()
        writer.write(chunk(data(STOP, "[DONE]")) + END)

    for media_type in ("text/event-stream", "application/json"):
        async with raw_upstream(wait) as server:
            chat = chat_with(server.url, "m")
            events = await chat(prompt="Hi")
            assert (await anext(events))["message"]["content"] == "Hello", media_type
            asked.set()
            assert [event["done"] async for event in events] == [True]
            assert chat.aclose
            await chat.aclose()
