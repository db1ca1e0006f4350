"""What the mock says in its turn: texts, tool calls, reasoning, and values for a JSON Schema."""

import json
from typing import Any

import pytest

from streams import Policy, StreamError
from streams.sources import tokens
from tests.support.sources import all_of

QUICK: dict[str, Any] = {"tokens_per_second": 10_000, "first_token": 0}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER, NEWS = tool("weather", city={"type": "string"}), tool("news", n={"type": "integer"})
ASKED = [{"role": "user", "content": "Rain?"}]
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "22 degrees"}
ANSWERED = {"role": "assistant", "content": "No."}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


async def events_of(**request: Any) -> list[Any]:
    """The events of the mock's answer to a request in JSON."""
    arguments = tokens.from_json(json.dumps({**QUICK, **request}).encode())
    return await all_of(tokens(**arguments))


async def answer_to(**request: Any) -> dict[str, Any]:
    """The whole answer: what it says, as one value per kind, and why it ended."""
    answer: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    events = await events_of(**request)
    for message in (event["message"] for event in events):
        for kind in message.keys() - {"role", "tool_calls"}:
            if message[kind]:
                answer[kind] = answer.get(kind, "") + message[kind]
        for call in message.get("tool_calls", ()):
            kept = calls.setdefault(call["index"], {**call, "arguments": ""})
            kept["arguments"] += call["function"]["arguments"]
    for call in calls.values():
        name = call["function"]["name"]
        answer.setdefault("calls", []).append((call["id"], name, call["arguments"]))
    answer["end"] = events[-1]["done_reason"]
    return answer


def names(answer: dict[str, Any]) -> list[str]:
    return [name for _, name, _ in answer.get("calls", ())]


async def test_the_first_tool_is_called_with_arguments_from_its_schema() -> None:
    answer = await answer_to(messages=ASKED, tools=[WEATHER, NEWS])
    assert answer == {"calls": [("call_1_0", "weather", '{"city":"city"}')], "end": "tool_calls"}


async def test_a_tool_call_comes_in_fragments_of_which_the_first_names_it() -> None:
    first, *more, last = await events_of(messages=ASKED, tools=[WEATHER])
    assert first["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "index": 0,
                "id": "call_1_0",
                "type": "function",
                "function": {"name": "weather", "arguments": ""},
            }
        ],
    }
    fragments = [event["message"]["tool_calls"] for event in more]
    assert all(len(fragment) == 1 for fragment in fragments)
    assert all(fragment[0].keys() == {"index", "function"} for fragment in fragments)
    assert len(fragments) > 3
    assert last["eval_count"] == len(more) + 1


async def test_a_tool_without_parameters_is_called_with_an_empty_object() -> None:
    for function in ({"name": "now"}, {"name": "now", "parameters": {}}):
        answer = await answer_to(tools=[{"type": "function", "function": function}])
        assert answer["calls"] == [("call_1_0", "now", "{}")]


async def test_after_the_results_the_answer_is_a_text_that_quotes_them() -> None:
    answer = await answer_to(messages=[*ASKED, CALLED, RESULT], tools=[WEATHER])
    assert answer["content"].startswith("You asked: Rain? The tools have answered: 22 degrees ")
    assert answer["end"] == "stop"
    parts = {**RESULT, "content": [{"type": "text", "text": "22"}]}
    answer = await answer_to(messages=[*ASKED, CALLED, parts, RESULT])
    assert "answered: 22 22 degrees " in answer["content"]


async def test_the_next_question_gets_a_tool_call_of_its_own() -> None:
    messages = [*ASKED, CALLED, RESULT, ANSWERED, *ASKED]
    answer = await answer_to(messages=messages, tools=[WEATHER])
    assert answer["calls"] == [("call_5_0", "weather", '{"city":"city"}')]


async def test_a_user_message_next_to_the_results_does_not_call_the_tool_again() -> None:
    answer = await answer_to(messages=[*ASKED, CALLED, RESULT, *ASKED], tools=[WEATHER])
    assert "22 degrees" in answer["content"]
    request = {"tools": [WEATHER, NEWS], "tool_choice": "required"}
    assert names(await answer_to(messages=[*ASKED, CALLED, RESULT, *ASKED], **request)) == ["news"]
    again = [*ASKED, CALLED, RESULT, ANSWERED, *ASKED]
    assert names(await answer_to(messages=again, **request)) == ["weather"]


@pytest.mark.parametrize(
    ("choice", "before", "after"),
    [
        (None, ["weather"], []),
        ("auto", ["weather"], []),
        ("none", [], []),
        ("required", ["weather"], ["news"]),
        (named("news"), ["news"], ["news"]),
    ],
)
async def test_tool_choice_says_which_tool_is_called(
    choice: Any, before: list[str], after: list[str]
) -> None:
    request = {"tools": [WEATHER, NEWS], "tool_choice": choice}
    assert names(await answer_to(messages=ASKED, **request)) == before
    assert names(await answer_to(messages=[*ASKED, CALLED, RESULT], **request)) == after


async def test_a_required_tool_is_the_last_one_after_all_others() -> None:
    messages = [*ASKED, CALLED, RESULT, CALLED, RESULT, CALLED, RESULT]
    answer = await answer_to(messages=messages, tools=[WEATHER, NEWS], tool_choice="required")
    assert names(answer) == ["news"]


TURNS = [
    {"tool_calls": [{"name": "weather"}, {"name": "news", "arguments": {"n": 3}}]},
    {"reasoning": "Hm.", "tool_calls": [{"name": "other"}]},
    {"content": "Dry.", "refusal": "No more."},
]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (0, ["weather", "news"]),
        (1, ["weather", "news"]),
        (2, ["other"]),
        (3, []),
        (4, []),
    ],
)
async def test_a_turn_is_taken_when_those_before_have_their_results(
    results: int, expected: list[str]
) -> None:
    messages = [*ASKED, CALLED, *[RESULT] * results]
    answer = await answer_to(messages=messages, reply=TURNS, tools=[WEATHER])
    assert names(answer) == expected
    if not expected:
        assert answer == {"content": "Dry.", "refusal": "No more.", "end": "stop"}


async def test_a_turn_says_all_that_it_has() -> None:
    answer = await answer_to(reply=TURNS, tools=[WEATHER])
    assert answer["calls"] == [
        ("call_1_0", "weather", '{"city":"city"}'),
        ("call_1_1", "news", '{"n":3}'),
    ]
    answer = await answer_to(messages=[RESULT, RESULT], reply=TURNS)
    assert answer == {
        "reasoning": "Hm.",
        "calls": [("call_2_0", "other", "{}")],
        "end": "tool_calls",
    }


async def test_texts_are_turns_too() -> None:
    for results, text in enumerate(["One", "Two", "Two"]):
        answer = await answer_to(messages=[RESULT] * results, reply=["One", "Two"])
        assert answer == {"content": text, "end": "stop"}


async def test_arguments_in_a_text_are_sent_as_they_are() -> None:
    for text in ("", "{oops"):
        reply = [{"tool_calls": [{"name": "weather", "arguments": text}]}]
        assert (await answer_to(reply=reply))["calls"] == [("call_1_0", "weather", text)]


async def test_a_reply_is_the_answer_whatever_tools_and_formats_there_are() -> None:
    answer = await answer_to(
        reply="Yes.",
        tools=[WEATHER],
        tool_choice="required",
        response_format={"type": "json_object"},
        reasoning_effort="high",
    )
    assert answer == {"content": "Yes.", "end": "stop"}


async def test_reasoning_comes_before_the_answer_if_it_is_asked_for() -> None:
    lengths = []
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh"):
        answer = await answer_to(prompt="Why {so}?", reasoning_effort=effort)
        assert answer["content"].startswith("You asked: Why {so}?")
        lengths.append(len(answer.get("reasoning", "")))
    assert lengths[:2] == [0, 0]
    assert lengths[2:] == sorted(set(lengths[2:]))
    assert "reasoning" not in await answer_to(prompt="Why?")
    events = await events_of(prompt="Why?", reasoning_effort="low", tools=[WEATHER])
    reasoning = [event["message"].get("reasoning") for event in events]
    assert reasoning[0] == "The"
    assert events[-1]["reasoning_eval_count"] == sum(text is not None for text in reasoning)


async def test_response_format_makes_the_text_a_value_in_json() -> None:
    schema = {"type": "object", "properties": {"n": {"minimum": 7}}, "required": ["n"]}
    for given, expected in [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, {"n": 7}),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, None),
        ({"type": "json_object"}, None),
    ]:
        answer = await answer_to(prompt="Why?", response_format=given)
        value = json.loads(answer["content"])
        assert value == expected or (expected is None and "Why?" in value["answer"])
    answer = await answer_to(prompt="Why?", response_format={"type": "text"})
    assert answer["content"].startswith("You asked: Why?")


async def test_tools_are_called_before_the_answer_in_json() -> None:
    request = {"tools": [WEATHER], "response_format": {"type": "json_object"}}
    assert names(await answer_to(messages=ASKED, **request)) == ["weather"]
    answer = await answer_to(messages=[*ASKED, CALLED, RESULT], **request)
    assert "22 degrees" in json.loads(answer["content"])["answer"]


async def test_the_whole_conversation_is_counted() -> None:
    async def count(**request: Any) -> int:
        return int((await events_of(reply="Yes", **request))[-1]["prompt_eval_count"])

    system = {"role": "system", "content": "Be brief"}
    parts = {"role": "user", "content": [{"type": "text", "text": "And you"}, {"type": "image"}, 5]}
    assert await count(prompt="one two three") == 3
    assert await count(messages=[system, *ASKED]) == 4
    assert await count(messages=[system, parts]) == 4
    assert await count(messages=[system, *ASKED, CALLED, RESULT]) == 4 + 3 + 2
    assert await count(messages=[], prompt="") == 0
    assert await count(messages=ASKED, tools=[WEATHER]) > 2 + 20


@pytest.mark.parametrize(
    "message",
    [
        {"content": 5},
        {"role": 5, "content": {"a": 1}},
        {"role": "assistant", "tool_calls": 5},
        {"role": "assistant", "tool_calls": [5, {"function": 5}, {"function": {"name": 5}}]},
        {"role": "tool", "content": [None]},
    ],
)
async def test_a_message_of_another_form_is_taken_as_it_is(message: dict[str, Any]) -> None:
    assert (await answer_to(messages=[message], tools=[WEATHER]))["end"] in ("stop", "tool_calls")


NESTED = {"type": "array", "minItems": 10**9}


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        ({"tool_choice": "required"}, "tool_choice: is 'required', and there are no tools"),
        ({"tool_choice": named("x")}, "tool_choice: there is no tool 'x'; tools: none"),
        (
            {"tools": [WEATHER], "tool_choice": named("x" * 100)},
            "tool_choice: there is no tool 'x{50,70}… .100 characters.; tools: 'weather'",
        ),
        ({"tool_choice": "always"}, "tool_choice: invalid enum value 'always'"),
        ({"tools": [{"type": "custom"}]}, "tools: invalid enum value 'custom'"),
        (
            {"tools": [tool("x", a=NESTED)]},
            "tools: .*at .'a'.: minItems 1000000000 is more than the mock makes",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "x", "parameters": {"type": "map"}}}
                ]
            },
            "tools: .*type 'map' is none of JSON",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "x", "parameters": {"type": "string"}},
                    }
                ]
            },
            "tools: the parameters of 'x' are no schema of an object",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format: .* without a `json_schema`",
        ),
        ({"response_format": {"type": "xml"}}, "response_format: invalid enum value 'xml'"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"required": ["a"], "properties": {"a": False}}},
                }
            },
            "response_format: .*at .'a'.: the schema `false` allows no value",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort: invalid enum value"),
        ({"reply": 5}, "reply: expected `str | array | null`"),
        ({"reply": []}, "reply: expected `array` of length >= 1"),
        ({"reply": [5]}, "reply: expected `str | object`, got `int`"),
        ({"reply": [{"text": "a"}]}, "reply: object contains unknown field `text`"),
        ({"reply": [{"tool_calls": [{}]}]}, "reply: object missing required field `name`"),
    ],
)
async def test_a_request_that_the_mock_cannot_meet_is_refused_with_the_reason(
    request_: dict[str, Any], detail: str
) -> None:
    with pytest.raises(StreamError, match=detail) as caught:
        await events_of(**request_)
    assert caught.value.status == 422
    assert caught.value.members["errors"][0]["name"] == detail.partition(":")[0]


async def test_at_most_20_tools_are_named_in_an_error() -> None:
    with pytest.raises(StreamError) as caught:
        await events_of(tools=[tool("x" * 256)] * 128, tool_choice=named("y"))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("name", "below", "least", "most", "above"),
    [
        ("tools", 5, [], [WEATHER] * 128, [WEATHER] * 129),
        ("reply", [], ["x"], ["x"] * 1000, ["x"] * 1001),
        ("reply", 5, "", "x" * 10**6, "x" * (10**6 + 1)),
    ],
)
def test_the_lists_of_a_request_have_bounds(
    name: str, below: Any, least: Any, most: Any, above: Any
) -> None:
    for value in (least, most):
        tokens.from_json(json.dumps({name: value}).encode())
    for value in (below, above):
        with pytest.raises(StreamError, match=name):
            tokens.from_json(json.dumps({name: value}).encode())


def test_a_turn_has_at_most_128_tool_calls_with_names_of_256_characters() -> None:
    def reply(count: int, length: int) -> bytes:
        calls = [{"name": "x" * length}] * count
        return json.dumps({"reply": [{"tool_calls": calls}]}).encode()

    tokens.from_json(reply(128, 256))
    for count, length in ((129, 1), (1, 257), (1, 0)):
        with pytest.raises(StreamError, match="reply"):
            tokens.from_json(reply(count, length))


async def test_another_worker_continues_with_the_same_turn() -> None:
    """The arguments go through the store as JSON."""
    given = {**QUICK, "messages": ASKED, "reply": TURNS, "tools": [WEATHER], "seed": -(10**30)}
    arguments = tokens.from_json(json.dumps(given).encode())
    whole = await all_of(tokens(**arguments))
    job = await tokens.job(arguments, None, policy=Policy())
    assert job.arguments is not None
    again = tokens.from_json(job.arguments.encode())
    assert again == arguments
    for after in range(len(whole) + 1):
        assert await all_of(tokens(**again, after=after)) == whole[after:]
