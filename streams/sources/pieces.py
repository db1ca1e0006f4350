"""A text in pieces, cut as a model's tokens are.

Invariants:

1. The pieces of a text, joined, are the text.
2. The work and the length of one step are bounded, whatever the text is: a text of a megabyte can
   be cut between the turns of an event loop. See Turns.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby, islice

import anyio.lowlevel

LONGEST = {"letters": 8, "digits": 3, "space": 64}
"""Longest piece per kind of character; a character of any other kind is a piece of its own."""

LONGEST_RUN = 64
"""A longer word is cut here first, and then into pieces."""

LONGEST_CHARACTER = 32
"""Code points. Text in a natural language has fewer (Unicode Standard Annex 15, section 13)."""

TURN = 1000
"""Code points, or other steps that take about a microsecond, between two turns of the loop."""

TEXT = 5
"""The work for a text, apart from that for its characters."""

COUNTED_AT_ONCE = 4 * TURN

TOKEN = re.compile(
    "[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff]"  # East Asian
    r"|[^\W\d_]{1,8}|\d{1,3}|[^\w\s]|_|[^\S ]\s{0,63}| \s{1,63}"
)
"""What counts as one token of a prompt. The space in front of a word is part of its token."""


class Turns:
    """Gives the event loop a turn whenever a source has worked for a while."""

    def __init__(self) -> None:
        self._worked = 0

    async def after(self, work: int) -> None:
        """Counts work, in code points or steps, and waits for a turn if it is enough."""
        self._worked += work
        if self._worked >= TURN:
            self._worked = 0
            await anyio.lowlevel.checkpoint()


async def count_tokens(text: str, turns: Turns) -> int:
    """About as many as `pieces` would cut, found at a twentieth of its cost."""
    count = 0
    await turns.after(TEXT)
    for begin in range(0, len(text), COUNTED_AT_ONCE):
        part = text[begin : begin + COUNTED_AT_ONCE]
        count += len(TOKEN.findall(part))
        await turns.after(len(part) // 4)
    return count


def pieces(text: str) -> Iterator[str]:
    """Cuts a text as a model does: it cuts only long words, puts a space in front of the next
    word, and keeps every user-perceived character whole.
    """
    space = ""
    for kind, group in groupby(characters(text), key=_kind):
        longest = LONGEST.get(kind, 1)
        while run := list(islice(group, LONGEST_RUN)):
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
        if character and _continues(character, char) and len(character) < LONGEST_CHARACTER:
            character += char
        else:
            if character:
                yield character
            character = char
    if character:
        yield character


def _continues(character: str, char: str) -> bool:
    if char < "\u0300" and character[-1] != "\u200d":  # A shortcut for most of the text.
        return char == "\n" and character == "\r"
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
    )


def _is_regional_indicator(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


@lru_cache(maxsize=1000)
def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    if unicodedata.east_asian_width(character[0]) in "WF":
        return "wide"
    if character[0].isalpha():
        return "letters"
    return "digits" if character[0].isdigit() else "other"
