"""Wires: what the events of a run become for one kind of client.

`Wire` is the seam; `EventStream` is the built-in wire. The other wires are files and folders here,
and the core does not import them.
"""

import random
from collections.abc import Mapping

from sse_starlette import ServerSentEvent

from streams.event import EventId, LoggedEvent, encode_json, parse_frames


class Wire:
    """Translates one run for one reader. A response calls, in this order:

    1. `headers`, once;
    2. `begin`, once, whose bytes go out before any event;
    3. `start` for the piece that begins with event 0, then `feed` for each piece of the log, until
       `done`; and `gap`, whenever events were dropped that the reader has not had. A reader that
       has not had the `start` event gets it first, even if the log has dropped it;
    4. `finish`, once: after the `end` event, when `done`, when the server shuts down, and when the
       run is forgotten.

    A wire does no input or output, and serves one response only. A subclass implements `event`,
    or `feed`, and overrides what else it needs.
    """

    media_type = "text/event-stream"
    heartbeat = b":\n"
    """Sent while the connection is idle. A comment line of an event stream (WHATWG HTML, 9.2.6)
    without a blank line: with one, httpx-sse and fetch-event-source report an empty event, and
    openai's client fails."""
    done = False
    """Whether the rest of the run does not matter to this reader."""
    stateful = False
    """Whether what an event becomes depends on the events before it. Such a wire is fed from
    event 0 even if its reader resumes: see `resume`."""
    __had = -1  # Private to this class: a wire of the app's own may have any name.

    def resume(self, after: int) -> None:
        """The reader has had what the events up to `after` became: `feed` gives only what follows.

        Called before `begin`, for a stateful wire only."""
        self.__had = after

    def headers(self) -> Mapping[str, str]:
        """Headers in addition to those of every stream."""
        return {}

    def begin(self) -> bytes:
        return b""

    def start(self, frames: bytes, url: str | None) -> bytes:
        """`feed` for the frames from event 0 on. That is the `start` event, or `end` if the run
        ended before it started. `url` is the run's URL for this reader, if it has one."""
        return self.feed(frames)

    def feed(self, frames: bytes) -> bytes:
        """What some frames of the log become. The last frame of a run is its `end` event."""
        body = b""
        for event in parse_frames(frames):
            if self.done:
                break
            became = self.event(event)
            if event.number > self.__had:
                body += became
        return body

    async def feed_large(self, frames: bytes) -> bytes:
        """`feed` for more than LARGE bytes. A wire that has more work with them than to copy them
        gives the event loop a turn between its steps."""
        return self.feed(frames)

    def event(self, event: LoggedEvent) -> bytes:
        """What one event becomes."""
        raise NotImplementedError

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        """`missed` events (None: nobody knows how many), up to `last`, are lost to this reader."""
        return b""

    def finish(self) -> bytes:
        return b""


class EventStream(Wire):
    """Server-sent events (WHATWG HTML, section 9.2): the frames of the log as they are.

    Only `start` is changed: it gets the run's URL. The log cannot hold that, because it depends on
    where the reader's app mounts Streams.

    `retry` is a range of seconds; each reader is told a random value in it, so that clients do
    not all reconnect at the same moment.
    """

    def __init__(self, retry: tuple[float, float]) -> None:
        self._retry = retry
        self.done = (
            False  # Read for each event, and faster to read than the attribute of the class.
        )

    def begin(self) -> bytes:
        return b"retry: %d\n" % (1000 * random.uniform(*self._retry))

    def start(self, frames: bytes, url: str | None) -> bytes:
        return with_url(frames, url)

    def feed(self, frames: bytes) -> bytes:
        return frames

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        return ServerSentEvent(
            encode_json({"missed": missed}).decode(),
            event="gap",
            id=None if last is None else str(last),
            sep="\n",
        ).encode()


def with_url(frames: bytes, url: str | None) -> bytes:
    """The frames from event 0 on, with the run's URL in the data of `start`."""
    start, end, rest = frames.partition(b"}\n\n")
    if url is None or b"\nevent: start\n" not in start:
        return frames
    return b'%b,"url":%b%b%b' % (start, encode_json(url), end, rest)
