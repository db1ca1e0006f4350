"""Events: what a source yields, and the frame that each one becomes.

A frame is an event in the event stream format (WHATWG HTML, section 9.2), with its id and its
blank line. Logs keep frames; the event stream sends them as they are, other wires parse them.

Invariants:

1. The name and the text of an `Event` are checked when it is made, its data when it is encoded.
2. A frame equals, byte for byte, what sse-starlette's ServerSentEvent encodes.
3. `parse_frames` gives back what `frame` was given, with LF for every line end in the data.
"""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from sse_starlette import ServerSentEvent

from streams.encoding import (
    BINARY,
    LARGE,
    HookFailed,
    decode_json,
    decode_json_object,
    encode_json,
    find_binary,
    find_unencodable,
    give_turn,
    hook,
)
from streams.errors import (
    InvalidEventId,
    UnencodableValue,
    UnknownRun,
    abbreviated,
    public_description,
)

__all__ = [
    "COMPLETED",
    "LARGE",
    "RESERVED_NAMES",
    "Encoder",
    "End",
    "Event",
    "EventId",
    "LoggedEvent",
    "Payload",
    "decode_json",
    "decode_json_object",
    "encode_json",
    "escape_separators",
    "frame",
    "give_turn",
    "parse_frames",
    "payload",
    "run_id",
]

logger = logging.getLogger("streams")

RESERVED_NAMES = frozenset({"open", "error", "start", "end", "gap"})

# As numbers: `10 in data` is ten times as fast as `b"\n" in data`.
LF, CR = b"\n\r"

# JSON may contain these unescaped, but str.splitlines() and older JavaScript treat them as line
# ends, and a client that splits lines with them cuts the event in two.
_LINE_SEPARATORS = (
    (0xE2, b"\xe2\x80\xa8", b"\\u2028"),
    (0xE2, b"\xe2\x80\xa9", b"\\u2029"),
    (0xC2, b"\xc2\x85", b"\\u0085"),
)


def escape_separators(json: bytes) -> bytes:
    """JSON without the characters, other than LF and CR, that some clients take for line ends."""
    if not json.isascii():
        for first, raw, escaped in _LINE_SEPARATORS:
            if first in json:  # In most text it is not, and a search for one byte is fastest.
                json = json.replace(raw, escaped)
    return json


MAX_EVENTS = 2**53
"""Lua and JavaScript represent larger whole numbers only approximately."""


_RUN_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_EVENT_ID = re.compile(rf"({_RUN_ID.pattern})\.(0|[1-9][0-9]{{0,15}})")


class EventId(NamedTuple):
    """An event's id on the wire, `<run>.<number>`: 22 characters of base64url and a decimal."""

    run: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Raises InvalidEventId for a text that this server cannot have sent as an id."""
        match = _EVENT_ID.fullmatch(text)
        if match is None or int(match[2]) >= MAX_EVENTS:
            raise InvalidEventId(
                f"Last-Event-ID {abbreviated(text)} is not an id that this server sends; "
                "send the id of the last event you received, or none"
            )
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.run}.{self.number}"


def run_id(text: str) -> str:
    """A text that can be the id of a run, so that a log can be asked for it. Raises UnknownRun."""
    if _RUN_ID.fullmatch(text) is None:
        raise UnknownRun.of(text)
    return text


class Event(msgspec.Struct, frozen=True):
    """An event with a name, or with a text that is not JSON.

    `data` is any value that can be encoded; it is sent as JSON. `text` is sent as it is, line by
    line. `event` is the type under which a browser dispatches it (default: "message"). The log
    sets the id.

    Raises ValueError unless exactly one of `data` and `text` is given, and for a name that is
    empty, contains CR, LF or NUL, or is reserved: EventSource itself dispatches `open` and
    `error`, and this server sends `start`, `end` and `gap`.
    """

    data: Any = msgspec.UNSET
    event: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if (self.data is msgspec.UNSET) == (self.text is None):
            raise ValueError("give an Event either data or text")
        if self.text is not None:
            _check_utf8("text", self.text)
        if self.event is not None:
            if not isinstance(self.event, str):
                raise TypeError(
                    f"event must be a name, not {abbreviated(self.event)}; "
                    "data comes first: Event(data, event='name')"
                )
            if not self.event or _INVALID_IN_NAME.search(self.event):
                raise ValueError(f"event name {self.event!r} is empty or contains CR, LF or NUL")
            if self.event in RESERVED_NAMES:
                reserved = ", ".join(sorted(RESERVED_NAMES))
                raise ValueError(f"event name {self.event!r} is reserved ({reserved})")
            _check_utf8("event name", self.event)


_INVALID_IN_NAME = re.compile(r"[\r\n\0]")


def _check_utf8(what: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be encoded as UTF-8: {error}") from None
    except AttributeError:
        raise TypeError(f"{what} must be a str, not {abbreviated(value)}") from None


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run ended: the data of its `end` event."""

    status: Literal["completed", "failed", "cancelled"]
    reason: str | None = None
    """Why the run was cancelled."""
    error: dict[str, str] | None = None
    """`type` and `message` of the error with which the run failed."""

    @classmethod
    def failed(cls, error: BaseException) -> "End":
        return cls("failed", error=public_description(error))

    @classmethod
    def cancelled(cls, reason: str) -> "End":
        return cls("cancelled", reason=reason)

    def encode(self) -> bytes:
        return encode_json(self)

    @classmethod
    def decode(cls, data: bytes) -> "End":
        return msgspec.json.decode(data, type=cls)


COMPLETED = End("completed")

NO_READER = "no reader"
SHUTDOWN = "shutdown"
"""Why a run was cancelled that had no reader for `linger` seconds."""

# Most values are of these types, and neither an Event nor binary.
_ORDINARY = frozenset({dict, str, int, float, bool, type(None), list, tuple})

_ENCODE = "convert it, or give Streams an `encode` function that does"
_TEXT = "yield text, or encode it yourself: base64.b64encode(…).decode()"

# What a client would see in the data if a source frames its events itself.
_FRAMED = re.compile(r"(?:data|event|id|retry)?:.*\n\n", re.DOTALL)

Payload = tuple[bytes | None, bytes]
"""The name (or None) and the data of an event."""


class Encoder:
    """Encodes the values that sources yield. `encode` converts types that msgspec does not know."""

    def __init__(self, encode: Callable[[Any], Any] | None = None) -> None:
        self._warned: set[str] = set()
        self._encode_json = msgspec.json.Encoder(enc_hook=hook(encode)).encode

    def payload(self, value: Any) -> Payload:
        """The event name (or None) and the data of a value that a source yielded.

        Raises UnencodableValue for a value that JSON cannot represent, and what `encode` raises.
        """
        name = None
        if type(value) not in _ORDINARY:
            if isinstance(value, Event):
                name = None if value.event is None else value.event.encode()
                if value.text is not None:
                    return name, value.text.encode()
                value = value.data
            if type(value) in BINARY:
                raise _unencodable(value, "", value, _TEXT)
        try:
            data = self._encode_json(value)
        except HookFailed as failed:
            error = failed.__cause__
            assert error is not None
            path, part = find_unencodable(value, self._encode_json)
            error.add_note(f"`encode` failed at {path or 'the value'}, a {type(part).__name__}")
            raise error from None
        except Exception as error:  # msgspec raises TypeError, ValueError, RecursionError, ...
            path, part = find_unencodable(value, self._encode_json)
            raise _unencodable(value, path, part, f"{error}; {_ENCODE}") from error
        return name, data if data.isascii() else escape_separators(data)

    def first_payload(self, value: Any, source: str) -> Payload:
        """`payload` for the first event of a run, which also looks for usual mistakes in it.

        Raises UnencodableValue for binary data inside the value: to look into every event would
        cost a fifth of one. Logs a warning, once for each source, for text that is an SSE frame
        already.
        """
        content = value
        if isinstance(value, Event):
            content = value.data if value.text is None else value.text
        is_framed = isinstance(content, str) and _FRAMED.fullmatch(content)
        if is_framed and source not in self._warned:
            self._warned.add(source)
            logger.warning(
                "source %s yields text that is an SSE frame already, %s: clients get it as "
                "data, inside another frame. Yield only the value, or Event(value, event=…)",
                source,
                abbreviated(content),
            )
        payload = self.payload(value)
        if binary := find_binary(content):
            raise _unencodable(content, *binary, _TEXT)
        return payload


def _unencodable(value: Any, path: str, part: Any, reason: str) -> UnencodableValue:
    place = f"{path}: {type(part).__name__}: " if path else ""
    return UnencodableValue(f"a {type(value).__name__} cannot be encoded as JSON: {place}{reason}")


payload = Encoder().payload
"""The event name and the data of a value, without an app's `encode`."""


def frame(run: bytes, number: int, name: bytes | None, data: bytes) -> bytes:
    """The frame of event `number` of `run`."""
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


class LoggedEvent(NamedTuple):
    """An event as a log holds it. `name` is "message" for an event without a name."""

    number: int
    name: str
    data: bytes


FRAME = re.compile(rb"id: (.*)\n(?:event: (.*)\n)?data: (.*(?:\ndata: .*)*)\n\n")
"""A frame that `frame` made: its id, its name or None, and its data, split by NEXT_LINE."""

NEXT_LINE = b"\ndata: "


def parse_frames(frames: bytes) -> Iterator[LoggedEvent]:
    """The events of whole frames that `frame` made. Lines of data are joined with LF."""
    for match in FRAME.finditer(frames):
        id_, name, data = match.groups()
        yield LoggedEvent(
            int(id_.rpartition(b".")[2]),
            "message" if name is None else name.decode(),
            data.replace(NEXT_LINE, b"\n") if LF in data else data,
        )
