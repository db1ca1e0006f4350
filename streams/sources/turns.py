"""The mock model's turn in a conversation: a text, reasoning, or tool calls.

Invariant: the parameters of the request alone determine a turn, ids of tool calls included.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from streams.errors import InvalidParameters, abbreviated
from streams.sources.example import example
from streams.sources.pieces import TEXT, Turns, characters, count_tokens, pieces
from streams.sources.schema import Budget, NoExample

REPLY = (
    "You asked: {prompt} Here is what a language model would do with that: think for a moment, "
    "then send its answer word by word, as each one is ready. This one only pretends, which "
    "makes it quick, free and always of the same opinion. Drop the connection, and the answer "
    "continues where it stopped."
)
REPLY_TO_RESULTS = (
    "You asked: {prompt} The tools have answered: {results} A language model would now say what "
    "that means. This one only pretends."
)
REASONING = (
    "The question is: {prompt} ",
    "I should first find out what it is about. ",
    "There may be a simple answer. I compare it with the others that I know. ",
    "Before I answer, I check each step again. ",
)
REASONING_PARTS = {"low": 1, "medium": 2, "high": 3, "xhigh": 4}

QUOTED = 200
QUOTED_PARTS = 100

Text = Annotated[str, Meta(max_length=10**6)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Call(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A call of a tool. A text as arguments is sent as it is, even if it is invalid JSON; without
    arguments, they are made from the schema of the tool of that name.
    """

    name: Name
    arguments: dict[str, Any] | Text | None = None


class Turn(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a model says in one answer, in this order."""

    reasoning: Text = ""
    content: Text = ""
    refusal: Text = ""
    tool_calls: Annotated[list[Call], Meta(max_length=128)] = []


class Function(Struct):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Struct):
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


Reply = Text | Annotated[list[Text | Turn], Meta(min_length=1, max_length=1000)]
Tools = Annotated[list[Tool], Meta(max_length=128)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class Conversation:
    """What the mock takes from the messages.

    `results` counts the results of tools; `round` those since the last question; `answered` are the
    newest ones, if no answer follows them.
    """

    def __init__(self, prompt: str) -> None:
        self.question = quoted(prompt)
        self.messages = 1
        self.results = 0
        self.round = 0
        self.answered: list[str] = []

    @classmethod
    async def read(cls, messages: list[dict[str, Any]], turns: Turns) -> "Conversation":
        self = cls("")
        self.messages = len(messages)
        asked: dict[str, Any] = {}
        for message in messages:
            await turns.after(TEXT)
            role = message.get("role", "user")
            if role == "tool":
                self.results += 1
                self.round += 1
                if len(self.answered) < QUOTED_PARTS:
                    self.answered.append(quoted(beginning(message)))
            elif role == "assistant":
                self.answered = []
            elif role == "user":
                asked = message
                if not self.answered:
                    self.round = 0
        self.question = quoted(beginning(asked))
        return self


async def count_prompt(
    prompt: str, messages: list[dict[str, Any]] | None, tools: list[Tool], turns: Turns
) -> int:
    """The tokens of a whole conversation: its texts, tool calls and results, and the tools."""
    texts = (text for message in messages for text in texts_of(message)) if messages else [prompt]
    count = 0
    for text in texts:
        count += await count_tokens(text, turns)
    if tools:
        count += await count_tokens(msgspec.json.encode(tools).decode(), turns)
    return count


def texts_of(message: dict[str, Any]) -> Iterator[str]:
    """The texts of a message, part by part, and of its tool calls; "" for a part without text."""
    content = message.get("content")
    yield content if isinstance(content, str) else ""
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        yield text if isinstance(text, str) else ""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        for value in function.values() if isinstance(function, dict) else ():
            yield value if isinstance(value, str) else ""


def beginning(message: dict[str, Any]) -> str:
    """The text of a message, as far as it may be quoted."""
    content = {"content": message.get("content")}
    return "".join(islice(texts_of(content), QUOTED_PARTS))


def quoted(text: str) -> str:
    """A text, cut after 200 characters; "nothing." if it is empty."""
    begin = "".join(islice(characters(text), QUOTED))
    return begin + "…" if begin != text else text or "nothing."


class Model:
    """Makes the turns: those that the request sets, or some that fit what it asks for."""

    def __init__(
        self,
        conversation: Conversation,
        tools: list[Tool],
        choice: ToolChoice,
        response_format: ResponseFormat | None,
        effort: Effort | None,
        turns: Turns,
    ) -> None:
        self._conversation = conversation
        self._tools = {tool.function.name: tool.function for tool in tools}
        self._choice = choice
        self._format = response_format
        self._effort = effort
        self._budget = Budget(turns)
        self._check()

    def _check(self) -> None:
        known = ", ".join(map(abbreviated, [*self._tools][:20])) or "none"
        if isinstance(self._choice, NamedTool):
            if (name := self._choice.function.name) not in self._tools:
                raise invalid(
                    "tool_choice", f"there is no tool {abbreviated(name)}; tools: {known}"
                )
        elif self._choice == "required" and not self._tools:
            raise invalid("tool_choice", "is 'required', and there are no tools; give `tools`")
        given = self._format
        if given is not None and given.type == "json_schema" and given.json_schema is None:
            raise invalid("response_format", "has the type 'json_schema' without a `json_schema`")

    async def turn(self, reply: Reply | None) -> Turn:
        """The turn to take now. Raises InvalidParameters if no value fits a schema."""
        if isinstance(reply, str):
            return Turn(content=reply)
        if reply is not None:
            return self._chosen(reply)
        reasoning = "".join(REASONING[: REASONING_PARTS.get(self._effort or "", 0)])
        reasoning = reasoning.format(prompt=self._conversation.question)
        if tool := self._next_tool():
            return Turn(reasoning=reasoning, tool_calls=[Call(tool)])
        return Turn(reasoning=reasoning, content=await self._text())

    def _chosen(self, reply: list[str | Turn]) -> Turn:
        """The first turn after those whose calls have results; at the end, the last turn."""
        results = self._conversation.results
        for each in reply:
            turn = Turn(content=each) if isinstance(each, str) else each
            results -= max(1, len(turn.tool_calls))
            if results < 0:
                break
        return turn

    def _next_tool(self) -> str | None:
        """The tool to call. One that must be called, however often, is the next one each time:
        agents end with the last.
        """
        if isinstance(self._choice, NamedTool):
            return self._choice.function.name
        names = [*self._tools]
        if self._choice == "required":
            return names[min(self._conversation.round, len(names) - 1)]
        if self._choice == "none" or self._conversation.answered or not names:
            return None
        return names[0]

    async def _text(self) -> str:
        conversation = self._conversation
        results = " ".join(conversation.answered)
        text = (REPLY_TO_RESULTS if results else REPLY).format(
            prompt=conversation.question, results=results
        )
        if self._format is None or self._format.type == "text":
            return text
        form = self._format.json_schema
        if form is None or form.schema is None:
            return encoded({"answer": text})
        return encoded(await self._example("response_format", form.schema))

    async def calls(self, turn: Turn) -> list[dict[str, Any]]:
        """The tool calls of a turn, whole. Raises InvalidParameters like `turn`."""
        calls = []
        for index, call in enumerate(turn.tool_calls):
            function = {"name": call.name, "arguments": await self._arguments(call)}
            id_ = f"call_{self._conversation.messages}_{index}"
            calls.append({"index": index, "id": id_, "type": "function", "function": function})
        return calls

    async def _arguments(self, call: Call) -> str:
        if isinstance(call.arguments, str):
            return call.arguments
        if call.arguments is not None:
            return encoded(call.arguments)
        tool = self._tools.get(call.name)
        if tool is None or tool.parameters is None:
            return "{}"
        value = await self._example("tools", {"type": "object", **tool.parameters})
        if not isinstance(value, dict):
            detail = f"the parameters of {abbreviated(call.name)} are no schema of an object"
            raise invalid("tools", detail)
        return encoded(value)

    async def _example(self, parameter: str, schema: dict[str, Any]) -> Any:
        try:
            return await example(schema, self._budget)
        except NoExample as error:
            raise invalid(parameter, f"the mock finds no value for the schema: {error}") from None


def deltas(turn: Turn, calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each piece of an answer adds to its message, cut piece by piece."""
    for kind in ("reasoning", "content", "refusal"):
        for piece in pieces(getattr(turn, kind)):
            yield {"content": "", kind: piece}
    for call in calls:
        function = call["function"]
        start = {**call, "function": {**function, "arguments": ""}}
        yield {"content": "", "tool_calls": [start]}
        for piece in pieces(function["arguments"]):
            fragment = {"index": call["index"], "function": {"arguments": piece}}
            yield {"content": "", "tool_calls": [fragment]}


def encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def invalid(parameter: str, detail: str) -> InvalidParameters:
    error = {"name": parameter, "detail": detail}
    return InvalidParameters(f"{parameter}: {detail}", errors=[error])
