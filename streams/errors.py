"""The errors of this package, as a tree.

Each class maps to one HTTP status, with which it is sent as a problem response (RFC 9457) if the
response has not started. Later it ends the run as `failed`.

StreamError                500  raise it in a source: clients see its message and status
├── InvalidParameters      422  lists every invalid parameter
├── InvalidBody            422  the body is not a JSON object
├── InvalidEventId         422  a Last-Event-ID that this server cannot have sent
├── InvalidKey             422  an idempotency key that is malformed, or too short for its client
├── UnsupportedMediaType   415  the body's Content-Type is not JSON
├── BodyTooLarge           413  the body, or a published event, is longer than `max_body`
├── BodyTooSlow            408  the body has not arrived within `body_timeout`
├── BodyIncomplete         400  the client has left before its body was complete
├── RunGone                410  the run cannot be resumed: it is not retained, or another one's
├── NotAcceptable          406  the Accept header excludes every answer
├── UnknownSource          404  lists the sources, or topics, that exist
├── UnknownRun             404  the run never existed, is no longer retained, or is somebody else's
├── TopicEnded             409  a publish to a topic that has ended, and is retained still
├── CrossSite              403  a page of another site may not start, join or stop runs
├── Forbidden              403  a list of runs without a login or a key; or a guard returned False
├── InvalidSignature       403  a signed URL that was changed, or whose time is over
├── Unauthorized           401  a request without one of the `api_keys`
├── UnknownHost            421  a name in the Host header that is not one of `hosts`
├── Unavailable            503  this passes; try again later
│   ├── StoreFull          503  `max_runs` or `max_bytes` is reached, or the log's disk is full
│   ├── TooManyRequests    429  a client has `max_per_client` streams open, or runs running
│   ├── TooManyRuns        503  a shared source has `max_shared` runs
│   ├── ShuttingDown       503  this server shuts down; the next one answers
│   ├── StoreDown          503  the log's server or file cannot be used
│   │   └── UnsuitablePlace     its file cannot be written, or is on a network file system
│   └── TooManyThreads     503  `max_threads` is reached
├── UnencodableValue       500  a source yielded a value that JSON cannot represent
├── ProducerLost           500  the worker that produced the run died, and no other can continue it
├── LogClosed              500  an append after the end, or by a worker that was fenced
└── LostHistory            410  the events asked for were dropped; readers get a `gap` event
"""

import random
import re
from collections.abc import Mapping
from http import HTTPStatus
from itertools import islice
from types import MappingProxyType
from typing import Any, Self

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response


class StreamError(Exception):
    """An error whose message is meant for clients.

    `status` is the HTTP status (RFC 9110, section 15) if the response has not started; later the
    message is sent in the `end` event. `retry_after`, in seconds, becomes `Retry-After`. Other
    keywords become members of the problem (RFC 9457, section 3.2). Raises ValueError for a status
    that is not from 400 to 599.
    """

    status = 500
    retry_after: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    """Further headers of the response, such as WWW-Authenticate."""

    def __init__(
        self,
        detail: str = "",
        *,
        status: int | None = None,
        retry_after: int | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        if status is not None:
            if not 400 <= status <= 599:
                raise ValueError(f"status {status} is not an error; use 400 to 599")
            self.status = status
        if retry_after is not None:
            self.retry_after = retry_after
        self.members = members


class InvalidParameters(StreamError):
    status = 422


class InvalidBody(StreamError):
    status = 422


class InvalidEventId(StreamError):
    status = 422


class InvalidKey(StreamError):
    status = 422


class UnsupportedMediaType(StreamError):
    status = 415


class BodyTooLarge(StreamError):
    status = 413


class BodyTooSlow(StreamError):
    status = 408


class BodyIncomplete(StreamError):
    status = 400


class RunGone(StreamError):
    status = 410

    @classmethod
    def stopped(cls, run: str) -> Self:
        return cls(f"run {run} was stopped before it started; start a new one")


class NotAcceptable(StreamError):
    status = 406


class UnknownSource(StreamError):
    status = 404


class UnknownRun(StreamError):
    status = 404

    @classmethod
    def of(cls, run: str) -> Self:
        return cls(f"there is no run {abbreviated(run)}, or it is no longer retained")


class CrossSite(StreamError):
    status = 403


class Forbidden(StreamError):
    status = 403


class InvalidSignature(StreamError):
    status = 403


class Unauthorized(StreamError):
    status = 401


class UnknownHost(StreamError):
    status = 421


class Unavailable(StreamError):
    status = 503
    retry_after = 10


class StoreFull(Unavailable):
    pass


class TooManyRequests(Unavailable):
    status = 429


class TooManyRuns(Unavailable):
    pass


class ShuttingDown(Unavailable):
    retry_after = 1

    def __init__(self) -> None:
        super().__init__(f"the server is shutting down; try again in {self.retry_after} s")


class StoreDown(Unavailable):
    retry_after = 3


class UnsuitablePlace(StoreDown):
    pass


class TooManyThreads(Unavailable):
    pass


class UnencodableValue(StreamError):
    pass


class ProducerLost(StreamError):
    pass


class LogClosed(StreamError):
    pass


class TopicEnded(LogClosed):
    status = 409


class LostHistory(StreamError):
    """`missed` events were dropped; `first` is the number of the oldest event still held."""

    status = 410

    def __init__(self, missed: int, first: int) -> None:
        super().__init__(f"{missed} events were dropped; the oldest event still held is {first}")
        self.missed = missed
        self.first = first


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in an exception group and in the groups inside it; else the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def for_clients(error: BaseException) -> StreamError | HTTPException | None:
    """The error whose message clients may see: `error`, or the only such one in a group."""
    found = [leaf for leaf in leaves(error) if isinstance(leaf, StreamError | HTTPException)]
    found = [e for e in found if isinstance(e, StreamError) or 400 <= e.status_code <= 599]
    return found[0] if len(found) == 1 else None


def public_description(error: BaseException) -> dict[str, str]:
    """An error's class, and its message only if that is meant for clients."""
    shown = for_clients(error)
    if shown is None:
        message = "the source failed; the server's log has the details under this run's id"
        return {"type": type(error).__name__, "message": message}
    return {"type": type(shown).__name__, "message": valid_text(str(as_stream_error(shown)))}


def as_stream_error(error: BaseException) -> StreamError:
    """The error that a client gets if the response has not started."""
    shown = for_clients(error)
    if isinstance(shown, HTTPException):
        detail: Any = shown.detail  # FastAPI allows any value that JSON can represent.
        if not isinstance(detail, str):
            detail = msgspec.json.encode(as_json_value(detail)).decode()
        http_error = StreamError(detail, status=shown.status_code)
        http_error.headers = shown.headers or {}
        return http_error
    if shown is not None:
        return shown
    return StreamError(f"the source failed with {type(error).__name__}; see the server's log")


NOT_A_PAGE = MappingProxyType(
    {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
)
"""Headers of an answer that no browser should take for something else, if somebody opens it."""


def retry_after(error: StreamError) -> Any:
    """Seconds after which a client may try again, or None.

    After an overload they are random, up to twice as many: not all who met it come back at once.
    """
    if isinstance(error, Unavailable) and isinstance(error.retry_after, int):
        return random.randint(error.retry_after, 2 * error.retry_after)
    return error.retry_after


def problem(error: StreamError, headers: Mapping[str, str] | None = None) -> Response:
    """An error as application/problem+json (RFC 9457)."""
    headers = {"Cache-Control": "no-store", **NOT_A_PAGE, **error.headers, **(headers or {})}
    if (seconds := retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    body = {
        "type": "about:blank",
        "title": _title(error.status),
        "status": error.status,
        "detail": str(error),
    }
    return Response(
        msgspec.json.encode(as_json_value({**body, **error.members})),
        status_code=error.status,
        headers=headers,
        media_type="application/problem+json",
    )


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # The status is in no RFC, such as 499, 520 or 529.
        return f"Error {status}"


def valid_text(text: str) -> str:
    """A text with each lone surrogate, which UTF-8 cannot represent, replaced by `?`."""
    return text.encode(errors="replace").decode()


def as_json_value(value: Any, depth: int = 8) -> Any:
    """A copy of `value` that JSON can represent: anything else is replaced by its type's name.

    So is what is nested deeper than `depth`.
    """
    if isinstance(value, str):
        return valid_text(value)
    if depth > 0 and isinstance(value, Mapping):
        return {valid_text(str(key)): as_json_value(value[key], depth - 1) for key in value}
    if depth > 0 and isinstance(value, list | tuple | set | frozenset):
        return [as_json_value(item, depth - 1) for item in value]
    try:
        msgspec.json.encode(value)
    except Exception:  # msgspec raises TypeError, ValueError, RecursionError, ...
        return f"<{type(value).__name__}>"
    return value


MAX_ECHO = 80
"""An answer repeats no more characters than this of one text from outside."""

MAX_MESSAGE = 300
"""An answer has no more characters than this of a library's message."""

MAX_LOGGED = 200
"""A line of the log has no more characters than this of one text from outside."""

_LONG_QUOTE = re.compile(rf"(['\"`])((?:(?!\1).){{{MAX_ECHO + 1},}})\1", re.DOTALL)

_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_ECHO + 1},}}")


def abbreviated(value: Any) -> str:
    """A value from outside, quoted, and short enough for an error message.

    What is not shown costs nothing, however long or deep it is.
    """
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    shown = _beginning_of(value)
    return shown if len(shown) <= MAX_ECHO else f"{shown[:60]}…{length}"


def shortened(text: str) -> str:
    """A text from outside, not quoted, and short enough for an error message."""
    shown = _escaped(text[: MAX_ECHO + 1])
    return shown if len(shown) <= MAX_ECHO else f"{shown[:60]}… ({len(text)} characters)"


def without_long_quotes(message: str) -> str:
    """The message of a library, in which quotations and numbers from outside are cut."""
    if len(message) > 2 * MAX_MESSAGE:  # What is between does not get into the answer.
        message = message[:MAX_MESSAGE] + message[-MAX_MESSAGE:]
    cut = _LONG_QUOTE.sub(lambda quote: f"{quote[1]}{quote[2][:60]}…{quote[1]}", message)
    cut = _LONG_NUMBER.sub(lambda number: f"{number[0][:60]}…", cut)
    return cut if len(cut) <= MAX_MESSAGE else f"{cut[:MAX_MESSAGE]}…"


def for_log(text: Any) -> str:
    """A text that may come from outside, for the message of a log record.

    It can neither begin a line of its own nor send commands to a terminal.
    """
    try:
        text = str(text)
    except Exception:  # An error of the app may have a `__str__` that fails.
        text = f"<{type(text).__name__}>"
    shown = _escaped(text[: MAX_LOGGED + 1])
    return shown if len(shown) <= MAX_LOGGED else f"{shown[: MAX_LOGGED - 1]}…"


def _escaped(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]


def _beginning_of(value: Any, depth: int = 3) -> str:
    """The beginning of `repr(value)`, which is never made whole."""
    if isinstance(value, str):
        return repr(value[: MAX_ECHO + 1])
    if not isinstance(value, dict | list | tuple):
        return repr(value)[: MAX_ECHO + 1]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    if depth == 0:
        return f"{opening}…{closing}"
    parts = [_beginning_of(part, depth - 1) for part in islice(value, 10)]
    if isinstance(value, dict):
        members = islice(value.values(), 10)
        parts = [f"{k}: {_beginning_of(v, depth - 1)}" for k, v in zip(parts, members, strict=True)]
    return f"{opening}{', '.join(parts)}{', …' if len(value) > 10 else ''}{closing}"
