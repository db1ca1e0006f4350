"""The optional parts of the package, which are imported when they are used."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from streams.errors import StreamError, abbreviated
from streams.log import EventLog, RunInfo
from streams.log.memory import MemoryLog
from streams.observer import Observer
from streams.policy import Policy
from streams.request import EVENT_STREAM, root_path
from streams.response import json_response
from streams.wires import EventStream, Wire

MakeWire = Callable[[RunInfo], Wire]
"""Makes the wire of one response that reads a run."""


def log_at(url: str, limits: Mapping[str, int]) -> EventLog:
    """The log at a URL. Raises ValueError for an invalid one, and ImportError without redis-py."""
    if url == "memory":
        return MemoryLog(**limits)
    if not url.startswith(("sqlite:", "redis://", "rediss://", "redis+unix://", "unix://")):
        scheme = url.partition(":")[0]  # The rest may contain a password.
        raise ValueError(
            "a log is memory, sqlite:FILE, redis://HOST, rediss://HOST or redis+unix://SOCKET, not "
            f"{abbreviated(scheme)}"
        )
    from streams.log.shared import SharedLog

    if url.startswith("sqlite:"):
        from streams.log.sqlite import SQLiteStore as Store
    else:
        from streams.log.redis import RedisStore as Store  # type: ignore[assignment]  # an extra
    store = Store(url)
    store.check()
    return SharedLog(store, **limits)


class Wires:
    """The wires of one Streams, by the media types that clients ask for."""

    @functools.cached_property
    def _json_lines(self) -> Callable[[str], Wire]:
        from streams.wires.jsonlines import JSONLines, Lines

        return functools.partial(JSONLines, shared=Lines())

    def of(self, media_type: str, policy: Policy) -> Wire:
        if media_type == EVENT_STREAM:
            return EventStream(policy.retry)
        return self._json_lines(media_type)

    def maker(self, media_type: str, policy: Policy) -> MakeWire:
        return lambda info: self.of(media_type, policy)


def wire_named(wire: str | MakeWire | None) -> MakeWire | None:
    """The wire with a name, or one of the app's own. Raises ValueError for an unknown name."""
    if wire == "ui":
        from streams.wires.ui_stream import UIStream

        return UIStream
    if isinstance(wire, str) or not (wire is None or callable(wire)):
        raise ValueError(
            f"there is no wire {abbreviated(wire)}; there is: 'ui'. Or give a function of the "
            "run's RunInfo that returns a Wire"
        )
    return wire


def openai_routes(streams: Any) -> list[Route]:
    from streams.wires.openai import Endpoints

    return Endpoints(streams, streams.models).routes


def openai_refusal(error: StreamError) -> Response:
    from streams.wires.openai import refusal

    return refusal(error)


def observers_of(metrics: bool, sources: Iterable[str]) -> list[Observer]:
    """What counts and traces the runs of a Streams with these names of sources."""
    observers: list[Observer] = []
    if metrics:
        from streams.metrics import Metrics

        observers.append(Metrics(sources))
    try:
        from streams.tracing import Tracing
    except ImportError:  # opentelemetry-api is not installed.
        return observers
    return [*observers, Tracing()]


def metrics_routes(streams: Any) -> list[Route]:
    from streams.metrics import routes

    return routes(streams)


def page_routes(streams: Any, *, playground: bool) -> list[Route]:
    from streams.page import routes

    return routes(streams, playground=playground)


def openapi_route(streams: Any, routes: Sequence[BaseRoute], **facts: bool) -> Route:
    """The route of the document that describes `routes`, which is made when it is asked for."""

    @functools.cache
    def document() -> dict[str, Any]:
        from streams.openapi import Facts, document

        return document(streams, routes, Facts(**facts))

    async def answer(request: Request) -> Response:
        from streams.openapi import mounted_at

        return json_response(mounted_at(document(), root_path(request)))

    return Route("/openapi.json", answer)
