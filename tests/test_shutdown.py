"""shutdown.py: a server's signal ends open streams; and servers that cancel them."""

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
    """A stream of the clock, opened by calling the app as a server would."""

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
    """The signals that a server's handlers have got. Undoes what is done to handlers."""
    got: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(shutdown, "_handlers", {})
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: got.append(number))
    yield got
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
            await until(lambda: all(len(viewer.sent) > 1 for viewer in viewers))
            signal.raise_signal(number)
    assert all(viewer.terminated for viewer in viewers)
    assert handled == [number]


async def test_a_signal_ends_a_stream_that_has_not_got_to_its_run_yet(handled: list[int]) -> None:
    viewer = Viewer()
    keep = viewer.send
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        begun.set()
        await go_on.wait()
        await keep(message)

    viewer.send = send  # type: ignore[method-assign]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(viewer.view)
            await begun.wait()
            signal.raise_signal(signal.SIGTERM)
            await anyio.lowlevel.checkpoint()  # the loop's turn that the signal asked for
            go_on.set()
    assert viewer.terminated


async def test_a_signal_goes_on_to_the_server_when_a_streams_event_loop_is_gone(
    handled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(shutdown, "_open", {(loop, lambda: None)})
    with shutdown.StoppedWithTheServer(lambda: None):
        signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


async def test_handlers_stay_as_they_are_where_there_is_no_server_or_uvicorn(
    handled: list[int],
) -> None:
    class Server:
        should_exit = False

        def handle_exit(self, number: int, frame: Any) -> None: ...

    for handler in (signal.SIG_DFL, Server().handle_exit):
        signal.signal(signal.SIGTERM, handler)
        with shutdown.StoppedWithTheServer(lambda: None):
            assert signal.getsignal(signal.SIGTERM) == handler


def test_a_thread_that_cannot_set_handlers_streams_all_the_same(handled: list[int]) -> None:
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


async def test_a_stream_that_the_server_cancels_is_terminated() -> None:
    viewer = Viewer()
    task = asyncio.create_task(viewer.view())
    await until(lambda: len(viewer.sent) > 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
        await task
    assert viewer.terminated


async def test_a_stream_that_is_cancelled_before_it_has_begun_sends_nothing() -> None:
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
