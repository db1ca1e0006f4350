"""docs/use-chat.md: the back end in it works, with an independent reader of its messages."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from tests.support.servers import ROOT, client_of, connection, serving, until
from tests.support.ui_messages import ui_message

PAGE = (ROOT / "docs/use-chat.md").read_text()
EXAMPLE, TOOLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

ANN = {"user": "ann", "password": "correct horse"}
HELLO: dict[str, Any] = {
    "id": "chat-7",
    "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Hello?"}]}],
    "trigger": "submit-message",
}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the example, whose log is a file in a new folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLE, "docs/use-chat.md", "exec"), namespace)
    return namespace


def with_gate(example: dict[str, Any]) -> asyncio.Event:
    """Replaces the model by one that waits in mid-answer."""
    gate = asyncio.Event()

    async def answer(messages: list[dict[str, Any]]) -> AsyncIterator[str]:
        yield messages[-1]["content"]
        await gate.wait()
        yield " Yes."

    example["tokens"] = answer
    return gate


async def log_in(client: httpx.AsyncClient) -> str:
    """The headers of a raw request by the user that has logged in."""
    assert (await client.post("/login", json=ANN)).status_code == 204
    return f"Cookie: session={client.cookies['session']}\r\n"


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.splitlines()) < 60


async def test_the_example_answers_whoever_has_logged_in(example: dict[str, Any]) -> None:
    async with client_of(example["app"]) as client:
        assert (await client.post("/api/chat", json=HELLO)).status_code == 401
        assert (await client.post("/login", json={**ANN, "password": "?"})).status_code == 401
        await log_in(client)
        message = ui_message((await client.post("/api/chat", json=HELLO)).content)
        assert message.text.startswith("You asked: Hello?")
        assert message.finish == "stop"
        refused = await client.post("/api/chat", json={**HELLO, "messages": []})
        assert refused.status_code == 422


async def test_the_example_resumes_an_answer_and_stops_it(example: dict[str, Any]) -> None:
    gate, streams = with_gate(example), example["streams"]
    async with serving(example["app"]) as url, httpx.AsyncClient(base_url=url) as client:
        headers = await log_in(client)
        asking = client.stream("POST", "/api/chat", json=HELLO)
        async with asking as response:
            async for line in response.aiter_lines():
                if "Hello?" in line:
                    break
        await until(lambda: not streams.log.readers, "the page has been closed")
        for after_reload in ("completes", "is stopped"):
            path = "/api/chat/chat-7/stream"
            async with connection(url, path, headers=headers) as again:
                await again.until(lambda again: b"Hello?" in again.body, "the beginning")
                if after_reload == "completes":
                    gate.set()
                else:
                    assert (await client.delete("/api/chat/chat-7")).status_code == 204
                await again.until(lambda again: again.terminated, "the answer has ended")
            message = ui_message(again.body)
            if after_reload == "completes":
                assert (message.text, message.finish) == ("Hello? Yes.", "stop")
                assert (await client.get(path)).status_code == 204
                gate.clear()
                async with client.stream("POST", "/api/chat", json=HELLO):
                    pass
            else:
                assert (message.text, message.aborted) == ("Hello?", "stopped")


async def test_a_message_that_continues_keeps_its_id() -> None:
    namespace: dict[str, Any] = {}
    exec(compile(TOOLS, "docs/use-chat.md", "exec"), namespace)
    app = Starlette(routes=[Route("/ask", namespace["ask"], methods=["POST"])])
    answered = {
        "id": "msg_1",
        "role": "assistant",
        "parts": [
            {
                "type": "tool-weather",
                "toolCallId": "c1",
                "state": "output-available",
                "input": {},
                "output": "22",
            }
        ],
    }
    async with client_of(app) as client:
        messages = [*HELLO["messages"], answered]
        message = ui_message((await client.post("/ask", json={"messages": messages})).content)
        assert message.id == "msg_1"
        message = ui_message((await client.post("/ask", json=HELLO)).content)
        assert re.fullmatch(r"msg_[\w-]{22}", message.id or "")
