"""The server's shutdown, on every server except uvicorn, for which sse-starlette provides it.

The first stream wraps the handlers that the server has set for SIGTERM and SIGINT; the wrappers
call them. Without this, granian waits for open streams for ever, and hypercorn and daphne cut them.
Signal handlers belong to the process, so this module keeps the only global state of the package.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakSet

_open: set[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = set()
_examined: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}


class StoppedWithTheServer:
    """A context in which `stop` is called, in this event loop, when the server shuts down."""

    __slots__ = ("_entry",)

    def __init__(self, stop: Callable[[], None]) -> None:
        self._entry = asyncio.get_running_loop(), stop

    def __enter__(self) -> None:
        loop, _ = self._entry
        if loop not in _examined:  # A server sets its handlers once; asking for them takes 10 µs.
            _examined.add(loop)
            _wrap_handlers()
        _open.add(self._entry)

    def __exit__(self, *error: Any) -> None:
        _open.discard(self._entry)


def _wrap_handlers() -> None:
    if _handlers or threading.current_thread() is not threading.main_thread():
        return  # Only the main thread may set handlers.
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or hasattr(getattr(handler, "__self__", None), "should_exit"):
        return  # There is no server, or it is uvicorn.
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):
            _handlers[number] = handler
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for loop, stop in list(_open):
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop)
    _handlers[number](number, frame)
