"""How the mock cuts a text into pieces, counts tokens, and gives the event loop its turns."""

import asyncio
import unicodedata
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.sources.pieces import (
    LONGEST_CHARACTER,
    LONGEST_RUN,
    TURN,
    Turns,
    characters,
    count_tokens,
    pieces,
)


def test_a_text_is_split_as_a_model_splits_it() -> None:
    assert list(pieces("Isn't it extraordinary? 12345!\n\nYes ")) == [
        "Isn", "'", "t", " it", " extrao", "rdinary", "?", " 12", "345", "!", "\n\n", "Yes", " ",
    ]  # fmt: skip
    assert list(pieces("你好, 世界")) == ["你", "好", ",", " 世", "界"]


@pytest.mark.parametrize(
    "one",
    [
        "é",  # with a combining accent
        "👩‍👩‍👧‍👦",
        "👍🏽",
        "🇩🇪",
        "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
        "❤️",
        "1️⃣",
        "क्षि",
    ],
)
def test_a_user_perceived_character_is_never_split(one: str) -> None:
    text = f"{one}{one}a {one}, 你{one}"
    assert sum(piece.count(one) for piece in pieces(text)) == text.count(one)


@given(st.text())
def test_the_pieces_of_a_text_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert "".join(characters(text)) == text
    assert all(pieces(text))
    for piece in list(pieces(text))[1:]:
        assert unicodedata.category(piece[0]) not in ("Mn", "Mc", "Me")


@pytest.mark.parametrize("one", ["a", " ", "1", ".", "你", "e\u0301", "e" + "\u0301" * 200, "\r\n"])
def test_a_piece_is_short_whatever_the_text_is(one: str) -> None:
    text = one * 5000
    longest = max(map(len, pieces(text)))
    assert longest <= 1 + LONGEST_RUN * min(len(one), LONGEST_CHARACTER)
    assert "".join(pieces(text)) == text


def test_a_character_with_too_many_accents_is_split() -> None:
    assert list(characters("e" + "\u0301" * LONGEST_CHARACTER)) == [
        "e" + "\u0301" * (LONGEST_CHARACTER - 1),
        "\u0301",
    ]


class CountedText(str):
    """Counts the code points that are read of it."""

    read = 0

    def __iter__(self) -> Iterator[str]:
        for char in str.__iter__(self):
            self.read += 1
            yield char


def test_pieces_are_cut_one_by_one() -> None:
    text = CountedText("word " * 10_000)
    cut = pieces(text)
    next(cut)
    assert text.read <= 1 + LONGEST_RUN


@pytest.mark.parametrize("work", [1, 7, TURN, 5 * TURN])
async def test_the_loop_gets_a_turn_after_enough_work(work: int) -> None:
    turns, others = Turns(), 0

    async def count_turns() -> None:
        nonlocal others
        while True:
            others += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        await anyio.lowlevel.checkpoint()
        before = others
        for _ in range(10 * TURN // work):
            await turns.after(work)
        assert others - before >= 10 * TURN // max(work, TURN + work)
        group.cancel_scope.cancel()


def counted(text: str) -> int:
    return asyncio.run(count_tokens(text, Turns()))


@given(st.lists(st.sampled_from(["Isn't", "it", "extraordinarily", "12345", "!", "(a)", "x_y"])))
@example([])
def test_the_tokens_of_a_prompt_are_as_many_as_its_pieces(words: list[str]) -> None:
    text = " ".join(words)
    assert counted(text) == sum(1 for _ in pieces(text))


@given(st.text())
def test_the_tokens_of_any_text_are_at_most_its_code_points(text: str) -> None:
    assert counted(text) <= len(text)


def test_east_asian_characters_are_a_token_each() -> None:
    assert counted("你好世界") == 4
    assert counted("안녕") == 2
