"""What a model says besides text: tool calls, reasoning, refusals, log probabilities, usage."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from streams import Source, Streams, source
from tests.support.mock import HELLO, PATH
from tests.support.sdk import sdk_of
from tests.support.servers import client_of


def says(**members: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **members}, "done": False}


def begins(index: int, id_: str, name: str, arguments: str = "") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return says(tool_calls=[{"index": index, "id": id_, "type": "function", "function": function}])


def goes_on(index: int, arguments: str) -> dict[str, Any]:
    return says(tool_calls=[{"index": index, "function": {"arguments": arguments}}])


def done(reason: str | None = "stop", **counts: Any) -> dict[str, Any]:
    return {"message": {"content": ""}, "done": True, "done_reason": reason, **counts}


def model(events: Iterable[Any]) -> Source[..., Any]:
    """A model that says the same to everybody, and takes every field."""

    @source
    async def scripted(
        messages: list[dict[str, Any]], extra: dict[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        for event in events:
            yield event

    return scripted


def app(*events: Any) -> Streams:
    return Streams(models={"m": model(events)})


async def stream_and_whole(streams: Streams, **fields: Any) -> tuple[Any, Any]:
    """The completion that the SDK assembles of a stream, and the one that it gets whole."""
    async with sdk_of(streams) as sdk:
        include: Any = {"include_usage": True}
        async with sdk.chat.completions.stream(**HELLO, stream_options=include, **fields) as stream:
            streamed = await stream.get_final_completion()
        return streamed, await sdk.chat.completions.create(**HELLO, **fields)


TWO_CALLS = (
    says(content="Let me see."),
    begins(0, "call_1", "weather", '{"ci'),
    goes_on(0, 'ty":"Rome"}'),
    begins(1, "call_2", "time"),
    goes_on(1, "{}"),
    done("tool_calls", prompt_eval_count=9, eval_count=7),
)


async def test_tool_calls_arrive_in_a_stream_and_in_a_whole_answer() -> None:
    for completion in await stream_and_whole(app(*TWO_CALLS)):
        (choice,) = completion.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        assert [
            (call.id, call.type, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls
        ] == [
            ("call_1", "function", "weather", '{"city":"Rome"}'),
            ("call_2", "function", "time", "{}"),
        ]
        assert completion.usage.total_tokens == 16


async def test_a_fragment_of_a_tool_call_is_one_chunk() -> None:
    async with client_of(app(*TWO_CALLS)) as client:
        response = await client.post(PATH, json={**HELLO, "stream": True})
    assert '"delta":{"role":"assistant","content":null}' in response.text
    assert (
        '"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function",'
        '"function":{"name":"weather","arguments":"{\\"ci"}}]}' in response.text
    )
    assert '"delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]}' in response.text


async def test_an_answer_that_is_only_tool_calls_has_no_content() -> None:
    for completion in await stream_and_whole(app(begins(0, "c", "f", "{}"), done("tool_calls"))):
        assert completion.choices[0].message.content is None


@pytest.mark.parametrize("last", [(), (done(),), (done(None),)])
async def test_an_answer_with_tool_calls_finishes_with_tool_calls(last: Any) -> None:
    for completion in await stream_and_whole(app(begins(0, "c", "f", "{}"), *last)):
        assert completion.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_the_reason_for_which_a_model_stopped_is_passed_on(reason: str) -> None:
    async with sdk_of(app("Hi", done(reason))) as sdk:
        completion = await sdk.chat.completions.create(**HELLO)
    assert completion.choices[0].finish_reason == reason


async def test_reasoning_is_its_own_member_of_the_message() -> None:
    events = [says(reasoning="The user "), says(reasoning="greets."), "Hi", done()]
    async with sdk_of(app(*events)) as sdk:
        completion: Any = await sdk.chat.completions.create(**HELLO)
        stream = await sdk.chat.completions.create(**HELLO, stream=True)
        deltas: Any = [chunk.choices[0].delta async for chunk in stream]
    message = completion.choices[0].message
    assert (message.reasoning_content, message.content) == ("The user greets.", "Hi")
    reasoning = [d.reasoning_content for d in deltas if hasattr(d, "reasoning_content")]
    assert reasoning == ["The user ", "greets."]
    assert not hasattr(message, "reasoning"), "a client that reads both would show it twice"


async def test_a_refusal_is_its_own_member_of_the_message() -> None:
    events = [says(refusal="I can't "), says(refusal="do that."), done()]
    for completion in await stream_and_whole(app(*events)):
        message = completion.choices[0].message
        assert (message.content, message.refusal) == (None, "I can't do that.")


async def test_an_answer_without_anything_is_an_empty_text() -> None:
    async with sdk_of(app(done())) as sdk:
        completion = await sdk.chat.completions.create(**HELLO)
    message = completion.choices[0].message
    assert (message.content, message.refusal, message.annotations) == ("", None, [])
    assert message.tool_calls is None


async def test_log_probabilities_are_passed_on() -> None:
    def token(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": -0.5, "bytes": [*text.encode()], "top_logprobs": []}

    events = [
        {**says(content="a"), "logprobs": {"content": [token("a")], "refusal": None}},
        {**says(content="b"), "logprobs": {"content": [token("b")], "refusal": None}},
        done(),
    ]
    for completion in await stream_and_whole(app(*events), logprobs=True, top_logprobs=1):
        logprobs = completion.choices[0].logprobs
        assert [each.token for each in logprobs.content] == ["a", "b"]
        assert not logprobs.refusal


async def test_the_counts_of_the_source_are_the_usage() -> None:
    counts: Any = {"prompt_eval_count": 5, "eval_count": 0, "reasoning_eval_count": 3}
    for completion in await stream_and_whole(app("Hi", done(**counts))):
        usage = completion.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 0, 5)
        assert usage.completion_tokens_details.reasoning_tokens == 3


async def test_without_counts_the_usage_is_the_whole_conversation_and_the_pieces() -> None:
    messages: Any = [
        {"role": "system", "content": "12345678"},
        {"role": "user", "content": [{"type": "text", "text": "1234"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "1"},
    ]
    async with sdk_of(app("a", says(reasoning="b"), begins(0, "c", "f"))) as sdk:
        completion = await sdk.chat.completions.create(model="m", messages=messages)
    assert completion.usage
    assert completion.usage.prompt_tokens == 2 + 1 + 1
    assert completion.usage.completion_tokens == 3
    assert completion.usage.completion_tokens_details is None


# Stop sequences and limits


async def test_a_stop_sequence_is_looked_for_in_the_text_only() -> None:
    events = [says(reasoning="a STOP b"), begins(0, "c", "f", '{"a":"STOP"}'), "x", "yST", "OPz"]
    async with sdk_of(app(*events)) as sdk:
        completion: Any = await sdk.chat.completions.create(**HELLO, stop="STOP")
    message = completion.choices[0].message
    assert message.reasoning_content == "a STOP b"
    assert message.tool_calls[0].function.arguments == '{"a":"STOP"}'
    assert message.content == "xy"
    assert completion.choices[0].finish_reason == "stop"


async def test_the_text_before_a_tool_call_arrives_before_it() -> None:
    async with sdk_of(app("one ST", begins(0, "c", "f", "{}"), done("tool_calls"))) as sdk:
        stream = await sdk.chat.completions.create(**HELLO, stream=True, stop="STOP")
        deltas = [chunk.choices[0].delta async for chunk in stream]
    assert [delta.content for delta in deltas if delta.content] == ["one ", "ST"]
    assert (deltas[2].content, bool(deltas[2].tool_calls)) == ("ST", True)


async def test_every_piece_counts_for_the_limit_of_a_source_that_does_not_count() -> None:
    events = [says(reasoning="a"), "b", "c"]
    async with sdk_of(app(*events)) as sdk:
        completion: Any = await sdk.chat.completions.create(**HELLO, max_completion_tokens=2)
    assert completion.choices[0].message.content == "b"
    assert completion.choices[0].finish_reason == "length"


# The SDK's helpers


class Answer(BaseModel):
    city: str
    degrees: int


async def test_the_sdk_parses_an_answer_into_a_pydantic_model() -> None:
    async with sdk_of(app('{"city": ', '"Rome", "degrees": 31}', done())) as sdk:
        completion = await sdk.chat.completions.parse(**HELLO, response_format=Answer)
        async with sdk.chat.completions.stream(**HELLO, response_format=Answer) as stream:
            streamed = await stream.get_final_completion()
    for each in (completion, streamed):
        assert each.choices[0].message.parsed == Answer(city="Rome", degrees=31)


async def test_the_sdk_parses_the_arguments_of_a_tool_call_into_a_pydantic_model() -> None:
    events = [begins(0, "c", "Answer", '{"city":"Rome",'), goes_on(0, '"degrees":31}'), done()]
    tools = [openai.pydantic_function_tool(Answer)]
    async with sdk_of(app(*events)) as sdk:
        completion = await sdk.chat.completions.parse(**HELLO, tools=tools)
    calls: Any = completion.choices[0].message.tool_calls
    (call,) = calls
    assert call.function.parsed_arguments == Answer(city="Rome", degrees=31)


async def test_the_sdk_raises_its_own_error_for_an_answer_that_was_cut() -> None:
    async with sdk_of(app('{"city": ', done("length"))) as sdk:
        with pytest.raises(openai.LengthFinishReasonError):
            await sdk.chat.completions.parse(**HELLO, response_format=Answer)


async def test_a_source_gets_the_tools_and_the_schema_in_the_form_in_which_they_came() -> None:
    asked: dict[str, Any] = {}

    @source
    async def agent(
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> AsyncIterator[Any]:
        asked.update(extra or {}, tools=tools, messages=messages)
        yield done()

    tool: Any = openai.pydantic_function_tool(Answer)
    conversation: Any = [
        *HELLO["messages"],
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "c", "content": "31"},
    ]

    async def ask(sdk: AsyncOpenAI) -> None:
        await sdk.chat.completions.create(
            model="m", messages=conversation, tools=[tool], parallel_tool_calls=False
        )

    async with sdk_of(Streams(models={"m": agent})) as sdk:
        await ask(sdk)
    assert asked == {"tools": [tool], "messages": conversation, "parallel_tool_calls": False}
