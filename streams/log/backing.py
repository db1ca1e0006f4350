"""Backing: the shared log of which a run in memory is a cache.

A log of many workers keeps events elsewhere, and readers of a run may be attached to other
workers. Such a log gives each MemoryRun a backing; a MemoryLog's own runs have none.
"""

from collections.abc import Awaitable, Iterable
from typing import Protocol


class Backing(Protocol):
    """A log that a MemoryRun is the cache of: it holds events longer, and has other readers."""

    def cursors(self) -> Iterable[int]:
        """The cursors of readers that are not attached to the MemoryRun."""

    def readers_changed(self) -> None:
        """A reader has attached or detached, or the run was forgotten."""

    def reader_advanced(self) -> None:
        """A reader's cursor has moved."""

    def load_evicted(self, after: int) -> Awaitable[tuple[bytes, int]]:
        """Frames after `after` that are no longer in memory, and the number of the last one.

        Raises LostHistory if they were dropped, StopAsyncIteration if the run was forgotten.
        """
