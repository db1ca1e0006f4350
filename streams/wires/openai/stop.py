"""Stop sequences, which end a text that comes in pieces."""

from collections.abc import Iterable


class StopSequences:
    """Passes a text on, up to the stop sequence that is complete first.

    Of several that are complete at the same character, the longest counts. What may be the
    beginning of a sequence is held back. Empty sequences are ignored. The work is proportional to
    the length of the text, however it is cut into pieces.
    """

    def __init__(self, sequences: Iterable[str]) -> None:
        self._searches = [_Search(sequence) for sequence in dict.fromkeys(sequences) if sequence]

    def feed(self, piece: str) -> tuple[str, bool]:
        """The text to pass on, and whether a sequence is complete."""
        if not self._searches:
            return piece, False
        # The longest beginning of a sequence contains the others.
        longest = max(self._searches, key=_matched)
        held, length = longest.sequence, longest.matched
        found = [(end, -s.size) for s in self._searches if (end := s.find(piece)) is not None]
        if found:
            passed = length + sum(min(found))
            self._reset()
        else:
            passed = length + len(piece) - max(map(_matched, self._searches))
        return held[: min(passed, length)] + piece[: max(passed - length, 0)], bool(found)

    def flush(self) -> str:
        """The text that was held back, at the end of the text."""
        if not self._searches:
            return ""
        longest = max(self._searches, key=_matched)
        held = longest.sequence[: longest.matched]
        self._reset()
        return held

    def _reset(self) -> None:
        for search in self._searches:
            search.matched = 0


class _Search:
    """Looks for one sequence (Knuth, Morris, Pratt 1977)."""

    def __init__(self, sequence: str) -> None:
        self.sequence = sequence
        self.size = len(sequence)
        self.matched = 0
        """So many characters at the end of the text are the beginning of the sequence."""
        # For each number of matched characters, how many match if the next character does not.
        self._fewer = [0, 0]
        for char in sequence[1:]:
            self._fewer.append(self._next(self._fewer[-1], char))

    def _next(self, matched: int, char: str) -> int:
        while matched and self.sequence[matched] != char:
            matched = self._fewer[matched]
        return matched + (self.sequence[matched] == char)

    def find(self, piece: str) -> int | None:
        """The position in a piece at which the sequence is complete; None if it is not."""
        begin = 0
        if len(piece) >= self.size:  # str.find is faster, and the rest is what may be a beginning.
            at = (self.sequence[: self.matched] + piece).find(self.sequence)
            if at >= 0:
                return at + self.size - self.matched
            begin, self.matched = len(piece) - self.size + 1, 0
        for at in range(begin, len(piece)):
            self.matched = self._next(self.matched, piece[at])
            if self.matched == self.size:
                return at + 1
        return None


def _matched(search: _Search) -> int:
    return search.matched
