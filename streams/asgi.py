"""Streams, the ASGI app: a thin route table over runs.

Everything that comes from outside is checked here. Each refusal is a problem response (RFC 9457)
that says what to do. Nothing here knows how events are kept or sent.
"""

import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, Unpack
from urllib.parse import quote

import msgspec
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from streams.access import Access, Identity, check_owner
from streams.endpoint import (
    EndpointResponse,
    Produced,
    mount_path,
    route_of,
    source_name,
    starlette_request,
)
from streams.errors import StreamError, Unavailable, UnknownSource
from streams.event import Encoder, EventId
from streams.guard import Guard
from streams.job import Job
from streams.lifetime import Lifetime
from streams.log import EventLog, RunLog
from streams.log.memory import MemoryLog
from streams.optional import log_at, openai_refusal, openai_routes, page_routes, wire_of
from streams.policy import Policy, PolicyOptions
from streams.publish import Publisher
from streams.request import (
    EVENT_STREAM,
    STREAM_TYPES,
    check_site,
    idempotency_key,
    last_event_id,
    negotiated,
    preferred,
    root_path,
    run_url,
    whole_path,
)
from streams.response import RunResponse, head_response, json_response, misdirected, refusal
from streams.run_endpoints import RunEndpoints
from streams.runs import Position, Runs
from streams.source import Source, check_name, check_source
from streams.topic import Topic
from streams.wire_host import WireHost


class Streams(Publisher, WireHost):
    """Serves sources as event streams: an ASGI app of its own, or mounted in another.

    `models` maps model names to sources, served in OpenAI's formats at /v1/chat/completions and
    /v1/responses.
    `log` keeps the runs: a MemoryLog of `max_runs` runs and `max_bytes` bytes (the default), for
    many workers "sqlite:runs.db" or the URL of Redis, or any EventLog. Plain generators run in at
    most `max_threads` threads. Pages of `origins` ("*": all) may start runs from another site, with
    CORS. `max_body` is the limit of a POST body, in bytes. `page` serves the playground at the
    root. `identity(request)`, sync or async, says who the client is (default: the user in the
    request's scope, if any); other clients cannot see that client's runs. With `publish(request)`,
    sync or async, `POST /topics/{name}` publishes, unless it raises. `encode` converts a yielded
    value of a type that msgspec does not know to one that it knows. Other keywords are the policy
    for all sources: see Policy.

    Raises TypeError for an invalid source or policy, ValueError for an invalid URL of a log, and
    StoreDown if the log's server or file cannot be used.
    """

    def __init__(
        self,
        sources: Iterable[Source[..., Any]] = (),
        *,
        models: Mapping[str, Source[..., Any]] | None = None,
        log: EventLog | str | None = None,
        max_runs: int = 10_000,
        max_bytes: int = 256 * 2**20,
        max_threads: int = 1000,
        max_body: int = 2**20,
        origins: Sequence[str] = (),
        page: bool = True,
        identity: Identity | None = None,
        publish: Guard | None = None,
        encode: Callable[[Any], Any] | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        self.models = dict(models or {})
        self.sources: dict[str, Source[..., Any]] = {}
        if isinstance(sources, Source) or not isinstance(sources, Iterable):
            raise TypeError("Streams takes a list of sources: Streams([source])")
        for source in sources:
            check_source(source)
            if source.name in self.sources:
                raise TypeError(f"two sources have the name {source.name!r}; rename one")
            self.sources[source.name] = source
        for source in self.models.values():
            check_source(source)
            if isinstance(source, Topic):
                raise TypeError(f"{source!r} cannot be a model: it answers nothing; give a source")
        self.policy = Policy().replace(policy, "Streams", Streams.__init__.__kwdefaults__ or ())
        self._policies = {
            source: self.policy.replace(source.policy, f"source {source.name!r}")
            for source in (*self.sources.values(), *self.models.values())
        }
        limits = {"max_runs": max_runs, "max_bytes": max_bytes}
        if log is None:
            log = MemoryLog(**limits)
        self.log = log_at(log, limits) if isinstance(log, str) else log
        sources_by_name = {s.name: (s, self._policies[s]) for s in self.sources.values()}
        self.runs = Runs(self.log, sources_by_name, Encoder(encode), max_threads)
        self._lifetime = Lifetime(self.log, self.runs, self._policies)
        self._access = Access(identity, publish, self._policies, self.runs.threads)
        self._max_body = max_body
        self._origins = frozenset(origins)
        of_runs = RunEndpoints(self.runs, self._access, self._follow)
        routes = [
            Route("/streams", self._list),
            Route("/streams/{source}", self.endpoint(self._stream), methods=["GET", "POST"]),
            Route("/runs", self.endpoint(of_runs.list), methods=["GET"]),
            Route("/runs/{run}", self.endpoint(of_runs.one), methods=["GET", "DELETE"]),
            Route("/health", self._health),
        ]
        if publish is not None:
            routes.append(Route("/topics/{topic}", self.endpoint(self._post), methods=["POST"]))
        if self.models:
            routes += openai_routes(self)
        if page:
            routes += page_routes()
        self._router = Router(routes, redirect_slashes=False, lifespan=self.lifespan)
        self._app: ASGIApp = self._answer_http
        if origins:
            self._app = CORSMiddleware(
                self._app,
                allow_origins=list(origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],  # Clients of OpenAI's API send a dozen of their own.
                allow_credentials=True,
                expose_headers=["Content-Location", "Retry-After"],
            )

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """The lifespan of the app that mounts this, `FastAPI(lifespan=streams.lifespan)`.

        Ends the runs and closes their sources before the server ends. In a lifespan of your own,
        `async with streams:` does the same.
        """
        async with self._lifetime:
            await self._lifetime.expect_viewers()
            yield

    async def __aenter__(self) -> Self:
        await self._lifetime.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._lifetime.__aexit__(*error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] == "http" else self._router
        await app(scope, receive, send)

    async def _answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("app", self)
        # /streams/x/ is the same as /streams/x: under some mounts a redirect would lead elsewhere.
        root, path = whole_path(scope)
        path = f"{root}/" if path in ("", root) else path
        if path != scope["path"] or root != scope.get("root_path", ""):
            scope = {**scope, "root_path": root, "path": path}
        try:
            await self._lifetime.serve()
            await self._router(scope, receive, send)
        except StreamError as error:
            is_openais = self.models and path.startswith(f"{root}/v1/")
            response = openai_refusal(error) if is_openais else refusal(error, Request(scope))
            await response(scope, receive, send)
        except HTTPException as error:
            await misdirected(error, scope)(scope, receive, send)

    # For an endpoint of the user's own

    def response(
        self,
        request: Request,
        events: Produced,
        *,
        name: str | None = None,
        owner: str | None = None,
        key: str | None = None,
        arguments: Any = None,
        like: Response | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> Response:
        """A response, for an endpoint of your own, that streams what `events` yields.

        `events` is an iterator, or a function without arguments that returns one (an async
        function is awaited). The function is called only if a run starts. When a client
        reconnects, its run continues: the function is not called, and an iterator is closed
        unstarted. `name` (default: the generator's or function's) is the source's name; a run can
        be resumed only under the same name, by the same route.

        The run belongs to `owner` (default: what `identity` says); others cannot see it. A run
        without one belongs to whoever knows its id.

        `key` (default: the request's Idempotency-Key) names one run of the user, the route and the
        name: a request with the same key attaches to it, while it is running or retained. If it
        comes with other `arguments`, that is a 422; they are JSON values, and only a hash is kept.

        The stream keeps the status, headers and cookies that you set on the response, and those of
        `like`. Its background task runs after each response. Other keywords are exceptions from
        the policy. Raises TypeError if `events` cannot be iterated or called, and for a request
        that is not Starlette's, FastAPI's or Litestar's.
        """
        request = starlette_request(request)
        if name is None:
            name = source_name(events, request.scope)
        check_name(name)
        changed = (
            self.policy.replace(policy, "response", ("name", "owner", "key", "arguments", "like"))
            if policy
            else self.policy
        )
        answer = functools.partial(self._answer_endpoint, request)
        response = EndpointResponse(answer, request, name, events, changed, owner, key, arguments)
        if like is not None:
            response.take_over(like)
        return response

    async def resumes(
        self,
        request: Request,
        events: Produced | None = None,
        *,
        name: str | None = None,
        owner: str | None = None,
        key: str | None = None,
    ) -> bool:
        """Whether a request attaches to a run that exists, so that `response` starts none.

        Give the same `events`, the function that makes them, or the same `name`, and the same
        `owner` and `key`. Without events and name, the run may have any name. False also for a
        request that `response` will refuse. Raises StoreDown.
        """
        request = starlette_request(request)
        if name is None and events is not None:
            name = source_name(events, request.scope)
        try:
            await self._lifetime.serve()
            check_site(request, self._origins)
            owner = check_owner(owner, "owner=") or await self._access.owner(request)
            route = route_of(request.scope)
            last, key = last_event_id(request), idempotency_key(request, owner, key)
            if last is not None:
                log = await self.runs.find_resumed(last, name, route, owner, key)
            elif key is not None:
                log = await self.runs.find_by_key(owner, name, route, key)
            else:
                return False
            await self.runs.position(log, last)
        except Unavailable:
            raise
        except StreamError:
            return False
        return True

    async def _answer_endpoint(self, request: Request, job: Job) -> Response:
        media_type = preferred(request, STREAM_TYPES) or EVENT_STREAM
        if request.method == "HEAD":
            return head_response(wire_of(media_type, job.policy))
        try:
            await self._lifetime.serve()
            owner = job.owner or await self._access.owner(request)
            key = idempotency_key(request, owner, job.key)
            job = msgspec.structs.replace(job, owner=owner, key=key)
            last, root = last_event_id(request), mount_path(self, request.scope)
            resumed = await self._resumed(request, job, last)
            position = await self.runs.attach(job, last, resumed)
            return self._read(position, job.policy, root, media_type)
        except StreamError as error:
            return refusal(error, request)

    # The endpoints

    async def _list(self, request: Request) -> Response:
        url = f"{quote(root_path(request))}/streams"
        sources = self.sources.values()
        return json_response({"sources": [s.published(f"{url}/{s.name}") for s in sources]})

    async def _health(self, request: Request) -> Response:
        return json_response(self.runs.health())

    async def _stream(self, request: Request) -> Response:
        name = request.path_params["source"]
        source = self.sources.get(name)
        if source is None:
            known = ", ".join(self.sources)
            raise UnknownSource(f"there is no source {name!r}; there are: {known}")
        if not source.guard_takes_arguments:  # It comes before anything else.
            await self._access.admit(source, request, {})
        media_type = negotiated(request, STREAM_TYPES)
        last = last_event_id(request)
        if request.method == "POST":
            source.check_query_of_post(request.query_params)
            arguments = source.from_json(await self.read_json(request), resumes=last is not None)
        else:
            arguments = source.from_query(request.query_params, resumes=last is not None)
        policy, owner = self._policies[source], await self._access.owner(request)
        key = idempotency_key(request, owner)
        job = source.job(arguments, request, policy=policy, owner=owner, key=key)
        resumed = await self._resumed(request, job, last)
        if source.guard_takes_arguments and resumed is not None:
            await self._access.admit_to(resumed.info, request)
        elif source.guard_takes_arguments:  # A request without arguments wanted to resume.
            complete = source.complete(arguments or source.from_values({}))
            await self._access.admit(source, request, complete)
        if request.method == "HEAD":
            return head_response(wire_of(media_type, policy))
        position = await self.runs.attach(job, last, resumed)
        return self._read(position, policy, root_path(request), media_type)

    async def _resumed(self, request: Request, job: Job, last: EventId | None) -> RunLog | None:
        """The run that a request resumes, if it does. Raises CrossSite and what `resumed` does."""
        check_site(request, self._origins)
        return None if last is None else await self.runs.resumed(job, last)

    def _read(
        self, position: Position | None, policy: Policy, root: str | None, media_type: str
    ) -> Response:
        """The stream from a position. `root` is the path under which /runs is, if it is mounted."""
        if position is None:  # An EventSource stops reconnecting at a 204.
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        url = None if root is None else run_url(root, position.log.info.run)
        return RunResponse(self._lifetime, position, policy, wire_of(media_type, policy), url)

    async def _follow(self, request: Request, log: RunLog, media_type: str) -> Response:
        """The stream of a run, through its own URL."""
        source = self.sources.get(log.info.source) if log.info.route is None else None
        policy = self.policy if source is None else self._policies[source]
        if request.method == "HEAD":
            url = run_url(root_path(request), log.info.run)
            return head_response(wire_of(media_type, policy), url)
        position = await self.runs.position(log, last_event_id(request))
        return self._read(position, policy, root_path(request), media_type)
