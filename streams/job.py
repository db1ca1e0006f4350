"""Job: what a run is started from."""

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from streams.event import Payload
from streams.policy import Policy

Opener = Callable[[], Awaitable[AsyncIterable[Any] | Iterable[Any]]]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is started from: a source with its arguments, its policy and its owner."""

    source: str
    policy: Policy
    open: Opener
    route: str | None = None
    """The route of the user's own endpoint, which alone can resume the run; None: Streams' own."""
    owner: str | None = None
    """The identity of the user who will own the run; None: everyone who knows its id may use it."""
    clients: Sequence[str] = ()
    """The names by which its client is counted, if there is a limit: see admission.py."""
    arguments: str | None = None
    """A JSON object; None if another worker cannot continue the run with it."""
    arguments_hash: str | None = None
    """A hash of all arguments, defaults included: a run is resumed only with the same ones."""
    argument_bytes: int = 0
    """The size of the arguments as JSON, which the run holds while it is running."""
    guard_arguments: str | None = None
    """All arguments as a JSON object, if the guard of the source takes them."""
    gives_arguments: bool = False
    """Whether the client gave any arguments. If not, it may resume a run with any arguments."""
    fingerprint: str | None = None
    """The fingerprint of the source, if another worker can continue the run."""
    key: str | None = None
    """Names one run of its owner, source and route. A request with the same key attaches to it."""
    shared: bool = False
    """Whether all who give the same arguments view one run."""
    replay: int = 1
    """How many of the newest events a client gets that joins a shared run later."""
    topic: bool = False
    """Whether it is the run of a topic, which has no source: anybody publishes to it."""
    parent: Any = None
    """The trace of the request, if runs are traced: see observer.py."""
    preface: Payload | None = None
    """An event that precedes those of the source."""
