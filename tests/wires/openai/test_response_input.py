"""What a model's source gets of a request of the Responses API."""

from typing import Any

import pytest
from openai.types.responses.response_item_list import ResponseItemList

from streams import StreamError
from streams.event import encode_json
from streams.wires.openai.response_input import (
    ITEMS_PER_TURN,
    chat_fields,
    listed,
    messages_of,
    parse,
    references,
)
from tests.support.turns import at_once, turns_and_result

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OTHER_CALL = {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "[]"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
ANSWER = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "!"}],
}
TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OTHER_TOOL_CALL = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "[]"}}


def said(role: str, content: Any, **members: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **members}


async def messages(input_: Any, instructions: str | None = None, earlier: Any = ()) -> list[Any]:
    request, _ = at_once(parse(encode_json({"model": "m", "input": input_})))
    return await messages_of(instructions, earlier, request.items)


@pytest.mark.parametrize(
    ("input_", "expected"),
    [
        ("Hi", [said("user", "Hi")]),
        ([said("user", "Hi")], [said("user", "Hi")]),
        (
            [said("user", [{"type": "input_text", "text": t} for t in ("H", "i")])],
            [said("user", "Hi")],
        ),
        ([said("developer", "Be kind.")], [said("system", "Be kind.")]),
        ([said("system", "Be kind.")], [said("system", "Be kind.")]),
        ([ANSWER], [said("assistant", "Hi!")]),
        (
            [said("assistant", "A", phase="commentary"), said("assistant", "B")],
            [said("assistant", "A"), said("assistant", "B")],
        ),
        (
            [CALL, OTHER_CALL, OUTPUT],
            [
                said("assistant", None, tool_calls=[TOOL_CALL, OTHER_TOOL_CALL]),
                said("tool", "sunny", tool_call_id="c1"),
            ],
        ),
        (
            [ANSWER, {"type": "reasoning", "id": "r", "summary": []}, CALL],
            [said("assistant", "Hi!", tool_calls=[TOOL_CALL])],
        ),
        ([CALL, ANSWER], [said("assistant", "Hi!", tool_calls=[TOOL_CALL])]),
        (
            [{**OUTPUT, "output": [{"type": "input_text", "text": "sunny"}]}],
            [said("tool", "sunny", tool_call_id="c1")],
        ),
    ],
)
async def test_items_become_messages(input_: Any, expected: list[Any]) -> None:
    assert await messages(input_) == expected


async def test_parts_that_are_no_text_become_those_of_a_chat_completion() -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
        {"type": "input_file", "file_data": "data:x;base64,AA", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    assert await messages([said("user", parts)]) == [
        said(
            "user",
            [
                {"type": "text", "text": "What is this?"},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AA", "detail": "low"},
                },
                {"type": "file", "file": {"file_data": "data:x;base64,AA", "filename": "a.pdf"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ],
        )
    ]


async def test_instructions_come_first_and_then_the_earlier_conversation() -> None:
    found = await messages([OUTPUT], "Be kind.", [{"type": "message", **said("user", "Hi")}, CALL])
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("item", "place", "detail"),
    [
        ({"type": "web_search_call", "id": "x"}, "input[1]", "'web_search_call'"),
        ({"type": None}, "input[1]", "None"),
        ({"type": ["message"]}, "input[1]", "a type of message, function_call"),
        ({"type": "item_reference", "id": "msg_1"}, "input[1]", "no item 'msg_1'"),
        ({"type": "message", "role": "user"}, "input[1]", "this message has no content"),
        ({"type": "message", "content": "x"}, "input[1]", "this message has no role"),
        (said("critic", "x"), "input[1]", "not 'critic'"),
        (said("user", 3), "input[1].content", "a text or a list of parts"),
        (said("user", ["x"]), "input[1].content", "a text or a list of parts"),
        (said("user", [{"type": "input_text"}]), "input[1].content[0]", "'input_text'"),
        (
            said("user", [{"type": "input_image", "file_id": "file-1"}]),
            "input[1].content[0]",
            "an input_image with image_url",
        ),
        ({"type": "function_call", "name": "f"}, "input[1]", "this function_call has no"),
        ({"type": "function_call_output", "call_id": "c"}, "input[1]", "has no output"),
        (said("user", [{"type": "x" * 500}]), "input[1].content[0]", "(500 characters)"),
    ],
)
async def test_an_item_that_is_no_message_is_named(item: Any, place: str, detail: str) -> None:
    with pytest.raises(StreamError) as refused:
        await messages([said("user", "Hi"), item])
    assert (refused.value.status, refused.value.members["param"]) == (400, place)
    assert detail in str(refused.value)
    assert str(refused.value).startswith(place)


async def test_the_place_of_an_item_does_not_count_the_earlier_conversation() -> None:
    with pytest.raises(StreamError, match=r"^input\[0\]: "):
        await messages([{"type": "x"}], earlier=[CALL, OUTPUT])


def fields(**given: Any) -> dict[str, Any]:
    request, all_ = at_once(parse(encode_json({"model": "m", "input": "Hi", **given})))
    return at_once(chat_fields(request, all_))


TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": True}
FUNCTION = {name: value for name, value in TOOL.items() if name != "type"}
SCHEMA = {"name": "n", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tools": [TOOL]}, {"tools": [{"type": "function", "function": FUNCTION}]}),
        (
            {"tools": [{"type": "function", "name": "f", "strict": None}]},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "f"}],
                }
            },
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "f"}}],
                    },
                }
            },
        ),
        ({"text": {"format": {"type": "text"}}}, {}),
        (
            {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
            {"response_format": {"type": "json_object"}, "verbosity": "low"},
        ),
        (
            {"text": {"format": {"type": "json_schema", **SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        ),
        (
            {"reasoning": {"effort": "low", "summary": "auto"}},
            {"reasoning_effort": "low"},
        ),
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        (
            {"temperature": 0, "top_p": 0.5, "metadata": {"a": "b"}, "user": "u", "fail": 1},
            {"temperature": 0, "top_p": 0.5, "metadata": {"a": "b"}, "user": "u", "fail": 1},
        ),
        (
            {
                "store": False,
                "stream": True,
                "truncation": "auto",
                "max_tool_calls": 1,
                "stream_options": {"include_obfuscation": False},
                "instructions": "x",
                "temperature": None,
            },
            {},
        ),
    ],
)
def test_fields_become_those_of_a_chat_completion(given: Any, expected: dict[str, Any]) -> None:
    assert {name: value for name, value in fields(**given).items() if value != []} == expected


@pytest.mark.parametrize(
    ("given", "param", "detail"),
    [
        ({"input": 3}, "input", "Expected"),
        ({"input": None}, "input", "input is missing"),
        ({"input": []}, "input", "input is missing"),
        ({"model": None}, "model", "Expected"),
        ({"model": "m" * 257}, "model", "256"),
        ({"conversation": "conv_1"}, "conversation", "use previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "as instructions and input"),
        ({"background": True, "store": False}, "store", "leave out store"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "'web_search'"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1]", "a function has a name"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search'"),
        ({"tool_choice": "any"}, "tool_choice", "'any'"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "'grammar'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "with a name and a schema"),
        ({"include": ["everything"]}, "include", "'everything'"),
        ({"max_output_tokens": 0}, "max_output_tokens", "Expected"),
        ({"top_logprobs": 21}, "top_logprobs", "Expected"),
        ({"truncation": "some"}, "truncation", "Invalid"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", "Expected"),
    ],
)
def test_a_field_that_cannot_be_is_named(given: Any, param: str, detail: str) -> None:
    with pytest.raises(StreamError, match=detail) as refused:
        fields(**given)
    assert (refused.value.status, refused.value.members["param"]) == (400, param)


def test_a_continued_conversation_needs_no_input() -> None:
    request, _ = at_once(parse(b'{"model": "m", "previous_response_id": "resp_x"}'))
    assert request.items == []


async def test_without_any_message_there_is_nothing_to_answer() -> None:
    with pytest.raises(StreamError, match="input has no message"):
        await messages([{"type": "reasoning", "id": "r", "summary": []}])


def test_references_are_found() -> None:
    assert references([CALL, {"type": "item_reference", "id": "a"}]) == ["a"]


def test_listed_items_are_what_the_client_expects() -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", **said("user", "Hi")},
        ANSWER | {"content": "Hi"},
        ANSWER,
        CALL,
        OUTPUT,
        {"type": "reasoning", "id": "r", "summary": []},
    ]
    listed_ = listed("A" * 22, items)
    about = {"object": "list", "has_more": False, "first_id": "a", "last_id": "b"}
    ResponseItemList.model_validate({"data": listed_, **about})
    assert len({item["id"] for item in listed_}) == len(items)
    assert listed_[-1]["id"] == "r"


def test_many_parts_of_one_message_and_many_tools_are_converted_in_several_turns() -> None:
    count = 3 * ITEMS_PER_TURN
    part = {"type": "input_text", "text": "a"}
    turns, result = turns_and_result(
        messages_of(None, [], [{"type": "message", **said("user", [part] * count)}])
    )
    assert result == [{"role": "user", "content": "a" * count}]
    assert turns >= 3
    tools = [{"type": "function", "name": "f"}] * count
    request, all_ = at_once(parse(encode_json({"model": "m", "input": "Hi", "tools": tools})))
    turns, chat = turns_and_result(chat_fields(request, all_))
    assert len(chat["tools"]) == count
    assert turns >= 3
