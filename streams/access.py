"""What an app decides about a request: who its client is.

Invariants:

1. The app is asked once for each request who the client is.
2. An app's function that does not answer holds up only its own request, and for 30 s.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from streams.errors import StreamError, as_stream_error, for_clients

logger = logging.getLogger("streams")

ANSWER_SECONDS = 30.0
"""A function that has not answered after this time is given up."""

Identity = Callable[[Request], str | Awaitable[str | None] | None]


class Access:
    """Finds out who the client of a request is. `identity` is the app's function, if it has one.

    Raises TypeError if `identity` cannot be called.
    """

    def __init__(self, identity: Identity | None) -> None:
        if identity is not None and not callable(identity):
            raise TypeError(f"identity= of Streams is a function of the request, not {identity!r}")
        self._identity = identity

    async def owner(self, request: Request) -> str | None:
        """The identity of the client; None if it is anonymous. Raises what the app raises."""
        if self._identity is None:
            return user_of(request.scope)
        owners: dict[Access, str | None] = request.scope.setdefault("streams.owners", {})
        if self not in owners:
            answer = await _ask(self._identity, request, "identity=")
            owners[self] = check_owner(answer, "identity=")
        return owners[self]


def user_of(scope: Scope) -> str | None:
    """The user's identity, from the app's authentication; None for an anonymous client."""
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    try:
        return str(user.identity)
    except (AttributeError, NotImplementedError):
        return str(user.display_name)


def check_owner(owner: Any, given_by: str) -> str | None:
    """Raises TypeError for what is neither None nor a text that tells users apart."""
    if owner is None or (isinstance(owner, str) and owner):
        return owner
    raise TypeError(
        f"{given_by} names a user with {owner!r}; give text, such as str(user.id), and None for an "
        "anonymous client"
    )


async def _ask(function: Callable[[Request], Any], request: Request, name: str) -> Any:
    """What an app's function returns for a request.

    What it raises is the answer: StreamError and HTTPException with their status, others as 500.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS) as waiting:
            answer = function(request)
            return await answer if inspect.isawaitable(answer) else answer
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
