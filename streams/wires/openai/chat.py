"""One chat completion: what is asked for, and what a run's events become, as OpenAI has them.

The law of this file: it does no input or output. Events go in, and text and the objects of the
wire format come out, the same for an answer that is streamed and for one that is sent whole.
openai.py calls it. Reference: https://platform.openai.com/docs/api-reference/chat
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams.errors import StreamError
from streams.event import payload
from streams.log import RunLog
from streams.source import Source

# Asked of a model that has no such parameter, these change what it says, not how it is sent:
# they are let pass. Anything else (tools, images, a schema) has to be refused.
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


class Asked(msgspec.Struct, kw_only=True):
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
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def text(self) -> str:
        """What the last message says, all its parts together."""
        content = self.messages[-1].get("content")
        if isinstance(content, list):
            return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return str(content or "")


def parsed(body: bytes) -> tuple[Asked, dict[str, Any]]:
    """The request, and all of its fields that ask for something."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        return msgspec.convert(fields, Asked), {k: v for k, v in fields.items() if asks(v)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        named = re.search(r"\$\.(\w+)|field `(\w+)`", str(error))
        param = named and (named[1] or named[2])
        raise StreamError(str(error), status=400, param=param) from None


def asks(value: Any) -> bool:
    """Whether a field asks for something: some clients spell out what they do not want."""
    return value is not None and value is not False and value not in ([], {}, {"type": "text"})


def arguments_for(source: Source, asked: Asked, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the source is given of a request's fields."""
    parameters = source.schema["properties"]
    arguments = {
        name: value
        for name, value in given.items()
        if name not in Asked.__struct_fields__ and (name in parameters or name not in HINTS)
    }
    offered = {"messages": asked.messages, "prompt": asked.text, "max_tokens": asked.limit}
    if "messages" in parameters:
        del offered["prompt"]
    for name, value in offered.items():
        if name in parameters and value is not None:
            arguments.setdefault(name, value)
    return arguments


class Answer:
    """What has become of an answer: it takes the run's events and gives the text to pass on.

    `finish` is OpenAI's reason for the end, or `error` what failed; until then both are None.
    """

    def __init__(self, log: RunLog, asked: Asked, limit: int | None) -> None:
        self.log = log
        self.count = 0
        self.finish: str | None = None
        self.error: StreamError | None = None
        self.with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._model = asked.model
        self._stops = StopSequences(asked.stops)
        self._limit = limit
        self._reason = "stop"
        self._prompt_tokens = len(asked.text.split())
        self._completion_tokens: int | None = None

    @property
    def over(self) -> bool:
        return self.finish is not None or self.error is not None

    def text_of(self, name: str, data: bytes) -> str:
        """The text that an event adds to the answer."""
        if self.over:
            return ""
        if name == "end":
            return self._ended(msgspec.json.decode(data))
        if name != "message" or not (text := self._said(data)):
            return ""
        self.count += 1
        text, stopped = self._stops.passed(text)
        if stopped:
            self.finish = "stop"
        elif self.count == self._limit:
            self.finish = "length"
            text += self._stops.rest()
        return text

    def _said(self, data: bytes) -> str:
        try:
            value = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return data.decode()  # an Event made of text
        if not isinstance(value, dict):
            return value if isinstance(value, str) else data.decode()
        if value.get("done"):
            self._reason = value.get("done_reason") or "stop"
            self._prompt_tokens = value.get("prompt_eval_count") or self._prompt_tokens
            self._completion_tokens = value.get("eval_count")
        message = value.get("message")
        return str(message.get("content") or "") if isinstance(message, dict) else ""

    def _ended(self, end: dict[str, Any]) -> str:
        if end["status"] == "completed":
            self.finish = self._reason
        elif end["status"] == "failed":
            self.error = StreamError(end["error"]["message"], code=end["error"]["type"])
        else:
            self.error = StreamError(f"the answer was cancelled: {end['reason']}", code="cancelled")
        return self._stops.rest()

    def interrupted(self) -> None:
        """The run goes on, or not, but nobody reads it here any more."""
        if not self.over:
            self.error = StreamError("the server is going down", status=503, code="shutdown")

    def _object(self, kind: str, choices: list[Any], **members: Any) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.log.info.run}",
            "object": kind,
            "created": int(self.log.info.started.timestamp()),
            "model": self._model,
            "choices": choices,
            **members,
        }

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return block(self._object("chat.completion.chunk", [choice], **usage))

    def ending(self) -> bytes:
        """The last blocks."""
        if self.error is not None:
            return block(error_object(self.error))
        blocks = self.chunk({}, self.finish)
        if self.with_usage:
            blocks += block(self._object("chat.completion.chunk", [], usage=self._usage()))
        return blocks + b"data: [DONE]\n\n"

    def completion(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return self._object("chat.completion", [choice], usage=self._usage())

    def _usage(self) -> dict[str, int]:
        said = self.count if self._completion_tokens is None else self._completion_tokens
        asked = self._prompt_tokens
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


class StopSequences:
    """Passes text on up to the first of some sequences, which may come in parts.

    What may become one is held back until it is known.
    """

    def __init__(self, sequences: list[str]) -> None:
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def passed(self, text: str) -> tuple[str, bool]:
        """What can be passed on, and whether a sequence has come."""
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

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def events_in(frames: bytes) -> Iterator[tuple[str, bytes]]:
    """The names and data of whole frames."""
    for frame in frames.split(b"\n\n")[:-1]:
        lines = [line.partition(b": ") for line in frame.split(b"\n")]
        name = next((value for field, _, value in lines if field == b"event"), b"message")
        yield name.decode(), b"\n".join(value for field, _, value in lines if field == b"data")


def block(value: Any) -> bytes:
    return b"data: %b\n\n" % payload(value)[1]


def error_object(error: StreamError) -> dict[str, Any]:
    faults = error.members.get("errors") or [{}]
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),
            "type": "rate_limit_error" if error.status == 429 else kind,
            "param": error.members.get("param") or faults[0].get("name"),
            "code": error.members.get("code"),
        }
    }
