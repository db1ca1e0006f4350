"""The texts in chunks, which may be cut inside a character."""

from typing import Any


class InvalidChunk(Exception):
    """A chunk does not have the form of one; the text is a clause that says why."""


class Joiner:
    """Joins a character whose two JSON escapes are in two texts; `finish` gives a lone first one.

    A surrogate without its other half becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return whole(text[:-1] if self._half else text)

    def finish(self) -> str:
        half, self._half = self._half, ""
        return whole(half)


def whole(text: str) -> str:
    """A text in which pairs of surrogates are joined, and lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def texts_in(content: Any) -> tuple[str, str]:
    """The text and the reasoning in a content: a text, or a list of parts, some of them thinking.

    Parts of other types, such as an image, have neither. Raises InvalidChunk.
    """
    if not content:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list | dict):
        raise InvalidChunk(f"whose content is of the type {type(content).__name__}")
    text = reasoning = ""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            thought = part.get("thinking") or part.get("reasoning") or part.get("text")
            reasoning += "".join(texts_in(thought))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            text += part["text"]
    return text, reasoning
