"""A client of chat completions that tries again starts, and pays for, no second run."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from streams import Streams, source
from tests.support.mock import HELLO, PATH
from tests.support.sdk import sdk_of
from tests.support.servers import client_of, connection, serving, until

KEY = {"Idempotency-Key": "6f8a1c52-7d3e-4b90"}


class Paid:
    """An app whose model counts its runs, and waits for a gate in the middle of its answer."""

    def __init__(self, **policy: Any) -> None:
        self.runs = 0
        self.gate = asyncio.Event()

        @source(**policy)
        async def paid(prompt: str, temperature: float = 1.0) -> AsyncIterator[str]:
            self.runs += 1
            yield "one "
            await self.gate.wait()
            yield "two"

        self.app = Streams(models={"paid": paid})


async def leave(url: str, app: Streams, *, stream: bool, headers: str) -> None:
    """Asks the model, and disconnects before the answer is complete."""
    body = json.dumps({**HELLO, "stream": stream})
    headers += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with connection(url, PATH, method="POST", headers=headers) as asking:
        asking.writer.write(body.encode())
        await until(lambda: app.log.readers, "the reader is attached")
    await until(lambda: not app.log.readers, "the reader has left")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_sent_again_with_its_key_gets_the_whole_answer_of_the_same_run(
    stream: bool,
) -> None:
    paid = Paid()
    async with serving(paid.app) as url:
        key = f"Idempotency-Key: {KEY['Idempotency-Key']}\r\n"
        await leave(url, paid.app, stream=stream, headers=key)
        assert paid.app.runs.health()["running"] == 1
        paid.gate.set()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as sdk:
            again = await sdk.chat.completions.create(**HELLO, extra_headers=KEY)
            and_again = await sdk.chat.completions.create(**HELLO, extra_headers=KEY)
    assert again.choices[0].message.content == "one two"
    assert (and_again.id, paid.runs) == (again.id, 1)


async def test_a_request_without_a_key_ends_its_run_when_its_client_leaves() -> None:
    paid = Paid()
    async with serving(paid.app) as url:
        await leave(url, paid.app, stream=True, headers="")
        await until(lambda: not paid.app.runs.health()["running"], "the run has ended")


async def test_a_run_with_a_key_waits_for_its_client_as_long_as_its_source_says() -> None:
    paid = Paid(linger=0)
    async with serving(paid.app) as url:
        key = f"Idempotency-Key: {KEY['Idempotency-Key']}\r\n"
        await leave(url, paid.app, stream=True, headers=key)
        await until(lambda: not paid.app.runs.health()["running"], "the run has ended")


async def test_the_sdk_tries_again_after_a_503_with_the_same_key_and_starts_one_run() -> None:
    paid = Paid()
    keys: list[bytes] = []
    paid.gate.set()

    async def overloaded_once(scope: Any, receive: Any, send: Any) -> None:
        """Answers the first request with a 503, although its run has started."""
        if scope["type"] != "http" or keys:
            await paid.app(scope, receive, send)
            return
        keys.append(dict(scope["headers"])[b"idempotency-key"])

        async def replaced(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "status": 503}
            await send(message)

        await paid.app(scope, receive, replaced)

    async with sdk_of(overloaded_once, max_retries=1) as sdk:
        completion = await sdk.chat.completions.create(**HELLO, extra_headers=KEY)
    assert completion.choices[0].message.content == "one two"
    assert (len(keys), paid.runs) == (1, 1)


async def test_another_request_with_the_same_key_is_refused() -> None:
    paid = Paid()
    paid.gate.set()
    async with client_of(paid.app) as client:
        asked: list[tuple[dict[str, Any], int]] = [
            ({}, 200),
            ({"temperature": 1}, 200),
            ({"temperature": 0.5}, 400),
        ]
        for fields, status in asked:
            response = await client.post(PATH, json={**HELLO, **fields}, headers=KEY)
            assert response.status_code == status
    assert "has other parameters" in response.json()["error"]["message"]


async def test_an_anonymous_client_needs_a_key_that_nobody_guesses() -> None:
    async with client_of(Paid().app) as client:
        response = await client.post(PATH, json=HELLO, headers={"Idempotency-Key": "1"})
    assert response.status_code == 400
    assert "send 16 random ones or more" in response.json()["error"]["message"]
