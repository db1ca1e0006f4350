"""The npm clients of OpenAI and of Vercel's AI SDK read the mock model. See `make sdks`."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.browser import NODE
from tests.support.mock import QUICK, mock
from tests.support.servers import serving, until

ASK = Path(__file__).parent / "ask.js"
CLIENTS = ["openai, stream", "openai, helper", "openai, whole", "ai, stream", "ai, whole"]
STREAMING = [name for name in CLIENTS if not name.endswith("whole")]

each_client = pytest.mark.parametrize("client", CLIENTS)


async def ask(client: str, url: str, seconds: float = 20, **options: Any) -> dict[str, Any]:
    """Runs a client against the mock; returns what it read. `options` are the mock's parameters."""
    options = {**QUICK, "reply": "你好, well 👩‍👩‍👧‍👦!", **options}
    command = [str(NODE), str(ASK), client, f"{url}/v1", json.dumps(options), str(seconds)]
    with anyio.fail_after(30):
        result = await anyio.run_process(command)
    said: dict[str, Any] = json.loads(result.stdout)
    return said


@each_client
async def test_an_answer_is_complete_and_its_tokens_are_counted(client: str) -> None:
    async with serving(mock(heartbeat=0.01)) as url:
        said = await ask(client, url, tokens_per_second=50)
    assert said == {"text": "你好, well 👩‍👩‍👧‍👦!", "finish": "stop", "tokens": 6}


@each_client
async def test_an_answer_cut_by_max_tokens_says_so(client: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, max_tokens=2)
    assert said == {"text": "你好", "finish": "length", "tokens": 2}


@each_client
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (404, "NotFoundError"),
        (429, "RateLimitError"),
        (503, "InternalServerError"),
    ],
)
async def test_a_refusal_raises_the_error_for_it(client: str, status: int, error: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, status=status)
    assert said["text"] == ""
    assert said["error"]["status"] == status
    assert said["error"]["name"] == ("APICallError" if client.startswith("ai") else error)
    assert f"the mock refuses with status {status}" in said["error"]["message"]


@each_client
async def test_a_failure_in_mid_answer_raises(client: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, fail_after=2)
    assert said["text"] == ("你好" if client in STREAMING else "")
    assert "the mock failed after 2 tokens" in said["error"]["message"]


@each_client
async def test_a_dropped_connection_raises(client: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, drop_after=2)
    assert said["text"] in ("", "你好")
    assert said["error"]


@each_client
async def test_a_client_that_times_out_during_a_stall_stops_the_run(client: str) -> None:
    streams = mock()
    async with serving(streams) as url:
        said = await ask(client, url, seconds=4, stall_after=2)
        assert "finish" not in said
        assert said["text"] in ("", "你好")
        assert streams.log.events > 2
        await until(lambda: not streams.runs.health()["running"], "no run is running")
