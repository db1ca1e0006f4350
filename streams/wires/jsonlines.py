"""JSON Lines: an event is a line with a JSON object, for jq, pandas and whatever reads lines.

    {"id":"Vb3kQn5XTZ6pTqjGkRzB3g.1","event":"message","data":{"number":0}}

Invariants:

1. A line is an object with these three members, or empty: the heartbeat. It ends with LF.
2. Data that is JSON is embedded as it is; other data is a text, and becomes a JSON string. So does
   what is nested so deeply that it cannot be checked: 1000 times, with Python 3.14 far more often.

The data of an event is JSON unless its source yields an `Event(text=…)`. A frame does not say which
it is, so a text that happens to be JSON, such as "42", is embedded like the number.
"""

import re
from collections.abc import Mapping

import msgspec

from streams.event import FRAME, NEXT_LINE, EventId, encode_json, escape_separators
from streams.wires import Wire, with_url

_validate = msgspec.json.Decoder(msgspec.Raw).decode


MAX_SHARED = 2**17
"""A piece of frames with no more bytes is converted once for all the readers that get it."""

NOTHING = (b"", b"")


class Lines:
    """The newest such piece with its lines, for all readers of one Streams."""

    def __init__(self) -> None:
        self.newest = NOTHING


class JSONLines(Wire):
    """The events of a run, for a client that asked for `media_type`.

    Readers with the same `shared` share what one of them has converted.
    """

    heartbeat = b"\n"

    def __init__(self, media_type: str = "application/jsonl", shared: Lines | None = None) -> None:
        self.media_type = media_type
        self._shared = shared or Lines()

    def headers(self) -> Mapping[str, str]:
        # A middleware that compresses would hold lines back. It leaves alone what has an encoding.
        return {"Content-Encoding": "identity"}

    def start(self, frames: bytes, url: str | None) -> bytes:
        return self.feed(with_url(frames, url))

    def feed(self, frames: bytes) -> bytes:
        newest, lines = self._shared.newest
        if frames is not newest:  # The readers of a run get the same object, one after another.
            lines = escape_separators(FRAME.sub(_line, frames))
            if len(frames) <= MAX_SHARED:
                self._shared.newest = frames, lines
        return lines

    def finish(self) -> bytes:
        self._shared.newest = NOTHING  # What a run has sent is not kept after its streams.
        return b""

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        id_ = None if last is None else str(last)
        return encode_json({"id": id_, "event": "gap", "data": {"missed": missed}}) + b"\n"


def _line(frame: re.Match[bytes]) -> bytes:
    id_, name, data = frame.groups()
    event = b'"message"' if name is None else encode_json(name.decode())
    return b'{"id":"%b","event":%b,"data":%b}\n' % (id_, event, _value(data))


def _value(lines: bytes) -> bytes:
    """The data of a frame as a JSON value in one line."""
    data = lines.replace(NEXT_LINE, b"\n")
    try:
        _validate(data)
    except (msgspec.DecodeError, RecursionError):  # What is nested too deeply may be no JSON.
        return encode_json(data.decode(errors="replace"))
    return data.replace(b"\n", b" ")  # Line ends in JSON are white space between tokens.
