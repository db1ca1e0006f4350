"""Whether a request that failed can be sent again."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

_current: ContextVar["Sending | None"] = ContextVar("streams.chat.sending", default=None)


class Sending:
    """One request, which may be sent once more: on a connection that was used before, if the server
    closed it without a byte of a response.

    httpx tells what happens to a request (its extension `trace`), but not whether bytes came. So
    this counts them in the streams that a new connection makes.
    """

    def __init__(self) -> None:
        self._reused = True
        self._answered = False
        self._repeated = False

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)

    def again(self) -> bool:
        """Whether to send it once more."""
        again = self._reused and not self._answered and not self._repeated
        self._repeated = True
        return again

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpx calls for each step."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._reused = False
            stream = info["return_value"]
            stream.read = _noticed(stream.read)


def _noticed(read: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    async def noticed(*arguments: Any, **keywords: Any) -> bytes:
        data = await read(*arguments, **keywords)
        if data and (sending := _current.get()) is not None:
            sending._answered = True
        return data

    return noticed
