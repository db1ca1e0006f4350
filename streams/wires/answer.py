"""A model's answer, read from the events of its run.

The wires that speak a model's protocol share this. An event of a model's source is a text, or an
object:

    {"message": {"role": "assistant", "content": "Hel"}, "done": false}
    {"message": {"role": "assistant", "content": "", "reasoning": "The user greets me."}, …}
    {"message": {"role": "assistant", "content": "", "tool_calls": [
        {"index": 0, "id": "call_1", "type": "function",
         "function": {"name": "weather", "arguments": "{\\"ci"}}]}, …}
    {"message": {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"}, …}
    {"message": {"role": "assistant", "content": "", "refusal": "I can't help with that."}, …}
    {"message": {…}, "done": true, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 4}

Invariants:

1. What an event adds depends on this event and the ones before it, never on when it is read.
2. The first fragment of a tool call has its `id` and the `name` of its function. The later ones
   have the same `index`, and more of the `arguments`, which together are a JSON object.
3. A source that runs a tool itself yields its result, as a message of the role `tool`.
4. An answer is over once: with `finish`, or with `error`.
"""

from typing import Any

import msgspec

from streams import StreamError
from streams.errors import InvalidParameters
from streams.event import End, LoggedEvent, decode_json


class ToolCall(msgspec.Struct, frozen=True):
    """A fragment of a tool call: its beginning, if it has an `id`, or more of its arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ToolResult(msgspec.Struct, frozen=True):
    """The result of a tool that the source has run. `id` is that of the tool call."""

    id: str
    content: Any


class Piece(msgspec.Struct, frozen=True):
    """What one event adds to an answer."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_result: ToolResult | None = None
    logprobs: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        """Whether the model says something in it. A tool's result alone is nothing that it says."""
        return self.tool_result is None and self != NOTHING


NOTHING = Piece()


class Usage(msgspec.Struct, frozen=True):
    """Numbers of tokens, None where the source does not count them."""

    prompt: int | None = None
    completion: int | None = None
    reasoning: int | None = None


class Answer:
    """The state of an answer, which takes the events of its run one by one.

    `finish` is why the model stopped: "stop", "length", "tool_calls" or "content_filter".
    """

    def __init__(self) -> None:
        self.finish: str | None = None
        self.error: StreamError | None = None
        self.usage = Usage()
        self._done_reason = "stop"

    @property
    def over(self) -> bool:
        return self.finish is not None or self.error is not None

    def feed(self, event: LoggedEvent) -> Piece:
        """What an event adds to the answer: nothing, if the answer is over."""
        if self.over:
            return NOTHING
        if event.name == "end":
            self._end(End.decode(event.data))
        elif event.name == "message":
            return self._piece(event.data)
        return NOTHING

    def interrupt(self) -> None:
        """Ends an answer whose reader was stopped before the end of the run."""
        if not self.over:
            self.error = StreamError("the server is shutting down", status=503, code="shutdown")

    def lose(self) -> None:
        """Ends an answer whose events were dropped before they were read."""
        if not self.over:
            self.error = StreamError("a part of the answer is no longer retained", status=410)

    def _piece(self, data: bytes) -> Piece:
        try:
            value = decode_json(data)
        except (msgspec.DecodeError, RecursionError):
            return Piece(data.decode())  # The source yielded an Event with a text.
        if not isinstance(value, dict):
            return Piece(value if isinstance(value, str) else data.decode())
        if value.get("done"):
            self._done_reason = value.get("done_reason") or "stop"
            self.usage = Usage(
                value.get("prompt_eval_count"),
                value.get("eval_count"),
                value.get("reasoning_eval_count"),
            )
        message = value.get("message")
        if not isinstance(message, dict):
            return NOTHING
        if message.get("role") == "tool":
            result = ToolResult(str(message.get("tool_call_id")), message.get("content"))
            return Piece(tool_result=result)
        return Piece(
            str(message.get("content") or ""),
            str(message.get("reasoning") or ""),
            str(message.get("refusal") or ""),
            tuple(_tool_call(call) for call in message.get("tool_calls") or ()),
            logprobs=value.get("logprobs"),
        )

    def _end(self, end: End) -> None:
        if end.status == "completed":
            self.finish = self._done_reason
        elif end.error is not None:
            # A source may check its arguments for so long that its run has opened meanwhile.
            is_clients = end.error["type"] == InvalidParameters.__name__
            self.error = StreamError(
                end.error["message"], status=422 if is_clients else 500, code=end.error["type"]
            )
        else:
            self.error = StreamError(f"the answer was cancelled: {end.reason}", code="cancelled")


def _tool_call(call: dict[str, Any]) -> ToolCall:
    function = call.get("function") or {}
    return ToolCall(
        call.get("index", 0), call.get("id"), function.get("name"), function.get("arguments") or ""
    )
