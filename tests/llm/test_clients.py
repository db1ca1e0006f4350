"""Clients: each uses the mock, served by uvicorn, as it uses a model of OpenAI. See `make sdks`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import jsonschema
import pytest

from streams import Source, Streams, source
from streams.sources import tokens
from streams.sources.pieces import pieces
from streams.sources.turns import REASONING, REPLY, REPLY_TO_RESULTS
from tests.llm.clients import (
    QUESTION,
    WEATHER,
    Forecast,
    Said,
    agents,
    instructor_py,
    langchain,
    litellm_py,
    llm_py,
    npm,
    openai_py,
    weather,
)
from tests.support.mock import QUICK
from tests.support.servers import serving, until

MODULES = (openai_py, npm, agents, langchain, litellm_py, instructor_py, llm_py)
CLIENTS: list[Any] = [client for module in MODULES for client in module.CLIENTS]

Ask = Callable[[str, str], Awaitable[Said]]

ANSWER = REPLY.format(prompt=QUESTION)
TOKENS = len([*pieces(ANSWER)])
SILENT = dict.fromkeys(
    ["llm, responses", "instructor, `RESPONSES_TOOLS`"],
    "it does not read the event `response.failed`, and takes what it has for the answer",
)

pytestmark = pytest.mark.timeout(120)


def mock(name: str, **parameters: Any) -> Source[..., Any]:
    """The mock with parameters that its client cannot set."""
    return source(name=name)(partial(tokens.function, **QUICK, **parameters))


@pytest.fixture
async def streams() -> Streams:
    models = {
        "mock": mock("mock"),
        "refusing": mock("refusing", status=403),
        "failing": mock("failing", fail_after=3),
        "stalling": mock("stalling", stall_after=3),
    }
    return Streams(models=models)


@pytest.fixture
async def url(streams: Streams) -> AsyncIterator[str]:
    async with serving(streams) as url:
        yield url


def each_client(*whats: str, ignorant: Mapping[str, str] = {}) -> pytest.MarkDecorator:
    """The clients that can do one of these, each with the first that it can.

    `ignorant` says of some why they fail.
    """
    able = []
    for client in CLIENTS:
        what = next((what for what in whats if hasattr(client, what)), None)
        if what is not None:
            reason = ignorant.get(client.name)
            marks = [pytest.mark.xfail(reason=reason)] if reason else []
            able.append(pytest.param(client, getattr(client, what), marks=marks, id=client.name))
    return pytest.mark.parametrize(("client", "ask"), able)


def is_the_answer(said: Said) -> bool:
    prompt, answer = said.usage
    return said.text == ANSWER and prompt >= len([*pieces(QUESTION)]) and answer == TOKENS


@each_client("whole")
@pytest.mark.column("an answer and its usage")
async def test_a_client_gets_a_whole_answer_and_its_usage(client: Any, ask: Ask, url: str) -> None:
    said = await ask(url, "mock")
    assert is_the_answer(said), said


@each_client("stream")
@pytest.mark.column("a stream")
async def test_a_client_gets_an_answer_in_pieces_and_its_usage(
    client: Any, ask: Ask, url: str
) -> None:
    said = await ask(url, "mock")
    assert is_the_answer(said), said
    assert said.pieces > 10


@each_client("tools")
@pytest.mark.column("a loop of tools")
async def test_a_client_runs_the_tool_and_gets_an_answer_to_its_result(
    client: Any, ask: Ask, url: str
) -> None:
    said = await ask(url, "mock")
    (arguments,) = said.called
    jsonschema.validate(arguments, WEATHER)
    results = weather(**arguments)
    assert said.text == REPLY_TO_RESULTS.format(prompt=QUESTION, results=results)


@each_client("schema")
@pytest.mark.column("structured output")
async def test_a_client_gets_an_object_of_its_schema(client: Any, ask: Ask, url: str) -> None:
    Forecast.model_validate((await ask(url, "mock")).value)


@each_client("schema_of_tool")
@pytest.mark.column("structured output, by a tool")
async def test_a_client_gets_an_object_of_its_schema_by_a_tool(
    client: Any, ask: Ask, url: str
) -> None:
    Forecast.model_validate((await ask(url, "mock")).value)


@each_client("schema_stream")
@pytest.mark.column("structured output, streamed")
async def test_a_client_gets_an_object_that_grows(client: Any, ask: Ask, url: str) -> None:
    said = await ask(url, "mock")
    Forecast.model_validate(said.value)
    assert said.pieces > 3


@each_client("reasoning")
@pytest.mark.column("reasoning")
async def test_a_client_tells_reasoning_from_the_answer(client: Any, ask: Ask, url: str) -> None:
    said = await ask(url, "mock")
    assert said.text == ANSWER
    assert said.reasoning.strip() == REASONING[0].format(prompt=QUESTION).strip()


@each_client("stream", "schema_stream")
@pytest.mark.column("says why it is refused")
async def test_a_client_says_why_it_is_refused(client: Any, ask: Ask, url: str) -> None:
    with pytest.raises(Exception, match="the mock refuses with status 403, as requested"):
        await ask(url, "refusing")


@each_client("stream", "schema_stream", ignorant=SILENT)
@pytest.mark.column("says why an answer breaks off")
async def test_a_client_says_why_an_answer_breaks_off(client: Any, ask: Ask, url: str) -> None:
    with pytest.raises(Exception, match="the mock failed after 3 tokens, as requested"):
        await ask(url, "failing")


@each_client("resume")
@pytest.mark.column("resumes")
async def test_a_client_resumes_with_every_event_once(client: Any, ask: Ask, url: str) -> None:
    said = await ask(url, "mock")
    assert said.text == ANSWER
    assert said.numbers == [*range(len(said.numbers))]


@each_client("stop")
@pytest.mark.column("stops")
async def test_a_client_stops_an_answer_on_the_server(
    client: Any, ask: Ask, url: str, streams: Streams
) -> None:
    said = await ask(url, "stalling")
    assert said.status == "cancelled"
    await until(lambda: not streams.runs.health()["running"], "no run is running")
