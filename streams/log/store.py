"""Store: where a SharedLog keeps the runs that any worker can start, read, stop and take over.

`redis` implements it for many machines, `sqlite` for many workers on one.

Invariants of every store:

1. Each operation is atomic, and can be repeated if its reply was lost.
2. A running run has one producer. Only that worker appends to it, until another one claims or
   closes the run. A topic has none: any worker publishes to it, and the store numbers the events.
3. The `end` event and the status that it announces are stored together; nothing follows them.
4. What an operation has stored survives the death of any worker.
5. What no worker has written, such as a truncated row, ends the run that it is in, and no other.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Literal, Protocol, get_args

import msgspec

from streams.errors import ProducerLost, Unavailable, for_log
from streams.event import MAX_EVENTS, End, Payload
from streams.log import Limits, RunInfo, Selection, Status

STATUSES = frozenset(get_args(Status))

LOST = End.failed(ProducerLost("the log has lost events of this run; start a new run"))
"""How a damaged run ends."""

NOT_FOLLOWED = "nothing can follow its newest event; the topic starts again, as a new run"
"""What is wrong with a damaged topic that somebody publishes to."""

REFUSAL_SECONDS = 10
"""For this long, the workers whose clients wait for the opening of a run learn of its refusal."""


logger = logging.getLogger("streams")


class State(msgspec.Struct, frozen=True):
    """A run as the store has it."""

    info: RunInfo
    status: Status
    producer: str
    """Empty for a topic."""
    last: int
    """-1 while the run is opening."""
    first: int
    limits: Limits
    cursors: dict[str, tuple[int, int]]
    """For each worker with readers: its cursor, as in Cursor, and the number of its readers."""


class Damaged(Exception):
    """What the store has of a run cannot be read: no worker has written it so."""


def state_of(info: Any, arguments: Any, **columns: Any) -> State:
    """A state whose info is JSON still, without the arguments. The columns may have any types.

    Raises Damaged.
    """
    try:
        decoded = msgspec.json.decode(info, type=RunInfo)
        if arguments is not None:
            given = msgspec.convert(arguments, str)
            decoded = msgspec.structs.replace(decoded, arguments=given)
        state = msgspec.convert({"info": decoded, **columns}, State)
    except (TypeError, ValueError) as error:
        raise Damaged(str(error)) from None
    if not -1 <= state.last < MAX_EVENTS or not 0 <= state.first <= state.last + 1:
        raise Damaged(f"it has the events {state.first} to {state.last}")
    return state


def report_damage(run: str, what: object) -> None:
    """Tells the operator which run is damaged: one that is left out, or that ends now."""
    logger.error("run %s is damaged in the log: %s", for_log(run), for_log(what))


class Entry(msgspec.Struct, frozen=True):
    """One event as the store has it. The `end` event has a status."""

    number: int
    frame: bytes
    status: Status | None = None


def unsound(number: int) -> Entry:
    """What stands for an event that cannot be read."""
    return Entry(number, b"")


def is_sound(run: bytes, entry: Entry) -> bool:
    """Whether an entry is an event of a run: a whole frame with its id."""
    frame = entry.frame
    return (
        isinstance(frame, bytes)
        and frame.startswith(b"id: %b.%d\n" % (run, entry.number))
        and frame.endswith(b"\n\n")
        and (entry.status is None or entry.status in STATUSES)
    )


def sound(run: bytes, entries: Iterable[Entry]) -> list[Entry]:
    """The entries up to the first one that is not sound."""
    return list(takewhile(partial(is_sound, run), entries))


class Append(msgspec.Struct, frozen=True):
    """Frames of a run, from event `number` on. `status`: the last frame is its `end` event.

    A refused run is retained for REFUSAL_SECONDS. `frees_key`: another run may have the unique key
    of the run from then on.
    """

    run: str
    number: int
    frames: list[bytes]
    evict: int | None = None
    """The newest event that the store may drop, unless a cursor of another worker is before it."""
    status: Status | None = None
    frees_key: bool = False
    evicts_unread: bool = False
    """Whether the store may drop it wherever the cursors of other workers are."""


class Committed(msgspec.Struct, frozen=True):
    """The store has the events `first` to `last` of the run."""

    last: int
    first: int


class Missing(msgspec.Struct, frozen=True):
    """Events between `last` and the first frame are missing: append them first."""

    last: int


class Fenced(msgspec.Struct, frozen=True):
    """The run is closed, or another worker is its producer."""


class Forgotten(msgspec.Struct, frozen=True):
    """There is no such run."""


Outcome = Committed | Missing | Fenced | Forgotten


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """An event for the topic with the unique key of `info`, or None to have the topic made.

    If there is no such topic, `info` becomes one, with its `start` event. The store keeps it for at
    least `keep` seconds from now, and drops its oldest events beyond `limits.window`, but never the
    newest one. `status`: the event is its `end`. It keeps its unique key until it is gone.
    """

    info: RunInfo
    limits: Limits
    event: Payload | None
    keep: float
    status: Status | None = None
    token: str = ""
    repeated: bool = False
    """Whether an earlier call with the token failed: the store may have its event nevertheless."""


class Published(msgspec.Struct, frozen=True):
    """The run of a topic, and its newest event: the published one, unless the topic had `ended`."""

    run: str
    last: int
    ended: bool = False


class Cursor(msgspec.Struct, frozen=True):
    """The newest event of a run that all readers of a worker have had, of a shared run that any of
    them has had; None: it has no readers.

    `keep` is None unless the run is a topic. The store keeps a topic for at least so many seconds
    from now, and no longer if no worker has readers of it any more.
    """

    run: str
    worker: str
    after: int | None
    readers: int
    keep: float | None = None


class Notice(msgspec.Struct, frozen=True):
    """What another worker has done that concerns this one.

    `cursor`: a cursor of a run that this worker produces has changed. `closed`, `claimed`,
    `forgotten`: a run that this worker produces or follows. `left`: `worker` has shut down and
    left runs that others can claim.
    """

    kind: Literal["cursor", "closed", "claimed", "forgotten", "left"]
    run: str = ""
    worker: str = ""
    after: int | None = None
    readers: int = 0


class News(msgspec.Struct, frozen=True):
    """New events of followed runs, by run, and notices."""

    entries: dict[str, list[Entry]]
    notices: list[Notice]


class Workers(msgspec.Struct, frozen=True):
    """What a renewal of the lease reports."""

    had_lease: bool
    """Whether this worker still had its lease: if not, others may have claimed its runs."""
    dead: set[str]
    """Workers whose lease has expired, or that are dead for certain, or have left."""
    certain: set[str]
    """Those of them that are dead for certain, or have left."""
    all: set[str]
    """All workers, dead or not."""


class Store(Protocol):
    """The operations of a SharedLog. The worker that `open` names is the caller of all.

    Operations raise StoreDown while the store does not answer, and StoreFull if it is full: the
    caller repeats them. The messages are meant for clients, so they show no address, path or key.
    """

    renew_interval: float
    """Seconds from one `renew` to the next: at most a third of the lease."""

    append_interval: float
    """Seconds from one `append` to the next. Events gather meanwhile; one after a longer silence
    is appended at once."""

    def check(self) -> None:
        """Looks whether the store can be used, at start, and blocks the thread meanwhile.

        Raises StoreDown or ValueError, with what to do. The operator sees the message.
        """

    async def open(self, worker: str) -> None:
        """Names the calling worker. Comes before the other operations, and again after `aclose`."""

    async def create(self, info: RunInfo, limits: Limits) -> str:
        """Creates a running run. Returns its id, or that of the run with the same unique key.

        A run has its unique key until an end that frees it, or until it is gone.
        """

    async def find_by_key(self, unique_key: str) -> str | None:
        """The id of the run that has a unique key; None if there is none."""

    async def select(self, selection: Selection) -> list[State]:
        """The states of the selected runs, newest first: fewer than the limit only if there are no
        more."""

    async def load(self, runs: Sequence[str]) -> list[State | None]:
        """The state of each run; None if there is no such run, or its state cannot be read."""

    async def append(self, appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        """Appends to several runs in one operation. Skips frames that a run has already.

        Returns the error of a run if the others may have been appended to.
        """

    async def publish(self, publication: Publication) -> Published:
        """Appends an event to a topic, with the next number. Any number of workers may do so.

        A call with `repeated` has no further effect if an earlier one with its token had one.
        A topic whose newest event no other can follow is reported, discarded and made again.
        """

    async def close(self, run: str, end: End, *, frees_key: bool) -> bool:
        """Closes a running run on behalf of any worker, and notifies its producer.

        Returns False if the run is not running.
        """

    async def read(self, run: str, after: int, count: int) -> list[Entry]:
        """At most `count` events after `after`; none if there is no such run.

        One that cannot be read is `unsound`, and the last one.
        """

    async def follow(self, after: Mapping[str, int]) -> News:
        """Waits for events of runs after the ones given, or notices.

        May return without any, and does so after `set_cursors`.
        """

    async def set_cursors(self, cursors: Sequence[Cursor]) -> list[bool]:
        """Stores cursors, and notifies the producers. Returns for each whether the run exists.

        A `follow` that waits returns, so that the caller can follow other runs.
        """

    async def renew(self, runs: Collection[str]) -> Workers:
        """Renews the caller's lease. `runs`, which it produces, do not expire meanwhile."""

    async def runs_of(self, worker: str) -> list[str]:
        """The unfinished runs that a worker produces."""

    async def claim(self, run: str, worker: str) -> State | None:
        """Makes the caller the producer of a run whose producer, `worker`, is dead or has left.

        Returns None if the caller may not have it. The claim can be repeated. Raises Damaged if
        the caller may have it, but its state cannot be read.
        """

    async def remove_worker(self, worker: str) -> None:
        """Forgets a worker that is dead or has left, once it produces no run."""

    async def discard(self, run: str) -> None:
        """Deletes a run, and notifies its producer and the workers with readers of it."""

    async def leave(self) -> None:
        """The caller shuts down; others may claim its runs at once. They are notified."""

    async def aclose(self) -> None:
        """Closes connections and files."""


def parse_lease(value: str, default: str) -> float:
    """The seconds in the parameter `lease` of a URL. Raises ValueError, and tells the default."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"lease={value!r} in the URL of the log is not a positive number of seconds: write for "
            f"example lease={default}"
        )
    return seconds
