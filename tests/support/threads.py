"""An app for a server process: a plain generator that waits in a queue for ever."""

import os
from collections.abc import Iterator
from queue import SimpleQueue

from streams import Streams, producer, source

producer.CLEANUP_SECONDS = float(os.environ.get("CLEANUP_SECONDS", "10"))


@source(linger=None)
def stuck() -> Iterator[int]:
    """Yields one event, then blocks its thread."""
    yield 1
    yield SimpleQueue[int]().get()


app = Streams([stuck])
