"""Work: what all runs of one worker share."""

import asyncio
from typing import TYPE_CHECKING

from streams.log.memory import MemoryLog
from streams.log.store import Store

if TYPE_CHECKING:
    from streams.log.shared.run import SharedRun


class Work:
    """The store, the local log, and the queues of the loops that exchange events with the store.

    `appending` are the runs with frames that the store does not have yet. `moved` are those whose
    cursor has changed, `followed` those of other workers that have readers here.
    """

    def __init__(self, store: Store, local: MemoryLog) -> None:
        self.store = store
        self.local = local
        self.appending: dict[SharedRun, None] = {}
        self.moved: dict[SharedRun, None] = {}
        self.followed: dict[str, SharedRun] = {}
        self.queued = asyncio.Event()
        self.done = asyncio.Event()
        self.done.set()

    @property
    def worker(self) -> str:
        return self.local.worker

    def queue_append(self, run: "SharedRun") -> None:
        """Has the uncommitted frames of a run sent to the store."""
        self.appending[run] = None
        self.done.clear()
        self.queued.set()

    def queue_cursor(self, run: "SharedRun") -> None:
        """Has the cursor of a run sent to the store."""
        self.moved[run] = None
        self.done.clear()
        self.queued.set()
