"""An app for a server process, with sources that raise what ends a process."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import anyio

from streams import Streams, source

When = Literal["first", "later", "finally", "stop"]


def leave(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    raise KeyboardInterrupt


@source
def plain(how: str, when: When) -> Iterator[int]:
    """Calls `leave` in its first step, a later one, its `finally`, or that after a stop."""
    if when == "first":
        leave(how)
    try:
        yield 1
        if when == "later":
            leave(how)
        while when == "stop":
            yield 2
    finally:
        if when in ("finally", "stop"):
            leave(how)


async def exiting() -> None:
    await gates["group"].wait()
    sys.exit(3)


@source
async def group(library: str) -> AsyncIterator[int]:
    """A child task of its task group calls `sys.exit`, after a request to `go`."""
    if library == "anyio":
        async with anyio.create_task_group() as group:
            group.start_soon(exiting)
            yield 1
            await anyio.sleep_forever()
    else:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(exiting())
            yield 1
            await anyio.sleep_forever()


@source
async def other() -> AsyncIterator[int]:
    """Yields two events, the second one after a request to `go`."""
    yield 1
    await gates["other"].wait()
    yield 2


@source
async def go(of: str = "other") -> AsyncIterator[int]:
    """Lets the source `of` continue."""
    gates[of].set()
    yield 0


gates = {"group": asyncio.Event(), "other": asyncio.Event()}
app = Streams([plain, group, other, go])
