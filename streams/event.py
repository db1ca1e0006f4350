"""What a source yields, and the bytes it becomes on the wire.

The law of this file: an event is validated when it is made and framed once, and the frame is
what sse-starlette's ServerSentEvent would have made of it, byte for byte. run.py encodes, a log
gives the id and frames. Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

import re
from typing import Any, NamedTuple

import msgspec
from sse_starlette import ServerSentEvent

from streams.errors import InvalidEventId, UnencodableValue, shown

RESERVED_NAMES = frozenset({"open", "error", "start", "end", "gap"})

encode_json = msgspec.json.Encoder().encode

# As numbers: to look for a bytes object in a bytes object takes ten times as long.
LF, CR = b"\n\r"

# JSON may hold these as they are, but they end a line for str.splitlines() and JavaScript's
# older parsers, and a client that splits on them cuts the event in two.
_LINE_SEPARATORS = (
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
    (b"\xc2\x85", b"\\u0085"),
)


class EventId(NamedTuple):
    """An event's id on the wire, `<run>.<number>`: 22 characters of base64url and a decimal."""

    run: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Raises InvalidEventId for what this server cannot have sent."""
        match = re.fullmatch(r"([A-Za-z0-9_-]{22})\.(0|[1-9][0-9]{0,15})", text)
        if match is None:
            raise InvalidEventId(f"Last-Event-ID {shown(text)} is not an id of this server's")
        return cls(match[1], int(match[2]))


class Event(msgspec.Struct, frozen=True):
    """One event with a name, or with a text that is not JSON.

    `data` is any value that msgspec encodes; it goes out as JSON. `text` goes out as it is, line
    by line. `event` is the type that a browser dispatches ("message" without one). The log gives
    the id. Raises ValueError for a name with CR, LF or NUL, a name that is taken (`open` and
    `error` are EventSource's own, `start`, `end` and `gap` this server's), and for neither or
    both of `data` and `text`.
    """

    data: Any = msgspec.UNSET
    event: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if (self.data is msgspec.UNSET) == (self.text is None):
            raise ValueError("an Event takes data or text, and one of them only")
        if self.text is not None:
            _check_utf8("text", self.text)
        if self.event is not None:
            if not self.event or any(c in self.event for c in "\r\n\0"):
                raise ValueError(f"event name {self.event!r} is empty or has a CR, LF or NUL")
            if self.event in RESERVED_NAMES:
                raise ValueError(f"event name {self.event!r} is taken: {sorted(RESERVED_NAMES)}")
            _check_utf8("event name", self.event)


def _check_utf8(what: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be UTF-8: {error}") from None


def payload(value: Any) -> tuple[bytes | None, bytes]:
    """The event name (or None) and the data of what a source yielded.

    Raises UnencodableValue for a value that JSON cannot hold.
    """
    name = None
    if isinstance(value, Event):
        name = value.event.encode() if value.event is not None else None
        if value.text is not None:
            return name, value.text.encode()
        value = value.data
    try:
        data = encode_json(value)
    except Exception as error:  # msgspec raises TypeError, ValueError, RecursionError, ...
        raise UnencodableValue(
            f"the source yielded a {type(value).__name__} that JSON cannot hold: {error}"
        ) from error
    if not data.isascii():
        for raw, escaped in _LINE_SEPARATORS:
            data = data.replace(raw, escaped)
    return name, data


def frame(run: bytes, number: int, name: bytes | None, data: bytes) -> bytes:
    """The event as it goes over the wire; its id is `<run>.<number>`."""
    if LF in data or CR in data:
        return ServerSentEvent(
            data.decode(),
            event=None if name is None else name.decode(),
            id=f"{run.decode()}.{number}",
            sep="\n",
        ).encode()
    if name is None:
        return b"id: %b.%d\ndata: %b\n\n" % (run, number, data)
    return b"id: %b.%d\nevent: %b\ndata: %b\n\n" % (run, number, name, data)
