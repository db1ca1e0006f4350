"""A reader of UI message streams, made after `processUIMessageStream` of the npm package `ai`.

It is strict where the real one is: an unknown part is an error, and so is a delta without a start.
"""

import json
from typing import Any

import httpx
import httpx_sse

STRINGS = {
    "start": ["messageId"],
    "start-step": [],
    "text-start": ["id"],
    "text-delta": ["id", "delta"],
    "text-end": ["id"],
    "reasoning-start": ["id"],
    "reasoning-delta": ["id", "delta"],
    "reasoning-end": ["id"],
    "tool-input-start": ["toolCallId", "toolName"],
    "tool-input-delta": ["toolCallId", "inputTextDelta"],
    "tool-input-available": ["toolCallId", "toolName"],
    "tool-input-error": ["toolCallId", "toolName", "errorText"],
    "tool-output-available": ["toolCallId"],
    "finish-step": [],
    "finish": ["finishReason"],
    "error": ["errorText"],
    "abort": ["reason"],
}
"""The members of each chunk that this server sends and that are strings."""

FINISH_REASONS = {"stop", "length", "content-filter", "tool-calls", "error", "other"}


def chunks_of(body: bytes) -> list[Any]:
    """The chunks of a body; the last one is "[DONE]" if the body has it."""
    headers = {"Content-Type": "text/event-stream"}
    events = httpx_sse.EventSource(httpx.Response(200, content=body, headers=headers)).iter_sse()
    return [event.data if event.data == "[DONE]" else event.json() for event in events]


class UIMessage:
    """The message that a client builds from chunks, and what it knows of its end."""

    def __init__(self, chunks: list[Any]) -> None:
        self.id: str | None = None
        self.parts: list[dict[str, Any]] = []
        self.finish: str | None = None
        self.error: str | None = None
        self.aborted: str | None = None
        self.done = False
        self._active: dict[tuple[str, str], dict[str, Any]] = {}
        self._calls: dict[str, dict[str, Any]] = {}
        for chunk in chunks:
            assert not self.done, "nothing follows [DONE]"
            if chunk == "[DONE]":
                self.done = True
            elif self.error is None:  # The client throws at an error, and reads no further.
                self._take(chunk)

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def reasoning(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "reasoning")

    def _take(self, chunk: dict[str, Any]) -> None:
        kind = chunk["type"]
        if kind.startswith("data-"):
            self.parts.append({"type": kind, "data": chunk["data"]})
            return
        for member in STRINGS[kind]:
            assert isinstance(chunk[member], str), chunk
        family, _, step = kind.rpartition("-")
        match kind:
            case "start":
                self.id = chunk["messageId"]
            case "start-step":
                self.parts.append({"type": "step-start"})
            case "text-start" | "reasoning-start":
                part = {"type": family, "text": "", "state": "streaming"}
                self._active[family, chunk["id"]] = part
                self.parts.append(part)
            case "text-delta" | "reasoning-delta":
                self._active[family, chunk["id"]]["text"] += chunk["delta"]
            case "text-end" | "reasoning-end":
                self._active.pop((family, chunk["id"]))["state"] = "done"
            case "finish-step":
                assert not self._active
            case "finish":
                assert chunk["finishReason"] in FINISH_REASONS
                self.finish = chunk["finishReason"]
            case "error":
                self.error = chunk["errorText"]
            case "abort":
                self.aborted = chunk["reason"]
            case _:
                self._take_call(chunk, step)

    def _take_call(self, chunk: dict[str, Any], step: str) -> None:
        id_ = chunk["toolCallId"]
        if step == "start":
            call = {
                "type": f"tool-{chunk['toolName']}",
                "toolCallId": id_,
                "state": "input-streaming",
                "raw": "",
            }
            self._calls[id_] = call
            self.parts.append(call)
            return
        call = self._calls[id_]
        match chunk["type"]:
            case "tool-input-delta":
                call["raw"] += chunk["inputTextDelta"]
            case "tool-input-available":
                assert json.loads(call["raw"] or "{}") == chunk["input"]
                call |= {"state": "input-available", "input": chunk["input"]}
            case "tool-input-error":
                call |= {"state": "output-error", "errorText": chunk["errorText"]}
            case "tool-output-available":
                call |= {"state": "output-available", "output": chunk["output"]}


def ui_message(body: bytes) -> UIMessage:
    return UIMessage(chunks_of(body))
