"""Streams, the ASGI app: a thin route table over runs.

Everything that comes from outside is checked here. Each refusal is a problem response (RFC 9457)
that says what to do. Nothing here knows how events are kept or sent.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, Unpack
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from streams.access import Access, Identity, check_owner
from streams.admission import AddressOf, Clients
from streams.arguments import check_query, decode_object
from streams.body import Bodies
from streams.credentials import Credentials
from streams.encoding import give_turn
from streams.errors import StreamError, UnknownSource, abbreviated
from streams.event import Encoder
from streams.guard import Guard
from streams.health import Health
from streams.lifetime import Lifetime
from streams.log import EventLog, RunLog
from streams.observer import Observer
from streams.optional import (
    Wires,
    log_at,
    metrics_routes,
    observers_of,
    openai_refusal,
    openai_routes,
    openapi_route,
    page_routes,
)
from streams.policy import Policy, PolicyOptions
from streams.request import (
    STREAM_TYPES,
    idempotency_key,
    last_event_id,
    negotiated,
    root_path,
    run_url,
    with_whole_path,
)
from streams.responder import Responder
from streams.response import head_response, json_response, misdirected, refusal
from streams.run_endpoints import RunEndpoints
from streams.runs import Runs
from streams.site import Site
from streams.source import Source, check_source
from streams.topic import check_model
from streams.wire_host import WireHost


class Streams(Responder, WireHost):
    """Serves sources as event streams: an ASGI app of its own, or mounted in another.

    `models` maps model names to sources, served in OpenAI's formats at /v1/chat/completions and
    /v1/responses.
    `log` keeps the runs: "memory", a MemoryLog of `max_runs` runs and `max_bytes` bytes (the
    default), for many workers "sqlite:runs.db" or the URL of Redis, or any EventLog. Plain
    generators run in at most `max_threads` threads. `max_body` is the limit of a POST body, in
    bytes, and `body_timeout` the seconds in which all of it has to arrive. A client has at most
    `max_per_client` streams and runs at once on each worker: an identity has, and an address if
    `address(request)` says which (`client_address`, for instance). `page` serves the playground at
    the root, and `metrics` what Prometheus scrapes, at /metrics.

    Pages of `origins` may use this from another site, with CORS; "*" admits all, without cookies
    and keys. `hosts` are the names in the Host header that this answers to (None: all). Clients
    need one of the `api_keys`, as a bearer token. `secret` signs URLs: see signed_url.
    `identity(request)`, sync or async, says who the client is (default: the user in the request's
    scope, else a hash of the API key, if any); other clients cannot see that client's runs. With
    `publish(request)`, sync or async, `POST /topics/{name}` publishes, unless it raises.

    `encode` converts a yielded value of a type that msgspec does not know to one that it knows.
    Other keywords are the policy for all sources: see Policy.

    Raises TypeError for an invalid source, policy, origin, host, key or secret, ValueError for an
    invalid URL of a log, and StoreDown if the log's server or file cannot be used.
    """

    def __init__(
        self,
        sources: Iterable[Source[..., Any]] = (),
        *,
        models: Mapping[str, Source[..., Any]] | None = None,
        log: EventLog | str | None = None,
        max_runs: int = 10_000,
        max_bytes: int = 256 * 2**20,
        max_per_client: int | None = None,
        max_threads: int = 1000,
        max_body: int = 2**20,
        body_timeout: float = 30,
        origins: Sequence[str] = (),
        hosts: Sequence[str] | None = None,
        api_keys: Sequence[str] = (),
        secret: str | None = None,
        metrics: bool = False,
        page: bool = True,
        identity: Identity | None = None,
        address: AddressOf | None = None,
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
            check_model(source)
        self.policy = Policy().replace(policy, "Streams", Streams.__init__.__kwdefaults__ or ())
        self._policies = {
            source: self.policy.replace(source.policy, f"source {source.name!r}")
            for source in (*self.sources.values(), *self.models.values())
        }
        limits = {"max_runs": max_runs, "max_bytes": max_bytes}
        log = "memory" if log is None else log
        self.log = log_at(log, limits) if isinstance(log, str) else log
        sources_by_name = {s.name: (s, self._policies[s]) for s in self.sources.values()}
        clients = Clients(max_per_client, address)
        observers = observers_of(metrics, [source.name for source in self._policies])
        self.runs = Runs(
            self.log, sources_by_name, Encoder(encode), max_threads, clients.runs, observers
        )
        self._wires = Wires()
        self._lifetime = Lifetime(self.log, self.runs, self._policies)
        self._site, self._credentials = Site(origins, hosts), Credentials(api_keys, secret)
        if self._site.allows_all and self._credentials.needs_key and secret is None:
            raise TypeError(
                'origins="*" starts runs only without a key, and api_keys= asks for one; give the '
                "origins, or a secret= for signed URLs"
            )
        self._access = Access(
            identity, publish, self._policies, self.runs.threads, clients, self._credentials
        )
        self.bodies = Bodies(max_body, max_bytes, body_timeout)
        of_runs = RunEndpoints(self.runs, self._access, self._follow)
        health = Health(self.log, self.runs, self.bodies)
        routes: list[Route] = [
            Route("/streams", self._list),
            Route("/streams/{source}", self.endpoint(self._stream), methods=["GET", "POST"]),
            Route("/runs", self.endpoint(of_runs.list), methods=["GET"]),
            Route("/runs/{run}", self.endpoint(of_runs.one), methods=["GET", "DELETE"]),
            Route("/health", health.answer),
        ]
        if publish is not None:
            routes.append(Route("/topics/{topic}", self.endpoint(self._post), methods=["POST"]))
        if metrics:
            routes += metrics_routes(self)
        if self.models:
            routes += openai_routes(self)
        routes += page_routes(self, playground=page)
        routes.append(
            openapi_route(
                self,
                routes,
                needs_key=self._credentials.needs_key,
                can_sign=self._credentials.can_sign,
                checks_hosts=self._site.checks_hosts,
                limits_clients=clients.limited,
                has_identity=identity is not None,
            )
        )
        self._router = Router(routes, redirect_slashes=False, lifespan=self.lifespan)
        self._app: ASGIApp = self._answer_http
        if self._site.origins:
            self._app = self._site.with_cors(self._app)

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

    def signed_url(self, path: str, *, seconds: float = 300, owner: str | None = None) -> str:
        """A URL with which whoever has it can start or join one stream, as `owner`.

        It is for an EventSource, which cannot send a key. `path` is that of a source, a topic or a
        run, with its query, as the client requests it: with the path of a mount before it. The
        signature replaces an API key and what `identity` says; a guard is asked all the same. After
        `seconds` it starts nothing, but can still resume a run. Raises RuntimeError without a
        `secret`, ValueError for another path or time, and TypeError for an invalid owner.
        """
        return self._credentials.signed_url(path, seconds, check_owner(owner, "owner="))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] == "http" else self._router
        await app(scope, receive, send)

    async def _answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("app", self)
        scope = with_whole_path(scope)
        try:
            if scope["path"] != f"{scope.get('root_path', '')}/health":  # A probe has any name.
                self._site.check_host(scope)
            check_query(scope.get("query_string", b""))
            self._credentials.check(scope)
            await self._lifetime.serve()
            await self._router(scope, receive, send)
        except StreamError as error:
            self._refused(error)
            is_openais = self.models and f"{scope['path']}/".startswith(f"{scope['root_path']}/v1/")
            response = openai_refusal(error) if is_openais else refusal(error, Request(scope))
            await response(scope, receive, send)
        except HTTPException as error:
            if error.status_code >= 400:
                self._refused(StreamError(status=error.status_code))
            await misdirected(error, scope)(scope, receive, send)

    def _refused(self, error: StreamError) -> None:
        self.runs.observers.tell(Observer.refused, error)

    # The endpoints

    async def _list(self, request: Request) -> Response:
        url = f"{quote(root_path(request), errors='replace')}/streams"
        sources = self.sources.values()
        return json_response({"sources": [s.published(f"{url}/{s.name}") for s in sources]})

    async def _stream(self, request: Request) -> Response:
        name = request.path_params["source"]
        source = self.sources.get(name)
        if source is None:
            known = ", ".join(self.sources)
            raise UnknownSource(f"there is no source {abbreviated(name)}; there are: {known}")
        if not source.guard_takes_arguments:  # It comes before anything else.
            await self._access.admit(source, request, {})
        media_type = negotiated(request, STREAM_TYPES)
        last = last_event_id(request)
        if request.method == "POST":
            source.check_query_of_post(request.query_params)
            body = await self.read_json(request)
            given = decode_object(body)
            await give_turn(len(body))
            # A client that resumes a run may give none.
            arguments = source.from_values(given) if given or last is None else {}
            await give_turn(len(body))
        else:
            arguments = source.from_query(request.query_params, resumes=last is not None)
        policy, owner = self._policies[source], await self._access.owner(request)
        key = idempotency_key(request, owner)
        job = await source.job(arguments, request, policy=policy, owner=owner, key=key)
        resumed = None if last is None else await self.runs.resumed(job, last)
        if resumed is None:
            self._credentials.check_start(request.scope)
        if source.guard_takes_arguments and resumed is not None:
            await self._access.admit_to(resumed.info, request)
        elif source.guard_takes_arguments:  # A request without arguments wanted to resume.
            complete = source.complete(arguments or source.from_values({}))
            await self._access.admit(source, request, complete)
        if request.method == "HEAD":
            return head_response(self._wires.of(media_type, policy))
        job = await self._entered(request, job)
        position = await self.runs.attach(job, last, resumed)
        return self._read(
            position, policy, root_path(request), self._wires.maker(media_type, policy)
        )

    async def _follow(self, request: Request, log: RunLog, media_type: str) -> Response:
        """The stream of a run, through its own URL."""
        source = self.sources.get(log.info.source) if log.info.route is None else None
        policy = self.policy if source is None else self._policies[source]
        if request.method == "HEAD":
            url = run_url(root_path(request), log.info.run)
            return head_response(self._wires.of(media_type, policy), url)
        await self._access.enter(request)
        position = await self.runs.position(log, last_event_id(request))
        return self._read(
            position, policy, root_path(request), self._wires.maker(media_type, policy)
        )
