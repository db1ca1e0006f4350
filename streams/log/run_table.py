"""RunTable: the runs that one process holds, and which of them make room first.

Invariant: at most one of the runs is found by a given unique key.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Generic, TypeVar

from streams.log import RunLog

R = TypeVar("R", bound=RunLog)


class RunTable(Generic[R]):
    """Runs by their id and their unique key.

    `forget` is called with the id of an expired one, and `account` with the bytes of arguments that
    a run adds, and that it (negative) takes away.
    """

    def __init__(self, forget: Callable[[str], None], account: Callable[[int], None]) -> None:
        self._forget = forget
        self._account = account
        self._runs: dict[str, R] = {}
        self._by_key: dict[str, R] = {}
        # The finished runs, oldest first: those without and those with a key.
        self._finished: tuple[dict[str, asyncio.TimerHandle], ...] = ({}, {})
        # The topics; the one that nobody has published to or watched for the longest time first.
        self._topics: dict[str, asyncio.TimerHandle] = {}
        # The running runs of one client that nobody watches, the one that nobody has watched for
        # the longest time first: those that may be lost, and those that a client may come back to.
        self._unwatched: tuple[dict[str, None], ...] = ({}, {})

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[R]:
        """The runs, newest first."""
        return reversed(self._runs.values())

    def get(self, run: str) -> R | None:
        return self._runs.get(run)

    def with_key(self, unique_key: str | None) -> R | None:
        return None if unique_key is None else self._by_key.get(unique_key)

    def add(self, run: R) -> None:
        self._runs[run.info.run] = run
        if (unique_key := run.info.unique_key) is not None:
            self._by_key[unique_key] = run
        self._account(run.info.held)

    def remove(self, run: str) -> R | None:
        if (held := self._runs.pop(run, None)) is None:
            return None
        for expiring in (*self._finished, self._topics):
            if (timer := expiring.pop(run, None)) is not None:
                timer.cancel()
        self._mark_watched(run)
        self.free_key(held)
        self._account(-held.info.held)
        return held

    def note_readers(self, run: R, *, watched: bool, keeps: bool) -> None:
        """Readers of a running run of one client have come or gone; it has some if `watched`.

        With `keeps`, it makes room only after others.
        """
        name = run.info.run
        if watched:
            self._mark_watched(name)
        elif self._runs.get(name) is run:
            self._unwatched[keeps].setdefault(name)

    def _mark_watched(self, run: str) -> None:
        for unwatched in self._unwatched:
            unwatched.pop(run, None)

    def free_key(self, run: R) -> None:
        """Frees the unique key of a run, so that another run may have it."""
        unique_key = run.info.unique_key
        if unique_key is not None and self._by_key.get(unique_key) is run:
            del self._by_key[unique_key]

    def expire(self, run: R, seconds: float) -> None:
        """Forgets a finished run, or a topic that has no readers then, after `seconds`.

        Or earlier, if its room is needed. Another call starts the time again.
        """
        name, loop = run.info.run, asyncio.get_running_loop()
        self._mark_watched(name)
        # The context of the request that started the run must not be kept as long.
        context = Context()
        if run.info.topic:
            if (timer := self._topics.pop(name, None)) is not None:
                timer.cancel()
            self._topics[name] = loop.call_later(seconds, self._expire, run, context=context)
        else:
            timer = loop.call_later(seconds, self._forget, name, context=context)
            self._finished[run.info.key is not None][name] = timer

    def _expire(self, topic: R) -> None:
        del self._topics[topic.info.run]
        if topic.status != "running" or not topic.readers:  # It expires again when they have left.
            self._forget(topic.info.run)

    def first_to_forget(self) -> str | None:
        """The first of these that has no readers, of each kind the one that is idle for longest:

        a finished run, a topic, a running run of one client, a finished run with a key, a running
        one with a key or that continues without readers.
        """
        (finished, kept), (running, continued) = self._finished, self._unwatched
        for kind in (finished, self._topics, running, kept, continued):
            for run in kind:
                if not self._runs[run].readers:
                    return run
        return None
