"""What the wires of OpenAI's API share: errors, models, arguments, and whole answers.

Invariants:

1. A field of a request reaches the source, or a 400 names it, unless it is a hint.
2. An error repeats at most 80 characters of anything that a client sent.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from streams import Source, StreamError, Streams
from streams.errors import LostHistory, abbreviated, as_json_value, retry_after
from streams.event import (
    LoggedEvent,
    decode_json_object,
    encode_json,
    escape_separators,
    give_turn,
    parse_frames,
)
from streams.log import RunLog
from streams.response import json_response
from streams.wires.answer import Answer, Piece

# Fields that change what a model says, what it costs or where it is noted, but not the shape of its
# answer. A source that has no parameter for one of them ignores it.
HINTS = frozenset(
    {
        "cache_prompt",
        "chat_template_kwargs",
        "enable_thinking",
        "frequency_penalty",
        "function_call",
        "include_reasoning",
        "keep_alive",
        "logit_bias",
        "metadata",
        "min_p",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "repeat_penalty",
        "repetition_penalty",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "temperature",
        "thinking",
        "tool_choice",
        "top_k",
        "top_p",
        "typical_p",
        "user",
        "verbosity",
    }
)

# Fields with these values ask for nothing: some clients send the fields that they do not use.
UNUSED: dict[str, Any] = {
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "response_format": {"type": "text"},
    "top_logprobs": 0,
}

MODEL_NAME = 256
"""The most characters of a model's name: every chunk repeats it."""

MAX_FIELDS = 100
"""The most fields of a request: OpenAI has some 40."""

LISTED_MODELS = 10
"""The error for an unknown model lists at most this many others."""

CHARACTERS_PER_TOKEN = 4
"""OpenAI's rule of thumb, for a source that does not count its tokens."""


class Models:
    """The sources that answer, by the names of models."""

    def __init__(self, streams: Streams, sources: Mapping[str, Source[..., Any]]) -> None:
        self._streams = streams
        self._sources = sources

    def find(self, name: str) -> Source[..., Any]:
        """The source for a model. If there is one only, it has any name. Raises StreamError."""
        if name in self._sources:
            return self._sources[name]
        if len(self._sources) == 1 and len(name) <= MODEL_NAME:
            return next(iter(self._sources.values()))
        known = ", ".join(abbreviated(each) for each in [*self._sources][:LISTED_MODELS])
        if (more := len(self._sources) - LISTED_MODELS) > 0:
            known += f", and {more} more, at /v1/models"
        raise StreamError(
            f"there is no model {abbreviated(name)}; there are: {known}",
            status=404,
            param="model",
            code="model_not_found",
        )

    def list(self) -> dict[str, Any]:
        return {"object": "list", "data": [self.describe(name) for name in self._sources]}

    def describe(self, name: str) -> dict[str, Any]:
        """A model as OpenAI's clients know it. Raises StreamError if there is none."""
        self.find(name)
        created = int(self._streams.runs.since.timestamp())
        return {"id": name, "object": "model", "created": created, "owned_by": "streams"}


async def fields_of(body: bytes) -> dict[str, Any]:
    """The fields of a request. Raises StreamError for too many, and what decode_json raises."""
    fields = decode_json_object(body)
    await give_turn(len(body))
    if len(fields) > MAX_FIELDS:
        detail = f"the request has {len(fields)} fields; send at most {MAX_FIELDS}"
        raise StreamError(detail, status=400)
    return fields


def is_asked(name: str, value: Any) -> bool:
    """Whether a field asks for something."""
    return value is not None and value not in ([], {}) and value != UNUSED.get(name)


def arguments_for(
    source: Source[..., Any],
    messages: Sequence[dict[str, Any]],
    fields: Mapping[str, Any],
    handled: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments that a source gets from a request.

    `messages` and `fields` are those of chat completions. A source gets the fields for which it has
    parameters, all others in its parameter `extra`, and the text of the last message as `prompt` if
    it has no `messages`. `handled` are fields that the wire deals with if the source does not.

    Raises InvalidParameters naming every invalid argument, and every field for which the source has
    no parameter, unless it is a hint.
    """
    parameters = source.schema["properties"]
    asked = {name: value for name, value in fields.items() if is_asked(name, value)}
    arguments = {
        name: value
        for name, value in {**handled, **asked, "messages": messages}.items()
        if name in parameters and name != "extra" and value is not None
    }
    rest = {name: value for name, value in asked.items() if name not in arguments}
    if rest and "extra" in parameters:
        arguments["extra"] = rest
    else:
        arguments |= {n: v for n, v in rest.items() if n not in HINTS and v is not False}
    if "messages" not in parameters and "prompt" in parameters:
        arguments.setdefault("prompt", text_of(messages[-1].get("content")))
    return source.from_values(arguments)


def text_of(content: Any) -> str:
    """The text of a message's content, the texts of its parts joined."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def estimated_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """About how many tokens a conversation has, for a source that does not count them."""
    return sum(-(-len(text_of(m.get("content"))) // CHARACTERS_PER_TOKEN) for m in messages)


class JSONText:
    """A text that grows, in JSON. It is encoded as it comes: no step has to encode all of it, and
    its pieces are not kept.
    """

    def __init__(self) -> None:
        self._json = bytearray()
        self._whole: msgspec.Raw | None = None

    def __bool__(self) -> bool:
        return bool(self._json)

    def add(self, text: str) -> None:
        self._json += escape_separators(encode_json(text))[1:-1]
        self._whole = None

    def as_json(self) -> msgspec.Raw:
        if self._whole is None:
            self._whole = msgspec.Raw(b"".join((b'"', self._json, b'"')))
        return self._whole


async def read_whole(
    request: Request, log: RunLog, answer: Answer, add: Callable[[Piece], None]
) -> None:
    """Gives the pieces of a run's answer to `add`. The answer is over afterwards."""

    async def feed(event: LoggedEvent) -> bool:
        if piece := answer.feed(event):
            add(piece)
        return answer.over

    if not await read_until(request, log, feed):
        answer.lose()
    answer.interrupt()


async def read_until(
    request: Request, log: RunLog, feed: Callable[[LoggedEvent], Awaitable[bool]]
) -> bool:
    """Gives the events of a run to `feed` until it returns True. Returns False if some are lost.

    Reading ends early, and with it a run that does not linger, if the client disconnects.
    """
    complete = True
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            await request.receive()  # The body is read, so this is a disconnect.
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            with log.read(-1) as reader:
                over = False
                async for frames in reader:
                    for event in parse_frames(frames):
                        over = over or await feed(event)
                    if over:
                        break
        except LostHistory:
            complete = False
        group.cancel_scope.cancel()
    return complete


def refusal(error: StreamError) -> Response:
    """An error response of OpenAI's API, where 400 is the status for invalid parameters."""
    headers = dict(error.headers)
    if (seconds := retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    status = 400 if error.status == 422 else error.status
    return json_response(error_object(error), headers, status)


def error_object(error: StreamError) -> dict[str, Any]:
    """An error as OpenAI's clients know it."""
    match error.members:
        case {"param": param} if param:
            pass
        case {"errors": [{"name": param}, *_]}:
            pass
        case _:
            param = None
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    described = {
        "message": str(error),
        "type": "rate_limit_error" if error.status == 429 else kind,
        "param": param,
        "code": error.members.get("code"),
    }
    return {"error": as_json_value(described)}
