"""Reads a stream with each client, and says what it gave and did, in the same words for all."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Thread
from typing import Any

from streams.client import ClientError, StreamEvent, stream, stream_sync
from tests.support.browser import Node, running_node


@dataclass
class Outcome:
    """What happened. An error is the name of a class of streams.client, and its message."""

    events: list[tuple[str, str, Any]] = field(default_factory=list)
    error: tuple[str, str] | None = None
    stopped: str = ""
    pauses: list[float] = field(default_factory=list)
    status: str = ""
    run: str = ""
    states: list[str] | None = None
    """Only of event-stream.js."""

    def add(self, event: StreamEvent[Any]) -> None:
        self.events.append((event.id, event.name, event.data))


Read = Callable[..., Outcome]
"""Reads `url` with `options`, and calls stop at `stop_at` (see Case). Pauses end at once, unless
stop is called in one, or with `waits`."""


@contextmanager
def event_stream_js() -> Iterator[Read]:
    with running_node("read.js") as node:
        yield partial(_read_with_node, node)


def _read_with_node(
    node: Node, url: str, options: dict[str, Any], stop_at: str = "", *, waits: bool = False
) -> Outcome:
    names = {"last_event_id": "lastEventId"}
    lines = node.ask(
        url=url,
        options={names.get(name, name): value for name, value in options.items()},
        stopAt=stop_at or None,
        stopAfterwards=stop_at == "after the loop",
        skipPauses=not waits and stop_at != "waiting",
    )

    def of(name: str) -> list[Any]:
        return [line[name] for line in lines if name in line]

    stops = [name if name in ("stopped", "NoRunURL") else "Refused" for name in of("stop")]
    assert not of("unfinished") + of("timersLeft"), lines
    return Outcome(
        events=[(event["id"], event["type"], event["data"]) for event in of("event")],
        error=next(map(_error_of_node, of("error")), None),
        stopped="".join(stops),
        pauses=of("pause"),
        status=of("status")[0],
        run=of("run")[0],
        states=of("state"),
    )


def _error_of_node(error: dict[str, Any]) -> tuple[str, str]:
    """JavaScript has no classes for these errors. Names that it does not share are translated."""
    name = error["name"]
    names = {"Broken": "ConnectionLost", "TypeError": "ConnectionLost", "Bad": "RunFailed"}
    return "Refused" if "problem" in error else names.get(name, name), error["message"]


@contextmanager
def async_client() -> Iterator[Read]:
    yield lambda *given, **options: asyncio.run(
        asyncio.wait_for(_read_async(*given, **options), 30)
    )


async def _read_async(
    url: str, options: dict[str, Any], stop_at: str = "", *, waits: bool = False
) -> Outcome:
    outcome = Outcome()
    events = stream(url, **options)
    stops: list[asyncio.Task[None]] = []
    send, pause = events._send, events._pause

    async def stop() -> None:
        try:
            await events.stop()
            outcome.stopped = "stopped"
        except ClientError as error:
            outcome.stopped = type(error).__name__

    async def act(moment: str) -> None:
        if moment == stop_at and not stops:
            stops.append(asyncio.create_task(stop()))
            await asyncio.sleep(0)

    async def watched_send(*given: Any) -> Any:
        await act("connecting")
        return await send(*given)

    async def watched_pause(seconds: float) -> None:
        outcome.pauses.append(seconds * 1000)
        await act("waiting")
        await pause(seconds if waits or stop_at == "waiting" else 0)

    vars(events).update(_send=watched_send, _pause=watched_pause)
    if stop_at == "before the loop":
        await stop()
    try:
        async for event in events:
            outcome.add(event)
            if stop_at and event.id == stop_at:
                await stop()
    except ClientError as error:
        outcome.error = type(error).__name__, str(error)
    await asyncio.gather(*stops)
    if stop_at == "after the loop":
        await stop()
    outcome.status, outcome.run = events.status, events.run
    return outcome


@contextmanager
def sync_client() -> Iterator[Read]:
    yield _read_sync


def _read_sync(
    url: str, options: dict[str, Any], stop_at: str = "", *, waits: bool = False
) -> Outcome:
    outcome = Outcome()
    events = stream_sync(url, **options)
    stops: list[Thread] = []
    send, pause = events._send, events._pause

    def stop() -> None:
        try:
            events.stop()
            outcome.stopped = "stopped"
        except ClientError as error:
            outcome.stopped = type(error).__name__

    def act(moment: str) -> None:
        if moment == stop_at and not stops:
            stops.append(Thread(target=stop))
            stops[0].start()
            deadline = time.monotonic() + 30
            while not events._rules.is_stopped:
                assert time.monotonic() < deadline, "not reached in 30 s: stop() has begun"
                time.sleep(0.001)

    def watched_send(*given: Any) -> Any:
        act("connecting")
        return send(*given)

    def watched_pause(seconds: float) -> None:
        outcome.pauses.append(seconds * 1000)
        act("waiting")
        pause(seconds if waits or stop_at == "waiting" else 0)

    vars(events).update(_send=watched_send, _pause=watched_pause)
    if stop_at == "before the loop":
        stop()
    try:
        for event in events:
            outcome.add(event)
            if stop_at and event.id == stop_at:
                stop()
    except ClientError as error:
        outcome.error = type(error).__name__, str(error)
    for thread in stops:
        thread.join()
    if stop_at == "after the loop":
        stop()
    outcome.status, outcome.run = events.status, events.run
    return outcome


CLIENTS = {
    "event-stream.js": event_stream_js,
    "stream": async_client,
    "stream_sync": sync_client,
}
