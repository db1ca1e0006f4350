"""What app.py serves, and GET /debug: what this worker holds."""

import asyncio
import ctypes
import gc
import os
import threading
from pathlib import Path

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streams.settings import from_environ

_streams = from_environ(os.environ)


class Held(msgspec.Struct, frozen=True):
    """What a worker holds. `bytes` is the resident memory after a garbage collection; `threads` are
    without those of anyio's pool, which stay.
    """

    pid: int
    bytes: int
    tasks: int
    threads: int
    files: int


def held() -> Held:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # What is free goes back to the system.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        pid=os.getpid(),
        bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        tasks=len(asyncio.all_tasks()),
        threads=sum(not thread.name.startswith("AnyIO") for thread in threading.enumerate()),
        files=len(os.listdir("/proc/self/fd")),
    )


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["path"] == "/debug":
        await Response(msgspec.json.encode(held()))(scope, receive, send)
    else:
        await _streams(scope, receive, send)
