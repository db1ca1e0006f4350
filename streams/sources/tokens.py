"""A mock LLM: it sends an answer in pieces, at a model's pace, and fails on request.

Invariants:

1. The parameters alone determine every piece and its time, so an answer can restart after any
   event, unless pieces are joined.
2. Times count from the start of the answer: a late piece does not delay the next one.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from itertools import count, islice
from random import Random
from typing import Annotated, Any

import anyio
from msgspec import Meta, Struct
from starlette.requests import Request

from streams import StreamError, join_text, joined, source
from streams.sources.cut import CutConnection
from streams.sources.pieces import Turns
from streams.sources.turns import (
    Conversation,
    Effort,
    Model,
    Reply,
    ResponseFormat,
    Text,
    ToolChoice,
    Tools,
    count_prompt,
    deltas,
)

FAILURE_SECONDS = 0.01

SKIPPED = 100
"""Work for an event that is not sent again, in the measure of Turns."""

Temperature = Annotated[float, Meta(ge=0, le=2)]
AtLeastOne = Annotated[int, Meta(ge=1, le=10**6)]
Count = Annotated[int, Meta(ge=0, le=10**6)]
ErrorStatus = Annotated[int, Meta(ge=400, le=599)]


@source(restartable=lambda arguments: not arguments["every"])
async def tokens(
    prompt: Annotated[Text, Meta(description="What to ask the model")] = "",
    messages: Annotated[
        list[dict[str, Any]] | None, Meta(description="A conversation, instead of a prompt")
    ] = None,
    reply: Annotated[
        Reply | None,
        Meta(description="The answer, or a list of turns, one after each result of a tool"),
    ] = None,
    tools: Annotated[
        Tools | None, Meta(description="Tools; the first is called, unless `reply` is set")
    ] = None,
    tool_choice: Annotated[
        ToolChoice | None, Meta(description="auto, none, required, or the tool to call")
    ] = None,
    response_format: Annotated[
        ResponseFormat | None, Meta(description="The form of the answer, such as a JSON Schema")
    ] = None,
    reasoning_effort: Annotated[
        Effort | None, Meta(description="How much to reason before the answer")
    ] = None,
    tokens_per_second: Annotated[float, Meta(gt=0, le=10_000, description="Pace")] = 25.0,
    first_token: Annotated[
        float, Meta(ge=0, le=600, description="Seconds before the first token")
    ] = 0.3,
    jitter: Annotated[float, Meta(ge=0, le=1, description="Irregularity of the pace")] = 0.2,
    seed: Annotated[int, Meta(description="The same seed, the same rhythm")] = 0,
    every: Annotated[
        float, Meta(ge=0, le=10, description="Join tokens that come within these seconds; 0: none")
    ] = 0.0,
    temperature: Annotated[
        Temperature | None, Meta(description="Ignored; accepted because real models have it")
    ] = None,
    max_tokens: Annotated[AtLeastOne | None, Meta(description="Longest answer, in tokens")] = None,
    fail_after: Annotated[
        Count | None, Meta(description="Fail with an error after this many tokens")
    ] = None,
    stall_after: Annotated[
        Count | None, Meta(description="Send nothing more after this many tokens")
    ] = None,
    drop_after: Annotated[
        Count | None,
        Meta(description="Cut the connection once, after this many tokens; the run continues"),
    ] = None,
    status: Annotated[
        ErrorStatus | None, Meta(description="Refuse the request with this HTTP status")
    ] = None,
    *,
    request: Request | None = None,
    after: int = 0,
) -> AsyncIterator[dict[str, Any]]:
    """A mock LLM that answers a prompt token by token, and fails on request."""
    if status is not None:
        retry_after = 1 if status in (429, 503) else None
        detail = f"the mock refuses with status {status}, as requested"
        raise StreamError(detail, status=status, retry_after=retry_after)
    if fail_after is not None and after > fail_after:
        return  # The log already contains the failure.
    if request is not None and drop_after is not None:
        request.scope["streams.middleware"] = partial(CutConnection, pieces=drop_after)

    start, turns = anyio.current_time(), Turns()
    conversation = Conversation(prompt)
    if messages is not None:
        conversation = await Conversation.read(messages, turns)
    choice = tool_choice or "auto"
    model = Model(conversation, tools or [], choice, response_format, reasoning_effort, turns)
    turn = await model.turn(reply)
    calls = await model.calls(turn)
    answer = Answer(
        deltas(turn, calls),
        done_reason="tool_calls" if calls else "stop",
        prompt_tokens=await count_prompt(prompt, messages, tools or [], turns),
        max_tokens=max_tokens,
    )
    pace = Pace(first_token, tokens_per_second, jitter, seed)
    events = timed(answer, pace, start, turns, fail_after, stall_after, after)
    async with aclosing(joined(events, every, merge=join_text) if every else events) as paced:
        async for event in paced:
            yield event


class Answer(Struct, frozen=True):
    """The answer that the mock gives, before it is cut at `max_tokens`."""

    deltas: Iterator[dict[str, Any]]
    done_reason: str
    prompt_tokens: int
    max_tokens: int | None

    def events(self) -> Iterator[dict[str, Any]]:
        """Each piece, then how the answer ended. They are made one by one."""
        number = reasoning = 0
        for delta in islice(self.deltas, self.max_tokens):
            number += 1
            reasoning += "reasoning" in delta
            yield {"message": {"role": "assistant", **delta}, "done": False}
        is_whole = next(self.deltas, None) is None
        yield {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": self.done_reason if is_whole else "length",
            "prompt_eval_count": self.prompt_tokens,
            "eval_count": number,
            **({"reasoning_eval_count": reasoning} if reasoning else {}),
        }


class Pace(Struct, frozen=True):
    """When the pieces of an answer are due, in seconds from its start."""

    first: float
    per_second: float
    jitter: float
    seed: int

    def due(self, number: float) -> float:
        """When an event is due without jitter, as the last one is."""
        return self.first + number / self.per_second

    def times(self) -> Iterator[float]:
        random = Random(self.seed)
        yield self.first
        for number in count(1):
            yield self.due(number + random.uniform(-self.jitter / 2, self.jitter / 2))


async def timed(
    answer: Answer,
    pace: Pace,
    start: float,
    turns: Turns,
    fail_after: int | None,
    stall_after: int | None,
    after: int,
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of an answer after the first `after`, each at its time.

    The others have been sent before, the last of them at `start`.
    """
    origin, times = start, pace.times()
    for number, event in enumerate(answer.events()):
        due = pace.due(number) if event["done"] else next(times)
        if number < after:
            origin = start - due
            await turns.after(SKIPPED)
            continue
        await anyio.sleep_until(origin + due)
        if fail_after is not None and number >= fail_after:
            # Without a pause, a failure at the first token would be a status before the stream.
            await anyio.sleep(FAILURE_SECONDS)
            raise StreamError(f"the mock failed after {number} tokens, as requested")
        if stall_after is not None and number >= stall_after:
            await anyio.sleep_forever()
        yield event
