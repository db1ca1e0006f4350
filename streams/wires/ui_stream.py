"""The AI SDK's UI message stream, which `useChat` reads, over any source of text.

    data: {"type":"start","messageId":"msg_Vb3kQn5XTZ6pTqjGkRzB3g"}
    data: {"type":"start-step"}
    data: {"type":"text-start","id":"0"}
    data: {"type":"text-delta","id":"0","delta":"Hel"}
    data: {"type":"text-end","id":"0"}
    data: {"type":"finish-step"}
    data: {"type":"finish","finishReason":"stop"}
    data: [DONE]

`UIStream` is the wire, `chat_messages` converts what `useChat` sends. Invariants:

1. At most one text or reasoning part is open. Ids of parts count from 0.
2. A tool call is complete when the source sends something else, or completes.
3. `[DONE]` says that the run has ended. Without it, there may be more: the client was cut off.

Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol, and `uiMessageChunkSchema` of the npm
package `ai`, versions 5 to 7.
"""

from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any, Literal

import msgspec

from streams import StreamError, Wire
from streams.errors import abbreviated
from streams.event import NO_READER, SHUTDOWN, End, EventId, LoggedEvent, encode_json, payload
from streams.log import RunInfo
from streams.wires.answer import Answer, Piece, ToolCall, ToolResult

FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool-calls",
    "content_filter": "content-filter",
}

DONE = b"data: [DONE]\n\n"


class UIStream(Wire):
    """A run as a UI message stream.

    An event with a name of its own becomes a part `data-<name>`. `message_id` is the id of the
    message that the client gets (default: `msg_` and the run's id). Give the id of the
    conversation's last message if that is the assistant's, which continues then: with another id,
    `useChat` shows it twice.
    """

    stateful = True

    def __init__(self, info: RunInfo, message_id: str | None = None) -> None:
        self._message_id = message_id or f"msg_{info.run}"
        self._answer = Answer()
        self._parts = 0
        self._open: str | None = None
        """The kind of the open part: "text" or "reasoning"."""
        self._calls: dict[int, tuple[ToolCall, StringIO]] = {}
        """The tool calls that are not complete, by index, with their arguments so far."""
        self._called = set[str]()
        self._step_is_over = False

    def headers(self) -> Mapping[str, str]:
        return {"X-Vercel-AI-UI-Message-Stream": "v1"}

    def event(self, event: LoggedEvent) -> bytes:
        if event.name == "start":
            return chunk("start", messageId=self._message_id) + chunk("start-step")
        if event.name == "end":
            return self._end(event)
        if event.name != "message":
            return chunk(f"data-{event.name}", data=_value(event.data))
        return self._piece(self._answer.feed(event))

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        self._answer.lose()
        self.done = True
        return self._error()

    def finish(self) -> bytes:
        if self._answer.over:
            return b""
        self._answer.interrupt()
        return self._error()

    def _piece(self, piece: Piece) -> bytes:
        if piece.tool_result is not None:
            # A result ends the step: what follows is of the model's next turn.
            self._step_is_over = True
            return self._close() + self._complete_calls() + self._output(piece.tool_result)
        if not piece:
            return b""
        body = b""
        if self._step_is_over:
            self._step_is_over = False
            body = chunk("finish-step") + chunk("start-step")
        if piece.reasoning:
            body += self._delta("reasoning", piece.reasoning)
        if text := piece.text + piece.refusal:
            body += self._delta("text", text)
        for call in piece.tool_calls:
            body += self._close() + self._fragment(call)
        return body

    def _delta(self, kind: Literal["text", "reasoning"], delta: str) -> bytes:
        body = b""
        if self._open != kind:
            body = self._close() + self._complete_calls()
            body += chunk(f"{kind}-start", id=str(self._parts))
            self._open = kind
        return body + chunk(f"{kind}-delta", id=str(self._parts), delta=delta)

    def _close(self) -> bytes:
        """Ends the part that is open."""
        if self._open is None:
            return b""
        end = chunk(f"{self._open}-end", id=str(self._parts))
        self._open = None
        self._parts += 1
        return end

    def _fragment(self, call: ToolCall) -> bytes:
        begun, arguments = self._calls.get(call.index, (None, StringIO()))
        body = b""
        if begun is None or call.id not in (None, begun.id):
            if call.id is None:
                return b""  # It has no beginning, without which the client fails.
            body = self._complete_calls() if begun else b""
            begun, arguments = ToolCall(call.index, call.id, call.name or ""), StringIO()
            self._calls[call.index] = begun, arguments
            self._called.add(call.id)
            body += chunk("tool-input-start", toolCallId=begun.id, toolName=begun.name)
        arguments.write(call.arguments)
        if call.arguments:
            body += chunk("tool-input-delta", toolCallId=begun.id, inputTextDelta=call.arguments)
        return body

    def _complete_calls(self) -> bytes:
        body = b""
        for call, arguments in self._calls.values():
            members: dict[str, Any] = {"toolCallId": call.id, "toolName": call.name}
            given = arguments.getvalue()
            try:
                body += chunk(
                    "tool-input-available", **members, input=_json((given or "{}").encode())
                )
            except (msgspec.DecodeError, RecursionError) as error:
                reason = f"the arguments are not JSON: {error}"
                body += chunk("tool-input-error", **members, input=given, errorText=reason)
        self._calls.clear()
        return body

    def _output(self, result: ToolResult) -> bytes:
        if result.id not in self._called:
            return b""  # Without the call, the client fails.
        return chunk("tool-output-available", toolCallId=result.id, output=result.content)

    def _end(self, event: LoggedEvent) -> bytes:
        self._answer.feed(event)
        if self._answer.finish is not None:
            reason = FINISH_REASONS.get(self._answer.finish, "other")
            parts = self._close() + self._complete_calls()
            return parts + chunk("finish-step") + chunk("finish", finishReason=reason) + DONE
        end = End.decode(event.data)
        if end.status == "cancelled" and end.reason not in (NO_READER, SHUTDOWN):
            return self._close() + chunk("abort", reason=end.reason) + DONE
        return self._error() + DONE

    def _error(self) -> bytes:
        return self._close() + chunk("error", errorText=str(self._answer.error))


def chunk(kind: str, **members: Any) -> bytes:
    return b"data: %b\n\n" % payload({"type": kind, **members})[1]


_validate = msgspec.json.Decoder(msgspec.Raw).decode


def _json(data: bytes) -> msgspec.Raw:
    """JSON in one line. Line ends in it are white space between tokens."""
    _validate(data)
    return msgspec.Raw(data.replace(b"\n", b" ").replace(b"\r", b" "))


def _value(data: bytes) -> msgspec.Raw | str:
    """The data of an event: JSON, or a text."""
    try:
        return _json(data)
    except (msgspec.DecodeError, RecursionError):
        return data.decode()


class UIMessage(msgspec.Struct):
    """A message, as `useChat` keeps it."""

    role: str
    parts: list[dict[str, Any]]


def chat_messages(ui_messages: Any) -> list[dict[str, Any]]:
    """The messages that `useChat` sends, in the chat form that models take.

    Text stays; files become image_url and file parts; a tool call becomes one with its result. Left
    out is what models do not take: reasoning, sources, data parts, files of the assistant, and tool
    calls without a result. Raises StreamError with status 422.
    """
    try:
        messages = msgspec.convert(ui_messages, list[UIMessage])
    except (msgspec.ValidationError, RecursionError) as error:
        raise _invalid(f"{error}; send what useChat has as `messages`") from None
    converted: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        path = f"$[{number}].parts"
        if message.role == "assistant":
            converted += _assistant(message.parts, path)
        elif message.role not in ("user", "system"):
            roles = "there are: system, user, assistant"
            raise _invalid(f"no role {abbreviated(message.role)}; {roles} - at `$[{number}].role`")
        elif content := [*_content(message, path)]:
            only_text = len(content) == 1 and content[0]["type"] == "text"
            text_or_parts = content[0]["text"] if only_text else content
            converted.append({"role": message.role, "content": text_or_parts})
    if not converted:
        raise _invalid("none of them has a text or a file; send at least one that does")
    return converted


def _content(message: UIMessage, path: str) -> Iterator[dict[str, Any]]:
    """What a message of the user or the system says, as parts of the chat form."""
    for number, part in enumerate(message.parts):
        at = f"{path}[{number}]"
        if part.get("type") == "text":
            yield {"type": "text", "text": _text(part, "text", at)}
        elif part.get("type") == "file" and message.role == "user":
            url = _text(part, "url", at)
            if _text(part, "mediaType", at).startswith("image/"):
                yield {"type": "image_url", "image_url": {"url": url}}
                continue
            if not url.startswith("data:"):
                raise _invalid(f"a file that is no image has to be a data: URL - at `{at}.url`")
            name = part.get("filename") or "file"
            yield {"type": "file", "file": {"filename": name, "file_data": url}}


def _assistant(parts: list[dict[str, Any]], path: str) -> Iterator[dict[str, Any]]:
    """The messages of the chat form for one of the assistant: for each step, one and its tools'."""
    text, calls, results = "", list[Any](), list[Any]()
    for number, part in enumerate([*parts, {"type": "step-start"}]):
        at, kind = f"{path}[{number}]", part.get("type")
        if kind == "text":
            text += _text(part, "text", at)
        elif kind == "dynamic-tool" or str(kind).startswith("tool-"):
            if (content := _result(part, at)) is None:
                continue
            id_ = _text(part, "toolCallId", at)
            dynamic = kind == "dynamic-tool"
            name = _text(part, "toolName", at) if dynamic else str(kind).removeprefix("tool-")
            given = part.get("input")
            given = part.get("rawInput", {}) if given is None else given
            function = {"name": name, "arguments": encode_json(given).decode()}
            calls.append({"id": id_, "type": "function", "function": function})
            results.append({"role": "tool", "tool_call_id": id_, "content": content})
        elif kind == "step-start" and (text or calls):
            called = {"tool_calls": calls} if calls else {}
            yield {"role": "assistant", "content": text, **called}
            yield from results
            text, calls, results = "", [], []


def _result(part: dict[str, Any], at: str) -> str | None:
    """The result of a tool call, as text; None if there is none yet."""
    match part.get("state"):
        case "output-available" if not part.get("preliminary"):
            output = part.get("output")
            return output if isinstance(output, str) else encode_json(output).decode()
        case "output-error":
            return _text(part, "errorText", at)
        case "output-denied":
            approval = part.get("approval")
            reason = approval.get("reason") if isinstance(approval, dict) else None
            return str(reason or "the user has not allowed this call")
    return None


def _text(part: dict[str, Any], member: str, at: str) -> str:
    value = part.get(member)
    if not isinstance(value, str):
        raise _invalid(f"Expected `str`, got {abbreviated(value)} - at `{at}.{member}`")
    return value


def _invalid(detail: str) -> StreamError:
    return StreamError(f"messages: {detail}", status=422)
