"""What a worker holds."""

import asyncio
import ctypes
import gc
import os
import threading
from pathlib import Path

import msgspec


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
