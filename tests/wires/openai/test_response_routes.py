"""The Responses API over real sockets, used by OpenAI's own client."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from openai import (
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)
from openai.types.responses import Response
from pydantic import BaseModel
from starlette.requests import Request

from streams import StreamError, Streams, source
from streams.errors import InvalidParameters
from streams.wires.openai import response_routes
from tests.support.agent import WEATHER, Agent, call
from tests.support.mock import QUICK, mock
from tests.support.sdk import sdk_of
from tests.support.servers import client_of, serving, until
from tests.support.stores import shared_log

WAIT = 20
HELLO = "Hello there, how are you?"
SAID = f"You said: {HELLO}"
KEY = "0123456789abcdef"


class City(BaseModel):
    city: str


async def ask(client: AsyncOpenAI, input_: Any = HELLO, **fields: Any) -> Response:
    """A whole response, checked by the client's model."""
    with anyio.fail_after(WAIT):
        response = await client.responses.create(model="agent", input=input_, **fields)
    assert isinstance(response, Response)
    Response.model_validate(json.loads(response.to_json()))
    return response


async def retrieve(client: AsyncOpenAI, id_: str) -> Response:
    with anyio.fail_after(WAIT):
        response = await client.responses.retrieve(id_)
    Response.model_validate(json.loads(response.to_json()))
    return response


async def stream(client: AsyncOpenAI, **fields: Any) -> list[Any]:
    """All events of a new response."""
    with anyio.fail_after(WAIT):
        fields = {"model": "agent", "input": HELLO, **fields}
        return [event async for event in await client.responses.create(stream=True, **fields)]


async def begin(client: AsyncOpenAI, count: int, **fields: Any) -> list[Any]:
    """The first `count` events of a new response, after which the connection is dropped."""
    fields = {"model": "agent", "input": HELLO, **fields}
    events = []
    with anyio.fail_after(WAIT):
        async with await client.responses.create(stream=True, **fields) as opened:
            async for event in opened:
                events.append(event)
                if len(events) == count:
                    break
    return events


async def resume(client: AsyncOpenAI, id_: str, after: int) -> list[Any]:
    with anyio.fail_after(WAIT):
        opened = await client.responses.retrieve(id_, stream=True, starting_after=after)
        return [event async for event in opened]


async def listed(client: AsyncOpenAI, id_: str) -> Any:
    return await client.responses.input_items.list(id_)


def dumped(events: list[Any]) -> list[str]:
    return [event.to_json() for event in events]


@asynccontextmanager
async def workers(
    url: str | None, **options: Any
) -> AsyncIterator[tuple[Agent, tuple[AsyncOpenAI, AsyncOpenAI]]]:
    """A client for each of two workers with one log; without a URL, one for the only worker."""
    agent = Agent()
    async with AsyncExitStack() as stack:
        apps = [agent.app(log=url and shared_log(url), **options) for _ in ("one", "other")]
        client = await stack.enter_async_context(sdk_of(apps[0]))
        other = await stack.enter_async_context(sdk_of(apps[1])) if url else client
        yield agent, (client, other)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def log_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of a log; the test runs on each kind."""
    if request.param == "memory":
        return None
    return str(request.getfixturevalue(f"{request.param}_url"))


# Asking


async def test_a_whole_response_has_the_text_and_the_usage() -> None:
    async with sdk_of(Agent().app()) as client:
        response = await ask(client, reasoning={"effort": "low"})
    assert (response.status, response.output_text) == ("completed", SAID)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (9, 7)
    assert response.usage.output_tokens_details.reasoning_tokens == 2


async def test_the_clients_own_accumulation_of_a_stream_is_the_response() -> None:
    async with sdk_of(Agent().app()) as client:
        with anyio.fail_after(WAIT):
            async with client.responses.stream(model="agent", input=HELLO, tools=[WEATHER]) as s:
                accumulated = await s.get_final_response()
        response = await retrieve(client, accumulated.id)
    assert accumulated.output_text == response.output_text
    assert [item.to_dict() for item in response.output] == [
        {k: v for k, v in item.to_dict().items() if k != "parsed_arguments"}
        for item in accumulated.output
    ]


async def test_an_answer_is_parsed_into_a_model() -> None:
    agent = Agent()
    async with sdk_of(agent.app()) as client:
        response = await client.responses.parse(model="agent", input="?", text_format=City)
        assert response.output_parsed == City(city="Paris")
    assert agent.asked[0]["format"]["json_schema"]["name"] == "City"


async def test_a_source_without_messages_gets_the_text_of_the_last_one() -> None:
    @source
    async def shout(prompt: str) -> AsyncIterator[str]:
        for word in prompt.upper().split():
            yield f"{word} "

    async with sdk_of(Streams(models={"agent": shout})) as client:
        response = await ask(client, "one two three", max_output_tokens=2)
        with pytest.raises(BadRequestError, match="tools: is not a parameter"):
            await ask(client, tools=[WEATHER])
        with pytest.raises(BadRequestError) as refused:
            await ask(client, text={"format": {"type": "json_object"}})
    assert (response.output_text, response.status) == ("ONE TWO ", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert refused.value.param == "text.format"


async def test_a_refused_start_is_an_http_error() -> None:
    async with sdk_of(Agent().app()) as client:
        for fields in ({}, {"background": True}):
            with pytest.raises(RateLimitError, match="not today") as refused:
                await ask(client, extra_body={"refuse": 429}, **fields)
            assert refused.value.type == "rate_limit_error"


async def test_a_failure_is_an_http_error_or_a_failed_response() -> None:
    broken = {"extra_body": {"fail": "it broke"}}
    async with sdk_of(Agent().app()) as client:
        with pytest.raises(APIStatusError, match="it broke") as failed:
            await ask(client, **broken)
        events = await stream(client, **broken)
        later = await retrieve(client, events[0].response.id)
    assert failed.value.status_code == 500
    for response in (events[-1].response, later):
        assert response.status == "failed"
        assert response.error is not None
        assert (response.error.code, response.error.message) == ("server_error", "it broke")
        assert response.output_text == "You said: Hello there, how are "


async def test_a_request_that_is_found_invalid_late_is_the_clients_error() -> None:
    @source
    async def late(prompt: str) -> AsyncIterator[str]:
        yield "So far, so good."
        raise InvalidParameters("tools: the mock finds no value")

    request = {"model": "late", "input": "Hi"}
    async with client_of(Streams(models={"late": late})) as client:
        whole = await client.post("/v1/responses", json=request)
        streamed = await client.post("/v1/responses", json={**request, "stream": True})
        messages = [{"role": "user", "content": "Hi"}]
        chat = await client.post(
            "/v1/chat/completions", json={"model": "late", "messages": messages}
        )
    assert (whole.status_code, whole.json()["error"]["code"]) == (400, "invalid_prompt")
    assert chat.status_code == 400
    assert chat.json()["error"]["type"] == "invalid_request_error"
    assert '"error":{"code":"invalid_prompt","message":"tools: the mock finds' in streamed.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input_": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"extra_body": {"unknown": 1}}, "unknown"),
    ],
)
async def test_an_invalid_request_is_refused_in_openais_shape(
    fields: dict[str, Any], param: str
) -> None:
    async with sdk_of(Agent().app()) as client:
        with pytest.raises(BadRequestError) as refused:
            await ask(client, **fields)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize("asking", [ask, stream])
async def test_the_mock_cuts_the_connection_to_a_response(asking: Any) -> None:
    options = {**QUICK, "reply": "Well, yes and no.", "drop_after": 3}
    async with sdk_of(mock()) as client:
        with pytest.raises(APIConnectionError):
            await asking(client, extra_body=options)


# In the background


async def test_a_background_response_goes_on_without_a_client(log_url: str | None) -> None:
    async with workers(log_url, linger=0) as (agent, (client, other)):
        agent.gate.clear()
        begun = await ask(client, background=True)
        assert begun.status == "in_progress"
        meanwhile = await retrieve(other, begun.id)
        assert meanwhile.status == "in_progress"
        agent.gate.set()
        await resume(client, begun.id, 0)
        response = await retrieve(other, begun.id)
        assert (response.status, response.output_text) == ("completed", SAID)


async def test_a_dropped_stream_is_resumed_after_any_number_and_repeats_nothing(
    log_url: str | None,
) -> None:
    async with workers(log_url) as (agent, (client, other)):
        fields = {"background": True, "reasoning": {"effort": "low"}}
        for count in (1, 2, 5, 9, 12):
            agent.gate.clear()
            had = await begin(client, count, **fields)
            agent.gate.set()
            id_ = had[0].response.id
            rest = await resume(other, id_, had[-1].sequence_number)
            whole = await resume(client, id_, -1)
            assert dumped(had + rest) == dumped(whole)
            assert whole[-1].response.output_text == SAID


async def test_the_bytes_after_each_number_are_the_rest_of_the_whole() -> None:
    async with client_of(Agent().app()) as client:
        body = {"model": "agent", "input": HELLO, "stream": True, "background": True}
        whole = (await client.post("/v1/responses", json=body)).content
        blocks = [block + b"\n\n" for block in whole.split(b"\n\n")[:-1]]
        assert len(blocks) > 10
        id_ = json.loads(blocks[0].partition(b"data: ")[2])["response"]["id"]
        for number in range(len(blocks)):
            path = f"/v1/responses/{id_}?stream=true&starting_after={number}"
            assert (await client.get(path)).content == b"".join(blocks[number + 1 :])
        assert (await client.get(f"/v1/responses/{id_}?stream=true")).content == whole


async def test_a_cancelled_response_keeps_its_output_so_far(log_url: str | None) -> None:
    async with workers(log_url) as (agent, (client, other)):
        agent.gate.clear()
        begun = await begin(client, 6, background=True)
        id_ = begun[0].response.id
        for _ in range(2):  # It is idempotent.
            cancelled = await other.responses.cancel(id_)
            assert cancelled.status == "cancelled"
            assert cancelled.output_text.startswith("You said:")
        await until(lambda: agent.closed, "the source is closed")
        assert (await resume(other, id_, 5))[-1].response.status == "cancelled"


async def test_the_end_of_a_response_is_not_changed_by_a_cancel() -> None:
    async with sdk_of(Agent().app()) as client:
        response = await ask(client)
        assert (await client.responses.cancel(response.id)).status == "completed"


async def test_a_deleted_response_is_stopped_and_gone(log_url: str | None) -> None:
    async with workers(log_url) as (agent, (client, other)):
        agent.gate.clear()
        begun = await ask(client, background=True)
        await other.responses.delete(begun.id)
        await until(lambda: agent.closed, "the source is closed")
        for each in (client, other):
            with pytest.raises(NotFoundError, match="no longer retained"):
                await each.responses.retrieve(begun.id)


async def test_who_reads_a_response_that_another_client_deletes_sees_that_it_is_cancelled() -> None:
    agent = Agent()
    agent.gate.clear()
    events: list[Any] = []

    async def read(client: AsyncOpenAI) -> None:
        async for event in await client.responses.create(model="agent", input=HELLO, stream=True):
            events.append(event)

    async with sdk_of(agent.app()) as client:
        reading = asyncio.create_task(read(client))
        await until(lambda: len(events) > 5, "six events have come")
        await client.responses.delete(events[0].response.id)
        with anyio.fail_after(WAIT):
            await reading
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "cancelled")


async def test_a_background_response_must_be_stored() -> None:
    async with sdk_of(Agent().app()) as client:
        with pytest.raises(BadRequestError, match="leave out store"):
            await ask(client, background=True, store=False)


# A client that disconnects


async def test_a_stored_response_can_be_resumed_while_it_lingers() -> None:
    agent = Agent()
    async with sdk_of(agent.app(linger=30)) as client:
        agent.gate.clear()
        had = await begin(client, 5)
        id_ = had[0].response.id
        assert (await retrieve(client, id_)).status == "in_progress"
        agent.gate.set()
        assert (await resume(client, id_, 4))[-1].response.output_text == SAID


async def test_a_response_ends_when_it_has_lingered() -> None:
    agent = Agent()
    async with sdk_of(agent.app(linger=0)) as client:
        agent.gate.clear()
        had = await begin(client, 5)
        await until(lambda: agent.closed, "the source is closed")
        response = await retrieve(client, had[0].response.id)
    assert response.status == "failed"
    assert response.error is not None
    assert "no reader" in response.error.message


async def test_a_response_that_is_not_stored_ends_with_its_client() -> None:
    agent = Agent()
    async with sdk_of(agent.app(linger=30)) as client:
        agent.gate.clear()
        await begin(client, 5, store=False)
        await until(lambda: agent.closed, "the source is closed")


async def test_a_response_that_is_not_stored_is_nowhere_to_be_found() -> None:
    async with sdk_of(Agent().app()) as client:
        response = await ask(client, store=False)
        assert (response.output_text, response.to_dict()["store"]) == (SAID, False)
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(response.id)
        with pytest.raises(BadRequestError) as refused:
            await ask(client, previous_response_id=response.id)
    assert refused.value.code == "previous_response_not_found"


@pytest.mark.parametrize("background", [True, False])
async def test_a_stream_that_the_servers_shutdown_cuts_ends_with_an_error(background: bool) -> None:
    agent = Agent()
    agent.gate.clear()
    events: list[Any] = []

    async def read(client: AsyncOpenAI) -> None:
        fields: dict[str, Any] = {"model": "agent", "input": HELLO, "background": background}
        async for event in await client.responses.create(stream=True, **fields):
            events.append(event)

    async with AsyncExitStack() as stack:
        async with serving(agent.app()) as url:
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
            await stack.enter_async_context(client)
            reading = asyncio.create_task(read(client))
            await until(lambda: len(events) > 5, "six events have come")
        with anyio.fail_after(WAIT):
            await reading
    assert (events[-1].type, events[-1].code) == ("error", "shutdown")
    assert events[-1].sequence_number == events[-2].sequence_number
    assert agent.closed


async def test_a_limit_is_a_503_that_says_when_to_try_again() -> None:
    agent = Agent()
    async with sdk_of(agent.app(max_runs=1)) as client:
        agent.gate.clear()
        async with await client.responses.create(model="agent", input=HELLO, stream=True):
            with pytest.raises(InternalServerError, match="limit 1") as refused:
                await ask(client)
        assert 10 <= int(refused.value.response.headers["retry-after"]) <= 20
        agent.gate.set()


# Conversations


async def test_a_conversation_goes_on_from_any_worker(log_url: str | None) -> None:
    async with workers(log_url) as (agent, (client, other)):
        first = await ask(client, "One", instructions="Be kind.", tools=[WEATHER])
        (called,) = [item for item in first.output if item.type == "function_call"]
        output = {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"}
        second = await ask(other, [output], previous_response_id=first.id, tools=[WEATHER])
        third = await ask(client, "Two", previous_response_id=second.id)
        assert third.previous_response_id == second.id
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    tool_call = {"id": "call_0", "type": "function", "function": function}
    said = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": None, "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
        {"role": "assistant", "content": "You said: One / None / sunny"},
        {"role": "user", "content": "Two"},
    ]
    system = {"role": "system", "content": "Be kind."}
    assert [asked["messages"] for asked in agent.asked] == [[system, said[0]], said[:3], said]


async def test_references_stand_for_items_of_other_responses() -> None:
    agent = Agent()
    async with sdk_of(agent.app()) as client:
        first = await ask(client, "One", tools=[WEATHER])
        (called,) = first.output
        assert called.type == "function_call"
        output = {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"}
        reference = {"type": "item_reference", "id": called.id}
        user = {"role": "user", "content": "One"}
        await ask(client, [user, reference, output])
        gone = {"type": "item_reference", "id": f"{called.id}9"}
        with pytest.raises(BadRequestError, match="send the item itself"):
            await ask(client, [gone])
    assert [m["role"] for m in agent.asked[1]["messages"]] == ["user", "assistant", "tool"]


async def test_references_lead_to_so_many_responses() -> None:
    def request(number: int) -> dict[str, Any]:
        ids = [f"msg_{n:022}_0" for n in range(number)]
        return {"model": "mock", "input": [{"type": "item_reference", "id": id_} for id_ in ids]}

    async with client_of(mock()) as client:
        few = await client.post("/v1/responses", json=request(response_routes.REFERENCES))
        many = await client.post("/v1/responses", json=request(response_routes.REFERENCES + 1))
    assert "send the item itself" in few.json()["error"]["message"]
    assert many.status_code == 400
    error = many.json()["error"]
    assert error["param"] == "input"
    assert "refers to items of 101 responses, and 100 is the limit" in error["message"]


async def test_a_response_that_is_in_progress_cannot_be_continued() -> None:
    agent = Agent()
    async with sdk_of(agent.app()) as client:
        agent.gate.clear()
        begun = await ask(client, background=True)
        with pytest.raises(BadRequestError, match="in progress"):
            await ask(client, previous_response_id=begun.id)
        agent.gate.set()


async def test_a_call_without_all_of_its_arguments_is_left_out_of_the_conversation() -> None:
    asked = []

    @source
    async def cut(messages: list[dict[str, Any]]) -> AsyncIterator[Any]:
        asked.append(messages)
        yield "One"
        yield call(0, "call_0", "f", '{"ci')
        raise StreamError("it broke")

    async with sdk_of(Streams(models={"agent": cut})) as client:
        events = await stream(client)
        await stream(client, input="Two", previous_response_id=events[0].response.id)
    assert [(m["role"], m["content"]) for m in asked[1]] == [
        ("user", HELLO),
        ("assistant", "One"),
        ("user", "Two"),
    ]
    assert all("tool_calls" not in message for message in asked[1])


async def test_a_conversation_may_have_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sdk_of(Agent().app()) as client:
        first = await ask(client, "x" * 1000)
        monkeypatch.setattr(response_routes, "CONVERSATION_BYTES", 3000)
        await ask(client, previous_response_id=first.id)
        monkeypatch.setattr(response_routes, "CONVERSATION_BYTES", 2000)
        with pytest.raises(BadRequestError, match="send what matters of it as input") as refused:
            await ask(client, previous_response_id=first.id)
    assert refused.value.code == "context_length_exceeded"


async def test_the_input_is_listed_in_either_order() -> None:
    async with sdk_of(Agent().app()) as client:
        first = await ask(client, "One")
        second = await ask(client, "Two", previous_response_id=first.id)
        page = await client.responses.input_items.list(second.id)
        contents: list[Any] = [item.to_dict()["content"] async for item in page]
        assert [content[0]["text"] for content in contents] == ["Two", "You said: One", "One"]
        page = await client.responses.input_items.list(second.id, order="asc", limit=2)
        assert [item.to_dict()["role"] for item in page.data] == ["user", "assistant"]
        assert page.has_more
        items = [item async for item in page]
        assert len(items) == 3


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1", "content": 5},
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1", "content": [1]},
        {"type": "reasoning", "content": [{"x": 1}]},
        {"type": "reasoning", "content": {"x": 1}},
    ],
)
async def test_odd_members_of_an_item_are_listed_as_they_are(item: dict[str, Any]) -> None:
    user = {"type": "message", "role": "user", "content": "Hi"}
    async with client_of(mock()) as client:
        made = await client.post(
            "/v1/responses", json={"model": "mock", **QUICK, "input": [item, user]}
        )
        listed = await client.get(f"/v1/responses/{made.json()['id']}/input_items?order=asc")
    assert listed.status_code == 200
    first, second = listed.json()["data"]
    assert first["content"] == item["content"]
    assert second["content"] == [{"type": "input_text", "text": "Hi"}]


# How much is kept


async def test_a_long_response_is_kept_whole_although_its_source_has_a_small_window() -> None:
    agent = Agent()
    text = " ".join(str(number) for number in range(500))
    async with sdk_of(agent.app(window=2000)) as client:
        response = await ask(client, text)
        assert (await retrieve(client, response.id)).output_text == f"You said: {text}"


async def test_a_response_that_is_longer_than_what_is_kept_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(response_routes, "RESPONSE_BYTES", 2000)
    async with sdk_of(Agent().app()) as client:
        response = await ask(client, " ".join(str(number) for number in range(500)))
        with pytest.raises(APIStatusError, match="no longer retained") as gone:
            await retrieve(client, response.id)
        assert gone.value.status_code == 410


# Whose a response is


def user_of(request: Request) -> str | None:
    return request.headers.get("x-user")


async def test_another_ones_response_does_not_exist() -> None:
    agent = Agent()
    async with sdk_of(agent.app(identity=user_of)) as client:
        ann = client.with_options(default_headers={"X-User": "ann"})
        bob = client.with_options(default_headers={"X-User": "bob"})
        response = await ask(ann)
        id_, item = response.id, response.output[0].id
        assert (await retrieve(ann, id_)).output_text == SAID
        for other in (bob, client):
            its = other.responses
            refusals: list[Awaitable[Any]] = [
                its.retrieve(id_),
                its.retrieve(id_, stream=True),
                its.cancel(id_),
                its.delete(id_),
                listed(other, id_),
            ]
            for refused in refusals:
                with pytest.raises(NotFoundError):
                    await refused
            with pytest.raises(BadRequestError, match="there is no response"):
                await ask(other, previous_response_id=id_)
            with pytest.raises(BadRequestError, match="there is no item"):
                await ask(other, [{"type": "item_reference", "id": item}])
        assert (await retrieve(ann, id_)).output_text == SAID


async def test_a_guard_is_asked_for_each_use_of_a_response() -> None:
    def members(request: Request) -> None:
        if "x-user" not in request.headers:
            raise StreamError("members only", status=403)

    @source(guard=members)
    async def agent(messages: list[dict[str, Any]]) -> AsyncIterator[str]:
        yield "Hi"

    async with sdk_of(Streams(models={"agent": agent})) as client:
        ann = client.with_options(default_headers={"X-User": "ann"})
        id_ = (await ask(ann)).id
        refusals: list[Awaitable[Any]] = [
            ask(client),
            client.responses.retrieve(id_),
            client.responses.cancel(id_),
            client.responses.delete(id_),
            listed(client, id_),
            ask(client, previous_response_id=id_),
        ]
        for refused in refusals:
            with pytest.raises(APIStatusError, match="members only") as error:
                await refused
            assert error.value.status_code == 403


async def test_a_key_names_one_response() -> None:
    agent = Agent()
    async with sdk_of(agent.app()) as client:
        keyed = client.with_options(default_headers={"Idempotency-Key": KEY})
        responses = [await ask(keyed, metadata={"a": "b"}) for _ in range(2)]
        assert responses[0].to_dict() == responses[1].to_dict()
        for fields in ({"metadata": {"a": "c"}}, {"input_": "Other"}):
            with pytest.raises(BadRequestError, match="send the same ones, or another key"):
                await ask(keyed, **{"metadata": {"a": "b"}, **fields})
        with pytest.raises(BadRequestError, match="send the same ones, or another key"):
            await keyed.chat.completions.create(
                model="agent", messages=[{"role": "user", "content": HELLO}]
            )
    assert len(agent.asked) == 1


async def test_a_page_of_another_site_cancels_and_deletes_nothing() -> None:
    agent = Agent()
    cross = {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"}
    async with client_of(agent.app()) as client:
        agent.gate.clear()
        body = {"model": "agent", "input": HELLO, "background": True}
        path = f"/v1/responses/{(await client.post('/v1/responses', json=body)).json()['id']}"
        assert (await client.post(f"{path}/cancel", headers=cross)).status_code == 403
        assert (await client.delete(path, headers=cross)).status_code == 403
        assert (await client.get(path)).json()["status"] == "in_progress"
        agent.gate.set()


# What there is not


@pytest.mark.parametrize("id_", ["resp_x", f"resp_{'A' * 22}", "A" * 22, "x" * 500])
async def test_an_unknown_id_is_a_404(id_: str) -> None:
    async with sdk_of(Agent().app()) as client:
        with pytest.raises(NotFoundError, match="there is no response") as unknown:
            await client.responses.retrieve(id_)
        assert len(str(unknown.value)) < 250


async def test_a_run_that_is_no_response_is_a_404() -> None:
    async with client_of(Agent().app()) as client:
        body = {"model": "agent", "messages": [{"role": "user", "content": "Hi"}]}
        chat = (await client.post("/v1/chat/completions", json=body)).json()
        run = chat["id"].removeprefix("chatcmpl-")
        assert (await client.get(f"/runs/{run}", headers={"Accept": "application/json"})).json()
        assert (await client.get(f"/v1/responses/resp_{run}")).status_code == 404


@pytest.mark.parametrize("operation", ["compact", "input_tokens"])
async def test_an_operation_that_there_is_not_is_a_404(operation: str) -> None:
    async with client_of(Agent().app()) as client:
        unknown = await client.post(f"/v1/responses/{operation}", json={"model": "agent"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("after", ["x", "-2", "1.5", "", "9" * 20])
async def test_an_invalid_position_is_refused(after: str) -> None:
    async with client_of(Agent().app()) as client:
        body = {"model": "agent", "input": HELLO}
        id_ = (await client.post("/v1/responses", json=body)).json()["id"]
        path = f"/v1/responses/{id_}?stream=true&starting_after={after}"
        refused = await client.get(path)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "starting_after")


async def test_a_position_after_the_last_event_gives_nothing() -> None:
    async with client_of(Agent().app()) as client:
        body = {"model": "agent", "input": HELLO}
        id_ = (await client.post("/v1/responses", json=body)).json()["id"]
        ended = await client.get(f"/v1/responses/{id_}?stream=true&starting_after=999")
        assert (ended.status_code, ended.content) == (200, b"")


async def test_head_of_a_stream_has_its_type_and_reads_nothing() -> None:
    agent = Agent()
    app = agent.app()
    async with client_of(app) as client:
        agent.gate.clear()
        body = {"model": "agent", "input": HELLO, "background": True}
        id_ = (await client.post("/v1/responses", json=body)).json()["id"]
        head: httpx.Response = await client.head(f"/v1/responses/{id_}?stream=true")
        assert head.status_code == 200
        assert head.headers["content-type"].startswith("text/event-stream")
        assert app.runs.health()["readers"] == 0
        agent.gate.set()
