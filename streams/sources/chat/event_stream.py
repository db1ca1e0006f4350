"""An event stream, read from bytes without input or output, whatever its server does to it.

Invariants:

1. It holds at most `limit` bytes of a line, of an event and of a bare JSON document, and
   STRAY_BYTES of anything else.
2. Bytes may come in parts of any size: the events are the same.
3. What is not part of an event stream is kept, because it may say why the stream has ended.

httpx-sse reads well-formed streams; it holds a line of any length, and drops a bare JSON object.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

STRAY_BYTES = 4096
"""How much is kept of a text that belongs to no event."""

LINE_END = re.compile(rb"\r\n|\n|\r")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ServerEvent(NamedTuple):
    name: str
    data: str


class TooLong(Exception):
    """A line or an event is longer than the limit."""


class NotUTF8(Exception):
    """A line is in another charset."""


class EventStream:
    """Takes bytes, gives events that have data, and JSON documents that are outside of events.

    `feed` and `finish` raise TooLong, and NotUTF8 if `strict`; otherwise what is not UTF-8 is
    replaced, as the specification says.
    """

    def __init__(self, limit: int, *, strict: bool = False) -> None:
        self.stray = bytearray()
        """The beginning of the lines that belong to no event."""
        self._limit = limit
        self._strict = strict
        self._begun = False
        self._ended_with_cr = False
        self._line = bytearray()
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        if self._ended_with_cr and data.startswith(b"\n"):
            data = data[1:]
            self._ended_with_cr = False
        if not data:
            return
        self._ended_with_cr = data.endswith(b"\r")
        first, *others = LINE_END.split(data)
        self._line += first
        for rest in others:
            yield from self._end_line()
            self._line += rest
        self._check(len(self._line))

    def finish(self) -> Iterator[ServerEvent]:
        """The event at the end, which has no blank line after it."""
        yield from self._end_line()
        yield from self._dispatch()
        if self._has_json:
            yield ServerEvent("", self.stray.decode(errors="replace"))

    @property
    def _has_json(self) -> bool:
        return self.stray.startswith((b"{", b"["))

    def _end_line(self) -> Iterator[ServerEvent]:
        line = bytes(self._line)
        self._line.clear()
        self._check(len(line))
        if not self._begun:
            self._begun = True
            line = line.removeprefix(BYTE_ORDER_MARK)
        if self._strict:
            _check_charset(line)
        if not line:
            yield from self._dispatch()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value) + 1
            self._check(self._size)
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name not in (b"", b"id", b"retry"):
            bare = line.strip()
            if not self.stray and bare[:1] + bare[-1:] in (b"{}", b"[]"):
                yield ServerEvent("", bare.decode(errors="replace"))
            else:
                self._keep(line)

    def _keep(self, line: bytes) -> None:
        self.stray += b"\n" + line if self.stray else line.lstrip()
        if self._has_json:
            self._check(len(self.stray))
        else:
            del self.stray[STRAY_BYTES:]

    def _dispatch(self) -> Iterator[ServerEvent]:
        name, data = self._name, b"\n".join(self._data)
        self._name, self._data, self._size = b"", [], 0
        if data.strip():
            yield ServerEvent(name.decode(errors="replace"), data.decode(errors="replace"))

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise TooLong


def _check_charset(line: bytes) -> None:
    try:
        line.decode()
    except UnicodeDecodeError:
        raise NotUTF8 from None
    if b"\0" in line:  # It is UTF-16, for instance.
        raise NotUTF8
