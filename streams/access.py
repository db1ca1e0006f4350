"""Asks the app who the client of a request is, and whether a source lets it in.

Invariants:

1. The app is asked once for each request who the client is.
2. A function of the app that does not answer delays only its own request, for 30 s at most. A sync
   `identity` is the exception: it runs in the event loop and must not block.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from streams.admission import Clients
from streams.credentials import Credentials
from streams.errors import (
    Forbidden,
    InvalidParameters,
    StreamError,
    Unavailable,
    as_stream_error,
    for_clients,
    valid_text,
)
from streams.guard import Arguments, Guard, takes_arguments
from streams.log import RunInfo
from streams.source import Source, hash_of
from streams.thread import Threads

logger = logging.getLogger("streams")

ANSWER_SECONDS = 30.0
"""A function of the app may take this long to answer."""

GUARDS_AT_ONCE = 10
"""A list of runs calls this many guards at a time; each may need a thread."""

Identity = Callable[[Request], str | Awaitable[str | None] | None]


class Access:
    """Asks the app's `identity` and `publish`, if it has them, and the guards of its `sources`.

    Raises TypeError for an `identity` or `publish` that is not such a function.
    """

    def __init__(
        self,
        identity: Identity | None,
        publish: Guard | None,
        sources: Iterable[Source[..., Any]],
        threads: Threads,
        clients: Clients,
        credentials: Credentials,
    ) -> None:
        if identity is not None and not callable(identity):
            raise TypeError(f"identity= of Streams is a function of the request, not {identity!r}")
        self.publish_takes_arguments = publish is not None and takes_arguments(
            publish, "publish= of Streams"
        )
        self._identity = identity
        self._publish = publish
        self._threads = threads
        self._clients = clients
        self._credentials = credentials
        self._guarded: dict[str, list[Source[..., Any]]] = {}
        for source in sources:
            if source.guard is not None:
                self._guarded.setdefault(source.name, []).append(source)

    async def owner(self, request: Request) -> str | None:
        """The identity of the client; None if it is anonymous. Raises what the app raises.

        A signed URL may name it. Otherwise the app says it, and else the client's API key does.
        """
        if (owner := self._credentials.owner_of(request.scope)) is None:
            owner = await self._identified(request)
        return self._credentials.identity_of(request.scope) if owner is None else owner

    async def _identified(self, request: Request) -> str | None:
        if self._identity is None:
            return user_of(request.scope)
        owners: dict[Access, str | None] = request.scope.setdefault("streams.owners", {})
        if self not in owners:
            owners[self] = await _answer("identity=", _called(self._identity, request))
        return owners[self]

    async def enter(self, request: Request, owner: str | None = None) -> Sequence[str]:
        """Counts one more reader of the client, who is `owner`, until the request is over.

        Returns the names by which the client is counted. Raises TooManyRequests.
        """
        if not self._clients.limited:
            return ()
        return self._clients.enter(request, owner or await self.owner(request))

    async def admit(self, source: Source[..., Any], request: Request, arguments: Arguments) -> None:
        """Raises what the guard of a source raises.

        `arguments` are those of the run that the request would start, join, read or stop.
        """
        if source.guard is None:
            return
        given = (request, arguments) if source.guard_takes_arguments else (request,)
        asking = self._ask(source.guard, f"the guard of source {source.name}", *given)
        if await _answer("guard=", asking) is False:
            raise Forbidden(f"source {source.name} does not let you in")

    async def admit_to(self, info: RunInfo, request: Request) -> None:
        """Raises what the guard of a run's source raises. A run of an endpoint has none."""
        if info.route is not None:
            return
        for source in self._guarded.get(info.source, ()):
            await self.admit(source, request, _arguments_of(info, source))

    async def admitted(self, infos: Sequence[RunInfo], request: Request) -> list[bool]:
        """Which of these runs the guards let the request read. Raises Unavailable.

        They are called at the same time, once for equal arguments, and all of them have to answer
        within ANSWER_SECONDS.
        """
        slots = asyncio.Semaphore(min(GUARDS_AT_ONCE, self._threads.limit))

        async def refusal_of(info: RunInfo) -> StreamError | HTTPException | None:
            try:
                async with slots:
                    await self.admit_to(info, request)
            except (StreamError, HTTPException) as error:
                return error
            return None

        runs = [(info.route, info.source, info.guard_arguments) for info in infos]
        each = dict(zip(runs, infos, strict=True))
        asking = asyncio.gather(*map(refusal_of, each.values()))
        refusals = dict(zip(each, await _answer("guard=", asking), strict=True))
        for refusal in refusals.values():
            if isinstance(refusal, Unavailable):
                raise refusal
        return [refusals[run] is None for run in runs]

    def check_query(self, info: RunInfo, request: Request) -> None:
        """Raises InvalidParameters for other parameters in the query than the run has.

        A guard that takes only the request might have let the client in because of them.
        """
        sources = () if info.route is not None else self._guarded.get(info.source, ())
        for source in sources:
            query = request.query_params.multi_items()
            given = QueryParams([item for item in query if item[0] in source.schema["properties"]])
            if given and info.arguments_hash != hash_of(source.complete(source.from_query(given))):
                raise InvalidParameters(
                    f"run {info.run} has other parameters; give the same ones, or none"
                )

    async def admit_publisher(self, request: Request, arguments: Arguments) -> None:
        """Raises what the app's `publish` raises. `arguments` are those of the topic."""
        assert self._publish is not None, "only then is there a route"
        given = (request, arguments) if self.publish_takes_arguments else (request,)
        if await _answer("publish=", self._ask(self._publish, "publish=", *given)) is False:
            raise Forbidden("this app does not let you publish")

    async def _ask(self, guard: Guard, name: str, *given: Any) -> Any:
        asked: Callable[[], Any] = partial(guard, *given)
        if inspect.iscoroutinefunction(guard):
            return await asked()
        answer = await self._threads.call(asked, name)
        return await answer if inspect.isawaitable(answer) else answer


def _arguments_of(info: RunInfo, source: Source[..., Any]) -> Arguments:
    """The arguments of a run, if the guard of its source takes them.

    Raises Forbidden if they are unknown: another version of the source has started the run.
    """
    if not source.guard_takes_arguments:
        return {}
    try:
        if info.guard_arguments is not None:
            return source.complete(source.from_json(info.guard_arguments.encode()))
    except StreamError:
        pass
    raise Forbidden(
        f"run {info.run} is of another version of source {info.source}, whose guard cannot say "
        "whether you may have it; start a new run"
    )


def user_of(scope: Scope) -> str | None:
    """The user's identity, from the app's authentication; None for an anonymous client."""
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    for name in ("identity", "display_name"):
        try:
            identity = getattr(user, name, None)
        except NotImplementedError:  # Starlette's BaseUser.
            continue
        if identity is not None:
            return str(identity)
    raise StreamError(
        f"the app's {type(user).__name__} has neither `identity` nor `display_name`; the app can "
        "say who a client is with Streams(identity=…)"
    )


def check_owner(owner: Any, given_by: str) -> str | None:
    """Returns `owner` if it is None or a text that tells users apart. Raises TypeError."""
    if owner is None or (isinstance(owner, str) and owner and valid_text(owner) == owner):
        return owner
    raise TypeError(
        f"{given_by} names a user with {owner!r}; give text, such as str(user.id), and None for an "
        "anonymous client"
    )


async def _called(function: Identity, request: Request) -> str | None:
    answer = function(request)
    return check_owner(await answer if inspect.isawaitable(answer) else answer, "identity=")


async def _answer(name: str, answering: Awaitable[Any]) -> Any:
    """Waits for what a function of the app returns, for ANSWER_SECONDS.

    What the function raises becomes the answer: StreamError and HTTPException with their status,
    which may be a redirect, and anything else as a 500.
    """
    waiting = asyncio.timeout(None)
    try:
        async with waiting:
            until = asyncio.get_running_loop().time() + ANSWER_SECONDS
            # A cancelled timer keeps its context until it is due, which must not be the request's.
            Context().run(waiting.reschedule, until)
            return await answering
    except Exception as error:
        if waiting.expired():
            detail = f"the app's {name} function did not answer within {ANSWER_SECONDS:g} s"
            raise StreamError(detail, status=504) from None
        if isinstance(error, HTTPException) and 300 <= error.status_code <= 399:
            raise
        if for_clients(error) is not None:
            raise as_stream_error(error) from None
        logger.exception("the %s function of this app failed", name)
        kind = type(error).__name__
        detail = f"the app's {name} function failed with {kind}; see the server's log"
        raise StreamError(detail) from None
