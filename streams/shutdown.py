"""The server's shutdown, for every server but uvicorn, whose own sse-starlette sees.

The law of this file: a signal's handler is wrapped once, only where a server has set one, and that
one is called, too. Without it granian waits for open streams for ever, and hypercorn and daphne
cut them. Signals belong to the process, and so does what is kept here. response.py calls it.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakSet

_open: set[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = set()
_looked: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}


class StoppedWithTheServer:
    """While in context, `stop` is called in this event loop when the server is told to stop."""

    __slots__ = ("_entry",)

    def __init__(self, stop: Callable[[], None]) -> None:
        self._entry = asyncio.get_running_loop(), stop

    def __enter__(self) -> None:
        loop, _ = self._entry
        if loop not in _looked:  # a server sets its handlers once, and to ask for them takes 10 µs
            _looked.add(loop)
            _chain()
        _open.add(self._entry)

    def __exit__(self, *error: Any) -> None:
        _open.discard(self._entry)


def _chain() -> None:
    if _handlers or threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or hasattr(getattr(handler, "__self__", None), "should_exit"):
        return  # no server's, or uvicorn's
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
