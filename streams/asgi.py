"""Streams, the mountable ASGI app: a thin route table over runs.

The law of this file: all that comes from outside is checked here, and every refusal is a problem
response (RFC 9457) that says what to do; nothing here knows how events are kept or written.
"""

import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from streams.errors import StoreFull, StreamError, UnknownSource, problem
from streams.event import encode_json
from streams.log import EventLog, RunLog
from streams.log.memory import MemoryLog
from streams.request import (
    EVENT_STREAM,
    JSON,
    accepts,
    check_accepts,
    check_site,
    identity,
    in_middleware,
    is_event_source,
    last_event_id,
    read_json,
    whole_path,
)
from streams.response import EventStreamResponse, event_stream_headers, gap_frame
from streams.run import Opener, Place, Runs
from streams.source import Policy, Source, iterate
from streams.wires.openai.routes import Completions

PAGE = {path.name: path for path in (Path(__file__).parent / "page").iterdir()}


class Streams:
    """Serves sources as event streams; an ASGI app of its own, or mounted in another.

    `models`, a source for each name, are served at /v1/chat/completions in OpenAI's wire format.
    `log` keeps the runs: a MemoryLog of `max_runs` runs and `max_bytes` bytes, or what the URL of
    a Redis or Valkey names, for many workers (see RedisLog; StoreDown if it is not there). Pages
    of `origins` ("*": all) may start runs from another site, with CORS. `max_body` limits a POST
    body, in bytes. `page` serves the playground at the root. Other keywords are the policy for
    all sources: see Policy. Raises TypeError for a source or policy that cannot be.
    """

    def __init__(
        self,
        sources: Iterable[Source] = (),
        *,
        models: Mapping[str, Source] | None = None,
        log: EventLog | str | None = None,
        max_runs: int = 10_000,
        max_bytes: int = 256 * 2**20,
        max_body: int = 2**20,
        origins: Sequence[str] = (),
        page: bool = True,
        **policy: Any,
    ) -> None:
        self.sources: dict[str, Source] = {}
        for source in sources:
            if not isinstance(source, Source):
                raise TypeError(f"{source!r} is not a source: decorate it with @source")
            if source.name in self.sources:
                raise TypeError(f"two sources are named {source.name!r}")
            self.sources[source.name] = source
        self.models = dict(models or {})
        self.policy = Policy().but(policy)
        self._policies = {s.name: self.policy.but(s.policy) for s in self.sources.values()}
        limits = {"max_runs": max_runs, "max_bytes": max_bytes}
        if log is None:  # one that is given may be empty, and so false
            log = MemoryLog(**limits)
        self.log = _log_at(log, limits) if isinstance(log, str) else log
        self.runs = Runs(
            self.log, {s.name: (s, self._policies[s.name]) for s in self.sources.values()}
        )
        self._max_body = max_body
        self._origins = frozenset(origins)
        routes = [
            Route("/streams", self._list),
            Route("/streams/{source}", _Endpoint(self._stream), methods=["GET", "POST"]),
            Route("/runs/{run}", _Endpoint(self._run), methods=["GET", "DELETE"]),
            Route("/health", self._health),
        ]
        if self.models:
            completions = Completions(self.models, self.runs, self.policy, max_body, self._origins)
            routes += [
                Route(route.path, _Endpoint(route.endpoint), methods=route.methods)
                for route in completions.routes
            ]
        if page:
            routes += [Route("/", _page), Route("/page/{file}", _page)]
        self._router = Router(routes, redirect_slashes=False, lifespan=self._lifespan)
        self._app: ASGIApp = self._answer_http
        if origins:
            self._app = CORSMiddleware(
                self._app,
                allow_origins=list(origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],  # clients of OpenAI's API have a dozen of their own
                allow_credentials=True,
                expose_headers=["Content-Location", "Retry-After"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] == "http" else self._router
        await app(scope, receive, send)

    async def _answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("app", self)
        root, path = whole_path(scope)  # /streams/x/ is /streams/x: a redirect would lead
        path = f"{root}/" if path in ("", root) else path  # out of some mounts
        if path != scope["path"] or root != scope.get("root_path", ""):
            scope = {**scope, "root_path": root, "path": path}
        try:
            await self._router(scope, receive, send)
        except StreamError as error:
            await answer_to(error, Request(scope))(scope, receive, send)
        except HTTPException as error:
            headers = dict(error.headers or {})
            detail = f"there is nothing at {scope['path']!r}"
            if allowed := headers.get("Allow"):
                detail = f"{scope['method']} does not work here, {allowed} do"
            refusal = StreamError(detail, status=error.status_code)
            await problem(refusal, headers)(scope, receive, send)

    def response(
        self,
        request: Request,
        events: AsyncIterable[Any] | Iterable[Any],
        *,
        name: str | None = None,
        **policy: Any,
    ) -> Response:
        """A response, for an endpoint of your own, that streams what `events` yields.

        On a reconnect the run that it started goes on, and `events` is closed unstarted. `name`
        (default: the generator's) is the source's name; a run resumes only under the same one.
        Other keywords are exceptions from the policy. Raises TypeError for what is no iterable.
        """
        if name is None:
            name = re.sub(r"\W", "", getattr(events, "__name__", type(events).__name__))
        changed = self.policy.but(policy) if policy else self.policy
        return _Response(self, request, name, events, changed)

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        await self.log.open()
        yield
        await self.runs.aclose()
        for source in {*self.sources.values(), *self.models.values()}:
            if source.aclose is not None:
                await source.aclose()

    async def _list(self, request: Request) -> Response:
        return _json(
            {
                "sources": [
                    {
                        "name": source.name,
                        "description": source.description,
                        "parameters": source.schema,
                        "shared": source.shared,
                        "restartable": source.restartable,
                        "url": f"{quote(_base(request))}/streams/{source.name}",
                    }
                    for source in self.sources.values()
                ]
            }
        )

    async def _health(self, request: Request) -> Response:
        return _json(self.runs.health())

    async def _stream(self, request: Request) -> Response:
        name = request.path_params["source"]
        source = self.sources.get(name)
        if source is None:
            known = ", ".join(self.sources)
            raise UnknownSource(f"there is no source {name!r}; there are: {known}")
        check_accepts(request, EVENT_STREAM)
        if request.method == "POST":
            arguments = source.from_json(await read_json(request, self._max_body))
        else:
            arguments = source.from_query(request.query_params)
        if request.method == "HEAD":
            return _head()
        policy = self._policies[name]
        opener = partial(source.open, arguments, request)
        return await self.answer(request, source, policy, opener, arguments, _base(request))

    async def answer(
        self,
        request: Request,
        source: Source,
        policy: Policy,
        opener: Opener,
        arguments: dict[str, Any],
        base: str | None,
    ) -> Response:
        """The stream that a request asks of a source: a new run, a shared one, or one resumed.

        `base` is the path under which /runs is; None if it is nowhere.
        """
        check_site(request, self._origins)
        last = last_event_id(request)
        owner = identity(request.scope)
        place: Place | None
        if source.shared and not (last and await self.runs.knows(last.run)):
            place = await self.runs.join(source, policy, opener, arguments)
            if last:
                self.runs.gaps += 1
                place = place._replace(head=gap_frame(None) + place.head)
        elif last:
            place = await self.runs.resume(last, source, policy, opener, owner, arguments)
        else:
            place = Place(await self.runs.start(source, policy, opener, owner, arguments), -1)
        return self._reading(place, policy, base)

    def _reading(self, place: Place | None, policy: Policy, base: str | None) -> Response:
        if place is None:
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        return EventStreamResponse(self.runs, place, policy, _location(base, place.log))

    async def _run(self, request: Request) -> Response:
        log = await self.runs.find(request.path_params["run"], identity(request.scope))
        if request.method == "DELETE":
            await self.runs.cancel(log)
            return Response(status_code=204)
        if not accepts(request, EVENT_STREAM) and accepts(request, JSON):
            return _json(_state(log))
        check_accepts(request, EVENT_STREAM)
        if request.method == "HEAD":
            return _head(_location(_base(request), log))
        policy = self._policies.get(log.info.source, self.policy)
        place = self.runs.place(log, last_event_id(request))
        return self._reading(place, policy, _base(request))

    def base_in(self, scope: Scope) -> str | None:
        """The path under which the app of `scope` mounts this; None if it does not, or under a
        path with parameters, whose values only a request to the mount has."""
        mounted = _mounted_at(self, getattr(scope.get("app"), "routes", ()))
        root = scope.get("app_root_path", scope.get("root_path", ""))
        return None if mounted is None or "{" in mounted else root + mounted


class _Endpoint:
    """A route's function as an ASGI app: Starlette's own way, for the sake of exception handlers,
    which are not here, holds three coroutines more, and 1 KiB, as long as a stream is open."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await in_middleware(response, scope)(scope, receive, send)


class _Response(Response):
    """Finds out when it is called, as only then it may wait, what to answer, and answers that."""

    def __init__(
        self, streams: Streams, request: Request, name: str, events: Any, policy: Policy
    ) -> None:
        super().__init__()
        self._streams = streams
        self._request = request
        self._events = events
        self._iterator = iterate(events)
        self._source = _unlisted(name)
        self._policy = policy
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer()
        except StreamError as error:
            response = answer_to(error, self._request)
        finally:
            if not self._started:
                await self._close()
        await in_middleware(response, scope)(scope, receive, send)

    async def _answer(self) -> Response:
        if self._request.method == "HEAD":
            return _head()
        base = self._streams.base_in(self._request.scope)
        return await self._streams.answer(
            self._request, self._source, self._policy, self._open, {}, base
        )

    async def _open(self, after: int) -> AsyncIterator[Any]:
        self._started = True
        return self._iterator

    async def _close(self) -> None:
        if (aclose := getattr(self._events, "aclose", None)) is not None:
            await aclose()
        elif (close := getattr(self._events, "close", None)) is not None:
            close()


@lru_cache
def _unlisted(name: str) -> Source:
    """What stands for the events given to Streams.response, which opens them itself."""

    async def given() -> None: ...

    return Source(given, name=name)


def _log_at(url: str, limits: dict[str, int]) -> EventLog:
    from streams.log.redis import RedisLog  # an extra, which may not be installed

    log = RedisLog(url, **limits)
    log.check()
    return log


def _mounted_at(app: Any, routes: Iterable[Any]) -> str | None:
    for route in routes:
        if isinstance(route, Mount):
            if route.app is app:
                return route.path
            if (inner := _mounted_at(app, route.routes)) is not None:
                return route.path + inner
    return None


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _location(base: str | None, log: RunLog) -> str | None:
    return None if base is None else f"{quote(base)}/runs/{log.info.run}"


def _json(value: Any) -> Response:
    return Response(encode_json(value), media_type=JSON, headers={"Cache-Control": "no-store"})


def _head(location: str | None = None) -> Response:
    response = Response(headers=event_stream_headers(location), media_type=EVENT_STREAM)
    del response.headers["content-length"]
    return response


async def _page(request: Request) -> Response:
    last = str(request.scope.get("raw_path") or b"", "latin-1").partition("?")[0].rpartition("/")[2]
    if last and "file" not in request.path_params:
        return RedirectResponse(f"./{last}/")  # without the slash, its own URLs lead elsewhere
    path = PAGE.get(request.path_params.get("file", "index.html"))
    if path is None:
        raise StreamError(f"the page has no file {request.path_params['file']!r}", status=404)
    policy = "default-src 'self'; base-uri 'none'; frame-ancestors 'self'; form-action 'self'"
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}
    return FileResponse(path, headers=headers)


def _state(log: RunLog) -> dict[str, Any]:
    return {
        "run": log.info.run,
        "source": log.info.source,
        "status": log.status,
        "started": log.info.started,
        "producer": log.producer,
        "first_event": log.first,
        "last_event": log.last,
        "readers": log.readers,
    }


def answer_to(error: StreamError, request: Request) -> Response:
    """A problem; but an EventSource gives up for good on any status but 200, so where a limit was
    reached, which passes, it gets an end, which it answers by coming back."""
    if not isinstance(error, StoreFull) or not is_event_source(request):
        return problem(error)
    body = b"retry: %d\n" % (1000 * (error.retry_after or 1))
    return Response(body, media_type=EVENT_STREAM, headers=event_stream_headers(None))
