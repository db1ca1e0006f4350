"""Chat completions, without input or output: the request, the answer, and the wire.

An `Answer` takes the events of a run and gives the text they add; it is the same for an answer
that is streamed and for one that is sent whole. `ChatWire` streams it as chunks.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams import Source, StreamError
from streams.errors import as_json_value
from streams.event import End, EventId, LoggedEvent, payload
from streams.log import RunInfo
from streams.wires import Wire

# Parameters that change what a model says but not the shape of its answer. A source that has no
# such parameter ignores them. Any other unknown field (tools, a schema) is an error.
HINTS = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "metadata",
        "parallel_tool_calls",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "temperature",
        "tool_choice",
        "top_p",
        "user",
        "verbosity",
    }
)


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatRequest(msgspec.Struct, kw_only=True):
    """The fields of a request that are the same for every model."""

    model: str
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    n: Literal[1] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
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
    def prompt(self) -> str:
        """The text of the last message, its parts joined."""
        content = self.messages[-1].get("content")
        if isinstance(content, list):
            return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return str(content or "")


def parse(body: bytes) -> tuple[ChatRequest, dict[str, Any]]:
    """The request, and all of its fields that are set. Raises StreamError naming a wrong one."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        request = msgspec.convert(fields, ChatRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        named = re.search(r"\$\.(\w+)|field `(\w+)`", str(error))
        param = named and (named[1] or named[2])
        raise StreamError(str(error), status=400, param=param) from None
    return request, {name: value for name, value in fields.items() if is_set(value)}


def is_set(value: Any) -> bool:
    """Whether a field asks for something: some clients send the fields that they do not use."""
    return value is not None and value is not False and value not in ([], {}, {"type": "text"})


def arguments_for(
    source: Source[..., Any], request: ChatRequest, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that a source gets from a request."""
    parameters = source.schema["properties"]
    arguments = {
        name: value
        for name, value in fields.items()
        if name not in ChatRequest.__struct_fields__ and (name in parameters or name not in HINTS)
    }
    offered = {
        "messages": request.messages,
        "prompt": request.prompt,
        "max_tokens": request.limit,
    }
    if "messages" in parameters:
        del offered["prompt"]
    for name, value in offered.items():
        if name in parameters and value is not None:
            arguments.setdefault(name, value)
    return arguments


class Answer:
    """The state of an answer. It ends with `finish`, OpenAI's finish reason, or with `error`.

    `limit` is the most pieces of text to pass on, if the source does not count tokens itself.
    """

    def __init__(self, info: RunInfo, request: ChatRequest, limit: int | None) -> None:
        self.pieces = 0
        self.finish: str | None = None
        self.error: StreamError | None = None
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._info = info
        self._model = request.model
        self._stop_sequences = StopSequences(request.stop_sequences)
        self._limit = limit
        self._done_reason = "stop"
        self._prompt_tokens = len(request.prompt.split())
        self._completion_tokens: int | None = None

    @property
    def over(self) -> bool:
        return self.finish is not None or self.error is not None

    def text_of(self, event: LoggedEvent) -> str:
        """The text that an event adds to the answer."""
        if self.over:
            return ""
        if event.name == "end":
            return self._end(End.decode(event.data))
        if event.name != "message" or not (text := self._content(event.data)):
            return ""
        self.pieces += 1
        text, stopped = self._stop_sequences.feed(text)
        if stopped:
            self.finish = "stop"
        elif self.pieces == self._limit:
            self.finish = "length"
            text += self._stop_sequences.flush()
        return text

    def _content(self, data: bytes) -> str:
        try:
            value = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return data.decode()  # The source yielded an Event with a text.
        if not isinstance(value, dict):
            return value if isinstance(value, str) else data.decode()
        if value.get("done"):
            self._done_reason = value.get("done_reason") or "stop"
            self._prompt_tokens = value.get("prompt_eval_count") or self._prompt_tokens
            self._completion_tokens = value.get("eval_count")
        message = value.get("message")
        return str(message.get("content") or "") if isinstance(message, dict) else ""

    def _end(self, end: End) -> str:
        if end.status == "completed":
            self.finish = self._done_reason
        elif end.error is not None:
            self.error = StreamError(end.error["message"], code=end.error["type"])
        else:
            self.error = StreamError(f"the answer was cancelled: {end.reason}", code="cancelled")
        return self._stop_sequences.flush()

    def interrupt(self) -> None:
        """Ends an answer whose reader was stopped before the end of the run."""
        if not self.over:
            self.error = StreamError("the server is shutting down", status=503, code="shutdown")

    def lose(self) -> None:
        """Ends an answer whose events were dropped before they were read."""
        self.error = StreamError("a part of the answer is no longer retained", status=410)

    def _object(self, kind: str, choices: list[Any], **members: Any) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._info.run}",
            "object": kind,
            "created": int(self._info.started.timestamp()),
            "model": self._model,
            "choices": choices,
            **members,
        }

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return self._object("chat.completion.chunk", [choice], **usage)

    def usage_chunk(self) -> dict[str, Any]:
        return self._object("chat.completion.chunk", [], usage=self._usage())

    def completion(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return self._object("chat.completion", [choice], usage=self._usage())

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._prompt_tokens, self._completion_tokens
        completion = self.pieces if completion is None else completion
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


class ChatWire(Wire):
    """An answer in chunks: data blocks without ids, names or retry, which OpenAI's clients expect.

    An error is a block with an error object; it takes the place of `data: [DONE]`.
    """

    def __init__(self, info: RunInfo, answer: Answer) -> None:
        self._run = info.run
        self._answer = answer

    def headers(self) -> Mapping[str, str]:
        return {"X-Request-Id": self._run}

    def begin(self) -> bytes:
        return block(self._answer.chunk({"role": "assistant", "content": ""}))

    def event(self, event: LoggedEvent) -> bytes:
        text = self._answer.text_of(event)
        self.done = self._answer.over
        return block(self._answer.chunk({"content": text})) if text else b""

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


class StopSequences:
    """Passes text on, up to the first stop sequence, which may be cut into several pieces.

    It holds text back that may be the beginning of a sequence.
    """

    def __init__(self, sequences: list[str]) -> None:
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text to pass on, and whether a sequence was found."""
        text = self._held + text
        found = [at for sequence in self._sequences if (at := text.find(sequence)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        begun = (
            length
            for sequence in self._sequences
            for length in range(1, len(sequence))
            if text.endswith(sequence[:length])
        )
        passed = len(text) - max(begun, default=0)
        self._held = text[passed:]
        return text[:passed], False

    def flush(self) -> str:
        """The text that is held back, when no more follows."""
        held, self._held = self._held, ""
        return held


def block(value: Any) -> bytes:
    return b"data: %b\n\n" % payload(value)[1]


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
