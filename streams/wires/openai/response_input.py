"""Requests of the Responses API, without input or output: what of them a model's source gets.

A source gets what it gets of a chat completion: `messages`, and the fields of a request under the
names that they have there.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams import StreamError
from streams.errors import abbreviated, without_long_quotes
from streams.wires.openai.common import MODEL_NAME, fields_of

Items = Sequence[dict[str, Any]]

INCLUDED = {
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
}
"""What `include` may name. Except for logprobs, none of it exists here, so there is nothing to
add."""

REFUSED = {
    "conversation": "use previous_response_id, or send the whole conversation as input",
    "prompt": "send the text as instructions and input",
}
"""Fields that refer to something that OpenAI stores, and what to send instead."""

ITEMS_PER_TURN = 1000
"""Converting so many items takes some milliseconds: then the event loop gets a turn."""

# These say how OpenAI runs a request, and mean nothing elsewhere.
_IGNORED = {"max_tool_calls", "stream_options", "truncation"}

# Where a field of chat completions comes from, for errors.
_ORIGINS = {
    "logprobs": "include",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}


class Reasoning(msgspec.Struct, omit_defaults=True):
    effort: str | None = None


class Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The fields of a request that mean something here. All others go to the source as they are."""

    model: Annotated[str, Meta(max_length=MODEL_NAME)]
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = False
    background: bool | None = False
    store: bool | None = True
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def stored(self) -> bool:
        """Whether it can be retrieved."""
        return self.store is not False

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return [
            {"type": "message", **item} if "role" in item else item for item in self.input or []
        ]


async def parse(body: bytes) -> tuple[ResponsesRequest, dict[str, Any]]:
    """The request, and all of its fields. Raises StreamError naming a wrong one."""
    try:
        fields = await fields_of(body)
        request = msgspec.convert(fields, ResponsesRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = without_long_quotes(str(error))
        named = re.search(r"\$\.([\w.]+)|field `(\w+)`", detail)
        raise _invalid(named and (named[1] or named[2]), detail) from None
    for name, instead in REFUSED.items():
        if fields.get(name) is not None:
            raise _invalid(name, f"{name} is not supported: {instead}")
    if request.input in (None, []) and request.previous_response_id is None:
        raise _invalid("input", "input is missing: send a text, or a list of items")
    if request.background and not request.stored:
        raise _invalid("store", "a response with background: true is stored; leave out store")
    return request, fields


async def chat_fields(request: ResponsesRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the chat completion that asks for the same, apart from its messages."""
    kept = {n for n in fields if n not in request.__struct_fields__ and n not in _IGNORED}
    chat: dict[str, Any] = {name: fields[name] for name in sorted(kept | {"metadata"} & {*fields})}
    text, reasoning = request.text or Text(), request.reasoning or Reasoning()
    chat |= {
        "tools": [await _tool(number, tool) for number, tool in enumerate(request.tools or ())],
        "tool_choice": _tool_choice(request.tool_choice),
        "response_format": _response_format(text.format),
        "verbosity": text.verbosity,
        "reasoning_effort": reasoning.effort,
        "max_tokens": request.max_output_tokens,
    }
    for name in request.include or ():
        if name not in INCLUDED:
            known = ", ".join(sorted(INCLUDED))
            raise _invalid("include", f"include has no {abbreviated(name)}; there are: {known}")
    if request.top_logprobs or "message.output_text.logprobs" in (request.include or ()):
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return {name: value for name, value in chat.items() if value is not None}


def origin(error: StreamError) -> StreamError:
    """An error about a field of a chat completion as one about the field that it comes from."""
    errors = error.members.get("errors")
    if not errors or (name := errors[0]["name"]) not in _ORIGINS:
        return error
    detail = "; ".join(f"{_ORIGINS.get(e['name'], e['name'])}: {e['detail']}" for e in errors)
    return StreamError(detail, status=400, param=_ORIGINS[name])


def listed(run: str, items: Items) -> list[dict[str, Any]]:
    """The items of a run's input in the API's form: with ids, and with lists of parts."""
    prefixes = {"message": "msg", "function_call": "fc", "reasoning": "rs"}
    result = []
    for number, item in enumerate(items):
        id_ = f"{prefixes.get(item['type'], 'fco')}_{run}_in{number}"
        item = {"id": id_, "status": "completed", **item}
        if item["type"] == "message":  # Nobody has checked the content of others.
            content = item["content"]
            kind = "output_text" if item.get("role") == "assistant" else "input_text"
            parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
            item["content"] = [
                {"annotations": [], **part} if part["type"] == "output_text" else part
                for part in parts
            ]
        result.append(item)
    return result


def repeated(request: ResponsesRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a response that repeat its request. Clients expect all of them."""
    defaults: dict[str, Any] = {
        "background": False,
        "frequency_penalty": 0.0,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": request.model,
        "parallel_tool_calls": True,
        "presence_penalty": 0.0,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    given = {name: fields[name] for name in defaults if fields.get(name) is not None}
    tools = [
        {"description": None, "parameters": None, "strict": None, **tool}
        for tool in request.tools or ()
    ]
    return {
        **defaults,
        **given,
        "reasoning": {"effort": None, "summary": None, **_set(fields.get("reasoning"))},
        "text": {"format": {"type": "text"}, **_set(fields.get("text"))},
        "tools": tools,
    }


def _set(members: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (members or {}).items() if value is not None}


def references(items: Items) -> list[str]:
    """The ids of the items that are given by reference."""
    return [str(item.get("id")) for item in items if item.get("type") == "item_reference"]


async def messages_of(
    instructions: str | None, earlier: Items, items: Items
) -> list[dict[str, Any]]:
    """The messages of a conversation. Raises StreamError naming an item that cannot be one."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for number, item in enumerate((*earlier, *items), -len(earlier)):
        await _give_turn(number)
        kind = item.get("type")
        place = f"input[{number}]"
        if kind == "reasoning":
            continue  # A model reads its earlier reasoning in no message of a chat completion.
        add = _ADDING.get(kind) if isinstance(kind, str) else None
        if add is None:
            known = ", ".join([*_ADDING, "reasoning"])
            detail = f"{place}: an item has a type of {known}, not {abbreviated(kind)}"
            raise _invalid(place, detail)
        try:
            await add(messages, item, place)
        except KeyError as missing:
            raise _invalid(place, f"{place}: this {kind} has no {missing.args[0]}") from None
    if not messages:
        raise _invalid("input", "input has no message; send a text, or a list with one")
    return messages


async def _add_message(messages: list[dict[str, Any]], item: dict[str, Any], place: str) -> None:
    role, content = item["role"], await _content(item["content"], f"{place}.content")
    if role not in ("user", "assistant", "system", "developer"):
        known = "user, assistant, system and developer"
        raise _invalid(place, f"{place}: there are the roles {known}, not {abbreviated(role)}")
    last = messages[-1] if messages else {}
    if role == "assistant" and "tool_calls" in last and last["content"] is None:
        last["content"] = content  # The results of its tool calls follow.
        return
    # Most servers know one role for instructions.
    messages.append({"role": "system" if role == "developer" else role, "content": content})


async def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], place: str) -> None:
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


async def _add_output(messages: list[dict[str, Any]], item: dict[str, Any], place: str) -> None:
    output = await _content(item["output"], f"{place}.output")
    messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})


async def _refer(messages: list[dict[str, Any]], item: dict[str, Any], place: str) -> None:
    raise _invalid(
        place,
        f"{place}: there is no item {abbreviated(item.get('id'))} in a response that is retained; "
        "send the item itself",
    )


_ADDING: dict[str, Callable[[list[dict[str, Any]], dict[str, Any], str], Awaitable[None]]] = {
    "message": _add_message,
    "function_call": _add_call,
    "function_call_output": _add_output,
    "item_reference": _refer,
}


async def _content(content: Any, place: str) -> str | list[dict[str, Any]]:
    """The content of a message: one text, unless it has other parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _invalid(place, f"{place} is a text or a list of parts")
    parts = []
    for number, part in enumerate(content):
        parts.append(_part(part, f"{place}[{number}]"))
        await _give_turn(number + 1)
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: dict[str, Any], place: str) -> dict[str, Any]:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url, **_given(part, "detail")}}
        case {"type": "input_file", "file_data": str(data)}:
            return {"type": "file", "file": {"file_data": data, **_given(part, "filename")}}
        case {"type": "input_audio", "input_audio": dict(audio)}:
            return {"type": "input_audio", "input_audio": audio}
    raise _invalid(
        place,
        f"{place}: a part is an input_text, output_text or refusal with its text, an input_image "
        "with image_url, an input_file with file_data, or an input_audio; this one is a "
        f"{abbreviated(part.get('type'))} with {abbreviated(sorted(part))}",
    )


async def _give_turn(number: int) -> None:
    """Gives the event loop a turn, before the first and after each ITEMS_PER_TURN of many."""
    if number % ITEMS_PER_TURN == 0:
        await asyncio.sleep(0)


def _given(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: part[name]} if part.get(name) is not None else {}


async def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    await _give_turn(number)
    place = f"tools[{number}]"
    if (kind := tool.get("type")) != "function":
        raise _invalid(
            place,
            f"{place}: there are no tools of the type {abbreviated(kind)} here, only functions",
        )
    if not isinstance(tool.get("name"), str):
        raise _invalid(place, f"{place}: a function has a name")
    members = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in members if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    match choice:
        case None | "auto" | "none" | "required":
            return choice
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools)}:
            allowed = {"mode": mode, "tools": [_tool_choice(tool) for tool in tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    raise _invalid(
        "tool_choice",
        "tool_choice is auto, none, required, a function by its name, or allowed_tools of these, "
        f"not {abbreviated(choice)}",
    )


def _response_format(form: dict[str, Any] | None) -> dict[str, Any] | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "name": str(), "schema": dict()}:
            described = {name: value for name, value in form.items() if name != "type"}
            return {"type": "json_schema", "json_schema": described}
    raise _invalid(
        "text.format",
        "text.format is text, json_object, or a json_schema with a name and a schema, not "
        f"{abbreviated(form)}",
    )


def _invalid(param: str | None, detail: str) -> StreamError:
    return StreamError(detail, status=400, param=param)
