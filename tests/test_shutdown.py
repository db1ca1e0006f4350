"""shutdown.py: open streams end when a server other than uvicorn gets a signal or cancels them."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message

from streams import Streams, shutdown
from streams.sources import clock
from tests.support.servers import until

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Viewer:
    """Opens a stream of the clock by calling the app as a server does."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def view(self) -> None:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/streams/clock"}
        scope |= {"headers": [], "query_string": b"interval=60"}
        await Streams([clock])(scope, self.receive, self.send)

    async def receive(self) -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def terminated(self) -> bool:
        return self.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The signals that the server's handlers received. Restores all handlers at the end."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(shutdown, "_handlers", {})
    monkeypatch.setattr(shutdown, "_told_by_signal", WeakKeyDictionary())
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_ends_every_open_stream_and_reaches_the_servers_handler(
    handled: list[int], number: signal.Signals
) -> None:
    viewers = [Viewer(), Viewer()]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for viewer in viewers:
                group.start_soon(viewer.view)
            await until(
                lambda: all(len(viewer.sent) > 1 for viewer in viewers),
                "both viewers have the first bytes",
            )
            signal.raise_signal(number)
        await until(lambda: handled, "the server's handler is called")
    assert all(viewer.terminated for viewer in viewers)
    assert handled == [number]


async def test_a_signal_ends_a_stream_before_its_headers_are_sent(handled: list[int]) -> None:
    viewer = Viewer()
    keep = viewer.send
    begun, gate = asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        begun.set()
        await gate.wait()
        await keep(message)

    viewer.send = send  # type: ignore[method-assign]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(viewer.view)
            await begun.wait()
            signal.raise_signal(signal.SIGTERM)
            await anyio.lowlevel.checkpoint()  # The signal handler has scheduled a callback.
            gate.set()
    assert viewer.terminated


class Served:
    """Is told of the shutdown; needs until `closing` is set to stop."""

    def __init__(self) -> None:
        self.begun = False
        self.closing = asyncio.Event()

    def stop(self) -> asyncio.Task[Any]:
        self.begun = True
        return asyncio.ensure_future(self.closing.wait())

    async def stopped(self) -> None:
        raise AssertionError("only uvicorn's shutdown waits for this")


async def test_the_servers_handler_is_called_when_all_has_stopped(handled: list[int]) -> None:
    served = Served(), Served()
    for each in served:
        shutdown.tell(each)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: all(each.begun for each in served), "both have been told")
    served[0].closing.set()
    await anyio.lowlevel.checkpoint()
    assert handled == []
    served[1].closing.set()
    await until(lambda: handled, "the server's handler is called")
    assert handled == [signal.SIGTERM]


async def test_a_second_signal_reaches_the_server_at_once(handled: list[int]) -> None:
    served = Served()
    shutdown.tell(served)
    signal.raise_signal(signal.SIGINT)
    await until(lambda: served.begun, "the first signal has been told")
    signal.raise_signal(signal.SIGINT)
    assert handled == [signal.SIGINT]


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "stopped"])
async def test_a_signal_reaches_the_server_if_an_event_loop_that_served_is_over(
    closed: bool, handled: list[int]
) -> None:
    async def tell() -> None:
        shutdown.tell(served)

    served = Served()
    loop = asyncio.new_event_loop()
    await asyncio.to_thread(loop.run_until_complete, tell())
    if closed:
        loop.close()
    shutdown._wrap_handlers()
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]
    assert not served.begun
    loop.close()


async def test_default_handlers_and_those_of_uvicorn_are_not_replaced(handled: list[int]) -> None:
    class Server:
        should_exit = False

        def handle_exit(self, number: int, frame: Any) -> None: ...

    for handler in (signal.SIG_DFL, Server().handle_exit):
        signal.signal(signal.SIGTERM, handler)
        shutdown.tell(Served())
        assert signal.getsignal(signal.SIGTERM) == handler


def test_a_stream_works_in_a_thread_that_cannot_set_handlers(handled: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    told = []

    async def tell() -> None:
        shutdown.tell(Served())
        told.append(True)

    thread = threading.Thread(target=asyncio.run, args=(tell(),))
    thread.start()
    thread.join(5)
    assert told == [True]
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_stream_that_the_server_cancels_completes_its_response() -> None:
    viewer = Viewer()
    task = asyncio.create_task(viewer.view())
    await until(lambda: len(viewer.sent) > 1, "the viewer has the first bytes")
    task.cancel()
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
        await task
    assert viewer.terminated


async def test_a_stream_that_is_cancelled_before_its_headers_sends_nothing() -> None:
    viewer = Viewer()
    begun = asyncio.Event()

    async def send(message: Any) -> None:
        begun.set()
        await anyio.sleep_forever()

    viewer.send = send  # type: ignore[method-assign]
    task = asyncio.create_task(viewer.view())
    with anyio.fail_after(5):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert viewer.sent == []


HEARS_SIGNALS = """
import asyncio, os, signal
import uvloop
from streams.shutdown import tell

class Served:
    stopped = False

    def stop(self):
        self.stopped = True

async def main():
    heard, served, loop = [], Served(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, heard.append, number.name)
    assert tell(served)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        while not served.stopped or number.name not in heard:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    print(*heard)

uvloop.run(main())
"""


def test_uvloop_hears_of_each_signal_once() -> None:
    command = [sys.executable, "-c", HEARS_SIGNALS]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ["SIGINT", "SIGTERM"], done.stderr
