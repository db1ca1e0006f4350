"""Stop sequences: which one ends a text, what is passed on, and what the search costs."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.wires.openai.stop import StopSequences


def passed_of(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What is passed on of a text, and whether a sequence has ended it."""
    sequences, passed = StopSequences(stops), ""
    for piece in pieces:
        text, stopped = sequences.feed(piece)
        passed += text
        if stopped:
            return passed + sequences.flush(), True
    return passed + sequences.flush(), False


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The same, for a whole text, by looking at every character for every sequence."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


PIECES = st.lists(st.text("ab", max_size=5), max_size=12)
STOPS = st.lists(st.text("ab", max_size=5), max_size=4)


@given(PIECES, STOPS)
@example(["a", "a", "a", "b"], ["aab"])
@example(["xa", "abcd"], ["aab"])
@example(["aba", "bb"], ["babb", "bb"])
def test_a_text_ends_at_the_first_complete_sequence_however_it_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    assert passed_of(pieces, stops) == expected("".join(pieces), stops)


@given(PIECES, STOPS)
@example(["aab"], ["aac"])
def test_only_what_may_be_the_beginning_of_a_sequence_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    sequences, text, passed = StopSequences(stops), "", ""
    for piece in pieces:
        more, stopped = sequences.feed(piece)
        text, passed = text + piece, passed + more
        if stopped:
            break
        held = text.removeprefix(passed)
        assert any(stop.startswith(held) and stop != held for stop in stops) or not held


class Counted(str):
    """A sequence that counts how often a search looks at it."""

    looks = 0

    def __getitem__(self, index: Any) -> str:
        Counted.looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("size", [1, 7, 1000, 3000])
def test_the_work_is_proportional_to_the_text(size: int) -> None:
    stops = ["a" * 999 + "b", "a" * 500 + "ba", "ab" * 499 + "aa", "a" * 1000]
    text = ("a" * 998 + "c" + "ab" * 498 + "c") * 20
    sequences = StopSequences(map(Counted, stops))
    Counted.looks, passed = 0, 0
    for at in range(0, len(text), size):
        more, stopped = sequences.feed(text[at : at + size])
        assert not stopped
        passed += len(more)
    assert len(text) - passed < 1000
    assert Counted.looks <= len(stops) * 4 * len(text)
