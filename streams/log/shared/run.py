"""SharedRun: one run in a store, as this worker knows it, be it the producer or not.

Invariants:

1. Readers see only committed events: those that the store has.
2. What the store refuses is discarded here.
3. The store has no event of a run that has not opened. A refusal is its only event.
4. A MemoryRun holds the frames that are in this process. On the producer these are the appended
   frames, and readers see the committed ones. On another worker these are the events that came in
   since its first reader attached. A reader that needs an older event loads it from the store.

SharedLog owns the loops that exchange events and notices with the store.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from streams.errors import LogClosed, LostHistory, RunGone, StreamError
from streams.event import End, frame
from streams.log import RunInfo, Status
from streams.log.memory_run import CHUNK, MemoryReader, MemoryRun
from streams.log.shared import refusal
from streams.log.shared.repeat import until_answered
from streams.log.shared.topics import watched_seconds
from streams.log.shared.work import APPEND_BYTES, APPEND_EVENTS, CLOCK_SECONDS, Work
from streams.log.store import Append, Cursor, Entry, State, is_sound, sound


class SharedRun:
    """A RunLog, and the Backing of the MemoryRun that holds its frames in this process.

    `is_producer`: as far as this worker knows, it is the run's producer. `committed`: on the
    producer, the newest event that the store has. `backlogged`: the readers here are so far from
    the newest event that this worker has stopped following the run for a while.
    """

    def __init__(self, work: Work, state: State, is_producer: bool) -> None:
        self.producer = state.producer
        self.is_producer = is_producer
        self.ended_here: bool | None = None if is_producer else False
        self.first = state.first
        self.committed = state.last
        self.backlogged = False
        self._work = work
        self._last = state.last
        self._status = state.status
        self._begin = state.last + 1
        self._id = state.info.run.encode()
        self._sent_cursor = -1
        self._frees_key = False
        self._remote_readers: dict[str, int] = {}
        self.remote_cursors: dict[str, int] = {}
        self._watcher: Callable[[], None] = lambda: None
        self._piece_events = 64
        self.memory = MemoryRun(work.local, state.info.without_arguments(), state.limits, self)
        self.memory.reset(state.last)
        if state.last >= 0:
            self.memory.open()
        if state.status != "running":
            self.memory.finish(state.status)
        self._set_remote_readers(state)
        if is_producer:
            self.memory.hold_arguments(state.info)
            self.remote_cursors = {worker: after for worker, (after, _) in state.cursors.items()}

    @property
    def info(self) -> RunInfo:
        return self.memory.info

    @property
    def status(self) -> Status:
        return self.memory.status if self.is_producer or self.memory.closed else self._status

    @property
    def last(self) -> int:
        return self.memory.last if self.is_producer else max(self.memory.last, self._last)

    @property
    def readers(self) -> int:
        return self.memory.readers + sum(self._remote_readers.values())

    @property
    def producing(self) -> bool:
        return self.is_producer and not self.memory.closed

    @property
    def opening(self) -> bool:
        return self.memory.opening

    async def opened(self) -> None:
        if self.opening and not self.is_producer:
            # The first event says how the opening went. If it was evicted, the run has opened.
            with suppress(LostHistory), self.read(-1) as reader:
                await anext(reader, b"")
        await self.memory.opened()

    def watch(self, changed: Callable[[], None]) -> None:
        self._watcher = changed

    def _set_remote_readers(self, state: State) -> None:
        me = self._work.worker
        self._remote_readers = {w: count for w, (_, count) in state.cursors.items() if w != me}

    # The producer's side

    def open(self) -> None:
        if self.opening:
            self.memory.open()
            self._work.queue_append(self)

    def refuse(self, error: StreamError) -> None:
        self.memory.discard_uncommitted()
        self.memory.add(frame(self._id, 0, b"end", refusal.encode(error)))
        self.memory.open(error)
        self.memory.finish("refused")
        self._frees_key = True
        self._work.queue_append(self)
        self._watcher()

    def append(self, name: bytes | None, data: bytes) -> bool:
        if not self.is_producer:
            raise LogClosed(f"run {self.info.run}: {self.producer} produces it, not this worker")
        memory, last = self.memory, self.memory.buffer.last
        memory.add(frame(self._id, last + 1, name, data))
        self._work.local.events += 1
        # Until it opens, there is nothing to send.
        if not memory.opening and self not in self._work.appending:
            self._work.queue_append(self)
        return self.committed == last

    def is_full(self) -> bool:
        return self.memory.is_full()

    async def room(self) -> None:
        await self.memory.room()

    def close(self, end: End) -> None:
        self.append(b"end", end.encode())
        self.memory.finish(end.status)
        self._frees_key = self.info.frees_key(end)
        self.open()
        self._watcher()

    async def cancel(self, end: End) -> bool:
        if not self.producing:
            return self.status == "running" and await self.close_in_store(end)
        if self.opening:
            self.refuse(RunGone.stopped(self.info.run))
        else:
            self.close(end)
        return True

    async def close_in_store(self, end: End) -> bool:
        return await self._work.store.close(self.info.run, end, frees_key=self.info.frees_key(end))

    def uncommitted(self) -> Append:
        """What to send to the store next."""
        memory, info, number = self.memory, self.info, self.committed + 1
        frames: list[bytes] = []
        if not self.opening:
            frames = memory.buffer.frames(self.committed, APPEND_BYTES, APPEND_EVENTS)
        evict = memory.first - 1 if memory.first > self._begin else None
        ends = memory.closed and self.committed + len(frames) == memory.last
        status, frees_key = (memory.status, self._frees_key) if ends else (None, False)
        return Append(info.run, number, frames, evict, status, frees_key, info.shared)

    def cursor(self) -> Cursor:
        """The cursor that paces the run, of the readers here."""
        memory, work, keep = self.memory, self._work, None
        after = memory.pacing_cursor if memory.readers and not self.is_producer else None
        if self.info.topic:
            keep = memory.limits.retain + (0 if after is None else watched_seconds(work.store))
        return Cursor(self.info.run, work.worker, after, memory.readers, keep)

    def on_committed(self, last: int, first: int) -> None:
        """The store has all events from `first` to `last`."""
        if not self.is_producer:
            return
        self.committed, self.first = last, first
        memory = self.memory
        memory.commit(max(last, memory.buffer.committed))
        if last < memory.buffer.last:
            if not memory.opening:
                self._work.queue_append(self)
        elif memory.closed:
            self.ended_here = True
            self._watcher()
            retain = 0 if memory.status == "refused" else memory.limits.retain
            self._work.local.runs.expire(memory, retain + CLOCK_SECONDS)

    def on_missing(self, last: int) -> bool:
        """The store has lost all events after `last`. They are sent again if they are here.

        Returns whether they are.
        """
        self.committed = last
        if are_here := last >= self.memory.first - 1:
            self._work.queue_append(self)
        return are_here

    @property
    def lost(self) -> End:
        return End.failed(self.info.lost("the log has lost events of this run"))

    def on_lost(self) -> None:
        """Ends the run for its readers here: the store has lost events that they may have read."""
        self.is_producer, self.ended_here = False, self.is_producer or self.ended_here
        self._work.appending.pop(self, None)
        memory = self.memory
        if not memory.closed:
            memory.discard_uncommitted()
            memory.add(frame(self._id, memory.last + 1, b"end", self.lost.encode()))
            memory.finish(self.lost.status)
        memory.commit(memory.last)
        self.readers_changed()
        self._watcher()

    def on_cursor(self, worker: str, after: int | None, readers: int) -> None:
        """The cursor of another worker is `after`; None: it has no readers now."""
        if after is None:
            self._remote_readers.pop(worker, None)
            self.remote_cursors.pop(worker, None)
        else:
            self._remote_readers[worker] = readers
            if self.is_producer:
                self.remote_cursors[worker] = after
        if self.is_producer:
            self.memory.note_readers()
            self._watcher()

    def on_fenced(self) -> None:
        """Another worker has closed or claimed the run. Uncommitted events are discarded."""
        if self.is_producer:
            self.is_producer = False
            self.memory.discard_uncommitted()
            self.memory.drop_arguments()
            self.remote_cursors.clear()
            self._work.appending.pop(self, None)
            self.readers_changed()
            self._watcher()

    def on_claimed(self, state: State) -> None:
        """This worker has become the producer. It appends after the last committed event."""
        self._unfollow()
        self.is_producer, self.producer, self.ended_here = True, self._work.worker, None
        self.first, self.committed = state.first, state.last
        self.memory.hold_arguments(state.info)
        if self.memory.last != state.last:
            self.memory.reset(state.last)
        self._begin = self.memory.first
        self._set_remote_readers(state)
        self.remote_cursors = {worker: after for worker, (after, _) in state.cursors.items()}

    def on_forgotten(self) -> None:
        """Breaks off the streams of the readers here: the store no longer has the run."""
        self._unfollow()
        self._work.appending.pop(self, None)
        self._work.moved.pop(self, None)
        self.is_producer, self.ended_here = False, self.ended_here is not False
        if not self.memory.forgotten:
            self.memory.forget()
            self._watcher()

    # The readers' side

    def read(self, after: int) -> MemoryReader:
        if after < self.first - 1:
            raise LostHistory(self.first - 1 - after, self.first)
        return self.memory.read(after)

    def on_state(self, state: State) -> None:
        """Takes over a state that the store has just reported."""
        if state.status == "refused":
            return  # Its event says why.
        self.first, self._last, self._status = state.first, state.last, state.status
        self._set_remote_readers(state)
        self.producer = state.producer
        if state.last >= 0:
            self.memory.open()
        if state.status != "running" and state.last < self.memory.buffer.committed:
            self.on_lost()
        if not self.is_producer and not self.memory.readers and not self.memory.closed:
            self.memory.reset(state.last)
            if state.status != "running":
                self.memory.finish(state.status)

    def on_entries(self, entries: Iterable[Entry]) -> None:
        """Takes over events that another worker has appended."""
        memory = self.memory
        for entry in entries:
            if entry.number <= memory.last or memory.closed:
                continue
            if not is_sound(self._id, entry):
                self._on_damaged(entry.number)
                return
            if entry.number > memory.last + 1:  # the store has evicted those between
                memory.reset(entry.number - 1)
            if entry.status == "refused":
                if not memory.opening:  # This worker had opened it, but could not tell the store.
                    self.on_lost()
                    return
                memory.open(refusal.decode(entry.frame))
            memory.add(entry.frame)
            if entry.status is not None:
                self._status = entry.status
                memory.finish(entry.status)
        memory.open()
        memory.commit(memory.last)
        self.backlogged = memory.is_full()
        if memory.closed:
            self._unfollow()

    def _on_damaged(self, number: int) -> tuple[bytes, int]:
        """Ends the run everywhere: event `number` in the store is damaged."""
        self._work.end_damaged(self, number)
        if self.is_producer:  # The store will take the run from it.
            raise LostHistory(self.memory.first - number, self.memory.first)
        self.on_lost()
        return frame(self._id, self.memory.last, b"end", self.lost.encode()), self.memory.last

    def _unfollow(self) -> None:
        # Another object may stand for the run by now, after this one was forgotten.
        if self._work.followed.get(self.info.run) is self:
            del self._work.followed[self.info.run]

    # The backing of the run in memory

    def cursors(self) -> Iterable[int]:
        return self.remote_cursors.values()

    def readers_changed(self) -> None:
        if self.is_producer:
            self._watcher()
            return
        memory = self.memory
        if memory.forgotten or memory.closed:
            self._unfollow()
        elif memory.readers:
            self._work.followed[self.info.run] = self
            self._send_cursor()
        else:
            self._unfollow()
            self._work.queue_cursor(self)
        if not memory.readers and not memory.forgotten:
            memory.reset(memory.last)

    def reader_advanced(self) -> None:
        if self.is_producer or self.memory.closed or self.info.topic:
            return
        memory, evicted = self.memory, self.memory.first - 1
        sent, much = max(self._sent_cursor, evicted), memory.limits.window // 4
        if (
            self._sent_cursor >= evicted
            and not self.backlogged
            and memory.buffer.size(sent, memory.buffer.committed) <= much
        ):
            # No reader can be far enough ahead. Finding the one that paces is O(readers).
            return
        after = memory.pacing_cursor
        caught_up = self._sent_cursor < evicted <= after
        if (
            caught_up
            or memory.buffer.size(sent, after) > much
            or (self.backlogged and not memory.is_full())
        ):
            self._send_cursor()

    def send_cursor_again(self, force: bool) -> None:
        """Sends the cursor if it has moved; with `force` always, as the store may have lost it.

        That of a topic is sent always: it keeps the topic.
        """
        if force or self.info.topic or self._sent_cursor < self.memory.pacing_cursor:
            self._send_cursor()

    def _send_cursor(self) -> None:
        self.backlogged = self.memory.is_full()
        self._sent_cursor = self.memory.pacing_cursor
        self._work.queue_cursor(self)

    async def load_evicted(self, after: int) -> tuple[bytes, int]:
        read = partial(self._work.read, self.info.run, after, self._piece_events)
        entries = await until_answered(read)
        if not entries:
            (state,) = await until_answered(partial(self._work.store.load, [self.info.run]))
            if state is None or state.last > after:  # The run expires: its events go first.
                self.on_forgotten()
                raise StopAsyncIteration
            self.on_lost()
            return self.memory.piece(self.memory.last - 1)  # only the `end` event, which says so
        if entries[0].number > after + 1:
            self.first = entries[0].number
            raise LostHistory(self.first - 1 - after, self.first)
        if not (entries := sound(self._id, entries)):
            return self._on_damaged(after + 1)
        frames = b"".join([entry.frame for entry in entries])
        self._piece_events = max(1, min(1000, len(entries) * CHUNK // len(frames)))
        return frames, entries[-1].number
