"""Shutdown: notifies a Streams when its server shuts down, on every server.

uvicorn waits for open responses without telling them anything, so its `Server.shutdown` is wrapped:
that covers signals, `--limit-max-requests` and `should_exit`, in any thread. For other servers, the
handlers that they have set for SIGTERM and SIGINT are wrapped. Without this, granian waits for
open streams for ever, and hypercorn and daphne cut them.

Invariants:

1. `stop` is called in the event loop that serves, before the server waits for open responses.
2. The shutdown of uvicorn returns after `stopped` has. The handler of another server is called
   after the task of `stop` has ended. uvloop handles a signal itself, and does not wait for that.
3. Signal handlers belong to the process: those, and who is to be told, are the only global state
   of the package. A wrapped `Server.shutdown` belongs to that server.
"""

import asyncio
import signal
import sys
import threading
from concurrent.futures import Future
from types import FrameType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

FORCE_EXIT_SECONDS = 0.1
"""How often uvicorn itself looks whether a second Ctrl-C asks it not to wait."""


class Served(Protocol):
    """An object that is notified of the server's shutdown."""

    def stop(self) -> asyncio.Task[None] | None:
        """Begins the shutdown. The server may end when the returned task has ended."""

    async def stopped(self) -> None:
        """Waits for that task. Another server may follow in this event loop."""


_told_by_signal: WeakKeyDictionary[Served, asyncio.AbstractEventLoop] = WeakKeyDictionary()
_handlers: dict[int, Any] = {}


def tell(served: Served) -> bool:
    """Tells `served` when the server of the current request shuts down, if one is found."""
    if servers := uvicorn_servers():
        for server in servers:
            if not isinstance(server.shutdown, _Shutdown):
                server.shutdown = _Shutdown(server)
            server.shutdown.served.add(served)
        return True
    _told_by_signal[served] = asyncio.get_running_loop()
    return _wrap_handlers()


class _Shutdown:
    """The method `shutdown` of one uvicorn.Server."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._original = server.shutdown
        self.served: set[Served] = set()

    async def __call__(self, *args: Any, **kwargs: Any) -> None:
        for served in self.served:
            served.stop()
        await self._original(*args, **kwargs)
        waiting = {asyncio.create_task(served.stopped()) for served in self.served}
        self.served.clear()
        while waiting and not self._server.force_exit:  # A second Ctrl-C sets it without a signal.
            _, waiting = await asyncio.wait(waiting, timeout=FORCE_EXIT_SECONDS)
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)


def uvicorn_servers() -> list[Any]:
    """The servers in this event loop: the one that serves the current request, if that is known.

    Nothing leads from a request to its server. But some task of the event loop awaits the server's
    `serve`, and a server knows the tasks of its requests. (A middleware may use other tasks.)
    """
    if (module := sys.modules.get("uvicorn.server")) is None:
        return []
    servers = []
    for task in asyncio.all_tasks():
        awaited: Any = task.get_coro()
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            if frame.f_globals is vars(module):
                servers.append(frame.f_locals["self"])
                break
            awaited = awaited.cr_await
    current = asyncio.current_task()
    return [server for server in servers if current in server.server_state.tasks] or servers


def _wrap_handlers() -> bool:
    if _handlers:
        return True
    if threading.current_thread() is not threading.main_thread():
        return False  # Only the main thread may set handlers.
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or hasattr(_owner(handler), "should_exit"):
        return False  # There is no server, or it is uvicorn, whose `shutdown` is wrapped instead.
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):
            _handlers[number] = handler
            signal.signal(number, _on_signal)
    return True


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Stops what is served, then calls the server's handler. A second signal does not wait."""
    told = [(served, loop) for served, loop in _told_by_signal.items() if loop.is_running()]
    _told_by_signal.clear()
    stopping = {asyncio.run_coroutine_threadsafe(_stop(served), loop) for served, loop in told}

    def forward(stopped: Future[None] | None = None) -> None:
        stopping.discard(stopped)
        handler = _handlers[number]
        # uvloop hears of signals by itself, and would take this call for another signal. A worker
        # of granian that counts more signals than it got does not end.
        if not stopping and not isinstance(_owner(handler), asyncio.AbstractEventLoop):
            handler(number, frame)

    for future in list(stopping):
        future.add_done_callback(forward)
    if not told:
        forward()


def _owner(handler: Any) -> Any:
    """The object of a bound method."""
    return getattr(handler, "__self__", None)


async def _stop(served: Served) -> None:
    if (closing := served.stop()) is not None:
        await closing
