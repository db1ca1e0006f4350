"""Observer: what a Streams tells those who count or trace what it does.

Invariants:

1. Nothing is told for each event: an observer must not make events dearer.
2. No observer harms a run or a request: `Observers` logs what it raises.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any, Concatenate, ParamSpec, Protocol

import msgspec
from starlette.types import Scope

from streams.errors import StreamError
from streams.log import RunInfo, Status

logger = logging.getLogger("streams")

P = ParamSpec("P")


class Production(msgspec.Struct, frozen=True, eq=False):
    """A run, for as long as this worker produces it: from `run_starts` or `run_continues` to
    `run_ended`.

    A run that this worker loses and takes back is another production, which may begin before the
    first one has closed its source.
    """

    info: RunInfo
    """Without the arguments: this is kept until the end of the run is certain."""


class Sending(Protocol):
    """A response that streams a run."""

    sent: int
    """The bytes of its body so far, without heartbeats."""


class Observer:
    """Ignores all that it is told. Subclasses do not."""

    def parent(self, scope: Scope) -> Any:
        """The trace to which a request belongs, for `run_starts`; None if it is not traced."""

    def run_starts(self, run: Production, context: Context, parent: Any) -> None:
        """This worker begins to produce a new run, whose source will run in `context`."""

    def run_continues(self, run: Production, context: Context) -> None:
        """This worker begins to produce the run of a worker that died or was shut down."""

    def first_event(self, run: Production, seconds: float) -> None:
        """The source of a new run has yielded its first event, so long after its start."""

    def run_fails(self, run: Production, error: BaseException) -> None:
        """The source of a run has raised an error. The run ends."""

    def run_ended(self, run: Production, status: Status) -> None:
        """This worker produces a run no longer; `running`: another one took it over or ended it."""

    def ended_elsewhere(self, info: RunInfo, status: Status) -> None:
        """This worker has ended a run that it did not produce."""

    def opened(self, stream: Sending) -> None:
        """A response begins to stream a run."""

    def closed(self, stream: Sending) -> None:
        """A response that was `opened` is over."""

    def resumed(self) -> None:
        """A response resumes after the last event of its client."""

    def refused(self, error: StreamError) -> None:
        """A request was refused."""

    def published(self, topic: str) -> None:
        """An event was published to a topic."""


def _inherits(observer: Observer, name: str, method: object) -> bool:
    return getattr(getattr(observer, name), "__func__", None) is method


class Observers:
    """The observers of one Streams. The first error of each method of an observer is logged."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._listening: dict[object, list[Observer]] = {
            method: [o for o in self._observers if not _inherits(o, name, method)]
            for name, method in vars(Observer).items()
            if not name.startswith("_")
        }
        """Those that override a method, for each method."""
        self._failed: set[tuple[Observer, str]] = set()

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._observers)

    def tell(
        self, what: Callable[Concatenate[Observer, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Calls a method of each observer: `tell(Observer.published, "news")`."""
        for observer in self._listening[what]:
            self._call(observer, what.__name__, *args, **kwargs)

    def parent(self, scope: Scope) -> Any:
        """The trace to which a request belongs, if one of the observers knows it."""
        for observer in self._listening[Observer.parent]:
            if (parent := self._call(observer, "parent", scope)) is not None:
                return parent
        return None

    def _call(self, observer: Observer, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(observer, method)(*args, **kwargs)
        except (Exception, asyncio.CancelledError):
            if (observer, method) not in self._failed:
                self._failed.add((observer, method))
                logger.exception(
                    "%s.%s failed; further failures of it are not logged",
                    type(observer).__name__,
                    method,
                )
