"""Endpoints: those of the route table, and the responses of the user's own.

Invariants of a response that `Streams.response` makes:

1. The iterator of an endpoint is opened only if a run starts. Otherwise it is closed unstarted.
2. A run can be resumed only by an endpoint with the same route, and under the same name.
3. The status, headers, cookies and background task that the endpoint sets are the response's.
"""

import inspect
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from streams.access import Access, check_owner
from streams.admission import leave
from streams.body import Bodies, Body
from streams.declaration import name_of
from streams.job import Job
from streams.policy import Policy
from streams.request import idempotency_key, in_middleware, last_event_id
from streams.response import RunResponse
from streams.runs import Position, Runs
from streams.site import Site
from streams.source import hash_of
from streams.thread import check_iterable, close_iterator

Events = AsyncIterable[Any] | Iterable[Any]
Produced = Events | Callable[[], Events | Awaitable[Events]]
"""What an endpoint streams: an iterator, or a function that Streams calls when a run starts."""

Answer = Callable[[Request], Awaitable[Response]]

AnswerJob = Callable[[Job], Awaitable[Response]]
"""The response to a job. Refusals are responses, too."""

# These describe the body, so the stream (or the refusal) alone sets them.
_OF_THE_BODY = {b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"}
# A response may have several of these.
_ADDED = {b"set-cookie", b"vary", b"link", b"server-timing"}


def starlette_request(request: Any) -> Request:
    """`request` as a Starlette request; FastAPI's is one. Raises TypeError if it cannot be one.

    Litestar's becomes one, because its handlers may return any ASGI app. Django and Quart keep the
    scope in their requests, too, but their views cannot return one.
    """
    if isinstance(request, Request):
        return request
    if "path_template" in getattr(request, "scope", ()):  # Litestar sets this.
        return Request(request.scope)
    kind = type(request)
    raise TypeError(
        "response() and resumes() take a request of Starlette, FastAPI or Litestar, not a "
        f"{kind.__module__}.{kind.__qualname__}; in another framework, serve a source at a path "
        "of its own, as docs/your-app.md shows"
    )


def route_of(scope: Scope) -> str:
    """The path of the route that a request matched, as a template if the framework gives one.

    The methods of a route that GET does not match are put in front: another endpoint may have the
    same path.

    A template is relative to the mounts and routers around it, so what the path has before it is
    put in front. A parameter like `{rest:path}` matches any number of segments, so nobody can say
    what is before a template with one; the path is used instead.
    """
    route, path = scope.get("route"), scope["path"].strip("/")
    methods = sorted(getattr(route or _matched(scope), "methods", None) or {"GET"})
    prefix = "" if "GET" in methods else f"{','.join(methods)} "
    template = None if isinstance(route, Mount) else getattr(route, "path", None)
    if template is None:
        template = scope.get("path_template")
    if template is None or ":path}" in template:
        return f"{prefix}/{path}"
    segments = path.split("/") if path else []
    own = template.strip("/").split("/") if template.strip("/") else []
    return f"{prefix}/" + "/".join([*segments[: max(len(segments) - len(own), 0)], *own])


def _matched(scope: Scope) -> Route | None:
    """The route of a request in older versions of Starlette, whose scope has its endpoint only."""
    routes = list(getattr(scope.get("router"), "routes", ()))
    while routes:
        route = routes.pop(0)
        if isinstance(route, Mount):
            routes += route.routes
        elif isinstance(route, Route) and route.endpoint is scope.get("endpoint"):
            return route
    return None


def source_name(events: Any, scope: Scope) -> str:
    """The default name of a source: its function's name, or the endpoint's for a lambda."""
    name = name_of(events)
    if name == "<lambda>":
        name = getattr(scope.get("endpoint"), "__name__", "endpoint")
    return re.sub(r"\W", "", name, flags=re.ASCII) or "endpoint"


def mount_path(app: Any, scope: Scope) -> str | None:
    """The path at which the app of `scope` mounts `app`.

    None if it does not, or if the path has parameters: only a request to the mount has their
    values.
    """
    mounted = _mounted_at(app, getattr(scope.get("app"), "routes", ()))
    root = scope.get("app_root_path", scope.get("root_path", ""))
    return None if mounted is None or "{" in mounted else root + mounted


def _is_or_wraps(outer: Any, app: Any) -> bool:
    """Whether `outer` is an app, or middleware around it, which keeps it as `app` by convention."""
    while outer is not None and outer is not app:
        outer = getattr(outer, "app", None)
    return outer is app


def _mounted_at(app: Any, routes: Iterable[Any]) -> str | None:
    for route in routes:
        if isinstance(route, Mount):
            if _is_or_wraps(route.app, app):
                return route.path
            if (inner := _mounted_at(app, route.routes)) is not None:
                return route.path + inner
    return None


async def attaches(
    runs: Runs, request: Request, name: str | None, owner: str | None, own_key: str | None
) -> bool:
    """Whether a request attaches to a run that its route has started; of any name if it is None.

    Raises StreamError if the request names a run that it cannot attach to.
    """
    route = route_of(request.scope)
    last, key = last_event_id(request), idempotency_key(request, owner, own_key)
    if last is not None:
        log = await runs.find_resumed(last, name, route, owner, key)
    elif key is not None:
        log = await runs.find_by_key(owner, name, route, key)
    else:
        return False
    await runs.position(log, last)
    return True


async def newest_running(
    runs: Runs, access: Access, request: Request, owner: str | None, key_prefix: str
) -> Position | None:
    """The beginning of the newest running run with such a key; None if there is none."""
    owner = check_owner(owner, "owner=") or await access.owner(request)
    for log in await runs.list(owner=owner, key_prefix=key_prefix, status="running", limit=1):
        await access.admit_to(log.info, request)
        return await runs.position(log, None)
    return None


class Endpoint:
    """A route's function as an ASGI app.

    Starlette's own wrapper, which is there for exception handlers, would keep three more
    coroutines, and 1 KiB, for as long as a stream is open.

    A page of another site gets no further. The limits of Body hold for whoever reads the request's
    body: a guard may do that, too.
    """

    def __init__(self, answer: Answer, bodies: Bodies, site: Site) -> None:
        self._answer = answer
        self._bodies = bodies
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._site.check_page(scope)
        body = Body(self._bodies, scope, receive)
        try:
            try:
                response = await self._answer(Request(scope, body, send))
            finally:
                body.end()
            await in_middleware(response, scope)(scope, receive, send)
        finally:
            leave(scope)


class EndpointResponse(Response):
    """Starts or resumes a run when it is called: `Streams.response` itself cannot await that.

    Raises TypeError if `produced` can be neither iterated nor called, for an owner or a key that is
    not text, and for arguments that JSON cannot represent.
    """

    def __init__(
        self,
        answer: AnswerJob,
        request: Request,
        name: str,
        produced: Produced,
        policy: Policy,
        owner: str | None,
        key: str | None,
        arguments: Any,
    ) -> None:
        super().__init__()
        self.raw_headers.clear()  # From here on, it holds only what the endpoint sets.
        self._answer = answer
        self._produced = produced
        self._function = _function_of(produced)
        if self._function is None:
            check_iterable(produced)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"response() takes text as the key, not {key!r}; give str(…) of it")
        self._started = False
        self._scope = request.scope
        self._is_head = request.method == "HEAD"
        self._job = Job(
            source=name,
            policy=policy,
            open=self._open,
            owner=check_owner(owner, "owner= of response()"),
            route=route_of(request.scope),
            key=key,
            arguments_hash=None if arguments is None else _hash_of(arguments),
            gives_arguments=arguments is not None,
        )

    def take_over(self, response: Response) -> None:
        """Adds what another response has: its status, headers, cookies and background task."""
        self.status_code = response.status_code or self.status_code  # FastAPI's is None.
        self.background = response.background or self.background
        self.raw_headers += response.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                response = await self._answer(self._job)
            finally:
                if not self._started:
                    await self._close()
            self._merge_into(response)
            await in_middleware(response, scope)(scope, receive, send)
        finally:
            leave(self._scope)
        if self.background is not None:
            await self.background()

    def _merge_into(self, response: Response) -> None:
        """Merges what the endpoint has set: it replaces headers of a stream, and adds to others."""
        own = [h for h in self.raw_headers if h[0] not in _OF_THE_BODY]
        others = response.raw_headers
        if isinstance(response, RunResponse) or self._is_head:
            response.status_code = self.status_code
            replaced = {name for name, _ in own} - _ADDED
            others = [h for h in others if h[0] not in replaced]
        else:
            kept = {name for name, _ in others} - _ADDED
            own = [h for h in own if h[0] not in kept]
        response.raw_headers = [*others, *own]

    async def _open(self) -> Any:
        self._started = True
        if self._function is None:
            return self._produced
        produced = self._function()
        return await produced if inspect.isawaitable(produced) else produced

    async def _close(self) -> None:
        if self._function is not None:
            return
        await close_iterator(self._produced)


def _hash_of(arguments: Any) -> str:
    try:
        return hash_of(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"the arguments of response() are hashed as JSON, but: {error}; give what JSON can "
            "represent"
        ) from None


def _function_of(produced: Any) -> Callable[[], Any] | None:
    """`produced`, if it is a function to call when a run starts.

    Raises TypeError for a function that needs arguments, and for a coroutine.
    """
    if inspect.iscoroutine(produced):
        produced.close()
        name = produced.__name__
        raise TypeError(f"response() got a coroutine; give the function: lambda: {name}(…)")
    if isinstance(produced, AsyncIterable | Iterable) or not callable(produced):
        return None
    try:
        inspect.signature(produced).bind()
    except TypeError as error:
        name = getattr(produced, "__name__", repr(produced))
        raise TypeError(
            f"response() calls {name} without arguments, but: {error}; give {name}(…), "
            f"or lambda: {name}(…)"
        ) from None
    except ValueError:
        pass  # A function written in C may have no signature.
    function: Callable[[], Any] = produced
    return function
