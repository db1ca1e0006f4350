"""Which fields of a request reach a source, which are ignored, and which are refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import BadRequestError

from streams import Source, StreamError, Streams, source
from streams.sources import tokens
from streams.wires.openai.common import HINTS, arguments_for, estimated_tokens
from tests.support.mock import HELLO, PATH, QUICK, mock
from tests.support.sdk import sdk_of
from tests.support.servers import client_of

MESSAGES = HELLO["messages"]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


@source
async def plain(prompt: str) -> AsyncIterator[str]:
    yield prompt


@source
async def agent(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    stop: list[str] | None = None,
    extra: dict[str, Any] | None = None,
) -> AsyncIterator[str]:
    yield "?"


def given(model: Source[..., Any], **fields: Any) -> dict[str, Any]:
    return arguments_for(model, MESSAGES, fields, handled={})


def test_a_source_gets_the_fields_for_which_it_has_parameters_and_the_rest_in_extra() -> None:
    assert given(agent, tools=[TOOL], temperature=0, response_format=SCHEMA, top_k=3) == {
        "messages": MESSAGES,
        "tools": [TOOL],
        "temperature": 0.0,
        "extra": {"response_format": SCHEMA, "top_k": 3},
    }


def test_what_the_wire_deals_with_reaches_only_a_source_with_a_parameter_for_it() -> None:
    handled = {"max_tokens": 5, "stop": ["x"]}
    assert arguments_for(agent, MESSAGES, {}, handled) == {"messages": MESSAGES, **handled}
    assert arguments_for(plain, MESSAGES, {}, handled) == {"prompt": "Hello?"}


def test_a_source_without_messages_gets_the_text_of_the_last_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    messages = [*MESSAGES, {"role": "user", "content": parts}]
    assert arguments_for(plain, messages, {}, {}) == {"prompt": "ab"}


def test_a_field_named_extra_is_a_field_like_any_other() -> None:
    assert given(agent, extra={"a": 1})["extra"] == {"extra": {"a": 1}}


def test_a_source_with_extra_gets_false_because_the_default_of_its_server_may_be_true() -> None:
    assert given(agent, store=False, parallel_tool_calls=False)["extra"] == {
        "store": False,
        "parallel_tool_calls": False,
    }


UNUSED: dict[str, Any] = {
    "audio": None,
    "functions": [],
    "logprobs": False,
    "modalities": ["text"],
    "prediction": None,
    "response_format": {"type": "text"},
    "tools": [],
    "top_logprobs": 0,
    "web_search_options": None,
}


@pytest.mark.parametrize("model", [plain, agent, tokens])
def test_a_field_that_asks_for_nothing_is_no_argument(model: Source[..., Any]) -> None:
    assert given(model, **UNUSED) == given(model)


def test_a_field_that_is_false_asks_nothing_of_a_source_that_does_not_take_it() -> None:
    assert given(plain, unknown=False) == given(plain)


@pytest.mark.parametrize("name", sorted(HINTS))
def test_a_hint_is_ignored_by_a_source_that_does_not_take_it(name: str) -> None:
    assert given(plain, **{name: 1}) == given(plain)
    assert given(agent, **{name: 1}) != given(agent)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("logprobs", True),
        ("modalities", ["text", "audio"]),
        ("response_format", {"type": "json_object"}),
        ("response_format", SCHEMA),
        ("tools", [TOOL]),
        ("top_logprobs", 2),
        ("web_search_options", {"search_context_size": "low"}),
        ("unknown", 1),
    ],
)
def test_a_field_that_would_change_the_answers_shape_is_refused_by_name(
    name: str, value: Any
) -> None:
    with pytest.raises(StreamError, match=f"{name}: is not a parameter of this source") as refused:
        given(plain, **{name: value})
    assert refused.value.members["errors"][0]["name"] == name


def test_the_estimate_counts_the_text_of_the_whole_conversation() -> None:
    parts = [{"type": "text", "text": "12345"}, {"type": "image_url", "image_url": {"url": "…"}}]
    messages: Any = [{"content": "1234"}, {"content": parts}, {"content": None}, {"role": "tool"}]
    assert estimated_tokens(messages) == 1 + 2


# What OpenAI's SDK sends


async def test_the_sdk_may_send_every_field_that_changes_no_answers_shape() -> None:
    async with sdk_of(mock()) as sdk:
        completion = await sdk.chat.completions.create(
            **HELLO,
            audio=None,
            frequency_penalty=0.5,
            function_call="none",
            functions=[],
            logit_bias={"1": -100},
            logprobs=False,
            metadata={"a": "b"},
            modalities=["text"],
            n=1,
            parallel_tool_calls=True,
            prediction=None,
            presence_penalty=0,
            prompt_cache_key="k",
            reasoning_effort="low",
            response_format={"type": "text"},
            safety_identifier="me",
            seed=-1,
            service_tier="auto",
            stop=None,
            store=True,
            stream_options=None,
            temperature=1,
            tool_choice="auto",
            tools=[],
            top_logprobs=0,
            top_p=1,
            user="me",
            verbosity="low",
            extra_body={**QUICK, "top_k": 40, "min_p": 0.05},
        )
    assert completion.choices[0].finish_reason == "stop"


async def test_the_sdk_may_send_every_option_of_a_stream() -> None:
    async with sdk_of(mock()) as sdk:
        stream = await sdk.chat.completions.create(
            **HELLO,
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": False},
            extra_body=QUICK,
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage


async def test_the_sdk_raises_bad_request_for_what_a_model_cannot_do() -> None:
    async with sdk_of(Streams(models={"plain": plain})) as sdk:
        with pytest.raises(BadRequestError) as refused:
            await sdk.chat.completions.create(**HELLO, logprobs=True)
    assert refused.value.param == "logprobs"


# Names of models


@pytest.mark.parametrize("name", ["plain", "gpt-5", "org/model:latest"])
async def test_any_name_is_the_name_of_the_only_model_and_the_answer_repeats_it(name: str) -> None:
    async with sdk_of(Streams(models={"plain": plain})) as sdk:
        whole = await sdk.chat.completions.create(model=name, messages=MESSAGES)
        stream = await sdk.chat.completions.create(model=name, messages=MESSAGES, stream=True)
        assert {whole.model, *[chunk.model async for chunk in stream]} == {name}
        assert (await sdk.models.retrieve(name)).id == name
        assert [model.id async for model in sdk.models.list()] == ["plain"]


@pytest.mark.parametrize(
    ("count", "names"), [(2, "'m0', 'm1'"), (10, "'m9'"), (12, "'m9', and 2 more, at /v1/models")]
)
async def test_an_unknown_model_among_several_is_a_404_that_names_some(
    count: int, names: str
) -> None:
    models = {f"m{number}": plain for number in range(count)}
    async with client_of(Streams(models=models)) as client:
        for response in [
            await client.post(PATH, json={**HELLO, "model": "x" * 200}),
            await client.get(f"/v1/models/{'x' * 200}"),
        ]:
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (404, "model_not_found")
            assert error["message"].endswith(names)
            assert error["message"].count("x") < 80


async def test_a_models_name_has_at_most_256_characters_because_every_chunk_repeats_it() -> None:
    async with client_of(mock()) as client:
        for length, status in [(256, 200), (257, 400)]:
            response = await client.post(PATH, json={**HELLO, **QUICK, "model": "m" * length})
            assert response.status_code == status
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize(("fields", "status"), [(100, 200), (101, 400)])
@pytest.mark.parametrize(
    ("path", "asked"),
    [(PATH, HELLO), ("/v1/responses", {"model": "m", "input": "Hi"})],
)
async def test_a_request_has_at_most_100_fields(
    path: str, asked: dict[str, Any], fields: int, status: int
) -> None:
    others = {f"other{number}": False for number in range(fields - len(asked) - 1)}
    async with client_of(mock()) as client:
        response = await client.post(path, json={**asked, "first_token": 0, **others})
    assert response.status_code == status, response.text
    assert status == 200 or "has 101 fields; send at most 100" in response.text


# Stop sequences


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        ("x" * 1000, 200),
        ("x" * 1001, 400),
        (["x" * 1000] * 4, 200),
        (["x" * 1001], 400),
        (["x"] * 5, 400),
        ("", 200),
        (["", ""], 200),
        ([], 200),
    ],
)
async def test_there_are_at_most_4_stop_sequences_of_1000_characters(
    stop: Any, status: int
) -> None:
    async with client_of(mock()) as client:
        response = await client.post(PATH, json={**HELLO, **QUICK, "reply": "Yes", "stop": stop})
    assert response.status_code == status
    if status == 200:
        assert response.json()["choices"][0]["message"]["content"] == "Yes"
    else:
        assert response.json()["error"]["param"] == "stop"
