"""Clients: the AI SDK's classes, and `useChat` in a browser, read runs. See `make sdks`."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from playwright.sync_api import Page, expect

from streams import Event, StreamError, Streams
from tests.llm.clients.npm import npm
from tests.llm.use_chat import WORDS, Gate, Messages, Model, back_end
from tests.support.browser import NODE, chromium
from tests.support.servers import free_port, server_process, serving

HERE = Path(__file__).parent
USE_CHAT = SimpleNamespace(name="@ai-sdk/react, `useChat`", version=npm("@ai-sdk/react"))
ANSWER = "".join(WORDS)


async def ask(what: str, model: Model, gate: Gate | None = None, **options: Any) -> Any:
    """What the classes of the AI SDK say of a back end."""
    async with serving(back_end(Streams(**options), model, gate)) as url:
        command = [str(NODE), str(HERE / "use-chat.js"), what, f"{url}/api/chat"]
        with anyio.fail_after(40):
            result = await anyio.run_process(command, stderr=None)
    said = json.loads(result.stdout)
    assert "raised" not in said, said
    return said


def tool_call(arguments: str, name: str | None = None) -> dict[str, Any]:
    call: dict[str, Any] = {"index": 0, "function": {"arguments": arguments}}
    if name:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": name}}
    return {"message": {"role": "assistant", "content": "", "tool_calls": [call]}}


async def everything(messages: Messages) -> AsyncIterator[Any]:
    """Says something in every form, and slowly enough for heartbeats."""
    yield {"message": {"reasoning": "The user greets me."}}
    yield tool_call("", "weather")
    yield tool_call('{"city":\r\n')
    await anyio.sleep(0.1)
    yield tool_call(' "Rome"}')
    yield {"message": {"role": "tool", "tool_call_id": "c1", "content": {"degrees": 22}}}
    yield {"message": {"content": "Hel"}}
    yield Event({"percent": 50}, event="progress")
    await anyio.sleep(0.1)
    yield "lo\n\u2028é 👩‍👩‍👧‍👦"
    yield {"message": {"content": ""}, "done": True, "done_reason": "length"}


PARTS = [
    {"type": "step-start"},
    {"type": "reasoning", "text": "The user greets me.", "state": "done"},
    {
        "type": "tool-weather",
        "toolCallId": "c1",
        "state": "output-available",
        "input": {"city": "Rome"},
        "output": {"degrees": 22},
    },
    {"type": "step-start"},
    {"type": "text", "text": "Hello\n\u2028é 👩‍👩‍👧‍👦", "state": "done"},
    {"type": "data-progress", "data": {"percent": 50}},
]


def without_ids(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: part[name] for name in part if name != "id"} for part in parts]


@pytest.mark.column("reasoning", USE_CHAT)
async def test_the_parser_reads_every_kind_of_part_and_no_heartbeat() -> None:
    said = await ask("transport", everything, heartbeat=0.01)
    assert said["message"]["id"].startswith("msg_")
    assert without_ids(said["message"]["parts"]) == PARTS


@pytest.mark.column("a stream", USE_CHAT)
async def test_a_chat_shows_an_answer_and_knows_why_it_ended() -> None:
    said = await ask("chat", everything, heartbeat=0.01)
    assert (said["status"], said.get("error")) == ("ready", None)
    assert [message["role"] for message in said["messages"]] == ["user", "assistant"]
    assert without_ids(said["messages"][1]["parts"]) == PARTS
    data, finish = said["events"]
    assert data == {"type": "data-progress", "data": {"percent": 50}}
    assert finish == {
        "isAbort": False,
        "isDisconnect": False,
        "isError": False,
        "finishReason": "length",
    }


@pytest.mark.column("says why an answer breaks off", USE_CHAT)
async def test_a_chat_knows_that_an_answer_has_failed() -> None:
    async def failing(messages: Messages) -> AsyncIterator[str]:
        yield "one "
        await anyio.lowlevel.checkpoint()
        raise StreamError("the model has lost its mind")

    said = await ask("chat", failing)
    assert (said["status"], said["error"]) == ("error", "the model has lost its mind")
    assert said["messages"][1]["parts"][1]["text"] == "one "


@pytest.mark.column("says why it is refused", USE_CHAT)
async def test_a_chat_knows_that_it_is_refused() -> None:
    async def refusing(messages: Messages) -> AsyncIterator[str]:
        raise StreamError("ask later", status=429, retry_after=7)
        yield ""

    said = await ask("chat", refusing)
    assert said["status"] == "error"
    assert "ask later" in said["error"]


async def test_a_chat_that_has_no_running_answer_is_ready() -> None:
    said = await ask("nothing", everything)
    assert (said["status"], said["messages"], said["events"]) == ("ready", [], [])


@pytest.mark.parametrize("where", ["resume", "resume in place"])
@pytest.mark.column("resumes", USE_CHAT)
async def test_a_chat_resumes_an_answer_with_every_word_once(where: str) -> None:
    gate = Gate()
    said = await ask(where, gate.words, gate)
    assert (said["status"], said.get("error")) == ("ready", None)
    _, answer = said["messages"]
    assert without_ids(answer["parts"])[1:] == [{"type": "text", "text": ANSWER, "state": "done"}]
    assert said["events"][-1]["finishReason"] == "stop"


@pytest.mark.column("a loop of tools", USE_CHAT)
async def test_the_page_runs_a_tool_and_the_same_message_continues() -> None:
    asked: list[Messages] = []

    async def model(messages: Messages) -> AsyncIterator[Any]:
        asked.append(messages)
        if messages[-1]["role"] == "tool":
            yield f"It is {json.loads(messages[-1]['content'])['degrees']} degrees."
            return
        yield tool_call("", "weather")
        yield tool_call('{"city": "Rome"}')
        yield {"message": {"content": ""}, "done": True, "done_reason": "tool_calls"}

    said = await ask("tools", model)
    _, answer = said["messages"]
    assert [part["type"] for part in answer["parts"]] == [
        "step-start",
        "tool-weather",
        "step-start",
        "text",
    ]
    assert answer["parts"][-1]["text"] == "It is 22 degrees."
    assert [message["role"] for message in asked[1]] == ["user", "assistant", "tool"]


# The example, in a browser.


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("page")
    shutil.copy(HERE / "page/index.html", folder)
    options: dict[str, Any] = {
        "entryPoints": ["page/page.jsx"],
        "outfile": str(folder / "page.js"),
        "bundle": True,
        "format": "esm",
        "jsx": "automatic",
    }
    build = f'require("esbuild").buildSync({json.dumps(options)})'
    subprocess.run([str(NODE), "-e", build], cwd=HERE, check=True, timeout=50)
    return folder


@pytest.fixture
def page(page_folder: Path, tmp_path: Path) -> Iterator[Page]:
    """The page of a new server, whose answers wait after two words."""
    port = free_port()
    folders = {"PAGE": str(page_folder), "RUNS": str(tmp_path)}
    with (
        server_process(port, "--no-access-log", app="tests.llm.use_chat:app", **folders),
        chromium() as browser,
    ):
        page = browser.new_context().new_page()
        page.set_default_timeout(20_000)
        page.goto(f"http://127.0.0.1:{port}/")
        yield page


def send(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


expect.set_options(timeout=20_000)
HALF = "".join(WORDS[:2]).strip()


@pytest.mark.column("resumes", USE_CHAT)
def test_use_chat_resumes_after_a_reload_and_shows_every_word_once(page: Page) -> None:
    send(page, "Hello?")
    answers, status = page.locator(".assistant"), page.locator("output")
    expect(answers).to_have_text([HALF])
    page.reload()
    expect(answers).to_have_text([HALF])
    expect(status).to_have_text("streaming")
    assert page.evaluate("fetch('/gate', { method: 'POST' }).then(({ status }) => status)") == 204
    expect(status).to_have_text("ready")
    expect(answers).to_have_text([ANSWER.strip()])
    page.reload()
    expect(page.locator(".user")).to_have_text(["Hello?"])
    expect(status).to_have_text("ready")
    expect(answers).to_have_count(0)


@pytest.mark.column("stops", USE_CHAT)
def test_use_chat_stops_the_answer_on_the_server(page: Page) -> None:
    send(page, "Hello?")
    expect(page.locator(".assistant")).to_have_text([HALF])
    with page.expect_response(lambda response: response.request.method == "DELETE") as stopped:
        page.get_by_role("button", name="Stop").click()
    assert stopped.value.status == 204
    expect(page.locator("output")).to_have_text("ready")
    page.wait_for_function(
        "fetch('/gate').then((response) => response.json()).then(({ closed }) => closed === 1)"
    )
    page.reload()
    expect(page.locator(".user")).to_have_text(["Hello?"])
    expect(page.locator("output")).to_have_text("ready")
    expect(page.locator(".assistant")).to_have_count(0)


def test_use_chat_shows_a_stop_in_another_tab(page: Page) -> None:
    send(page, "Hello?")
    expect(page.locator(".assistant")).to_have_text([HALF])
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".assistant")).to_have_text([HALF])
    page.get_by_role("button", name="Stop").click()
    expect(other.locator("output")).to_have_text("ready")
    expect(other.locator(".assistant")).to_have_text([HALF])
