"""The bodies of requests: how long they may be, and how long they may take to arrive.

Invariants:

1. A body that is not complete after the time-out ends its request: nobody holds one open for ever.
2. What arrives is counted until its body is complete.
"""

import asyncio
from contextvars import Context

from starlette.types import Message, Receive, Scope

from streams.encoding import LARGE, give_turn
from streams.errors import BodyIncomplete, BodyTooLarge, BodyTooSlow, InvalidBody, StoreFull

MAX_DEPTH = 64
"""JSON from outside is nested at most this deep: far from what would end in a RecursionError."""

MAX_CONTAINERS = 10_000
"""It has at most this many arrays and objects: a megabyte of `[]` costs a tenth of a second."""

MAX_VALUES = 50_000
"""It has at most this many values: a megabyte of `1,` costs a tenth of a second, too."""

MAX_DIGITS = 100
"""Its numbers have fewer digits in a row: the time to read or write one grows with the square."""

_NOT_MARKS = bytes(set(range(256)) - set(b'[]{},"'))
_NOT_OPENERS_OR_COMMAS = bytes(set(range(256)) - set(b"[{,"))
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_DIGITS = b"0" * MAX_DIGITS


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


async def check_structure(json: bytes) -> None:
    """Raises InvalidBody for JSON that is nested too deep, has too many values or too long numbers.

    Each step is a pass or two in C, and has a turn of the event loop if the JSON is large. What is
    not JSON may pass: the decoder says what is wrong with it.
    """
    size = len(json)
    outline = json.translate(None, _NOT_OPENERS_OR_COMMAS)
    openers = len(outline) - outline.count(b",", 0, MAX_VALUES)
    await give_turn(size)
    has_digits = _DIGITS in json.translate(_DIGITS_AS_ZEROS)
    if openers <= MAX_DEPTH and len(outline) <= MAX_VALUES and not has_digits:
        return
    await give_turn(size)
    json = json.replace(rb"\\", b"")
    await give_turn(size)
    json = json.replace(rb"\"", b"")
    await give_turn(size)
    marks = json.translate(None, _NOT_MARKS)
    if _count(marks, b'"') > 4 * MAX_VALUES:  # A value has two strings at most: a name, itself.
        raise _too_many("values", f"more than {MAX_VALUES}", MAX_VALUES)
    await give_turn(size)
    if has_digits and _DIGITS in (await _outside_strings(json)).translate(_DIGITS_AS_ZEROS):
        raise InvalidBody(
            f"the body has a number of {MAX_DIGITS} digits or more; send it as a string"
        )
    await give_turn(size)
    structure = await _outside_strings(marks)
    containers = _count(structure, b"[{")
    if containers > MAX_CONTAINERS:
        raise _too_many("arrays and objects", f"{containers}", MAX_CONTAINERS)
    if (values := containers + _count(structure, b",")) > MAX_VALUES:
        raise _too_many("values", f"{values}", MAX_VALUES)
    await give_turn(size)
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


async def _outside_strings(json: bytes) -> bytes:
    """What is outside of the strings of JSON that has no escaped quotes."""
    outside, in_string = [], False
    for start in range(0, len(json), LARGE):
        # Without two quotes side by side, the others still separate the same.
        pieces = json[start : start + LARGE].replace(b'""', b"").split(b'"')
        outside += pieces[in_string::2]
        in_string ^= len(pieces) % 2 == 0
        await give_turn(len(json))
    return b"".join(outside)


def _count(text: bytes, characters: bytes) -> int:
    """How many characters of a text are among those given. `bytes.count` is slower for many."""
    return len(text) - len(text.translate(None, characters))


def _too_many(what: str, count: str, limit: int) -> InvalidBody:
    return InvalidBody(f"the body has {count} {what}, and {limit} is the limit; send less")
