"""Why a model's server refuses or fails: the text and the wait, in any form that servers send.

Invariants:

1. A text is at most MAX_REASON characters long and printable: it can be logged as it is.
2. A refusal with any text gives a reason, whatever its media type is.
"""

import html
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from streams.errors import as_json_value

MAX_REASON = 200
"""The most characters of a server's text that are passed on."""

LONGEST_WAIT = 24 * 60 * 60
"""Seconds: what a server asks for beyond it is cut."""

NAMES = (
    "message",
    "detail",
    "msg",
    "error",
    "errors",
    "error_description",
    "description",
    "title",
)
"""The members of an error that say what is wrong, the most telling first."""

MIN_SECRET = 8
"""Characters of a header's value from which on it may be a secret."""


def message_of(value: Any, depth: int = 4) -> str:
    """What an error says: a text, an object, or a list of them. Empty if it says nothing."""
    if isinstance(value, str):
        return value
    if depth and isinstance(value, list):
        return "; ".join(filter(None, (message_of(item, depth - 1) for item in value[:3])))
    if depth and isinstance(value, dict):
        for name in NAMES:
            if text := message_of(value.get(name), depth - 1):
                return f"{_place(value)}{text}"
    return ""


def _place(error: Mapping[str, Any]) -> str:
    """Which field an error of FastAPI is about."""
    place = error.get("loc")
    return f"{'.'.join(map(str, place[:5]))}: " if isinstance(place, list) else ""


def described(value: Any) -> str:
    """What an error says, or else the error itself, as JSON."""
    return message_of(value) or json.dumps(as_json_value(value), ensure_ascii=False)


def reason_in(body: bytes) -> str:
    """What the body of a refusal says: JSON, an event stream, HTML, or text."""
    text = body.decode(errors="replace").strip("\ufeff\ufffd \t\r\n")
    data = re.findall(r"^data:(.*)$", text, re.MULTILINE) if text[:5] in ("data:", "event") else []
    for document in (*data[:1], text):
        try:
            decoded = json.loads(document)
        except (ValueError, RecursionError):
            continue
        return described(decoded) if decoded else ""
    return _text_of_html(text) if text.startswith("<") else data[0] if data else text


def _text_of_html(page: str) -> str:
    """The title of a page, or else its text."""
    _, _, rest = page.partition("<title")
    title, end, _ = rest.partition("</title>")
    if end:
        page = title.partition(">")[2]
    return html.unescape(re.sub(r"<[^<>]*>", " ", page))


def printable(text: str) -> str:
    """A text from outside on one line: without control characters, and cut."""
    line = " ".join(text[: 10 * MAX_REASON].split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return shown if len(shown) <= MAX_REASON else f"{shown[:MAX_REASON]}…"


class Secrets:
    """The API key and what else is secret in the headers of a request, to be left out of texts."""

    def __init__(self, api_key: str, headers: Iterable[str]) -> None:
        words = [word for value in headers for word in value.split() if len(word) >= MIN_SECRET]
        texts = {form for word in (api_key, *words) if word for form in (word, quote(word, ""))}
        # The longest first: a secret may contain another one.
        self._texts = sorted(texts, key=len, reverse=True)

    def left_out_of(self, text: str) -> str:
        for secret in self._texts:
            text = text.replace(secret, "…")
        return text


def wait_of(headers: Mapping[str, str]) -> int | None:
    """For how many seconds a refusal asks to wait: `retry-after-ms`, or `Retry-After`.

    That is a number or a date (RFC 9110, section 10.2.3).
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _seconds(milliseconds / 1000)
    value = headers.get("retry-after", "").strip()
    seconds = _number(value)
    if seconds is None:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return _seconds(seconds)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*[0-9]+(\.[0-9]*)?\s*", text) else None


def _seconds(wait: float) -> int:
    return math.ceil(min(max(wait, 0), LONGEST_WAIT))
