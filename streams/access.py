"""What an app decides about a request: who its client is, and whether a source lets it in.

Invariants:

1. The app is asked once for each request who the client is.
2. An app's function that does not answer holds up only its own request, and for 30 s; except for a
   sync `identity`, which runs in the event loop and must not wait.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import Scope

from streams.errors import (
    Forbidden,
    InvalidParameters,
    StreamError,
    as_stream_error,
    for_clients,
    valid_text,
)
from streams.log import RunInfo
from streams.source import Guard, Source, hash_of
from streams.thread import Threads

logger = logging.getLogger("streams")

ANSWER_SECONDS = 30.0
"""A function that has not answered after this time is given up."""

Identity = Callable[[Request], str | Awaitable[str | None] | None]


class Access:
    """Asks the app's `identity` and `publish`, if it has them, and the guards of its `sources`.

    Raises TypeError if `identity` or `publish` cannot be called.
    """

    def __init__(
        self,
        identity: Identity | None,
        publish: Guard | None,
        sources: Iterable[Source[..., Any]],
        threads: Threads,
    ) -> None:
        for name, function in (("identity", identity), ("publish", publish)):
            if function is not None and not callable(function):
                raise TypeError(
                    f"{name}= of Streams is a function of the request, not {function!r}"
                )
        self._identity = identity
        self._publish = publish
        self._threads = threads
        self._guarded: dict[str, list[Source[..., Any]]] = {}
        for source in sources:
            if source.guard is not None:
                self._guarded.setdefault(source.name, []).append(source)

    async def owner(self, request: Request) -> str | None:
        """The identity of the client; None if it is anonymous. Raises what the app raises."""
        if self._identity is None:
            return user_of(request.scope)
        owners: dict[Access, str | None] = request.scope.setdefault("streams.owners", {})
        if self not in owners:
            owners[self] = await _answer("identity=", _called(self._identity, request))
        return owners[self]

    async def admit(self, source: str, request: Request) -> None:
        """Raises what the guard of a source raises."""
        for guarded in self._guarded.get(source, ()):
            assert guarded.guard is not None
            name = f"the guard of source {source}"
            if await _answer("guard=", self._ask(guarded.guard, name, request)) is False:
                raise Forbidden(f"source {source} does not let you in")

    async def admit_to(self, info: RunInfo, request: Request) -> None:
        """Raises what the guard of a run's source raises. A run of an endpoint has none.

        Raises InvalidParameters for other parameters in the query than the run has: the guard might
        have let the client in because of them.
        """
        if info.route is not None:
            return
        await self.admit(info.source, request)
        for source in self._guarded.get(info.source, ()):
            query = request.query_params.multi_items()
            given = QueryParams([item for item in query if item[0] in source.schema["properties"]])
            if given and info.arguments_hash != hash_of(
                {**source.defaults, **source.from_query(given)}
            ):
                raise InvalidParameters(
                    f"run {info.run} has other parameters; give the same ones, or none"
                )

    async def admit_publisher(self, request: Request) -> None:
        """Raises what the app's `publish` raises."""
        assert self._publish is not None, "only then is there a route"
        if await _answer("publish=", self._ask(self._publish, "publish=", request)) is False:
            raise Forbidden("this app does not let you publish")

    async def _ask(self, guard: Guard, name: str, request: Request) -> Any:
        if inspect.iscoroutinefunction(guard):
            return await guard(request)
        answer = await self._threads.call(partial(guard, request), name)
        return await answer if inspect.isawaitable(answer) else answer


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
    """Raises TypeError for what is neither None nor a text that tells users apart."""
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
    """What an app's function returns.

    What it raises is the answer: StreamError and HTTPException with their status, others as 500.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS) as waiting:
            return await answering
    except Exception as error:
        if waiting.expired():
            detail = f"the app's {name} function did not answer within {ANSWER_SECONDS:g} s"
            raise StreamError(detail, status=504) from None
        if for_clients(error) is not None:
            raise as_stream_error(error) from None
        logger.exception("the %s function of this app failed", name)
        kind = type(error).__name__
        detail = f"the app's {name} function failed with {kind}; see the server's log"
        raise StreamError(detail) from None
