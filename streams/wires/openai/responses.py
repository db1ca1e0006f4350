"""The Responses API, without input or output: the response that a run's events make, and the wire.

Invariants:

1. A response, its items and the numbers of its events follow from the log alone: the second event
   of the run is the request, and the others are the model's answer.
2. All readers get the same events. One that resumes begins after its `starting_after`.
3. Items are numbered in the order in which they begin, and stay open until something of another
   kind follows. Tool calls are open together: their fragments may alternate.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from streams import StreamError
from streams.event import LARGE, End, EventId, LoggedEvent, parse_frames, payload
from streams.log import RunInfo
from streams.wires import Wire
from streams.wires.answer import Answer, Piece, ToolCall
from streams.wires.openai.common import JSONText
from streams.wires.openai.kept import REQUEST, REQUEST_NUMBER, Kept

PREFIX = "resp_"

INVALID = "invalid_prompt"
"""The code of an error that is the client's: the source cannot answer this request."""

STOPPED = "stopped"
"""The reason of a run that a client has cancelled."""


class Text(JSONText):
    """A part of a message: text, or a refusal. Or what a model thinks."""

    def __init__(self, kind: str, member: str = "text") -> None:
        super().__init__()
        self.kind = kind
        self.member = member
        self.logprobs: list[Any] = []

    def as_dict(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self.kind, self.member: self.as_json()}
        if self.kind == "output_text":
            part |= {"annotations": [], "logprobs": self.logprobs}
        return part


class Item:
    """An item of the output: a message, reasoning, or a function call."""

    def __init__(self, run: str, index: int, kind: str, prefix: str) -> None:
        self.id = f"{prefix}_{run}_{index}"
        self.index = index
        self.kind = kind
        self.status = "in_progress"
        self.parts: list[Text] = []
        self.call = ToolCall(0)
        self.arguments = JSONText()

    @property
    def is_usable(self) -> bool:
        """Whether a conversation can continue after it: a call needs all of its arguments."""
        return self.kind != "function_call" or self.status == "completed"

    def as_dict(self) -> dict[str, Any]:
        head = {"id": self.id, "type": self.kind, "status": self.status}
        parts = [part.as_dict() for part in self.parts]
        match self.kind:
            case "message":
                return head | {"role": "assistant", "content": parts}
            case "reasoning":
                return head | {"summary": parts}
            case _:
                call_id = self.call.id or f"call_{self.id}"
                named = {"call_id": call_id, "name": self.call.name or ""}
                return head | named | {"arguments": self.arguments.as_json()}


class Response:
    """The state of a response, which takes the events of its run one by one.

    `kept` is None until the event with the request. `last` is the number of the newest event.
    """

    def __init__(self, info: RunInfo) -> None:
        self.kept: Kept | None = None
        self.status = "in_progress"
        self.last = -1
        self.output: list[Item] = []
        self.error: dict[str, str] | None = None
        self._request: Kept | None = None
        self._info = info
        self._answer = Answer()
        self._pieces = 0
        self._message: Item | None = None
        self._reasoning: Item | None = None
        self._calls: dict[int, Item] = {}
        self._events: list[dict[str, Any]] = []

    @property
    def run(self) -> str:
        return self._info.run

    @property
    def over(self) -> bool:
        return self.status != "in_progress"

    async def take(self, event: LoggedEvent) -> list[dict[str, Any]]:
        """`feed`. To parse and to decode a request of megabytes are two steps."""
        if len(event.data) > LARGE:
            await asyncio.sleep(0)
            self._decode(event)
            await asyncio.sleep(0)
        return self.feed(event)

    def _decode(self, event: LoggedEvent) -> None:
        if self._request is None and (event.number, event.name) == (REQUEST_NUMBER, REQUEST):
            self._request = msgspec.json.decode(event.data, type=Kept)

    def feed(self, event: LoggedEvent) -> list[dict[str, Any]]:
        """The events of the API that an event of the run makes."""
        if self.kept is None:
            self._decode(event)
            if self._request is not None:
                self.kept = self._request
                self._emit("response.created", response=self.as_dict())
                self._emit("response.in_progress", response=self.as_dict())
        elif not self.over:
            self._add(self._answer.feed(event))
            if event.name == "end":
                self._end(End.decode(event.data))
            elif self._pieces == self.kept.limit:
                self._finish("incomplete", "length")
        events, self._events = self._events, []
        return events

    def drop_items(self) -> None:
        """Drops the items of the request: for a reader that does not need them. They may be
        megabytes.
        """
        if self.kept is not None:
            self.kept = self._request = self.kept.without_items()

    def as_dict(self) -> dict[str, Any]:
        assert self.kept is not None
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        reason = reasons.get(self._answer.finish or "") if self.status == "incomplete" else None
        return {
            "id": f"{PREFIX}{self._info.run}",
            "object": "response",
            "created_at": int(self._info.started.timestamp()),
            "completed_at": None,
            "status": self.status,
            "error": self.error,
            "incomplete_details": None if reason is None else {"reason": reason},
            **self.kept.response,
            "output": [item.as_dict() for item in self.output],
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any] | None:
        if self.kept is None or self.status not in ("completed", "incomplete"):
            return None
        usage = self._answer.usage
        prompt = self.kept.input_tokens if usage.prompt is None else usage.prompt
        completion = self._pieces if usage.completion is None else usage.completion
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
            "total_tokens": prompt + completion,
        }

    def _emit(self, kind: str, **members: Any) -> None:
        self.last += 1
        self._events.append({"type": kind, "sequence_number": self.last, **members})

    def _add(self, piece: Piece) -> None:
        if not piece:
            return
        self._pieces += 1
        if piece.reasoning:
            self._add_reasoning(piece.reasoning)
        if piece.text:
            self._add_text("output_text", piece.text, _logprobs(piece))
        if piece.refusal:
            self._add_text("refusal", piece.refusal, [])
        for call in piece.tool_calls:
            self._add_call(call)

    def _open(self, kind: str, prefix: str) -> Item:
        item = Item(self._info.run, len(self.output), kind, prefix)
        self.output.append(item)
        return item

    def _emit_added(self, item: Item) -> None:
        self._emit("response.output_item.added", output_index=item.index, item=item.as_dict())

    def _add_reasoning(self, text: str) -> None:
        if (item := self._reasoning) is None:
            self._close_items()
            item = self._reasoning = self._open("reasoning", "rs")
            self._emit_added(item)
            item.parts.append(Text("summary_text"))
            self._emit("response.reasoning_summary_part.added", **_summary(item, "part"))
        item.parts[0].add(text)
        where = _summary(item)
        self._emit("response.reasoning_summary_text.delta", **where, delta=text)

    def _add_text(self, kind: str, text: str, logprobs: list[Any]) -> None:
        item = self._message
        if item is None:
            self._close_items()
            item = self._message = self._open("message", "msg")
            self._emit_added(item)
        if not item.parts or item.parts[-1].kind != kind:
            if item.parts:
                self._close_part(item)
            part = Text(kind, "refusal" if kind == "refusal" else "text")
            item.parts.append(part)
            where = _content(item)
            self._emit("response.content_part.added", **where, part=part.as_dict())
        if not text:
            return
        part = item.parts[-1]
        part.add(text)
        part.logprobs += logprobs
        also = {"logprobs": logprobs} if kind == "output_text" else {}
        self._emit(f"response.{kind}.delta", **_content(item), delta=text, **also)

    def _close_part(self, item: Item) -> None:
        part, where = item.parts[-1], _content(item)
        also = {"logprobs": part.logprobs} if part.kind == "output_text" else {}
        self._emit(f"response.{part.kind}.done", **where, **{part.member: part.as_json()}, **also)
        self._emit("response.content_part.done", **where, part=part.as_dict())

    def _add_call(self, call: ToolCall) -> None:
        if (item := self._calls.get(call.index)) is None:
            if not self._calls:
                self._close_items()
            item = self._calls[call.index] = self._open("function_call", "fc")
            item.call = call
            self._emit_added(item)
        if call.arguments:
            item.arguments.add(call.arguments)
            where = {"item_id": item.id, "output_index": item.index}
            delta = call.arguments
            self._emit("response.function_call_arguments.delta", **where, delta=delta)

    def _open_items(self) -> Iterator[Item]:
        for item in (self._reasoning, self._message, *self._calls.values()):
            if item is not None:
                yield item

    def _close_items(self, status: str = "completed") -> None:
        for item in self._open_items():
            item.status = status
            where = {"item_id": item.id, "output_index": item.index}
            if item is self._message:
                self._close_part(item)
            elif item is self._reasoning:
                text = item.parts[0].as_json()
                self._emit("response.reasoning_summary_text.done", **_summary(item), text=text)
                self._emit("response.reasoning_summary_part.done", **_summary(item, "part"))
            else:
                done = {"name": item.call.name or "", "arguments": item.arguments.as_json()}
                self._emit("response.function_call_arguments.done", **where, **done)
            self._emit("response.output_item.done", output_index=item.index, item=item.as_dict())
        self._reasoning = self._message = None
        self._calls = {}

    def _end(self, end: End) -> None:
        answer = self._answer
        if answer.error is not None:
            self._fail(end, answer.error)
        elif answer.finish in ("length", "content_filter"):
            self._finish("incomplete", answer.finish)
        else:
            self._finish("completed", answer.finish or "stop")

    def _finish(self, status: str, reason: str) -> None:
        self._answer.finish = reason
        if status == "completed" and all(item.kind == "reasoning" for item in self.output):
            self._add_text("output_text", "", [])  # Agents look for a message, even an empty one.
        self._close_items(status)
        self.status = status
        self._emit(f"response.{status}", response=self.as_dict())

    def _fail(self, end: End, error: StreamError) -> None:
        for item in self._open_items():
            item.status = "incomplete"
        self.status = "cancelled" if end.reason == STOPPED else "failed"
        if self.status == "failed":
            # The codes that OpenAI's clients know have nothing nearer to what can happen here.
            code = INVALID if error.status == 422 else "server_error"
            self.error = {"code": code, "message": str(error)}
        # There is no event for a cancelled response.
        self._emit("response.failed", response=self.as_dict())


class ResponsesWire(Wire):
    """The events of a response after number `after`, for OpenAI's clients.

    A stream that ends too early has an `error` event last. It repeats the number of the event
    before it, so that a client that resumes after it misses nothing.
    """

    def __init__(self, info: RunInfo, after: int = -1) -> None:
        self._run = info.run
        self._response = Response(info)
        self._starting_after = after
        self._error = "shutdown", "the server has stopped this stream; resume it, or ask again"

    def headers(self) -> Mapping[str, str]:
        return {"X-Request-Id": self._run}

    def event(self, event: LoggedEvent) -> bytes:
        events = self._new(event, self._response.feed(event))
        return b"".join([part for made in events for part in _block(made)])

    async def feed_large(self, frames: bytes) -> bytes:
        parts: list[bytes] = []
        for event in parse_frames(frames):
            for made in self._new(event, await self._response.take(event)):
                parts += _block(made)
                await asyncio.sleep(0)
        return b"".join(parts)

    def _new(self, event: LoggedEvent, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that the client does not have of what an event of the run has made."""
        if event.number == REQUEST_NUMBER:
            self._response.drop_items()
        self.done = self._response.over
        return [each for each in made if each["sequence_number"] > self._starting_after]

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        self._error = "gone", "a part of the response is no longer retained"
        self.done = True
        return b""

    def finish(self) -> bytes:
        if self._response.over:
            return b""
        code, message = self._error
        number = max(self._response.last, self._starting_after)
        error = {"type": "error", "sequence_number": number, "code": code, "message": message}
        return b"".join(_block({**error, "param": None}))


def _block(event: dict[str, Any]) -> tuple[bytes, ...]:
    """An event for the client, in parts: the last events repeat the whole answer, four times."""
    return b"event: ", event["type"].encode(), b"\ndata: ", payload(event)[1], b"\n\n"


def _content(item: Item) -> dict[str, Any]:
    """Where the newest part of a message is."""
    place = {"item_id": item.id, "output_index": item.index}
    return {**place, "content_index": len(item.parts) - 1}


def _summary(item: Item, *members: str) -> dict[str, Any]:
    """Where the summary of a reasoning item is, and the summary if `members` name it."""
    part = {member: item.parts[0].as_dict() for member in members}
    return {"item_id": item.id, "output_index": item.index, "summary_index": 0, **part}


def _logprobs(piece: Piece) -> list[dict[str, Any]]:
    """The log probabilities of a piece, in the form of this API, where `bytes` is never null."""
    content = (piece.logprobs or {}).get("content") or []
    return [
        {**_with_bytes(each), "top_logprobs": [_with_bytes(t) for t in each["top_logprobs"]]}
        if each.get("top_logprobs")
        else {**_with_bytes(each), "top_logprobs": []}
        for each in content
    ]


def _with_bytes(logprob: dict[str, Any]) -> dict[str, Any]:
    token = logprob["token"]
    return {
        "token": token,
        "logprob": logprob["logprob"],
        "bytes": logprob.get("bytes") or list(token.encode()),
    }
