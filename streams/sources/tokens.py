"""A mock LLM: it sends an answer in pieces, at a model's pace, and fails on request.

Invariants:

1. The parameters alone determine every piece and its time, so an answer can restart after any
   event, unless pieces are joined.
2. Times count from the start of the answer: a late piece does not delay the next one.
"""

import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from itertools import groupby, islice
from random import Random
from typing import Annotated, Any

import anyio
from msgspec import Meta
from starlette.requests import Request

from streams import StreamError, join_text, joined, source
from streams.sources.cut import CutConnection

REPLY = (
    "You asked: {prompt} Here is what a language model would do with that: think for a moment, "
    "then send its answer word by word, as each one is ready. This one only pretends, which "
    "makes it quick, free and always of the same opinion. Drop the connection, and the answer "
    "continues where it stopped."
)

FAILURE_SECONDS = 0.01

LONGEST = {"letters": 8, "digits": 3, "space": 10**9}
"""Longest piece per kind of character; a character of any other kind is a piece of its own."""

Text = Annotated[str, Meta(max_length=10**6)]
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
    reply: Annotated[Text | None, Meta(description="The answer; default: a made-up one")] = None,
    tokens_per_second: Annotated[float, Meta(gt=0, le=10_000, description="Pace")] = 25.0,
    first_token: Annotated[
        float, Meta(ge=0, le=600, description="Seconds before the first token")
    ] = 0.3,
    jitter: Annotated[float, Meta(ge=0, le=1, description="Irregularity of the pace")] = 0.2,
    seed: Annotated[
        int, Meta(ge=-(2**53), le=2**53, description="The same seed, the same rhythm")
    ] = 0,
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

    question = prompt if messages is None else last_text(messages)
    answer = list(pieces(reply if reply is not None else REPLY.format(prompt=quoted(question))))
    kept = answer[:max_tokens]
    last = {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop" if len(kept) == len(answer) else "length",
        "prompt_eval_count": sum(1 for _ in pieces(question)),
        "eval_count": len(kept),
    }
    times = schedule(len(kept), first_token, tokens_per_second, jitter, seed)
    events = timed(kept, last, times, fail_after, stall_after, after)
    async with aclosing(joined(events, every, merge=join_text) if every else events) as paced:
        async for event in paced:
            yield event


async def timed(
    kept: list[str],
    last: dict[str, Any],
    times: list[float],
    fail_after: int | None,
    stall_after: int | None,
    after: int,
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of an answer after the first `after`, each at its time."""
    origin = anyio.current_time() - (times[after - 1] if 0 < after <= len(times) else 0)
    for number in range(after, len(times)):
        await anyio.sleep_until(origin + times[number])
        if fail_after is not None and number >= fail_after:
            # Without a pause, a failure at the first token would be a status before the stream.
            await anyio.sleep(FAILURE_SECONDS)
            raise StreamError(f"the mock failed after {number} tokens, as requested")
        if stall_after is not None and number >= stall_after:
            await anyio.sleep_forever()
        if number < len(kept):
            yield {"message": {"role": "assistant", "content": kept[number]}, "done": False}
        else:
            yield last


def schedule(count: int, first: float, per_second: float, jitter: float, seed: int) -> list[float]:
    """The times of `count` tokens and of the final event, in seconds from the start."""
    random = Random(seed)
    early_or_late = [random.uniform(-jitter / 2, jitter / 2) for _ in range(1, count)]
    return [
        first + (number + offset) / per_second
        for number, offset in enumerate([0.0, *early_or_late, 0.0][: count + 1])
    ]


def quoted(text: str, length: int = 200) -> str:
    """The prompt, cut after `length` characters; "nothing." if it is empty."""
    begin = "".join(islice(characters(text), length))
    return begin + "…" if begin != text else text or "nothing."


def last_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last message in a conversation, with all its parts joined."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def pieces(text: str) -> Iterator[str]:
    """Splits a text as a model does: it splits only long words, puts a space in front of the next
    word, and keeps every user-perceived character whole.
    """
    space = ""
    for kind, group in groupby(characters(text), key=_kind):
        run = list(group)
        longest = LONGEST.get(kind, 1)
        parts = -(-len(run) // longest)
        for part in range(parts):
            begin, end = len(run) * part // parts, len(run) * (part + 1) // parts
            piece = space + "".join(run[begin:end])
            space = ""
            if kind == "space" and piece.endswith(" "):
                piece, space = piece[:-1], " "
            if piece:
                yield piece
    if space:
        yield space


def characters(text: str) -> Iterator[str]:
    """The user-perceived characters of a text: a letter with its accents, an emoji with its parts,
    a flag. They are almost the grapheme clusters of Unicode Standard Annex 29.
    """
    character = ""
    for char in text:
        if character and _continues(character, char):
            character += char
        else:
            if character:
                yield character
            character = char
    if character:
        yield character


def _continues(character: str, char: str) -> bool:
    return (
        unicodedata.category(char) in ("Mn", "Mc", "Me")  # accents, variation selectors
        or char in "\u200c\u200d"
        or character[-1] == "\u200d"
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= char <= "\U000e007f"  # tags, in flags of regions
        or (
            len(character) == 1
            and _is_regional_indicator(character)
            and _is_regional_indicator(char)
        )
        or character + char == "\r\n"
    )


def _is_regional_indicator(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    if unicodedata.east_asian_width(character[0]) in "WF":
        return "wide"
    if character[0].isalpha():
        return "letters"
    return "digits" if character[0].isdigit() else "other"
