"""Everything that can go wrong, as a tree, and the status of the problem (RFC 9457) it becomes.

StreamError                500  raise it in a source: message and status are for the client
├── InvalidParameters      422  names every parameter at fault, not only the first
├── InvalidBody            422  the body is not JSON, or not an object
├── InvalidEventId         422  a Last-Event-ID that this server cannot have sent
├── UnsupportedMediaType   415  a body that does not call itself JSON
├── BodyTooLarge           413  more than `max_body`
├── RunGone                410  cannot be resumed: not here (any more), and not restartable
├── NotAcceptable          406  the client does not take an event stream
├── UnknownSource          404  names those there are
├── UnknownRun             404  never was, is forgotten, or is somebody else's
├── CrossSite              403  another site's page may not start a run
├── RunExists              409  its log was created by somebody else a moment before
├── StoreFull              503  `max_runs` or `max_bytes` reached; come back later
│   └── StoreDown          503  the log's server does not answer; come back later
├── UnencodableValue       500  a source yielded what JSON cannot hold
├── ProducerLost           500  the process that produced a run died, and no other can go on
├── LogClosed              500  an append after the end: its producer has been superseded or stopped
└── LostHistory            410  what was asked for is trimmed; a reader is told by a `gap` event
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response


class StreamError(Exception):
    """An error whose message a client may read.

    `status` is the HTTP status (RFC 9110, section 15) when the response has not begun; later
    the message reaches the client in the `end` event. `retry_after`, in seconds, becomes
    `Retry-After`. Other keywords become members of the problem (RFC 9457, section 3.2).
    """

    status = 500
    retry_after: int | None = None

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
                raise ValueError(f"status {status} is not an error: use 400 to 599")
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


class UnsupportedMediaType(StreamError):
    status = 415


class BodyTooLarge(StreamError):
    status = 413


class RunGone(StreamError):
    status = 410


class NotAcceptable(StreamError):
    status = 406


class UnknownSource(StreamError):
    status = 404


class UnknownRun(StreamError):
    status = 404


class CrossSite(StreamError):
    status = 403


class RunExists(StreamError):
    status = 409


class StoreFull(StreamError):
    status = 503
    retry_after = 10


class StoreDown(StoreFull):
    retry_after = 3


class UnencodableValue(StreamError):
    pass


class ProducerLost(StreamError):
    pass


class LogClosed(StreamError):
    pass


class LostHistory(StreamError):
    """`missed` events are gone; the oldest one still there has the number `first`."""

    status = 410

    def __init__(self, missed: int, first: int) -> None:
        super().__init__(f"{missed} events are not held any more, the oldest here is {first}")
        self.missed = missed
        self.first = first


def described(error: Exception) -> dict[str, str]:
    """An error as a client may see it: its class, and the message if it was meant for clients."""
    message = "the source failed; the server's log has the details, with the run's id"
    if isinstance(error, StreamError):
        message = str(error).encode(errors="replace").decode()
    return {"type": type(error).__name__, "message": message}


def refusal(error: Exception) -> StreamError:
    """What a client is told when nothing has been sent yet."""
    if isinstance(error, StreamError):
        return error
    return StreamError(f"the source failed with {type(error).__name__}; see the server's log")


def problem(error: StreamError, headers: Mapping[str, str] | None = None) -> Response:
    """An error as application/problem+json (RFC 9457)."""
    headers = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    title = HTTPStatus(error.status).phrase
    body = {"type": "about:blank", "title": title, "status": error.status, "detail": str(error)}
    return Response(
        msgspec.json.encode({**body, **error.members}),
        status_code=error.status,
        headers=headers,
        media_type="application/problem+json",
    )


def shown(value: Any) -> str:
    """A value from outside, quoted and short enough for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
