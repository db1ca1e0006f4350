"""WireHost: the part of Streams that serves wires with routes of their own."""

import functools
from collections.abc import Mapping
from typing import Any, Unpack

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from streams.access import Access
from streams.body import Bodies
from streams.encoding import encode_sorted, give_turn
from streams.endpoint import Answer, Endpoint
from streams.event import Payload
from streams.job import Job
from streams.lifetime import Lifetime
from streams.log import RunLog
from streams.observer import Observer
from streams.policy import Policy, PolicyOptions
from streams.request import idempotency_key, read_json, root_path, run_url
from streams.response import RunResponse
from streams.runs import Position, Runs
from streams.site import Site
from streams.source import Source, hash_of_json
from streams.wires import Wire


class UntilShutdown(Response):
    """Another response, which is cut when the server shuts down: the server would wait for it."""

    sending: object | None = None
    """Does nothing: the time of a send is not limited."""

    def __init__(self, response: ASGIApp, lifetime: Lifetime) -> None:
        self._response = response
        self._lifetime = lifetime
        self._cut = anyio.CancelScope()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responses = self._lifetime.responses(Policy().send_timeout)
        responses.add(self)
        try:
            with self._cut:
                await self._response(scope, receive, send)
        finally:
            responses.discard(self)
        if self._cut.cancelled_caught:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def stop(self) -> None:
        self._cut.cancel()

    time_out = stop


class WireHost:
    """The part of Streams that a wire with routes of its own uses."""

    sources: dict[str, Source[..., Any]]

    runs: Runs
    _policies: dict[Source[..., Any], Policy]
    _lifetime: Lifetime
    _access: Access
    bodies: Bodies
    _site: Site

    def endpoint(self, answer: Answer) -> ASGIApp:
        """A route's function as an ASGI app."""
        return Endpoint(answer, self.bodies, self._site)

    def until_shutdown(self, response: ASGIApp) -> Response:
        """A response that is not of a run, as one that the server's shutdown cuts."""
        return UntilShutdown(response, self._lifetime)

    async def read_json(self, request: Request) -> bytes:
        """The JSON body of a request. Raises StreamError if that is refused."""
        body = await read_json(request)
        await self._lifetime.serve()  # The server may have begun to shut down meanwhile.
        return body

    async def start(
        self,
        request: Request,
        source: Source[..., Any],
        arguments: Mapping[str, Any],
        *,
        preface: Payload | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> RunLog:
        """Starts a run of one of the sources or models, which no other worker continues.

        `preface` is an event that precedes those of the source. Only a request with the same
        Idempotency-Key attaches to the run, if it has the same arguments and preface. With a key, a
        `linger` of 0 is that of the source: its client may try again. Raises StreamError if the
        start is refused.
        """
        complete = source.complete(arguments)
        await self._access.admit(source, request, complete)
        owner = await self._access.owner(request)
        own, key = self._policies[source], idempotency_key(request, owner)
        changed = own.replace(policy, f"source {source.name!r}")
        encoded = encode_sorted(complete)
        await give_turn(len(encoded))
        asked = (encoded, *filter(None, preface or ()))
        arguments_hash = None if key is None else hash_of_json(*asked)
        guard_arguments = source.for_guard(arguments)
        await give_turn(len(encoded))
        job = Job(
            source=source.name,
            policy=own if key is not None and changed.linger == 0 else changed,
            open=functools.partial(source.open, arguments, request),
            owner=owner,
            clients=await self._access.enter(request, owner),
            arguments_hash=arguments_hash,
            argument_bytes=len(encoded),
            guard_arguments=guard_arguments,
            key=key,
            parent=self.runs.observers.parent(request.scope),
            preface=preface,
        )
        return await self.runs.start(job)

    async def find(self, request: Request, run: str) -> RunLog:
        """The log of a run that the client may read, once it has opened. Raises StreamError."""
        log = await self.runs.find(run, await self._access.owner(request))
        await self._access.admit_to(log.info, request)
        await self._access.enter(request)
        await self.runs.position(log, None)
        return log

    def read(
        self,
        request: Request,
        log: RunLog,
        source: Source[..., Any],
        wire: Wire,
        *,
        resumes: bool = False,
    ) -> Response:
        """A response that reads a run of `source` from its beginning, through a wire.

        `resumes`: the wire continues after the events that its client has had. This is counted.
        """
        if resumes:
            self.runs.observers.tell(Observer.resumed)
        url = run_url(root_path(request), log.info.run)
        return RunResponse(self._lifetime, Position(log, -1), self._policies[source], wire, url)
