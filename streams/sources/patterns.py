"""A text that matches a regular expression, as far as this small generator understands it.

It takes the first alternative, the fewest repetitions, and a readable character of a class. It
ignores lookarounds and flags. It never runs the expression, which could take for ever; so it does
not know whether the text matches.
"""

import re
import warnings
from re import _parser  # type: ignore[attr-defined]
from typing import Any

LONGEST_PATTERN = 1000
MOST_STEPS = 500
LONGEST_TEXT = 1000
CLASSES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
READABLE = "aA0-_.,:;/@#+ "


class _Unknown(Exception):
    """The expression is one that this generator does not understand, or is too much work."""


def matching(pattern: str, shortest: int, longest: int) -> str | None:
    """A text of `shortest` to `longest` characters for a pattern; None if none is found."""
    if len(pattern) > LONGEST_PATTERN or shortest > LONGEST_PATTERN:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            parsed = _parser.parse(pattern)
        writer = _Writer()
        text = writer.write(parsed, 0)
        missing = shortest - len(text)
        for parts in range(1, 4):  # as many repetitions that can be longer
            if shortest <= len(text) <= longest:
                return text
            text = writer.write(parsed, max(0, -(-missing // parts)))
    except (re.error, RecursionError, OverflowError, _Unknown):
        return None
    return text if shortest <= len(text) <= longest else None


class _Writer:
    def __init__(self) -> None:
        self._steps = 0
        self._groups: dict[int, str] = {}
        self._members: dict[int, str] = {}

    def write(self, parsed: Any, more: int) -> str:
        """The text of a parsed expression, each repetition `more` times more often than it must."""
        text = ""
        self._step()
        for operation, argument in parsed:
            self._step()
            text += self._one(str(operation), argument, more)
            if len(text) > LONGEST_TEXT:  # Groups that repeat groups double it with each step.
                raise _Unknown
        return text

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise _Unknown

    def _one(self, operation: str, argument: Any, more: int) -> str:
        match operation, argument:
            case "LITERAL", code:
                return chr(code)
            case "NOT_LITERAL", code:
                return next(char for char in READABLE if ord(char) != code)
            case "ANY", _:
                return READABLE[0]
            case "IN", members:
                if id(members) not in self._members:
                    self._members[id(members)] = _member(members)
                return self._members[id(members)]
            case "BRANCH", (_, branches):
                return self.write(branches[0], more)
            case "SUBPATTERN", (group, _, _, parsed):
                self._groups[group] = text = self.write(parsed, more)
                return text
            case "ATOMIC_GROUP", parsed:
                return self.write(parsed, more)
            case "GROUPREF", group:
                return self._groups.get(group, "")
            case (("MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT"), (least, most, parsed)):
                count = min(int(most), least + more)
                return "".join(self.write(parsed, more) for _ in range(count))
            case (("AT" | "ASSERT" | "ASSERT_NOT"), _):
                return ""
        raise _Unknown


def _member(members: Any) -> str:
    """A character of a class."""
    if str(members[0][0]) != "NEGATE":
        operation, argument = members[0]
        if str(operation) == "LITERAL":
            return chr(argument)
        if str(operation) == "RANGE":
            return chr(argument[0])
    class_ = re.compile(_class_of(members))
    for char in READABLE:
        if class_.fullmatch(char):
            return char
    raise _Unknown


def _class_of(members: Any) -> str:
    """The members of a class as an expression for one character, which is quick to match."""
    parts = []
    for operation, argument in members:
        match str(operation), argument:
            case "NEGATE", _:
                parts.append("^")
            case "LITERAL", code:
                parts.append(re.escape(chr(code)))
            case "RANGE", (first, last):
                parts.append(f"{re.escape(chr(first))}-{re.escape(chr(last))}")
            case "CATEGORY", category:
                name = str(category).removeprefix("CATEGORY_")
                shorthand = CLASSES[name.removeprefix("NOT_")]
                parts.append(shorthand.upper() if name.startswith("NOT_") else shorthand)
    return f"[{''.join(parts)}]"
