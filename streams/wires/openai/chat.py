"""Chat completions, without input or output: the request, the answer, and the wire.

A `ChatAnswer` takes the events of a run; it is the same for an answer that is streamed and for one
that is sent whole. `ChatWire` streams it as chunks.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams import Source, StreamError
from streams.event import EventId, LoggedEvent, payload
from streams.log import RunInfo
from streams.wires import Wire
from streams.wires.answer import NOTHING, Answer, Piece, ToolCall
from streams.wires.openai.common import MODEL_NAME, arguments_for, error_object, estimated_tokens
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


def parse(body: bytes) -> tuple[ChatRequest, dict[str, Any]]:
    """The request, and all of its fields. Raises StreamError naming a wrong one."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        return msgspec.convert(fields, ChatRequest), fields
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        named = re.search(r"\$\.(\w+)|field `(\w+)`", str(error))
        param = named and (named[1] or named[2])
        raise StreamError(str(error), status=400, param=param) from None


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

    def completion(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """The whole answer, of its pieces."""
        pieces = list(pieces)
        tool_calls = joined_calls(call for piece in pieces for call in piece.tool_calls)
        refusal = "".join(piece.refusal for piece in pieces) or None
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or (None if tool_calls or refusal else ""),
            "refusal": refusal,
            "annotations": [],
        }
        if reasoning := "".join(piece.reasoning for piece in pieces):
            message["reasoning_content"] = reasoning
        if tool_calls:
            message["tool_calls"] = tool_calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": joined_logprobs(piece.logprobs for piece in pieces if piece.logprobs),
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


def joined_calls(fragments: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """The tool calls of a whole answer, in the order in which they began."""
    calls: dict[int, list[ToolCall]] = {}
    for each in fragments:
        calls.setdefault(each.index, []).append(each)
    return [
        {
            "id": parts[0].id,
            "type": "function",
            "function": {
                "name": parts[0].name,
                "arguments": "".join(part.arguments for part in parts),
            },
        }
        for parts in calls.values()
    ]


def joined_logprobs(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The log probabilities of a whole answer: the lists of its pieces, one after the other."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items():
            joined[name] = (joined.get(name) or []) + values if values else joined.get(name)
    return joined or None


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
