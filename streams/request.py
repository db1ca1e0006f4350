"""What a request says of itself, read with distrust.

The law of this file: each function answers one question about a request, or raises the StreamError
that refuses it; none starts anything. asgi.py asks.
"""

from collections.abc import Callable
from urllib.parse import unquote

from starlette.requests import Request
from starlette.types import ASGIApp, Scope

from streams.errors import BodyTooLarge, CrossSite, NotAcceptable, UnsupportedMediaType
from streams.event import EventId
from streams.source import EVENT_ID_PARAMETERS

EVENT_STREAM = "text/event-stream"
JSON = "application/json"


def whole_path(scope: Scope) -> tuple[str, str]:
    """The root path and the path that begins with it, neither with a slash at the end.

    Some hosts cut the prefix off and do not say so (Litestar): the raw path still has it.
    """
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"].rstrip("/")
    whole = unquote((scope.get("raw_path") or b"").decode("latin-1")).rstrip("/")
    if whole != path and whole.endswith(path):
        return whole.removesuffix(path), whole
    return root, path


def accepts(request: Request, media_type: str) -> bool:
    """Whether the Accept header takes a media type (RFC 9110, section 12.5.1)."""
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
        raise NotAcceptable(f"this is {media_type}, which Accept: {accept} leaves out")


def last_event_id(request: Request) -> EventId | None:
    query = request.query_params
    given = (query.get(name) for name in EVENT_ID_PARAMETERS)
    text = request.headers.get("last-event-id") or next(filter(None, given), None)
    return EventId.parse(text) if text else None


def identity(scope: Scope) -> str | None:
    """Who the app's authentication says this is; None without one, or for a stranger."""
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    try:
        return str(user.identity)
    except (AttributeError, NotImplementedError):
        return str(user.display_name)


def is_event_source(request: Request) -> bool:
    """Whether this is an EventSource: the two headers that the specification gives it."""
    return (
        request.headers.get("accept") == EVENT_STREAM
        and request.headers.get("cache-control") == "no-cache"
    )


async def read_json(request: Request, max_body: int) -> bytes:
    """The body of a request that calls it JSON, of at most `max_body` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_body:
            raise BodyTooLarge(f"the body has more than {max_body} bytes")
    kind = request.headers.get("content-type", JSON if not body else "nothing")
    media_type = kind.partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"the body is {kind}: send a JSON object as {JSON}")
    return bytes(body)


def check_site(request: Request, origins: frozenset[str]) -> None:
    """Opening a stream costs; a page of another site must not do it to a visitor's server."""
    if request.headers.get("sec-fetch-site") != "cross-site" or "*" in origins:
        return
    origin = request.headers.get("origin")
    if origin not in origins:
        raise CrossSite(f"a page of {origin or 'another site'} may not start runs: see origins")


def in_middleware(response: ASGIApp, scope: Scope) -> ASGIApp:
    """The response, in the middleware that the source has put into the request's scope, if any."""
    middleware: Callable[[ASGIApp], ASGIApp] | None = scope.get("streams.middleware")
    return response if middleware is None else middleware(response)
