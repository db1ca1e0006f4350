"""Health: whether a Streams can do its work, for probes.

Invariant: however many ask, the log is asked one question at a time, for CHECK_SECONDS at most.
"""

import asyncio
from contextvars import Context

from starlette.requests import Request
from starlette.responses import Response

from streams.body import Bodies
from streams.errors import StoreDown, StreamError, retry_after
from streams.log import EventLog
from streams.response import json_response
from streams.runs import Runs
from streams.version import __version__

CHECK_SECONDS = 2.0
"""A log that has not answered after this time does not answer."""

WHAT_TO_DO = (
    "the server's log says what is wrong with it. Streams pause, and continue when it can be used "
    "again; new ones are refused"
)


class Health:
    """The answer to /health: 200 while the log can be used, else 503."""

    def __init__(self, log: EventLog, runs: Runs, bodies: Bodies) -> None:
        self._log = log
        self._runs = runs
        self._bodies = bodies
        self._checking: asyncio.Task[StreamError | None] | None = None

    async def answer(self, request: Request) -> Response:
        error = await self._trouble()
        state = {"version": __version__, **self._runs.health(), "bodies": len(self._bodies)}
        if error is None:
            return json_response({"status": "ok", **state})
        detail = f"{error}; {WHAT_TO_DO}"
        headers = {"Retry-After": str(retry_after(error))}
        return json_response({"status": "unavailable", "detail": detail, **state}, headers, 503)

    async def _trouble(self) -> StreamError | None:
        """Why the log cannot be used; None if it can."""
        loop, checking = asyncio.get_running_loop(), self._checking
        if checking is None or checking.done() or checking.get_loop() is not loop:
            # Nothing of the request that happens to be first belongs to the question.
            checking = self._checking = loop.create_task(self._check(), context=Context())
        await asyncio.wait([checking])
        return checking.result()

    async def _check(self) -> StreamError | None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._log.check()
        except TimeoutError:
            return StoreDown(f"the log has not answered within {CHECK_SECONDS:g} s")
        except StreamError as error:
            return error
        return None
