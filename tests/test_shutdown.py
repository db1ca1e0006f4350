"""shutdown.py: open streams end when the server gets a signal or cancels them."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from typing import Any

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


async def test_a_signal_reaches_the_server_if_the_event_loop_of_a_stream_is_closed(
    handled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(shutdown, "_open", {(loop, lambda: None)})
    with shutdown.StoppedWithTheServer(lambda: None):
        signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


async def test_default_handlers_and_those_of_uvicorn_are_not_replaced(handled: list[int]) -> None:
    """sse-starlette itself notices uvicorn's shutdown."""

    class Server:
        should_exit = False

        def handle_exit(self, number: int, frame: Any) -> None: ...

    for handler in (signal.SIG_DFL, Server().handle_exit):
        signal.signal(signal.SIGTERM, handler)
        with shutdown.StoppedWithTheServer(lambda: None):
            assert signal.getsignal(signal.SIGTERM) == handler


def test_a_stream_works_in_a_thread_that_cannot_set_handlers(handled: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    entered = []

    async def enter() -> None:
        with shutdown.StoppedWithTheServer(lambda: None):
            entered.append(True)

    thread = threading.Thread(target=asyncio.run, args=(enter(),))
    thread.start()
    thread.join(5)
    assert entered == [True]
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
