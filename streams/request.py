"""What a request asks for, read with distrust.

Each function answers one question about a request, or raises the StreamError that refuses it.
None of them starts anything.
"""

from collections.abc import Callable
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.types import ASGIApp, Scope

from streams.errors import BodyTooLarge, CrossSite, NotAcceptable, UnsupportedMediaType
from streams.event import EventId
from streams.source import EVENT_ID_PARAMETERS

EVENT_STREAM = "text/event-stream"
JSON = "application/json"


def whole_path(scope: Scope) -> tuple[str, str]:
    """The root path, and the path that begins with it, neither with a slash at the end.

    Some hosts (Litestar) cut the prefix off the path and leave the root path empty; the raw path
    still has the prefix.
    """
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"].rstrip("/")
    whole = unquote((scope.get("raw_path") or b"").decode("latin-1")).rstrip("/")
    if whole != path and whole.endswith(path):
        return whole.removesuffix(path), whole
    return root, path


def root_path(request: Request) -> str:
    """The path under which this app is mounted, as it is before percent-encoding."""
    return str(request.scope.get("root_path", ""))


def run_url(root: str, run: str) -> str:
    """The URL of a run, as a path, in an app mounted at `root`."""
    return f"{quote(root)}/runs/{run}"


def accepts(request: Request, media_type: str) -> bool:
    """Whether the Accept header allows a media type (RFC 9110, section 12.5.1)."""
    accept = request.headers.get("accept", "*/*")
    if accept in ("*/*", media_type):
        return True
    kinds = {media_type, media_type.partition("/")[0] + "/*", "*/*"}
    for range_ in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in range_.split(";"))
        refused = any(part.replace(" ", "") in ("q=0", "q=0.0") for part in parameters)
        if kind in kinds and not refused:
            return True
    return False


def check_accepts(request: Request, media_type: str) -> None:
    if not accepts(request, media_type):
        accept = request.headers["accept"]
        raise NotAcceptable(
            f"Accept: {accept} excludes {media_type}, which is what this URL answers; "
            f"send Accept: {media_type}"
        )


def last_event_id(request: Request) -> EventId | None:
    """The Last-Event-ID, from the header or the query. Raises InvalidEventId."""
    query = request.query_params
    given = (query.get(name) for name in EVENT_ID_PARAMETERS)
    text = request.headers.get("last-event-id") or next(filter(None, given), None)
    return EventId.parse(text) if text else None


def identity(scope: Scope) -> str | None:
    """The user's identity, from the app's authentication; None for an anonymous client."""
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    try:
        return str(user.identity)
    except (AttributeError, NotImplementedError):
        return str(user.display_name)


def is_event_source(request: Request) -> bool:
    """Whether an EventSource sent this: it has the two headers that the specification sets."""
    return (
        request.headers.get("accept") == EVENT_STREAM
        and request.headers.get("cache-control") == "no-cache"
    )


async def read_json(request: Request, max_body: int) -> bytes:
    """The body of a request with a JSON media type. Raises BodyTooLarge, UnsupportedMediaType."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_body:
            raise BodyTooLarge(f"the body has more than {max_body} bytes, which is the limit")
    kind = request.headers.get("content-type", "nothing" if body else JSON)
    media_type = kind.partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"the body's Content-Type is {kind}; send JSON, as {JSON}")
    return bytes(body)


def check_site(request: Request, origins: frozenset[str]) -> None:
    """Raises CrossSite for a page of another site whose origin is not in `origins`.

    Starting a run costs something; such a page must not do it with its visitor's cookies.
    """
    if request.headers.get("sec-fetch-site") != "cross-site" or "*" in origins:
        return
    origin = request.headers.get("origin")
    if origin not in origins:
        raise CrossSite(
            f"a page of {origin or 'another site'} may not start runs; "
            "to allow it, add its origin to the option `origins`"
        )


def in_middleware(response: ASGIApp, scope: Scope) -> ASGIApp:
    """A response inside the middleware that its source has put into the request's scope, if any."""
    middleware: Callable[[ASGIApp], ASGIApp] | None = scope.get("streams.middleware")
    return response if middleware is None else middleware(response)
