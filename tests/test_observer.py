"""An observer that raises: whatever it counts or traces, runs and requests go on without it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from streams import StreamError, Streams, source, topic
from streams.observer import Observer, Observers
from streams.sources import counter
from tests.support.servers import client_of, connection, every_event, serving, until

METHODS = frozenset(name for name in vars(Observer) if not name.startswith("_"))


class Broken(Observer):
    """Raises an error whenever it is told something."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            raise_ = object.__getattribute__(self, "_raise")
            return lambda *_: raise_(name)
        return object.__getattribute__(self, name)

    def _raise(self, name: str) -> None:
        raise self.error(f"no {name}")


class Told(Observer):
    """Notes what it is told, after an observer that raises."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            return lambda *_: self.methods.add(name)
        return object.__getattribute__(self, name)


Observe = Callable[[type[BaseException]], Told]


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch) -> Observe:
    """Gives each Streams an observer that raises, and another one after it, which is returned."""

    def observe(error: type[BaseException]) -> Told:
        told = Told()
        monkeypatch.setattr("streams.asgi.observers_of", lambda *_: [Broken(error), told])
        return told

    return observe


@source
async def failing() -> AsyncIterator[int]:
    yield 1
    raise StreamError("broken", status=502)


@source
async def refusing() -> AsyncIterator[int]:
    raise StreamError("not today", status=409)
    yield


@source
async def halves(*, after: int = 0) -> AsyncIterator[int]:
    """Waits after its first event, until another worker continues it."""
    if not after:
        yield 1
        await asyncio.sleep(60)
    yield 2


@topic
def room() -> None:
    """What is said."""


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The methods of `Broken` whose failure was logged, each as often as it was."""
    found = [record for record in caplog.records if "Broken." in record.getMessage()]
    assert all(record.exc_info and record.levelno == logging.ERROR for record in found)
    return sorted(record.getMessage().split()[0].removeprefix("Broken.") for record in found)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_an_observer_that_raises_harms_no_run(
    observe: Observe, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    told = observe(error)
    app = Streams([counter, failing, refusing, room], max_per_client=1, identity=lambda _: "ann")
    async with client_of(app) as client:
        for _ in range(3):  # Each of them would be refused if an earlier one still counted.
            events = await every_event(client, "/streams/counter?count=2&interval=0")
            assert [event.event for event in events] == ["start", "message", "message", "end"]
            after = f"{events[0].json()['run']}.1"
            assert len(await every_event(client, "/streams/counter", after)) == 2
            assert (await every_event(client, "/streams/failing"))[-1].json()["status"] == "failed"
            assert (await client.get("/streams/refusing")).status_code == 409
            await app.publish("room", "hello")
            await until(lambda: not app.runs.health()["running"], "no run is running")
    expected = METHODS - {"run_continues", "ended_elsewhere"}
    assert told.methods == expected
    assert failures(caplog) == sorted(expected)


async def test_an_observer_that_raises_harms_no_run_of_another_worker(
    observe: Observe, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = observe(ValueError)
    one, other = (Streams([halves], log=sqlite_url) for _ in range(2))
    async with client_of(other) as client:
        async with serving(one) as url:
            async with connection(url, "/streams/halves") as stopped:
                await stopped.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event")
                assert (await client.delete(f"/runs/{stopped.run}")).status_code == 204
                await stopped.until(lambda stream: b"event: end" in stream.body, "the end")
            async with connection(url, "/streams/halves") as left:
                await left.until(lambda stream: stream.body.count(b"\n\n") == 2, "an event")
        end = (await every_event(client, f"/runs/{left.run}"))[-1]
        await until(lambda: not other.runs.health()["running"], "no run is running")
    assert end.json() == {"status": "completed"}
    assert {"run_continues", "ended_elsewhere"} < told.methods
    assert failures(caplog).count("run_ended") == 2  # One of each worker's observer.


async def test_an_observer_that_raises_harms_no_endpoint_in_openais_format(
    observe: Observe,
) -> None:
    told = observe(ValueError)
    app = Streams(models={"counter": counter})
    async with client_of(app) as client:
        created = await client.post("/v1/responses", json={"model": "counter", "input": "Hi"})
        assert created.status_code == 200
        url = f"/v1/responses/{created.json()['id']}?stream=true&starting_after=1"
        assert (await client.get(url)).status_code == 200
    assert {"parent", "run_starts", "resumed"} < told.methods


def test_what_is_no_error_passes_through() -> None:
    observers = Observers([Broken(KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        observers.tell(Observer.resumed)
