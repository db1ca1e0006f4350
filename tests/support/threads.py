"""Apps for a server process: plain generators that block, alone and in a host."""

import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue

from fastapi import FastAPI

from streams import Streams, run, source

run.CLEANUP_SECONDS = float(os.environ.get("CLEANUP_SECONDS", "10"))


@source(linger=None)
def stuck() -> Iterator[int]:
    """Yields one event, then blocks its thread."""
    yield 1
    yield SimpleQueue[int]().get()


@source
def gated() -> Iterator[int]:
    """Blocks its thread between its two events, until a request opens the gate."""
    yield 1
    gate.wait(60)
    yield 2


gate = threading.Event()
app = Streams([stuck, gated])
host = FastAPI()
host.mount("/live", app)


@host.post("/open")
def open_gate() -> None:
    gate.set()
