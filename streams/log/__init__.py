"""The event log: it keeps what runs produce, and lets readers read it from any position.

This file defines the protocols. `memory` implements them for one process, `shared` for many
workers. `run.py` appends to a log, `runs.py` finds runs in it, `response.py` reads them.

Invariants of every log:

1. The events of a run are numbered from 0 without holes. An event never changes.
2. Events leave only at the old end. One that an attached reader has not read leaves only if the
   store has lost it, if another reader of a shared run has read it, or if the run is a topic; the
   reader gets LostHistory then.
3. The `end` event and the status that it announces are set together; nothing follows them.
4. A run has one producer at a time; a topic has none, and anybody publishes. Readers may be
   anywhere.
5. Nobody reads a run before it has opened. All who wait for that, on any worker, get its refusal.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol, get_args

import msgspec
from msgspec import UNSET, UnsetType

from streams.errors import ProducerLost, StreamError
from streams.event import NO_READER, SHUTDOWN, End, EventId, Payload, encode_json, frame
from streams.histogram import Histogram as Histogram

Status = Literal["running", "completed", "failed", "cancelled", "refused"]
"""`refused`: the source failed in its first step, before anybody could read the run."""


Place = tuple[int, str]
"""The place of a run in a list, which is in descending order of it: when it started, in µs since
1970, and its id."""


def unique_key(owner: str | None, source: str, route: str | None, key: str) -> str:
    """The unique key of a run with a key."""
    return encode_json([owner, source, route, key]).decode()


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes about a run."""

    run: str
    """Its id."""
    source: str
    """The name of its source."""
    route: str | None = None
    """The route of the endpoint that started it; None: a route of Streams."""
    started: datetime
    owner: str | None = None
    """The identity of the user who started it; None: anybody who knows its id may use it."""
    key: str | None = None
    """The key that its client or the app gave it: it names one run of its owner, source and
    route."""
    shared: bool = False
    """Whether all who give its arguments view it while it is running."""
    topic: bool = False
    """Whether it has no producer: anybody publishes, and it holds nobody back. It is shared."""
    arguments: str | None = None
    """The source's arguments as a JSON object, while another worker can continue the run."""
    argument_bytes: int = 0
    """The size of all arguments as JSON, which the producer holds and the log counts."""
    arguments_hash: str | None = None
    """A hash of all arguments, defaults included; None for an endpoint of the user's own."""
    guard_arguments: str | None = None
    """All arguments as a JSON object, if the guard of the source takes them. They are held, and
    counted in the bytes of the log, as long as the run."""
    fingerprint: str | None = None
    """Identifies the program of the source: a worker continues only runs of its own program."""

    @property
    def unique_key(self) -> str | None:
        """The key that one run has at a time: another one may have it after an end that
        `frees_key`, or when the run is forgotten. None if the run is neither shared nor keyed.
        """
        if self.shared:
            return f"{'topic ' if self.topic else ''}{self.source} {self.arguments_hash}"
        if self.key is None:
            return None
        return unique_key(self.owner, self.source, self.route, self.key)

    def frees_key(self, end: End) -> bool:
        """Whether another run may have its unique key after it has ended so."""
        return (self.shared and not self.topic) or end.reason in (NO_READER, SHUTDOWN)

    def without_arguments(self) -> "RunInfo":
        """The same without the arguments, which nobody needs after the end of the run."""
        return self if self.arguments is None else msgspec.structs.replace(self, arguments=None)

    @property
    def place(self) -> Place:
        return int(self.started.timestamp() * 1_000_000), self.run

    @property
    def held(self) -> int:
        """The bytes that count in those of the log for as long as it has the run."""
        return 0 if self.guard_arguments is None else len(self.guard_arguments.encode())

    def lost(self, why: str) -> ProducerLost:
        """The error of a run that nobody can produce any more. It keeps its key."""
        other_key = "" if self.key is None else " with another key"
        return ProducerLost(f"{why}; start a new run{other_key}")

    @property
    def path(self) -> str:
        """The path of its URL, below where Streams is mounted."""
        return f"/runs/{self.run}"

    @property
    def start(self) -> bytes:
        """The data of its `start` event."""
        return encode_json({"run": self.run, "source": self.source})

    @property
    def start_frame(self) -> bytes:
        """The frame of event 0, for a reader that begins later in the run."""
        return frame(self.run.encode(), 0, b"start", self.start)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs to list: the newest `limit` ones that have all that is set.

    An `owner` of None selects the runs without one. Raises ValueError for an unknown status, and
    for a negative limit.
    """

    owner: str | UnsetType | None = UNSET
    key: str | UnsetType = UNSET
    key_prefix: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    after: Place | UnsetType = UNSET
    """Only runs that come after this place in the list, even if the run there is forgotten."""
    limit: int = 100

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} is negative; give the number of runs to list")
        if self.status is not UNSET and self.status not in get_args(Status):
            statuses = ", ".join(get_args(Status))
            raise ValueError(f"status={self.status!r} is not one of {statuses}")

    def includes(self, info: RunInfo, status: Status) -> bool:
        """Whether it selects a run, apart from the limit. A refused run is never selected."""
        return (
            status != "refused"
            and self.status in (UNSET, status)
            and (self.after is UNSET or info.place < self.after)
            and self.owner in (UNSET, info.owner)
            and self.source in (UNSET, info.source)
            and self.key in (UNSET, info.key)
            and (
                self.key_prefix is UNSET
                or (info.key is not None and info.key.startswith(self.key_prefix))
            )
        )


class Limits(msgspec.Struct, frozen=True):
    """How much of a run its log holds, and for how long."""

    window: int
    """Bytes that the producer may be ahead: of the slowest reader, of a shared run the fastest."""
    retain: float
    """Seconds that the log of a finished run is retained."""
    drops_oldest: bool = False
    """Without readers: drop the oldest events, instead of holding the producer back."""


class Reader(Protocol):
    """A cursor in a run. Iterating it gives the frames after the cursor, many in one piece.

    The iteration waits for further events, and ends after the `end` event. A piece counts as read
    when the next one is requested. A reader that catches up gives the event loop a turn for each
    32 KiB at least, so that it holds nobody up. The iteration raises LostHistory if the next events
    were dropped and the log could not know that earlier; the reader cannot be used after that. A
    cancelled step gives nothing: the next one gives the same events.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    @property
    def ready(self) -> bool:
        """Whether the next step of the iteration returns, or ends, without waiting."""

    def stop(self) -> None:
        """Ends the iteration, even while it waits."""


class RunLog(Protocol):
    """The events of one run."""

    @property
    def info(self) -> RunInfo:
        """What the log was told of the run. After its end, it does not have the arguments."""

    @property
    def status(self) -> Status: ...

    @property
    def first(self) -> int:
        """Number of the oldest event held, or `last + 1` if there is none."""

    @property
    def last(self) -> int:
        """Number of the newest event; -1 before event 0."""

    @property
    def opening(self) -> bool:
        """Whether the run has not opened: its source has not taken its first step."""

    @property
    def readers(self) -> int:
        """How many readers are attached, on all workers, as far as this one knows."""

    @property
    def producer(self) -> str:
        """The name of the worker that produces the run."""

    @property
    def producing(self) -> bool:
        """Whether this worker produces the run, and the run has not ended."""

    @property
    def ended_here(self) -> bool | None:
        """Whether this worker, as its producer, has ended the run; False: another one has ended,
        discarded or claimed it. None: it has not ended, or the store may still refuse the end."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Calls `changed` when a reader attaches or detaches, when `producing` turns false, and
        when `ended_here` is no longer None."""

    def open(self) -> None:
        """The run has opened: clients may read it. Closing a run opens it, too."""

    def refuse(self, error: StreamError) -> None:
        """Forgets a run that has not opened. All who wait for it, on any worker, get the error."""

    async def opened(self) -> None:
        """Waits until the run has opened. Raises its refusal, or UnknownRun if it was forgotten."""

    def append(self, name: bytes | None, data: bytes) -> bool:
        """Appends the next event. Returns True if other tasks have run since the last append.

        After False, they may not have: the producer has to let them run from time to time. Raises
        LogClosed after the end, and if another worker produces the run.
        """

    def is_full(self) -> bool:
        """Whether the producer must wait for `room` before its next append."""

    async def room(self) -> None:
        """Waits until the log is not full, or `producing` is false."""

    def close(self, end: End) -> None:
        """Appends the `end` event and sets the status. The log is retained for `retain` seconds.

        Only the producer calls this. Raises LogClosed if the log is closed.
        """

    async def cancel(self, end: End) -> bool:
        """Closes the log, on whichever worker this is called; returns False if it was closed.

        Refuses a run that has not opened, with RunGone. Events that the producer has appended and
        that no reader could see yet may be lost.
        """

    def read(self, after: int) -> AbstractContextManager[Reader]:
        """A reader of the events after number `after` (-1: of all), attached inside the `with`.

        Entering raises LostHistory if the log knows that events after `after` were dropped.
        """


class Adopter(Protocol):
    """Takes over the runs of workers that died."""

    async def adopt(self, log: RunLog) -> None:
        """Continues or ends a run whose producer died and whose producer is now this worker."""


class EventLog(Protocol):
    """The logs of all runs."""

    @property
    def events(self) -> int:
        """How many events this worker has appended, ever."""

    @property
    def bytes(self) -> int:
        """How many bytes this worker holds: frames, the arguments of runs that it produces, and
        those for guards."""

    @property
    def readers(self) -> int:
        """How many readers are attached on this worker."""

    @property
    def evictions(self) -> int:
        """How many runs this worker has forgotten before their time, to make room, ever."""

    @property
    def latencies(self) -> Mapping[str, Histogram]:
        """How long the store took, by operation: append, read, …. Empty without a store."""

    @property
    def worker(self) -> str:
        """This worker's name, unique among all workers of the log."""

    @property
    def shared(self) -> bool:
        """Whether other workers can continue this worker's runs when it stops."""

    def __len__(self) -> int:
        """How many runs this worker holds, running and finished."""

    def register(self, adopter: Adopter) -> None:
        """Names the adopter of dead workers' runs. Called once, before anything else."""

    async def open(self) -> None:
        """Starts to watch for workers that die. Other methods do this themselves if needed."""

    async def check(self) -> None:
        """Raises Unavailable if the log cannot be used now. May take long, and be cancelled."""

    async def create(self, info: RunInfo, limits: Limits) -> RunLog:
        """A new run's log; or, if another run has the same unique key, the log of that run.

        A run has its unique key until it is refused, until it has ended so that `frees_key` is
        true, or until it is forgotten. Raises StoreFull if there is no room for a run.
        """

    async def find(self, run: str) -> RunLog:
        """The log of a run. Raises UnknownRun."""

    async def find_by_key(self, unique_key: str) -> RunLog | None:
        """The log of the run that has a unique key, if there is one."""

    async def select(self, selection: Selection) -> list[RunLog]:
        """The logs of the selected runs, newest first: fewer than the limit only if there are no
        more."""

    async def discard(self, run: str) -> None:
        """Forgets a run at once, if it exists. Its readers may get what this process holds of it,
        and then their iterations end."""

    async def topic(self, info: RunInfo, limits: Limits) -> RunLog:
        """The log of a topic: of the run with the unique key of `info`.

        If there is none, a new one with its `start` event, which is open. It drops its oldest
        events beyond the window, read or not, and raises LostHistory to a reader that misses them.
        It is forgotten when it has had no readers and no new events for `retain` seconds. At a
        limit, one without readers may make room earlier.
        """

    async def publish(self, info: RunInfo, limits: Limits, event: Payload) -> EventId:
        """Appends an event to a topic, which is found or made as by `topic`. Returns its id once
        it cannot be lost.

        Any number of tasks and workers publish at once. Raises LogClosed if the topic has ended.
        """

    async def end_topic(self, info: RunInfo, limits: Limits, end: End) -> None:
        """Ends a topic, found or made as by `topic`. Does nothing if it has ended.

        Its unique key is free when it is forgotten, after `retain` seconds.
        """

    async def aclose(self) -> None:
        """Writes what is not written yet, and leaves unfinished runs to other workers."""
