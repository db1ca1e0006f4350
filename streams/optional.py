"""The optional parts of the package, which are imported when they are used."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from streams.errors import StreamError
from streams.log import EventLog
from streams.policy import Policy
from streams.request import EVENT_STREAM
from streams.wires import EventStream, Wire


def log_at(url: str, limits: Mapping[str, int]) -> EventLog:
    from streams.log.shared import SharedLog

    if url.startswith("sqlite:"):
        from streams.log.sqlite import SQLiteStore as Store
    else:
        from streams.log.redis import RedisStore as Store  # type: ignore[assignment]  # an extra
    store = Store(url)
    store.check()
    return SharedLog(store, **limits)


def wire_of(media_type: str, policy: Policy) -> Wire:
    """The wire of a media type that a client has asked for."""
    if media_type == EVENT_STREAM:
        return EventStream(policy.retry)
    from streams.wires.jsonlines import JSONLines

    return JSONLines(media_type)


def openai_routes(streams: Any) -> list[Route]:
    from streams.wires.openai import Endpoints

    return Endpoints(streams, streams.models).routes


def openai_refusal(error: StreamError) -> Response:
    from streams.wires.openai import refusal

    return refusal(error)


def page_routes() -> list[Route]:
    from streams.page import routes

    return routes
