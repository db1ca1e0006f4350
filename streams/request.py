"""What a request asks for, read with distrust.

Each function answers one question about a request, or raises the StreamError that refuses it.
None of them starts anything.
"""

import re
from collections.abc import Callable, Sequence
from typing import get_args
from urllib.parse import quote, unquote

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Scope

from streams.arguments import items_of
from streams.body import check_structure
from streams.encoding import give_turn
from streams.errors import (
    Forbidden,
    InvalidKey,
    InvalidParameters,
    NotAcceptable,
    UnsupportedMediaType,
    abbreviated,
    shortened,
)
from streams.event import EventId
from streams.log import Selection, Status
from streams.source import EVENT_ID_PARAMETERS, KEY_PARAMETER

MAX_KEY = 256
ANONYMOUS_KEY = 16
"""Characters that the key of an anonymous client has at least: whoever knows it has the run."""

# A string of RFC 8941, section 3.3.3, perhaps with parameters, which mean nothing here.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(?:[ \t]*;.*)?')

MAX_ACCEPT = 4096
"""Characters of the Accept header that are read. A server may let in megabytes."""

LISTED_BY = ("key", "key_prefix", "source", "status", "limit", "after")
LISTED_RUNS = 100
"""The most runs of one page of a list."""
LISTED_STATUSES = tuple(status for status in get_args(Status) if status != "refused")

EVENT_STREAM = "text/event-stream"
JSON_LINES = ("application/jsonl", "application/x-ndjson")
STREAM_TYPES = (EVENT_STREAM, *JSON_LINES)
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


def with_whole_path(scope: Scope) -> Scope:
    """A scope whose path begins with the root path.

    /streams/x/ is the same as /streams/x: under some mounts a redirect would lead elsewhere.
    """
    root, path = whole_path(scope)
    path = f"{root}/" if path in ("", root) else path
    if path != scope["path"] or root != scope.get("root_path"):
        return {**scope, "root_path": root, "path": path}
    return scope


def root_path(request: Request) -> str:
    """The path under which this app is mounted, as it is before percent-encoding."""
    return str(request.scope.get("root_path", ""))


def run_url(root: str, run: str) -> str:
    """The URL of a run, as a path, in an app mounted at `root`."""
    return f"{quote(root, errors='replace')}/runs/{run}"


def preferred(request: Request, offered: Sequence[str]) -> str | None:
    """The media type that the Accept header prefers (RFC 9110, section 12.5.1).

    It is the first one of those that the header prefers equally, and None if it excludes all.
    """
    accept = _accept(request)
    if accept in ("*/*", offered[0]):
        return offered[0]
    weights: dict[str, float] = {}
    for part in accept[:MAX_ACCEPT].lower().split(","):
        range_ = part.partition(";")[0].strip()
        weight = float(given[1]) if (given := _WEIGHT.search(part)) else 1.0
        weights[range_] = max(weight, weights.get(range_, 0))

    def weight_of(media_type: str) -> float:
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")  # the most specific first
        return next((weights[range_] for range_ in ranges if range_ in weights), 0)

    best = max(offered, key=weight_of)
    return best if weight_of(best) else None


def negotiated(request: Request, offered: Sequence[str]) -> str:
    """The media type that the Accept header prefers. Raises NotAcceptable if it excludes all."""
    if (media_type := preferred(request, offered)) is not None:
        return media_type
    raise NotAcceptable(
        f"Accept: {shortened(_accept(request))} excludes all that this URL answers "
        f"({', '.join(offered)}); send Accept: {offered[0]}"
    )


def _accept(request: Request) -> str:
    return ", ".join(request.headers.getlist("accept")) or "*/*"


_WEIGHT = re.compile(r";\s*q=(0(?:\.\d*)?|1(?:\.0*)?)\s*(?:;|$)")


def last_event_id(request: Request) -> EventId | None:
    """The Last-Event-ID, from the header or the query. Raises InvalidEventId."""
    query = request.query_params
    given = _headers(request, b"last-event-id")[:1]
    given += [query[name] for name in EVENT_ID_PARAMETERS if name in query]
    text = next(filter(None, given), None)
    return EventId.parse(text) if text else None


def _headers(request: Request, name: bytes) -> list[str]:
    """The values of a header. Starlette's way costs more if there is none, as for most streams.

    White space after a value is not part of it (RFC 9110, section 5.5), but uvicorn passes it on.
    """
    headers = request.scope["headers"]
    return [value.decode("latin-1").strip(" \t") for key, value in headers if key == name]


def idempotency_key(request: Request, owner: str | None, own: str | None = None) -> str | None:
    """The key that names the run of a request: the app's `own`, else the one that the client gives.

    That is in the header (draft-ietf-httpapi-idempotency-key-header) or the query, with or without
    quotes. Raises InvalidKey.
    """
    if own is not None:
        check_key(own)
        return own
    given = _headers(request, b"idempotency-key")
    if not given:
        if KEY_PARAMETER not in request.query_params:
            return None
        given = [request.query_params[KEY_PARAMETER]]
    if len(given) > 1:
        raise InvalidKey(f"{len(given)} Idempotency-Key headers; send one")
    key = given[0]
    if len(key) > 4 * MAX_KEY:  # With all that quotes add, it is too long.
        check_key(key)
    if key.startswith('"'):
        if (quoted := _QUOTED.fullmatch(key)) is None:
            raise InvalidKey(
                f'the idempotency key {abbreviated(key)} is no quoted string; send it as "…", with '
                "a backslash before each quote and backslash in it, or without quotes"
            )
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    check_key(key)
    if owner is None and len(key) < ANONYMOUS_KEY:
        raise InvalidKey(
            f"the idempotency key {key!r} has {len(key)} characters. Without a login, whoever "
            f"knows the key can read the run: send {ANONYMOUS_KEY} random ones or more, such as a "
            "UUID"
        )
    return key


def check_key(key: str) -> None:
    """Raises InvalidKey for a wrong length, and for characters other than printable ASCII."""
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidKey(
            f"an idempotency key has 1 to {MAX_KEY} characters, not {len(key)}; send for example a "
            "UUID"
        )
    if not key.isascii() or not key.isprintable():
        raise InvalidKey(
            f"the idempotency key {abbreviated(key)} has other characters than printable ASCII; "
            "send for example a UUID"
        )


def selection_of(request: Request, owner: str | None) -> Selection:
    """Which of its own runs a client wants to see, from the query.

    Raises InvalidParameters and InvalidKey, and Forbidden for an anonymous client without a key
    that nobody can guess.
    """
    query = dict(items_of(request.query_params))
    for name in query:
        if name not in LISTED_BY:
            raise InvalidParameters(
                f"{abbreviated(name)} is not a parameter of this URL; parameters: "
                f"{', '.join(LISTED_BY)}"
            )
    for name in ("key", "key_prefix"):
        if query.get(name) or name == "key" in query:
            check_key(query[name])
    if (status := query.get("status", "running")) not in LISTED_STATUSES:
        raise InvalidParameters(
            f"there is no status {abbreviated(status)}; there are: {', '.join(LISTED_STATUSES)}"
        )
    if owner is None and len(query.get("key", "")) < ANONYMOUS_KEY:
        raise Forbidden(
            "without a login, runs are listed only by their key. Log in, or give ?key= with a "
            f"whole key, of {ANONYMOUS_KEY} characters or more"
        )
    limit, after = query.pop("limit", str(LISTED_RUNS)), query.pop("after", None)
    if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= LISTED_RUNS:
        raise InvalidParameters(
            f"limit={abbreviated(limit)} is not a number from 1 to {LISTED_RUNS}"
        )
    place: dict[str, object] = {}
    if after is not None:
        if not (found := re.fullmatch(r"([0-9]{1,16})\.([\w-]{1,64})", after, re.ASCII)):
            raise InvalidParameters(
                f"after={abbreviated(after)} is not from the member `next` of a list; leave it out"
            )
        place = {"after": (int(found[1]), found[2])}
    return msgspec.convert({"owner": owner, "limit": int(limit), **query, **place}, Selection)


def is_event_source(request: Request) -> bool:
    """Whether an EventSource sent this: it has the two headers that the specification sets."""
    return (
        request.headers.get("accept") == EVENT_STREAM
        and request.headers.get("cache-control") == "no-cache"
    )


async def read_json(request: Request) -> bytes:
    """The body of a request with a JSON media type.

    Raises UnsupportedMediaType, InvalidBody for what is nested too deep, and what Body raises.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "nothing" if body else JSON)
    media_type = kind.partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise UnsupportedMediaType(
            f"the body's Content-Type is {abbreviated(kind)}; send JSON, as {JSON}"
        )
    await give_turn(len(body))
    await check_structure(body)
    await give_turn(len(body))
    return body


def in_middleware(response: ASGIApp, scope: Scope) -> ASGIApp:
    """A response inside the middleware that its source has put into the request's scope, if any."""
    middleware: Callable[[ASGIApp], ASGIApp] | None = scope.get("streams.middleware")
    return response if middleware is None else middleware(response)
