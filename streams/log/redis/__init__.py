"""RedisStore: runs in Redis or Valkey, for any number of workers on any number of machines.

Lua scripts are the operations: see scripts.py.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

try:
    from redis.exceptions import ResponseError
except ImportError as error:
    raise ImportError(
        "a log in Redis needs redis: pip install 'streams[redis]'", name="streams[redis]"
    ) from error

from streams.errors import Unavailable
from streams.event import End, Payload, encode_json, frame
from streams.log import Limits, RunInfo, Selection
from streams.log.redis.batch import Batch
from streams.log.redis.connection import RedisLink, is_damage
from streams.log.redis.scripts import (
    APPEND,
    CLAIM,
    CLOSE,
    CREATE,
    DISCARD,
    EXTEND,
    FIND_BY_KEY,
    LEAVE,
    LIST_RUNS,
    LOAD_EVENTS,
    LOAD_STATE,
    PUBLISH,
    REMOVE_WORKER,
    RENEW,
    SELECT,
    SET_CURSOR,
    Script,
)
from streams.log.store import (
    NOT_FOLLOWED,
    Append,
    Committed,
    Cursor,
    Damaged,
    Entry,
    Fenced,
    Forgotten,
    Missing,
    News,
    Notice,
    Outcome,
    Publication,
    Published,
    State,
    Workers,
    parse_lease,
    report_damage,
    state_of,
    unsound,
)

DEFAULT_LEASE = "2.5"
RENEWALS_PER_LEASE = 3
RENEWALS_PER_EXTENSION = 1000


class RedisStore:
    """Runs in Redis (6.2 or newer) or Valkey.

    `url` is redis://, rediss:// or redis+unix://. It has two parameters of its own: `prefix`, the
    prefix of all keys (default: streams), and `lease`, the seconds after which a worker that does
    not renew its lease counts as dead (default: 2.5). Raises ValueError for an invalid URL.
    """

    append_interval = 0.0

    def __init__(self, url: str) -> None:
        self._link = RedisLink(url, prefix="streams", lease=DEFAULT_LEASE)
        lease = parse_lease(self._link.options["lease"], DEFAULT_LEASE)
        self.renew_interval = lease / RENEWALS_PER_LEASE
        self._lease = int(lease * 1000)
        self._logs = f"{self._link.prefix}:log:"
        self._worker = ""
        self._inbox = ""
        self._publishes = Batch(self._link, PUBLISH)
        self._last_notification = "0-0"
        self._renewals = 0

    def check(self) -> None:
        self._link.check()

    async def open(self, worker: str) -> None:
        if worker != self._worker:
            self._link.open()
            self._publishes = Batch(self._link, PUBLISH)
        self._worker = worker
        self._inbox = f"{self._link.prefix}:inbox:{worker}"

    async def _call(self, script: Script, *arguments: Any) -> Any:
        return await self._link.call(script, self._worker, *arguments)

    async def _call_all(self, script: Script, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Calls one script several times. Raises StoreDown if any of the calls fails."""
        replies = await self._link.call_all([(script, (self._worker, *call)) for call in calls])
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._link.failure(reply)
        return replies

    async def create(self, info: RunInfo, limits: Limits) -> str:
        unique_key = "" if info.unique_key is None else _hash(info.unique_key)
        retain = _milliseconds(limits.retain)
        policy = (limits.window, retain, int(limits.drops_oldest), self._lease)
        index = (unique_key, info.owner or "", info.key or "", info.place[0])
        stored = encode_json(info.without_arguments())
        run = await self._call(CREATE, info.run, stored, *policy, *index, info.arguments or "")
        return str(run.decode())

    async def find_by_key(self, unique_key: str) -> str | None:
        run = await self._call(FIND_BY_KEY, _hash(unique_key))
        return None if run is None else run.decode()

    async def select(self, selection: Selection) -> list[State]:
        by_index = (selection.key, selection.key_prefix) != (UNSET, UNSET)
        if by_index or isinstance(selection.owner, str):
            replies = await self._call(SELECT, encode_json(selection))
            states = [_find_state("that was selected", reply) for reply in replies]
            return [state for state in states if state is not None]
        names = await self._link.names("run:")
        found = [state for state in await self.load(names) if state is not None]
        selected = [state for state in found if selection.includes(state.info, state.status)]
        selected.sort(key=lambda state: state.info.place, reverse=True)
        return selected[: selection.limit]

    async def load(self, runs: Sequence[str]) -> list[State | None]:
        calls = [(LOAD_STATE, (self._worker, run)) for run in runs]
        replies = []
        for reply in await self._link.call_all(calls):
            if isinstance(reply, Exception) and not is_damage(reply):
                raise self._link.failure(reply)
            replies.append(reply)
        return [_find_state(run, reply) for run, reply in zip(runs, replies, strict=True)]

    async def append(self, appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        calls = []
        for append in appends:
            evict = -2 if append.evict is None else append.evict
            head = (self._worker, append.run, append.number, evict)
            ending = (append.status or "", int(append.frees_key), int(append.evicts_unread))
            calls.append((APPEND, (*head, *ending, *append.frames)))
        replies = await self._link.call_all(calls)
        for append, reply in zip(appends, replies, strict=True):
            if is_damage(reply):
                report_damage(append.run, reply)
                await self.discard(append.run)
        return [self._outcome(reply) for reply in replies]

    def _outcome(self, reply: Any) -> Outcome | Unavailable:
        match reply:
            case [b"committed", last, first]:
                return Committed(int(last), int(first))
            case [b"missing", last]:
                return Missing(int(last))
            case [b"fenced"]:
                return Fenced()
            case [b"forgotten"]:
                return Forgotten()
            case _ if is_damage(reply):  # It was discarded.
                return Forgotten()
            case _:
                return self._link.failure(reply)

    async def publish(self, publication: Publication) -> Published:
        info, limits, event = publication.info, publication.limits, publication.event
        if info.unique_key is None:
            raise ValueError("a topic has a unique key")
        made = (info.run, encode_json(info), limits.window, _milliseconds(limits.retain))
        keep = _milliseconds(publication.keep)
        call = (publication.token, int(publication.repeated), publication.status or "")
        tail = b"" if event is None else _tail(info.run, event)
        key, start = _hash(info.unique_key), info.start_frame
        arguments = (self._worker, *made, key, keep, start, *call, tail)
        run, last, ended, dropped = await self._publishes.call(*arguments)
        if dropped:
            report_damage(dropped.decode(), NOT_FOLLOWED)
        return Published(run.decode(), int(last), bool(ended))

    async def close(self, run: str, end: End, *, frees_key: bool) -> bool:
        # Only Redis knows the number of the event: the script puts it between head and tail.
        head, tail = b"id: %b." % run.encode(), _tail(run, (b"end", end.encode()))
        call = (CLOSE, (self._worker, run, end.status, int(frees_key), head, tail))
        (reply,) = await self._link.call_all([call])
        if is_damage(reply):  # There is nothing that an end could be appended to.
            report_damage(run, reply)
            await self.discard(run)
        elif isinstance(reply, Exception):
            raise self._link.failure(reply)
        return bool(reply == 1)

    async def read(self, run: str, after: int, count: int) -> list[Entry]:
        (reply,) = await self._link.call_all([(LOAD_EVENTS, (self._worker, run, after, count))])
        if is_damage(reply):
            return [unsound(after + 1)]
        if isinstance(reply, Exception):
            raise self._link.failure(reply)
        return [_entry(entry) for entry in reply]

    async def follow(self, after: Mapping[str, int]) -> News:
        streams = {self._inbox: self._last_notification}
        for run, number in after.items():
            streams[self._logs + run] = f"{number + 1}-0"
        entries: dict[str, list[Entry]] = {}
        notices: list[Notice] = []
        try:
            read = await self._link.read(streams)
        except ResponseError:
            return await self._without_stream(after)
        for key, found in read:
            if (name := key.decode()) != self._inbox:
                entries[name.removeprefix(self._logs)] = [_entry(entry) for entry in found]
            else:
                self._last_notification = found[-1][0].decode()
                sent = [_notice(fields) for _, fields in found if fields[1] != b"wake"]
                notices = [notice for notice in sent if notice is not None]
        return News(entries, notices)

    async def _without_stream(self, after: Mapping[str, int]) -> News:
        """Reports the followed runs whose key is not a stream, and makes room for an inbox."""
        keys = await self._link.without_stream([self._inbox, *(self._logs + run for run in after)])
        if self._inbox in keys:
            await self._link.delete(self._inbox)
        damaged = [run for run in after if self._logs + run in keys]
        return News({run: [unsound(after[run] + 1)] for run in damaged}, [])

    async def set_cursors(self, cursors: Sequence[Cursor]) -> list[bool]:
        calls = [
            (
                cursor.run,
                cursor.worker,
                "" if cursor.after is None else cursor.after,
                cursor.readers,
                "" if cursor.keep is None else _milliseconds(cursor.keep),
            )
            for cursor in cursors
        ]
        replies = await self._link.call_all([(SET_CURSOR, (self._worker, *c)) for c in calls])
        for cursor, reply in zip(cursors, replies, strict=True):
            if is_damage(reply):
                report_damage(cursor.run, reply)
                await self.discard(cursor.run)
            elif isinstance(reply, Exception):
                raise self._link.failure(reply)
        return [reply != b"forgotten" and not is_damage(reply) for reply in replies]

    async def renew(self, runs: Collection[str]) -> Workers:
        had_lease, *names = await self._call(RENEW, self._lease)
        self._renewals += 1
        if self._renewals % RENEWALS_PER_EXTENSION == 0:
            await self._call_all(EXTEND, [(run,) for run in runs])
        dead, left, all_ = ({name.decode() for name in group} for group in names)
        return Workers(bool(had_lease), dead, left, all_)

    async def runs_of(self, worker: str) -> list[str]:
        return [run.decode() for run in await self._call(LIST_RUNS, worker)]

    async def claim(self, run: str, worker: str) -> State | None:
        reply = await self._call(CLAIM, run, worker)
        return _state(reply) if reply else None

    async def remove_worker(self, worker: str) -> None:
        await self._call(REMOVE_WORKER, worker)

    async def discard(self, run: str) -> None:
        (reply,) = await self._link.call_all([(DISCARD, (self._worker, run))])
        if is_damage(reply):  # Nobody can be notified.
            kinds = ("run", "log", "cursors")
            await self._link.delete(*(f"{self._link.prefix}:{kind}:{run}" for kind in kinds))
        elif isinstance(reply, Exception):
            raise self._link.failure(reply)

    async def leave(self) -> None:
        await self._call(LEAVE)

    async def aclose(self) -> None:
        await self._link.aclose()


def _hash(unique_key: str) -> str:
    return hashlib.sha256(unique_key.encode()).hexdigest()


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)


def _tail(run: str, event: Payload) -> bytes:
    """The frame of an event after its number, which only Redis knows."""
    return frame(run.encode(), 0, *event).removeprefix(b"id: %b.0" % run.encode())


def _state(reply: list[Any]) -> State | None:
    """Decodes what state() in common.lua returns. Raises Damaged."""
    if reply[0] is None:
        return None
    info, status, producer, *numbers = reply[:8]
    arguments, found = reply[8:]
    cursors = {}
    try:
        last, first, window, retain, drops_oldest = map(int, numbers)
        for worker, cursor in zip(found[::2], found[1::2], strict=True):
            had, readers = cursor.split()
            cursors[worker.decode()] = (int(had), int(readers))
        return state_of(
            info,
            None if arguments is None else arguments.decode(),
            status=status.decode(),
            producer=producer.decode(),
            last=last,
            first=first,
            limits=Limits(window, retain / 1000, bool(drops_oldest)),
            cursors=cursors,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise Damaged(str(error)) from None


def _entry(reply: Any) -> Entry:
    """Decodes an entry of a run's stream."""
    entry_id, fields = reply
    status: Any = None
    if len(fields) > 2 and fields[2] == b"s":
        status = fields[3].decode(errors="replace")
    return Entry(int(entry_id.partition(b"-")[0]) - 1, fields[1], status)


def _notice(fields: list[bytes]) -> Notice | None:
    """Decodes an entry of an inbox; None for one that no worker has sent."""
    try:
        texts = [field.decode() for field in fields]
        members: dict[str, Any] = dict(zip(texts[::2], texts[1::2], strict=True))
        if members.get("kind") == "cursor":
            members["after"] = int(members["after"]) if members["after"] else None
            members["readers"] = int(members["readers"])
        return msgspec.convert(members, Notice)
    except (KeyError, ValueError):
        return None


def _find_state(run: str, reply: Any) -> State | None:
    """Decodes a state; None, and a line in the log, for one that cannot be read."""
    try:
        if isinstance(reply, Exception):
            raise Damaged(str(reply))
        return _state(reply)
    except Damaged as damaged:
        report_damage(run, damaged)
        return None
