"""A model's answer, read from the chunks of its server, without input or output.

Invariants:

1. A text is passed on once, however the server calls it and wherever it is cut.
2. An answer is complete when the server has given a finish_reason. Everything else raises a
   StreamError with the reason, if there is one.

Source: https://platform.openai.com/docs/api-reference/chat-streaming
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from streams import StreamError
from streams.errors import as_json_value
from streams.sources.chat.event_stream import ServerEvent
from streams.sources.chat.reasons import described, message_of
from streams.sources.chat.texts import InvalidChunk, Joiner, texts_in
from streams.sources.chat.tool_calls import ToolCalls

DONE_REASONS = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "refusal": "content_filter",
    "sensitive": "content_filter",
}
"""Why a model stops, by what servers call it. An unknown reason is a stop, or a tool call."""

FAILURES = frozenset(
    {
        "abort",
        "aborted",
        "cancelled",
        "error",
        "insufficient_system_resource",
        "malformed_function_call",
        "network_error",
        "timeout",
    }
)
"""What servers call an answer that they did not complete."""

REASONING = ("reasoning", "reasoning_content", "thinking")
"""The names of a delta's reasoning. Servers that use two give the same text twice."""


class Usage(NamedTuple):
    """Numbers of tokens; None where the server does not count them."""

    prompt: int | None = None
    completion: int | None = None
    reasoning: int | None = None


class Answer:
    """The state of an answer: takes events one by one, gives the pieces that they add."""

    def __init__(self) -> None:
        self.over = False
        """Whether the server has said that nothing follows."""
        self.complete = False
        """Whether the server has said why the model has stopped."""
        self._reason = ""
        self._usage = Usage()
        self._pieces = 0
        self._texts = {name: Joiner() for name in ("content", "reasoning", "refusal")}
        self._tool_calls = ToolCalls()
        self._stray = ""

    def read(self, event: ServerEvent) -> dict[str, Any] | None:
        """What an event adds to the answer. Raises StreamError for a failure of the server."""
        data = event.data.strip()
        if data.startswith("[DONE]"):
            self.over = True
            return None
        try:
            chunk = _decoded(data) if data.startswith(("{", "[")) else data
        except InvalidChunk as error:
            if event.name not in ("", "message"):
                chunk = data
            else:
                raise _invalid(error, data) from None
        if event.name == "error":
            raise failure(chunk)
        if isinstance(chunk, str):  # A ping, or words that explain why the stream ends.
            self._stray = chunk
            return None
        if event.name not in ("", "message") and not _is_chunk(chunk):
            return None
        try:
            return self._piece(chunk)
        except InvalidChunk as error:
            raise _invalid(error, data) from None

    def finish(self, stray: str = "") -> Iterator[dict[str, Any]]:
        """What is held back, and the last piece. `stray` is what came outside of events.

        Raises StreamError if the answer is incomplete.
        """
        if not self.complete:
            words = stray or self._stray
            said = f"; it said: {words}" if words else ""
            raise StreamError(
                f"the model's server ended its answer without a finish_reason{said}", status=502
            )
        try:
            calls = self._tool_calls.finish()
        except InvalidChunk as error:
            raise StreamError(
                f"the model's server sent an invalid answer, {error}", status=502
            ) from None
        held = {name: joiner.finish() for name, joiner in self._texts.items()}
        if piece := self._as_piece(held, calls, None):
            yield piece
        usage = self._usage
        last = {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": self._done_reason(),
            "prompt_eval_count": usage.prompt,
            "eval_count": self._pieces if usage.completion is None else usage.completion,
        }
        if usage.reasoning is not None:
            last["reasoning_eval_count"] = usage.reasoning
        yield last

    def _done_reason(self) -> str:
        unknown = "tool_calls" if len(self._tool_calls) else "stop"
        return DONE_REASONS.get(self._reason, unknown)

    def _piece(self, chunk: Any) -> dict[str, Any] | None:
        if isinstance(chunk, list) and message_of(chunk):
            raise failure(chunk)
        if not isinstance(chunk, dict):
            raise InvalidChunk("which is not an object")
        choices = chunk.get("choices")
        if chunk.get("error") or (choices is None and _is_error(chunk)):
            raise failure(chunk)
        if not isinstance(choices, list | None):
            raise InvalidChunk("whose choices are not a list")
        choice = choices[0] if choices else {}
        if not isinstance(choice, dict):
            raise InvalidChunk("whose choice is not an object")
        if choice.get("error"):
            raise failure(choice)
        self._take_usage(chunk.get("usage") or choice.get("usage"))
        self._take_reason(choice.get("finish_reason"))
        delta = choice.get("delta") or choice.get("message") or {}
        if not isinstance(delta, dict):
            raise InvalidChunk("whose delta is not an object")
        content, thoughts = texts_in(delta.get("content"))
        reasoning = next((texts for name in REASONING if (texts := delta.get(name))), None)
        given = {
            "content": content,
            "reasoning": thoughts + "".join(texts_in(reasoning)),
            "refusal": "".join(texts_in(delta.get("refusal"))),
        }
        texts = {name: self._texts[name].feed(text) for name, text in given.items() if text}
        return self._as_piece(texts, self._tool_calls.read(delta), choice.get("logprobs"))

    def _as_piece(
        self, texts: dict[str, str], calls: list[dict[str, Any]], logprobs: Any
    ) -> dict[str, Any] | None:
        message: dict[str, Any] = {"role": "assistant", "content": texts.pop("content", "")}
        message |= {name: text for name, text in texts.items() if text}
        if calls:
            message["tool_calls"] = calls
        piece: dict[str, Any] = {"message": message, "done": False}
        if logprobs:
            piece["logprobs"] = as_json_value(logprobs)
        if not message["content"] and len(message) == 2 and not logprobs:
            return None
        self._pieces += 1
        return piece

    def _take_usage(self, usage: Any) -> None:
        if not usage:
            return
        if not isinstance(usage, dict):
            raise InvalidChunk(f"whose usage is of the type {type(usage).__name__}")
        details = usage.get("completion_tokens_details")
        self._usage = Usage(
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None,
        )

    def _take_reason(self, reason: Any) -> None:
        if not reason or reason == "null":
            return
        self._reason = str(reason).lower()
        if self._reason in FAILURES:
            raise StreamError(
                f"the model's server broke off its answer with the finish_reason {reason!r}"
            )
        self.complete = True


def failure(error: Any) -> StreamError:
    """What the server reports instead of the rest of an answer, with the status that it gives."""
    inner = error.get("error") if isinstance(error, dict) else None
    codes = [each.get(n) for each in (inner, error) if isinstance(each, dict) for n in CODES]
    status = next((c for c in codes if type(c) is int and 400 <= c <= 599), 502)
    return StreamError(f"the model's server failed: {described(error)}", status=status)


CODES = ("code", "status", "status_code")
"""The members of an error that may be an HTTP status."""


def _is_error(chunk: dict[str, Any]) -> bool:
    """Whether an object without choices is an error, and not a ping or a usage."""
    words = (chunk.get(name) for name in ("detail", "message", "errors"))
    return chunk.get("object") == "error" or any(w and isinstance(w, str | list) for w in words)


def _is_chunk(value: Any) -> bool:
    """Whether what an event of an unknown name has is part of the answer."""
    return isinstance(value, dict) and bool(value.get("choices") or value.get("error"))


def _invalid(error: InvalidChunk, data: str) -> StreamError:
    begin = data if len(data) <= 60 else f"{data[:60]}…"
    return StreamError(f"the model's server sent an invalid chunk, {error}: {begin}", status=502)


def _decoded(data: str) -> Any:
    """A JSON document. NaN and lone surrogates are allowed, as in Python's own."""
    try:
        return json.loads(data)
    except RecursionError:
        raise InvalidChunk("which is nested too deeply") from None
    except ValueError:
        raise InvalidChunk("which is not JSON") from None


def _count(value: Any) -> int | None:
    """A number of tokens; some servers send it as a text. Raises InvalidChunk."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    if value is None:
        return None
    if isinstance(value, int | float) and 0 <= value < 2**53:
        return int(value)
    raise InvalidChunk("whose usage has a count that is not a number of tokens")
