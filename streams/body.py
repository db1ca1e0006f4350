"""The bodies of requests: how long they may be, and how long they may take to arrive.

Invariants:

1. A body that is not complete after the time-out ends its request: nobody holds one open for ever.
2. What arrives is counted until its body is complete.
"""

import asyncio
from contextvars import Context

from starlette.types import Message, Receive, Scope

from streams.errors import BodyIncomplete, BodyTooLarge, BodyTooSlow, InvalidBody, StoreFull

MAX_DEPTH = 64
"""JSON from outside is nested at most this deep: far from what would end in a RecursionError."""

MAX_CONTAINERS = 10_000
"""It has at most this many arrays and objects: a megabyte of `[]` costs a tenth of a second."""

MAX_VALUES = 50_000
"""It has at most this many values: a megabyte of `1,` costs a tenth of a second, too."""

_NO_MARKS = bytes(set(range(256)) - set(b'[]{},"'))


class Bodies:
    """All bodies that are arriving: each has at most `max_body` bytes, and `timeout` seconds.

    Those that are not complete have at most `max_bytes` together. `len()` is how many they are.
    """

    def __init__(self, max_body: int, max_bytes: int, timeout: float) -> None:
        self.max_body = max_body
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.arriving: set[Body] = set()
        self.bytes = 0
        """How many have arrived of the bodies that are not complete."""

    def __len__(self) -> int:
        return len(self.arriving)


class Body:
    """The body of one request: a `receive` that raises the StreamError by which it is refused.

    Whoever reads it meets the limits, a guard as well as an endpoint.
    """

    _size = 0
    _deadline: float | None = None  # in the event loop's time
    _is_complete = False

    def __init__(self, bodies: Bodies, scope: Scope, receive: Receive) -> None:
        self._bodies = bodies
        self._scope = scope
        self._receive = receive

    async def __call__(self) -> Message:
        """Raises BodyTooLarge, BodyTooSlow, BodyIncomplete if the client has left, and StoreFull if
        too much is arriving at once.
        """
        if self._is_complete:
            return await self._receive()
        message = await self._receive_in_time()
        if message["type"] == "http.disconnect":  # Nobody gets this.
            self.end()
            raise BodyIncomplete("the client left before its body was complete")
        size = len(message.get("body", b""))
        self._size += size
        self._bodies.bytes += size
        self._check_size()
        if not message.get("more_body", False):
            self._is_complete = True
            self.end()
        return message

    async def _receive_in_time(self) -> Message:
        loop, timeout = asyncio.get_running_loop(), self._bodies.timeout
        if self._deadline is None:
            self._deadline = loop.time() + timeout
            self._bodies.arriving.add(self)
        waiting = asyncio.timeout(None)
        # A cancelled timer keeps its context until it is due, which must not be a request's.
        timer = loop.call_at(self._deadline, waiting.reschedule, 0, context=Context())
        try:
            async with waiting:
                return await self._receive()
        except TimeoutError:
            error = BodyTooSlow(
                f"the body has not arrived within {timeout:g} s; send all of it at once"
            )
            # The rest of the body cannot be told from another request. HTTP/2 has no such header.
            if self._scope.get("http_version", "").startswith("1"):
                error.headers = {"Connection": "close"}
            raise error from None
        finally:
            timer.cancel()

    def _check_size(self) -> None:
        bodies = self._bodies
        if self._size > bodies.max_body:
            raise BodyTooLarge(
                f"the body has more than {bodies.max_body} bytes, which is the limit"
            )
        if bodies.bytes > bodies.max_bytes:
            raise StoreFull(
                f"the bodies that are arriving have {bodies.max_bytes} bytes, which is the limit; "
                f"try again in {StoreFull.retry_after} s"
            )

    def end(self) -> None:
        """The body is complete, or nobody reads on: it counts no longer."""
        if self._deadline is None:  # Nobody has read it.
            return
        self._bodies.arriving.discard(self)
        self._bodies.bytes -= self._size
        self._size = 0


def check_structure(json: bytes | bytearray) -> None:
    """Raises InvalidBody for JSON that is nested too deep, or of too many values.

    Each step is one pass in C. What is not JSON may pass: the decoder says what is wrong with it.
    """
    openers = json.count(b"[") + json.count(b"{")
    if openers <= MAX_DEPTH and openers + json.count(b",") <= MAX_VALUES:
        return
    marks = json.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARKS)
    if marks.count(b'"') > 4 * MAX_VALUES:  # A value has two strings at most: a name, itself.
        raise _too_many("values", f"more than {MAX_VALUES}", MAX_VALUES)
    structure = b"".join(marks.split(b'"')[::2])  # what is outside of strings
    containers = structure.count(b"[") + structure.count(b"{")
    if containers > MAX_CONTAINERS:
        raise _too_many("arrays and objects", f"{containers}", MAX_CONTAINERS)
    if (values := containers + structure.count(b",")) > MAX_VALUES:
        raise _too_many("values", f"{values}", MAX_VALUES)
    brackets = structure.translate(None, b",")
    if len(brackets) > 2 * containers:  # It is not JSON, and could be long.
        return
    for _ in range(MAX_DEPTH):
        innermost_removed = brackets
        for pair in (b"[]", b"{}"):
            innermost_removed = innermost_removed.replace(pair, b"-")
        innermost_removed = innermost_removed.replace(b"-", b"")
        if len(innermost_removed) == len(brackets):  # Nothing is left, or it is not JSON.
            return
        brackets = innermost_removed
    if brackets:
        raise InvalidBody(
            f"the body is nested deeper than {MAX_DEPTH} arrays and objects; flatten it"
        )


def _too_many(what: str, count: str, limit: int) -> InvalidBody:
    return InvalidBody(f"the body has {count} {what}, and {limit} is the limit; send less")
