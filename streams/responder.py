"""The responses of `Streams`: in endpoints of your own, and the streams of its own routes."""

import functools
from typing import Any, Unpack

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from streams.access import check_owner
from streams.endpoint import (
    EndpointResponse,
    Produced,
    attaches,
    mount_path,
    newest_running,
    source_name,
    starlette_request,
)
from streams.errors import StreamError, Unavailable
from streams.job import Job
from streams.observer import Observer
from streams.optional import MakeWire, Wires, wire_named
from streams.policy import Policy, PolicyOptions
from streams.publish import Publisher
from streams.request import (
    EVENT_STREAM,
    STREAM_TYPES,
    idempotency_key,
    last_event_id,
    preferred,
    run_url,
)
from streams.response import RunResponse, head_response, refusal
from streams.run_info import info_of
from streams.runs import Position
from streams.site import Site
from streams.source import check_name


class Responder(Publisher):
    """The part of Streams that responds with runs."""

    policy: Policy
    _site: Site
    _wires: Wires

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
        wire: str | MakeWire | None = None,
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

        `wire` is "ui" for the AI SDK's `useChat`, or a function that returns a Wire for the run's
        RunInfo. Without it, the request's Accept header chooses.

        The stream keeps the status, headers and cookies that you set on the response, and those of
        `like`. Its background task runs after each response. Other keywords are exceptions from
        the policy. Raises TypeError if `events` cannot be iterated or called, and for a request
        that is not Starlette's, FastAPI's or Litestar's; ValueError for an unknown wire.
        """
        request = starlette_request(request)
        if name is None:
            name = source_name(events, request.scope)
        check_name(name)
        changed = (
            self.policy.replace(policy, "response", Responder.response.__kwdefaults__ or ())
            if policy
            else self.policy
        )
        answer = functools.partial(self._answer_endpoint, request, wire_named(wire))
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
            self._check_site(request)
            owner = check_owner(owner, "owner=") or await self._access.owner(request)
            return await attaches(self.runs, request, name, owner, key)
        except Unavailable:
            raise
        except StreamError:
            return False

    async def resume(
        self,
        request: Request,
        *,
        key_prefix: str,
        owner: str | None = None,
        wire: str | MakeWire | None = None,
    ) -> Response:
        """A response, for an endpoint of your own, that reads the newest running run whose key
        begins with `key_prefix`, from its beginning; a 204 if none is running.

        Give the `owner` and the `wire` that `response` got. Without an owner, and without an
        `identity` that knows the client, anybody who can guess the prefix reads the run.
        """
        request, make = starlette_request(request), wire_named(wire)
        try:
            self._check_site(request)
            await self._lifetime.serve()
            position = await newest_running(self.runs, self._access, request, owner, key_prefix)
            make = make or self._wires.maker(
                preferred(request, STREAM_TYPES) or EVENT_STREAM, self.policy
            )
            if position is not None and request.method == "HEAD":
                return head_response(make(position.log.info))
            await self._access.enter(request, owner)
            return self._read(position, self.policy, mount_path(self, request.scope), make)
        except StreamError as error:
            return self._refusal(error, request)

    async def _answer_endpoint(self, request: Request, wire: MakeWire | None, job: Job) -> Response:
        media_type = preferred(request, STREAM_TYPES) or EVENT_STREAM
        wire = wire or self._wires.maker(media_type, job.policy)
        if request.method == "HEAD":
            return head_response(wire(info_of(job, self.log)))
        try:
            self._check_site(request)
            await self._lifetime.serve()
            owner = job.owner or await self._access.owner(request)
            key = idempotency_key(request, owner, job.key)
            job = msgspec.structs.replace(job, owner=owner, key=key)
            last, root = last_event_id(request), mount_path(self, request.scope)
            resumed = None if last is None else await self.runs.resumed(job, last)
            job = await self._entered(request, job)
            position = await self.runs.attach(job, last, resumed)
            return self._read(position, job.policy, root, wire)
        except StreamError as error:
            return self._refusal(error, request)

    def _refusal(self, error: StreamError, request: Request) -> Response:
        self.runs.observers.tell(Observer.refused, error)
        return refusal(error, request)

    def _check_site(self, request: Request) -> None:
        """Raises UnknownHost and CrossSite."""
        self._site.check_host(request.scope)
        self._site.check_page(request.scope)

    async def _entered(self, request: Request, job: Job) -> Job:
        """The job, of a client who is counted as one more reader. Raises TooManyRequests."""
        clients = await self._access.enter(request, job.owner)
        parent = self.runs.observers.parent(request.scope)
        if not clients and parent is None:
            return job
        return msgspec.structs.replace(job, clients=clients, parent=parent)

    def _read(
        self, position: Position | None, policy: Policy, root: str | None, make_wire: MakeWire
    ) -> Response:
        """The stream from a position. `root` is the path under which /runs is, if it is mounted."""
        if position is None:  # An EventSource stops reconnecting at a 204.
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        if position.lost_run or (position.after >= 0 and not position.joins_late):
            self.runs.observers.tell(Observer.resumed)
        wire = make_wire(position.log.info)
        if wire.stateful:
            wire.resume(position.after)
            position = position._replace(after=-1)
        url = None if root is None else run_url(root, position.log.info.run)
        return RunResponse(self._lifetime, position, policy, wire, url)
