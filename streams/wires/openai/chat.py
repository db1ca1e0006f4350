"""Chat completions, without input or output: the request, the answer, and the wire.

A `ChatAnswer` takes the events of a run; it is the same for an answer that is streamed and for one
that is sent whole. `ChatWire` streams it as chunks.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams import Source, StreamError
from streams.errors import without_long_quotes
from streams.event import EventId, LoggedEvent, payload
from streams.log import RunInfo
from streams.wires import Wire
from streams.wires.answer import NOTHING, Answer, Piece, ToolCall
from streams.wires.openai.common import (
    MODEL_NAME,
    JSONText,
    arguments_for,
    error_object,
    estimated_tokens,
    fields_of,
)
from streams.wires.openai.stop import StopSequences

StopSequence = Annotated[str, Meta(max_length=1000)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class ChatRequest(msgspec.Struct, kw_only=True):
    """The fields of a request that the wire handles itself."""

    model: Annotated[str, Meta(max_length=MODEL_NAME)]
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    n: Literal[1] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: StopSequence | Annotated[list[StopSequence], Meta(max_length=4)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_sequences(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens; a whole answer always has them."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def arguments(self, source: Source[..., Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a source gets. Raises InvalidParameters."""
        others = {n: v for n, v in fields.items() if n not in self.__struct_fields__}
        handled = {"max_tokens": self.limit, "stop": self.stop_sequences or None}
        return arguments_for(source, self.messages, others, handled)


async def parse(body: bytes) -> tuple[ChatRequest, dict[str, Any]]:
    """The request, and all of its fields. Raises StreamError naming a wrong one."""
    try:
        fields = await fields_of(body)
        return msgspec.convert(fields, ChatRequest), fields
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = without_long_quotes(str(error))
        named = re.search(r"\$\.(\w+)|field `(\w+)`", detail)
        param = named and (named[1] or named[2])
        raise StreamError(detail, status=400, param=param) from None


class ChatAnswer(Answer):
    """An answer that ends at a stop sequence, or at `limit` pieces.

    `limit` is for a source that does not count its tokens: one piece counts as one token. A stop
    sequence is looked for in the text, not in reasoning, refusals and tool calls.
    """

    def __init__(self, info: RunInfo, request: ChatRequest, limit: int | None) -> None:
        super().__init__()
        self.with_usage = request.with_usage
        self._info = info
        self._model = request.model
        self._stop_sequences = StopSequences(request.stop_sequences)
        self._limit = limit
        self._pieces = 0
        self._calls_tools = False
        self._prompt_tokens = estimated_tokens(request.messages)

    def feed(self, event: LoggedEvent) -> Piece:
        if self.over:
            return NOTHING
        piece = super().feed(event)
        text, stopped = self._stop_sequences.feed(piece.text)
        if piece:
            self._pieces += 1
            self._calls_tools |= bool(piece.tool_calls)
            if stopped:
                self.finish = "stop"
                return msgspec.structs.replace(piece, text=text, tool_calls=())
            if self._pieces == self._limit:
                self.finish = "length"
        elif self.finish == "stop" and self._calls_tools:
            self.finish = "tool_calls"
        if self.over or piece.tool_calls:  # A text does not continue after a tool call.
            text += self._stop_sequences.flush()
        return msgspec.structs.replace(piece, text=text)

    def _object(self, kind: str, choices: list[Any], **members: Any) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._info.run}",
            "object": kind,
            "created": int(self._info.started.timestamp()),
            "model": self._model,
            "choices": choices,
            **members,
        }

    def chunk(
        self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return self._object("chat.completion.chunk", [choice], **usage)

    def usage_chunk(self) -> dict[str, Any]:
        return self._object("chat.completion.chunk", [], usage=self._usage())

    def whole(self, completion: "Completion") -> dict[str, Any]:
        """The whole answer, which `completion` has got piece by piece."""
        choice = {
            "index": 0,
            "message": completion.message(),
            "logprobs": completion.logprobs,
            "finish_reason": self.finish,
        }
        return self._object("chat.completion", [choice], usage=self._usage())

    def _usage(self) -> dict[str, Any]:
        usage = self.usage
        prompt = self._prompt_tokens if usage.prompt is None else usage.prompt
        completion = self._pieces if usage.completion is None else usage.completion
        details = {}
        if usage.reasoning is not None:
            details = {"completion_tokens_details": {"reasoning_tokens": usage.reasoning}}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            **details,
        }


def delta_of(piece: Piece) -> dict[str, Any]:
    """The delta of a chunk: what a piece adds to the message.

    Every client that reads a model's reasoning reads `reasoning_content`. Some read `reasoning`,
    too, and would show it twice if both were there.
    """
    delta: dict[str, Any] = {}
    if piece.text:
        delta["content"] = piece.text
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.refusal:
        delta["refusal"] = piece.refusal
    if piece.tool_calls:
        delta["tool_calls"] = [fragment(call) for call in piece.tool_calls]
    return delta


def fragment(call: ToolCall) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


class Completion:
    """The message of a whole answer, of which it gets piece after piece.

    Tool calls are in the order in which they begin. `logprobs` are the lists of all pieces, one
    after the other, and None if no piece has any.
    """

    def __init__(self) -> None:
        self.logprobs: dict[str, Any] | None = None
        self._text = JSONText()
        self._reasoning = JSONText()
        self._refusal = JSONText()
        self._calls: dict[int, tuple[ToolCall, JSONText]] = {}

    def add(self, piece: Piece) -> None:
        self._text.add(piece.text)
        self._reasoning.add(piece.reasoning)
        self._refusal.add(piece.refusal)
        for call in piece.tool_calls:
            self._calls.setdefault(call.index, (call, JSONText()))[1].add(call.arguments)
        for name, values in (piece.logprobs or {}).items():
            self.logprobs = self.logprobs or {}
            if self.logprobs.get(name) is None:
                self.logprobs[name] = values and [*values]
            else:
                self.logprobs[name] += values or ()

    def message(self) -> dict[str, Any]:
        only_content = not (self._calls or self._refusal)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._text.as_json() if self._text or only_content else None,
            "refusal": self._refusal.as_json() if self._refusal else None,
            "annotations": [],
        }
        if self._reasoning:
            message["reasoning_content"] = self._reasoning.as_json()
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": begun.id,
                    "type": "function",
                    "function": {"name": begun.name, "arguments": arguments.as_json()},
                }
                for begun, arguments in self._calls.values()
            ]
        return message


class ChatWire(Wire):
    """An answer in chunks: data blocks without ids, names or retry, which OpenAI's clients expect.

    An error is a block with an error object; it takes the place of `data: [DONE]`.
    """

    def __init__(self, info: RunInfo, answer: ChatAnswer) -> None:
        self._run = info.run
        self._answer = answer

    def headers(self) -> Mapping[str, str]:
        return {"X-Request-Id": self._run}

    def begin(self) -> bytes:
        return block(self._answer.chunk({"role": "assistant", "content": None}))

    def event(self, event: LoggedEvent) -> bytes:
        piece = self._answer.feed(event)
        self.done = self._answer.over
        if not piece:
            return b""
        return block(self._answer.chunk(delta_of(piece), logprobs=piece.logprobs))

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        self._answer.lose()
        self.done = True
        return b""

    def finish(self) -> bytes:
        answer = self._answer
        answer.interrupt()
        if answer.error is not None:
            return block(error_object(answer.error))
        blocks = block(answer.chunk({}, answer.finish))
        if answer.with_usage:
            blocks += block(answer.usage_chunk())
        return blocks + b"data: [DONE]\n\n"


def block(value: Any) -> bytes:
    return b"data: %b\n\n" % payload(value)[1]
