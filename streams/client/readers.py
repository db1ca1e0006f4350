"""Reads a stream with httpx: `AsyncStream` and `SyncStream`, which differ only in how they wait.

They send the requests, read the responses and wait; streams.client.rules decides which and when.
"""

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from typing import Any, Generic

import anyio
import httpx
from httpx_sse import EventSource

from streams.client.rules import LOST, Outcome, Request, Rules, StreamEvent, T


class _Stream(Generic[T]):
    """The base of `AsyncStream` and `SyncStream`."""

    def __init__(self, rules: Rules[T], timeout: float | None) -> None:
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout is {timeout}; give positive seconds, or None")
        self._rules = rules
        self._timeout = httpx.Timeout(timeout, connect=min(timeout or 10, 10))
        self._is_read = False
        self._stops_first = False  # stop() was called before the loop

    @property
    def run(self) -> str:
        """The URL of the run, empty until the server has sent it."""
        return self._rules.run

    @property
    def status(self) -> str:
        """How the run ended: "completed", "failed" or "cancelled"; empty if that is not known."""
        return self._rules.status

    @property
    def last_event_id(self) -> str:
        return self._rules.last_event_id

    def _begin(self) -> None:
        if self._is_read:
            raise RuntimeError("a stream is read once; make another one")
        self._is_read = True
        self._stops_first = self._rules.is_stopped

    def _prepared(
        self, client: httpx.Client | httpx.AsyncClient, request: Request
    ) -> httpx.Request:
        method, url, headers, content = request
        options: Any = {"headers": headers, "content": content, "timeout": self._timeout}
        return client.build_request(method, url, **options)


def _sending(request: Request) -> dict[str, Any]:
    return {"stream": request.method != "DELETE", "follow_redirects": True}


class AsyncStream(_Stream[T]):
    """One stream, read once, with `async for`."""

    def __init__(
        self, rules: Rules[T], timeout: float | None, client: httpx.AsyncClient | None
    ) -> None:
        super().__init__(rules, timeout)
        self._given_client = client
        self._located = anyio.Event()
        self._woken = anyio.Event()

    async def __aiter__(self) -> AsyncIterator[StreamEvent[T]]:
        self._begin()
        rules = self._rules
        try:
            async with self._client() as client:
                while not rules.is_over:
                    outcome = await self._send(client, rules.request())
                    if isinstance(outcome, httpx.Response):
                        async with aclosing(outcome), aclosing(self._read(outcome)) as events:
                            async for event in events:
                                yield event
                    if not rules.is_over:
                        await self._pause(rules.pause(outcome))
            if rules.failure:
                raise rules.failure
        finally:
            self._located.set()

    async def _read(self, response: httpx.Response) -> AsyncGenerator[StreamEvent[T], None]:
        """The events of a response, until its connection is lost or the run has ended."""
        rules = self._rules
        with suppress(*LOST):
            if not rules.opened(response):
                await response.aread()
                return
            await self._on_located()
            async with aclosing(EventSource(response).aiter_sse()) as events:
                async for sse in events:
                    event = rules.received(sse, response)
                    await self._on_located()
                    if event is not None:
                        yield event
                    if rules.is_over:
                        return

    async def stop(self) -> None:
        """Stops the run for all its readers: the server closes the source and sends `end`.

        Waits for the run's URL. Raises NoRunURL if the server does not send it, and Refused if it
        refuses, such as for somebody else's run. Called before the loop, it acts in the loop.
        """
        rules = self._rules
        rules.is_stopped = True
        if not self._is_read:
            return
        if rules.is_refused:
            rules.is_over = True
            self._woken.set()
            return
        await self._located.wait()
        request = rules.stop_request()
        async with self._client() as client:
            rules.check_stopped(await self._send(client, request))

    async def _on_located(self) -> None:
        if self._rules.is_located and not self._located.is_set():
            self._located.set()
            if self._stops_first:
                await self.stop()

    async def _pause(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._woken.wait()

    async def _send(self, client: httpx.AsyncClient, request: Request) -> Outcome:
        try:
            return await client.send(self._prepared(client, request), **_sending(request))
        except LOST as error:
            return error

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._given_client:
            yield self._given_client
        else:
            async with httpx.AsyncClient() as client:
                yield client


class SyncStream(_Stream[T]):
    """One stream, read once, with `for`. Another thread may call `stop`."""

    def __init__(self, rules: Rules[T], timeout: float | None, client: httpx.Client | None) -> None:
        super().__init__(rules, timeout)
        self._given_client = client
        self._located = threading.Event()
        self._woken = threading.Event()
        self._lock = threading.Lock()  # for the step from a refusal to the next request

    def __iter__(self) -> Iterator[StreamEvent[T]]:
        self._begin()
        rules = self._rules
        try:
            with self._client() as client:
                while request := self._next_request():
                    outcome = self._send(client, request)
                    if isinstance(outcome, httpx.Response):
                        with closing(outcome), closing(self._read(outcome)) as events:
                            yield from events
                    if not rules.is_over:
                        self._pause(rules.pause(outcome))
            if rules.failure:
                raise rules.failure
        finally:
            self._located.set()

    def _next_request(self) -> Request | None:
        with self._lock:
            return None if self._rules.is_over else self._rules.request()

    def _read(self, response: httpx.Response) -> Generator[StreamEvent[T], None, None]:
        """The events of a response, until its connection is lost or the run has ended."""
        rules = self._rules
        with suppress(*LOST):
            if not rules.opened(response):
                response.read()
                return
            self._on_located()
            for sse in EventSource(response).iter_sse():
                event = rules.received(sse, response)
                self._on_located()
                if event is not None:
                    yield event
                if rules.is_over:
                    return

    def stop(self) -> None:
        """Does what `AsyncStream.stop` does."""
        rules = self._rules
        rules.is_stopped = True
        if not self._is_read:
            return
        with self._lock:
            if rules.is_refused:
                rules.is_over = True
                self._woken.set()
                return
        self._located.wait()
        request = rules.stop_request()
        with self._client() as client:
            rules.check_stopped(self._send(client, request))

    def _on_located(self) -> None:
        if self._rules.is_located and not self._located.is_set():
            self._located.set()
            if self._stops_first:
                self.stop()

    def _pause(self, seconds: float) -> None:
        self._woken.wait(seconds)

    def _send(self, client: httpx.Client, request: Request) -> Outcome:
        try:
            return client.send(self._prepared(client, request), **_sending(request))
        except LOST as error:
            return error

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        if self._given_client:
            yield self._given_client
        else:
            with httpx.Client() as client:
                yield client
