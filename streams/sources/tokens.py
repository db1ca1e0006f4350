"""A mock LLM: the same pieces for the same seed, at a model's pace, with a model's failures.

The law of this file: what comes when follows from the parameters alone, so that the answer goes
on behind any of its events. Each piece has its moment, counted from the beginning: being late
with one delays no other.
"""

import unicodedata
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import groupby, islice
from random import Random
from typing import Annotated, Any

import anyio
from msgspec import Meta
from starlette.requests import Request

from streams import StreamError, source
from streams.sources.cut import CutConnection

REPLY = (
    "You asked: {prompt} Here is what a language model would do with that: think for a moment, "
    "then send its answer word by word, as each one is ready. This one only pretends, which "
    "makes it quick, free and always of the same opinion. Drop the connection, and the answer "
    "goes on where it was."
)

LONGEST = {"letters": 8, "digits": 3, "space": 10**9}
"""The most characters in a piece of each kind; every other kind of character is a piece alone."""

Text = Annotated[str, Meta(max_length=10**6)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
AtLeastOne = Annotated[int, Meta(ge=1, le=10**6)]
Count = Annotated[int, Meta(ge=0, le=10**6)]
Refusal = Annotated[int, Meta(ge=400, le=599)]


@source
async def tokens(
    prompt: Annotated[Text, Meta(description="What to ask the model")] = "",
    messages: Annotated[
        list[dict[str, Any]] | None, Meta(description="A conversation, instead of a prompt")
    ] = None,
    reply: Annotated[Text | None, Meta(description="Its answer; without, it makes one up")] = None,
    tokens_per_second: Annotated[float, Meta(gt=0, le=10_000, description="Pace")] = 25.0,
    first_token: Annotated[float, Meta(ge=0, le=600, description="Seconds before the first")] = 0.3,
    jitter: Annotated[float, Meta(ge=0, le=1, description="Irregularity of the pace")] = 0.2,
    seed: Annotated[int, Meta(ge=0, le=2**32, description="Same seed, same rhythm")] = 0,
    temperature: Annotated[
        Temperature | None, Meta(description="Changes nothing: real models take one")
    ] = None,
    max_tokens: Annotated[AtLeastOne | None, Meta(description="Cuts the answer short here")] = None,
    fail_after: Annotated[Count | None, Meta(description="Fails behind so many tokens")] = None,
    stall_after: Annotated[Count | None, Meta(description="Falls silent behind so many")] = None,
    drop_after: Annotated[
        Count | None, Meta(description="Cuts the connection once, behind so many, and goes on")
    ] = None,
    status: Annotated[Refusal | None, Meta(description="Refuses with this HTTP status")] = None,
    *,
    request: Request | None = None,
    after: int = 0,
) -> AsyncIterator[dict[str, Any]]:
    """A mock LLM that answers a prompt, token by token, and fails as it is told."""
    if status is not None:
        retry_after = 1 if status in (429, 503) else None
        detail = f"the mock refuses with status {status}, as told"
        raise StreamError(detail, status=status, retry_after=retry_after)
    if fail_after is not None and after > fail_after:
        return  # all is out, the failure too
    if request is not None and drop_after is not None and (after == 0 or after < drop_after):
        cut = partial(CutConnection, pieces=drop_after - after)
        request.scope["streams.middleware"] = cut

    asked = prompt if messages is None else last_text(messages)
    answer = list(pieces(reply if reply is not None else REPLY.format(prompt=quoted(asked))))
    kept = answer[:max_tokens]
    moments = schedule(len(kept), first_token, tokens_per_second, jitter, seed)
    origin = anyio.current_time() - (moments[after - 1] if 0 < after <= len(moments) else 0)
    for number in range(after, len(moments)):
        await anyio.sleep_until(origin + moments[number])
        if fail_after is not None and number >= fail_after:
            raise StreamError(f"the mock failed behind {number} tokens, as told")
        if stall_after is not None and number >= stall_after:
            await anyio.sleep_forever()
        if number < len(kept):
            yield {"message": {"role": "assistant", "content": kept[number]}, "done": False}
        else:
            yield {
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "stop" if len(kept) == len(answer) else "length",
                "prompt_eval_count": sum(1 for _ in pieces(asked)),
                "eval_count": len(kept),
            }


def schedule(count: int, first: float, per_second: float, jitter: float, seed: int) -> list[float]:
    """The moments, in seconds from the beginning, of `count` tokens and of what ends them."""
    random = Random(seed)
    early_or_late = [random.uniform(-jitter / 2, jitter / 2) for _ in range(1, count)]
    return [
        first + (number + offset) / per_second
        for number, offset in enumerate([0.0, *early_or_late, 0.0][: count + 1])
    ]


def quoted(text: str, length: int = 200) -> str:
    """A prompt, or as much of it as anyone wants to hear again."""
    begin = "".join(islice(characters(text), length))
    return begin + "…" if begin != text else text or "nothing."


def last_text(messages: list[dict[str, Any]]) -> str:
    """The text of a conversation's last message, all its parts together."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def pieces(text: str) -> Iterator[str]:
    """A text as a model would send it: short words whole, long ones in parts, a space with what
    follows it, and nothing torn that is one character to a reader.
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
    """What a reader takes for one character each: a letter with its accents, an emoji of many
    parts, a flag; nearly the clusters of Unicode's annex 29.
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
        or "\U000e0020" <= char <= "\U000e007f"  # tags, of the flags of regions
        or (len(character) == 1 and _is_half_a_flag(character) and _is_half_a_flag(char))
        or character + char == "\r\n"
    )


def _is_half_a_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    if unicodedata.east_asian_width(character[0]) in "WF":
        return "wide"
    if character[0].isalpha():
        return "letters"
    return "digits" if character[0].isdigit() else "other"
