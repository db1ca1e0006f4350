"""A model's source that reasons, calls tools and answers, and the app that serves it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from streams import Source, StreamError, Streams, source

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
"""A tool, as the Responses API has it."""


def piece(**message: Any) -> dict[str, Any]:
    """An event of a model's source."""
    return {"message": {"role": "assistant", "content": "", **message}, "done": False}


def done(reason: str = "stop", **counts: Any) -> dict[str, Any]:
    """The last event of a model's source."""
    return {**piece(), "done": True, "done_reason": reason, **counts}


def call(index: int, id_: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    """An event with a fragment of a tool call."""
    function = {"name": name, "arguments": arguments}
    return piece(tool_calls=[{"index": index, "id": id_, "type": "function", "function": function}])


class Agent:
    """The source of a model: it calls each tool once, and then says what it has been told.

    It waits before its last word while `gate` is not set.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[dict[str, Any]] = []
        """The arguments of each run."""
        self.closed = 0
        self.source = self._source()

    def app(self, **options: Any) -> Streams:
        """An app whose only model is this one."""
        return Streams(models={"agent": self.source}, page=False, **options)

    def _source(self) -> Source[..., Any]:
        @source(name="agent")
        async def agent(
            messages: list[dict[str, Any]],
            max_tokens: int | None = None,
            tools: list[dict[str, Any]] | None = None,
            response_format: dict[str, Any] | None = None,
            reasoning_effort: str | None = None,
            fail: str | None = None,
            refuse: int | None = None,
        ) -> AsyncIterator[Any]:
            self.asked.append({"messages": messages, "tools": tools, "format": response_format})
            if refuse is not None:
                raise StreamError("not today", status=refuse)
            try:
                if reasoning_effort is not None:
                    yield piece(reasoning="Let me ")
                    yield piece(reasoning="think.")
                if tools and messages[-1]["role"] != "tool":
                    for index, tool in enumerate(tools):
                        yield call(index, f"call_{index}", tool["function"]["name"], "")
                        for part in ('{"city":', '"Paris"}'):
                            yield call(index, None, None, part)
                    yield done("tool_calls", prompt_eval_count=9, eval_count=5)
                    return
                text = json.dumps({"city": "Paris"}) if response_format else _heard(messages)
                words = text.split(" ")
                for word in words[:-1]:
                    yield piece(content=f"{word} ")
                await self.gate.wait()
                if fail is not None:
                    raise StreamError(fail)
                yield piece(content=words[-1])
                yield done(prompt_eval_count=9, eval_count=len(words), reasoning_eval_count=2)
            finally:
                self.closed += 1

        return agent


def _heard(messages: list[dict[str, Any]]) -> str:
    return f"You said: {' / '.join(str(message['content']) for message in messages)}"
