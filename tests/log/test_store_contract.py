"""The contract of a store, tested on every implementation."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from streams.event import COMPLETED, End, frame
from streams.log import Limits, RunInfo, Selection
from streams.log.store import (
    Append,
    Committed,
    Cursor,
    Entry,
    Fenced,
    Forgotten,
    Missing,
    News,
    Notice,
    Publication,
    Published,
    Store,
)
from tests.log.shared.workers import until_async
from tests.support.event_logs import SELECTED_RUNS, SELECTIONS, info
from tests.support.servers import until
from tests.support.stores import STORES

NewStore = Callable[[str], Awaitable[Store]]

LIMITS = Limits(2**20, 300)
FRAMES = [frame(b"r", number, None, b"%d" % number) for number in range(10)]
END = frame(b"r", 3, b"end", COMPLETED.encode())


@pytest.fixture
async def new_store(store_url: str) -> AsyncIterator[NewStore]:
    """Opens the store as a worker of the given name. The fixture closes all of them."""
    opened: list[Store] = []

    async def new_store(worker: str) -> Store:
        store = STORES[store_url.partition(":")[0]](store_url)
        opened.append(store)
        await store.open(worker)
        await store.renew([])
        return store

    yield new_store
    for store in opened:
        await store.aclose()


class Following:
    """All news of a store, gathered by a task."""

    def __init__(self, store: Store, **after: int) -> None:
        self.store = store
        self.after = after
        self.entries: list[Entry] = []
        self.notices: list[Notice] = []

    async def __aenter__(self) -> "Following":
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        while True:
            news: News = await self.store.follow(self.after)
            self.notices += news.notices
            for run, entries in news.entries.items():
                self.entries += entries
                self.after[run] = entries[-1].number


async def appended(store: Store, count: int = 3, run: str = "r") -> None:
    """Creates a run with `count` events."""
    await store.create(info(run), LIMITS)
    await store.append([Append(run, 0, FRAMES[:count])])


async def test_what_was_appended_is_read_after_any_event(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one)
    assert await one.append([Append("r", 3, [END], status="completed")]) == [Committed(3, 0)]
    every = [Entry(n, FRAMES[n]) for n in range(3)] + [Entry(3, END, "completed")]
    for store in (one, other):
        for after in range(-1, 5):
            assert await store.read("r", after, 100) == every[after + 1 :]
    assert await other.read("r", 0, 2) == every[1:3], "at most `count` events"
    assert await other.read("r", 2**53, 2) == []
    assert await other.read("unknown", -1, 2) == []


async def test_a_state_says_what_the_store_has_of_a_run(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    described = info(owner="ann" * 2000, key="k", arguments='{"a":1}')
    limits = Limits(1234, 56.5, True)
    assert await one.create(described, limits) == "r"
    unknown, state = await other.load(["unknown", "r"])
    assert unknown is None
    assert state is not None
    assert (state.info, state.limits) == (described, limits)
    assert (state.status, state.producer) == ("running", "one")
    assert (state.first, state.last) == (0, -1)
    assert await one.append([Append("r", 0, FRAMES[:2])]) == [Committed(1, 0)]
    (state,) = await other.load(["r"])
    assert state is not None
    assert (state.first, state.last) == (0, 1)


def key_of(run: RunInfo) -> str:
    assert run.unique_key is not None
    return run.unique_key


@pytest.mark.parametrize("ended_by", ["its producer", "another worker"])
async def test_a_unique_key_exists_once_until_an_end_that_frees_it(
    new_store: NewStore, ended_by: str
) -> None:
    one, other = await new_store("one"), await new_store("other")
    key = key_of(info("a", key="k"))
    for store in (one, other):
        assert await store.find_by_key(key) is None

    async def end(run: str, frees_key: bool) -> None:
        if ended_by == "its producer":
            append = Append(run, 0, [END], status="completed", frees_key=frees_key)
            assert await one.append([append]) == [Committed(0, 0)]
        else:
            assert await other.close(run, COMPLETED, frees_key=frees_key)

    assert await one.create(info("a", key="k"), LIMITS) == "a"
    for ended in (False, True):
        if ended:
            await end("a", frees_key=False)
        for store in (one, other):
            assert await store.create(info("b", key="k"), LIMITS) == "a"
            assert await store.find_by_key(key) == "a"
        assert await other.load(["b"]) == [None]
    await other.discard("a")
    assert await one.create(info("b", key="k"), LIMITS) == "b"
    await end("b", frees_key=True)
    assert await one.find_by_key(key) is None
    assert await other.create(info("c", key="k"), LIMITS) == "c"
    await one.discard("b")
    assert await one.find_by_key(key) == "c"


async def test_two_workers_that_create_a_run_with_one_key_at_once_create_one(
    new_store: NewStore,
) -> None:
    stores = [await new_store(name) for name in ("one", "other", "third")]
    created = await asyncio.gather(
        *(
            store.create(info(f"{number}-{attempt}", key=f"k{attempt}"), LIMITS)
            for attempt in range(10)
            for number, store in enumerate(stores)
        )
    )
    assert len(created) == 30
    assert len(set(created)) == 10


async def test_a_run_keeps_its_key_when_another_worker_claims_it(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.create(info("a", key="k"), LIMITS)
    await one.leave()
    assert await other.claim("a", "one") is not None
    assert await other.create(info("b", key="k"), LIMITS) == "a"


@pytest.mark.parametrize(("selection", "runs"), SELECTIONS)
async def test_a_selection_counts_only_runs_that_have_all_that_is_given(
    new_store: NewStore, selection: dict[str, Any], runs: list[str]
) -> None:
    one = await new_store("one")
    for run in SELECTED_RUNS:
        await one.create(run, LIMITS)
    await one.append([Append("b-x", 0, [END], status="completed")])
    await one.append([Append("refused", 0, [END], status="refused", frees_key=True)])
    await one.discard("gone")
    states = await one.select(Selection(**selection))
    assert [state.info.run for state in states] == runs


async def test_any_worker_selects_the_runs_of_all(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.create(info("a", owner="ann", key="k/1"), LIMITS)
    await other.create(info("b", owner="ann", key="k/2"), LIMITS)
    await other.set_cursors([Cursor("a", "other", -1, 2)])
    await one.append([Append("a", 0, [END], status="completed")])
    for store in (one, other):
        for selection in (Selection(owner="ann"), Selection(key_prefix="k/"), Selection()):
            states = await store.select(selection)
            assert states == await store.load(["b", "a"])
        assert await store.select(Selection(owner="ann", status="failed")) == []


async def test_the_key_of_a_run_is_free_when_the_run_is_gone_after_its_time(
    new_store: NewStore,
) -> None:
    one = await new_store("one")
    await one.create(info("a", key="k"), Limits(2**20, 0.05))
    await one.append([Append("a", 0, [END], status="completed")])

    async def is_free() -> bool:
        return await one.find_by_key(key_of(info(key="k"))) is None

    await until_async(is_free, "the key is free")
    assert await one.create(info("b", key="k"), LIMITS) == "b"


async def test_a_creation_can_be_repeated(new_store: NewStore) -> None:
    one = await new_store("one")
    for _ in range(2):
        assert await one.create(info("a", key="k"), LIMITS) == "a"
        assert await one.create(info("b"), LIMITS) == "b"
    assert sorted(await one.runs_of("one")) == ["a", "b"]
    assert await one.append([Append("b", 0, FRAMES[:1])]) == [Committed(0, 0)]


async def test_a_refused_run_is_not_running_and_frees_its_key(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.create(info("r", key="k"), LIMITS)
    refusal = Append("r", 0, [END], status="refused", frees_key=True)
    assert await one.append([refusal]) == [Committed(0, 0)]
    (state,) = await other.load(["r"])
    assert state is not None
    assert state.status == "refused"
    assert await other.read("r", -1, 9) == [Entry(0, END, "refused")]
    assert await other.runs_of("one") == []
    assert await other.create(info("s", key="k"), LIMITS) == "s"


async def test_an_append_can_be_repeated(new_store: NewStore) -> None:
    one = await new_store("one")
    await appended(one)
    assert await one.append([Append("r", 1, FRAMES[1:4])]) == [Committed(3, 0)]
    assert await one.append([Append("r", 1, FRAMES[1:4])]) == [Committed(3, 0)]
    assert [entry.frame for entry in await one.read("r", -1, 100)] == FRAMES[:4]


async def test_an_append_after_a_hole_says_what_is_missing(new_store: NewStore) -> None:
    one = await new_store("one")
    await appended(one)
    assert await one.append([Append("r", 4, FRAMES[4:5])]) == [Missing(2)]
    assert len(await one.read("r", -1, 100)) == 3


async def test_one_append_to_several_runs_has_an_outcome_for_each(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one, run="mine")
    await appended(other, run="foreign")
    outcomes = await one.append(
        [Append(run, 3, FRAMES[3:5]) for run in ("mine", "foreign", "unknown")]
    )
    assert outcomes == [Committed(4, 0), Fenced(), Forgotten()]
    assert [len(await one.read(run, -1, 100)) for run in ("mine", "foreign")] == [5, 3]


@pytest.mark.parametrize("how", ["append", "close"])
async def test_the_arguments_of_a_run_are_dropped_at_its_end(new_store: NewStore, how: str) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.create(info(arguments='{"text":"x"}', key="k"), LIMITS)
    (state,) = await other.load(["r"])
    assert state is not None
    assert state.info == info(arguments='{"text":"x"}', key="k", started=state.info.started)
    if how == "append":
        await one.append([Append("r", 0, [END], status="completed")])
    else:
        await other.close("r", COMPLETED, frees_key=False)
    (state,) = await other.load(["r"])
    assert state is not None
    assert state.info == info(key="k", started=state.info.started)


async def test_nothing_follows_the_end_event(new_store: NewStore) -> None:
    one = await new_store("one")
    await appended(one)
    await one.append([Append("r", 3, [END], status="completed")])
    assert await one.append([Append("r", 4, FRAMES[4:5])]) == [Fenced()]
    (state,) = await one.load(["r"])
    assert state is not None
    assert (state.status, state.last) == ("completed", 3)


async def test_evicted_events_are_gone_but_none_that_a_reader_elsewhere_needs(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.create(info(), LIMITS)
    for number in range(6):
        await one.append([Append("r", number, [FRAMES[number]])])
    await other.set_cursors([Cursor("r", "other", 1, 1)])
    assert await one.append([Append("r", 6, FRAMES[6:7], evict=4)]) == [Committed(6, 2)]
    await other.set_cursors([Cursor("r", "other", None, 0)])
    assert await one.append([Append("r", 7, FRAMES[7:8], evict=5)]) == [Committed(7, 6)]
    assert [entry.number for entry in await other.read("r", 0, 100)] == [6, 7]
    (state,) = await other.load(["r"])
    assert state is not None
    assert (state.first, state.last) == (6, 7)


async def test_events_of_a_shared_run_are_evicted_wherever_the_readers_are(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.create(info(), LIMITS)
    for number in range(6):
        await one.append([Append("r", number, [FRAMES[number]])])
    await other.set_cursors([Cursor("r", "other", 1, 1)])
    append = Append("r", 6, FRAMES[6:7], evict=4, evicts_unread=True)
    assert await one.append([append]) == [Committed(6, 5)]
    assert [entry.number for entry in await other.read("r", 1, 100)] == [5, 6]


async def test_any_worker_closes_a_run_and_its_producer_is_fenced(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one)
    cancelled = End.cancelled("stopped")
    async with Following(one) as producer, Following(other, r=-1) as follower:
        assert await other.close("r", cancelled, frees_key=False)
        assert not await other.close("r", cancelled, frees_key=False), "it is closed"
        end = Entry(3, frame(b"r", 3, b"end", cancelled.encode()), "cancelled")
        await until(lambda: producer.notices, "the producer has a notice")
        await until(lambda: end in follower.entries, "the follower has the end")
    assert producer.notices == [Notice("closed", "r")]
    assert await one.append([Append("r", 3, FRAMES[3:4])]) == [Fenced()]
    assert (await one.read("r", 2, 100)) == [end]
    assert not await other.close("unknown", cancelled, frees_key=False)


async def test_a_discarded_run_is_gone_and_those_with_a_part_in_it_hear_of_it(
    new_store: NewStore,
) -> None:
    one, other, third = [await new_store(name) for name in ("one", "other", "third")]
    await appended(one)
    async with Following(one) as producer, Following(other, r=2) as follower:
        await other.set_cursors([Cursor("r", "other", 2, 1)])
        await third.discard("r")
        await third.discard("r")
        forgotten = Notice("forgotten", "r")
        await until(lambda: forgotten in producer.notices, "the producer has a notice")
        await until(lambda: forgotten in follower.notices, "the follower has a notice")
    for store in (one, other, third):
        assert await store.load(["r"]) == [None]
        assert await store.read("r", -1, 100) == []
    assert await one.append([Append("r", 3, FRAMES[3:4])]) == [Forgotten()]


async def test_a_finished_run_is_gone_after_its_time(new_store: NewStore) -> None:
    one = await new_store("one")
    await one.create(info(), Limits(2**20, 0.05))
    await one.append([Append("r", 0, [FRAMES[0], END], status="completed")])

    async def is_gone() -> bool:
        return await one.load(["r"]) == [None]

    async with asyncio.timeout(5):
        while not await is_gone():
            await asyncio.sleep(0.01)
    assert await one.read("r", -1, 100) == []


async def test_a_follower_gets_each_event_once_from_history_to_live(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one)
    async with Following(other, r=0) as follower:
        await until(lambda: len(follower.entries) == 2, "the follower has the history")
        for number in range(3, 9):
            await one.append([Append("r", number, [FRAMES[number]])])
        await one.append([Append("r", 9, [FRAMES[9], END], status="completed")])
        await until(lambda: follower.after["r"] == 10, "the follower has the end")
    assert [entry.number for entry in follower.entries] == list(range(1, 11))
    assert [entry.status for entry in follower.entries][-2:] == [None, "completed"]


async def test_a_follower_of_several_runs_can_change_which_it_follows(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one, run="a")
    await appended(one, run="b")
    async with Following(other, a=2) as follower:
        follower.after["b"] = 1
        await other.set_cursors([Cursor("b", "other", 1, 1)])
        await until(lambda: follower.entries, "the waiting call has returned")
        await one.append([Append("a", 3, FRAMES[3:4])])
        await until(lambda: len(follower.entries) == 2, "both runs are followed")
        del follower.after["a"]
        await other.set_cursors([Cursor("a", "other", None, 0)])
        await one.append([Append("a", 4, FRAMES[4:5]), Append("b", 3, FRAMES[3:4])])
        await until(lambda: follower.after["b"] == 3, "the other run is followed")
        follower.after["a"] = 3
        await other.set_cursors([Cursor("a", "other", 3, 1)])
        await until(lambda: follower.after["a"] == 4, "what came meanwhile is there")


async def test_a_follower_of_many_runs_gets_all_that_came_between_two_calls(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    runs = [f"run-{number}" for number in range(100)]
    for run in runs:
        await appended(one, run=run)
    async with Following(other, **dict.fromkeys(runs, 1)) as follower:
        await until(lambda: len(follower.entries) == 100, "all runs are followed")
    for number in range(3, 7):
        frames = FRAMES[number : number + 1]
        await one.append([Append(run, number, frames) for run in [*runs, "unknown"]])
        await one.append([Append(run, number, frames) for run in runs])
    await one.append([Append(run, 7, [FRAMES[7], END], status="completed") for run in runs])
    async with Following(other, **follower.after) as follower:
        await until(lambda: set(follower.after.values()) == {8}, "all runs have ended")
    assert [len(follower.entries), len(set(follower.entries))] == [600, 6]
    assert {entry.status for entry in follower.entries if entry.number == 8} == {"completed"}


async def test_the_producer_hears_of_cursors_and_they_are_in_the_state(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one)
    async with Following(one) as producer:
        assert await other.set_cursors(
            [Cursor("r", "other", 1, 2), Cursor("unknown", "other", 1, 1)]
        ) == [True, False]
        await until(lambda: producer.notices, "the producer has a notice")
        (state,) = await one.load(["r"])
        assert state is not None
        assert state.cursors == {"other": (1, 2)}
        await other.set_cursors([Cursor("r", "other", None, 0)])
        await until(lambda: len(producer.notices) == 2, "the producer has another notice")
    assert producer.notices[0] == Notice("cursor", "r", "other", 1, 2)
    assert (producer.notices[1].after, producer.notices[1].readers) == (None, 0)
    (state,) = await one.load(["r"])
    assert state is not None
    assert state.cursors == {}


async def test_the_runs_of_a_worker_that_left_are_claimed_by_exactly_one(
    new_store: NewStore,
) -> None:
    one, other, third = [await new_store(name) for name in ("one", "other", "third")]
    await appended(one)
    assert await other.claim("r", "one") is None, "its producer lives"
    assert (await other.renew([])).dead == set()
    await one.leave()
    workers = await other.renew([])
    assert "one" in workers.certain
    assert workers.certain <= workers.dead <= workers.all
    assert await other.runs_of("one") == ["r"]
    claims = await asyncio.gather(*(store.claim("r", "one") for store in (other, third)))
    (state,) = [state for state in claims if state is not None]
    assert (state.last, state.status) == (2, "running")
    winner, loser = (other, third) if claims[0] else (third, other)
    assert await winner.claim("r", "one") == state, "the claim can be repeated"
    assert await winner.append([Append("r", 3, FRAMES[3:4])]) == [Committed(3, 0)]
    assert await loser.append([Append("r", 4, FRAMES[4:5])]) == [Fenced()]
    assert await one.append([Append("r", 3, [])]) == [Fenced()], "without any frame, too"
    assert await one.append([Append("r", 4, FRAMES[4:5])]) == [Fenced()]
    assert await winner.runs_of(state.producer) == ["r"]
    await winner.remove_worker("one")
    assert "one" not in (await winner.renew([])).all


async def test_a_worker_with_runs_is_not_removed_nor_one_that_lives(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await appended(one)
    await other.remove_worker("one")
    await one.leave()
    await other.remove_worker("one")
    assert await other.runs_of("one") == ["r"]
    assert "one" in (await other.renew([])).all


async def test_a_worker_without_runs_leaves_nothing(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.leave()
    assert (await other.renew([])).all == {"other"}


async def test_a_store_can_be_opened_again_after_it_was_closed(new_store: NewStore) -> None:
    one = await new_store("one")
    await appended(one)
    await one.aclose()
    await one.open("one")
    assert len(await one.read("r", -1, 100)) == 3
    assert await one.append([Append("r", 3, FRAMES[3:4])]) == [Committed(3, 0)]


def publication(number: int, run: str = "t", **members: Any) -> Publication:
    """An event for a topic, as a worker would make it that proposes `run` for a new one."""
    topic = info(run, shared=True, topic=True, arguments_hash=members.pop("topic", "h"))
    members = {"limits": LIMITS, "keep": 60, "token": f"{run}-{number}", **members}
    return Publication(info=topic, event=(None, b"%d" % number), **members)


def event_of(number: int, run: str = "t") -> bytes:
    """The frame that `publication(number)` becomes as event `number`."""
    return frame(run.encode(), number, None, b"%d" % number)


async def test_any_worker_publishes_to_a_topic_which_the_first_one_makes(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    first = publication(1)
    assert await one.publish(first) == Published("t", 1)
    assert await other.publish(publication(2, run="u")) == Published("t", 2)
    assert await one.publish(publication(3, run="v", topic="another")) == Published("v", 1)
    expected = [Entry(0, first.info.start_frame), *(Entry(n, event_of(n)) for n in (1, 2))]
    for store in (one, other):
        assert await store.read("t", -1, 100) == expected
        assert await store.find_by_key(key_of(first.info)) == "t"
        state, unknown = await store.load(["t", "u"])
        assert unknown is None
        assert state is not None
        assert state.info.topic
        assert (state.status, state.producer, state.first, state.last) == ("running", "", 0, 2)
        assert (state.limits.window, state.limits.retain) == (LIMITS.window, LIMITS.retain)
        assert await store.append([Append("t", 3, FRAMES[3:4])]) == [Fenced()]
        assert await store.runs_of("one") == []


async def test_a_topic_can_be_made_without_an_event(new_store: NewStore) -> None:
    one = await new_store("one")
    made = msgspec.structs.replace(publication(0), event=None)
    for _ in range(2):
        assert await one.publish(made) == Published("t", 0)
    assert await one.read("t", -1, 100) == [Entry(0, made.info.start_frame)]


async def test_many_publishers_at_once_are_numbered_in_one_order_without_holes(
    new_store: NewStore,
) -> None:
    stores = [await new_store(f"worker-{n}") for n in range(4)]
    published = await asyncio.gather(
        *(
            store.publish(publication(100 * number + event, run=f"{number}"))
            for event in range(25)
            for number, store in enumerate(stores)
        )
    )
    (run,) = {each.run for each in published}
    assert sorted(each.last for each in published) == list(range(1, 101))
    entries = await stores[0].read(run, 0, 1000)
    assert [entry.number for entry in entries] == list(range(1, 101))
    assert len({entry.frame.partition(b"\n")[2] for entry in entries}) == 100


@pytest.mark.parametrize("data", [b"one\ntwo", "zwölf".encode(), b""])
async def test_the_frame_of_a_published_event_is_that_of_any_event(
    new_store: NewStore, data: bytes
) -> None:
    one = await new_store("one")
    await one.publish(msgspec.structs.replace(publication(1), event=(b"name", data)))
    assert await one.read("t", 0, 9) == [Entry(1, frame(b"t", 1, b"name", data))]


async def test_followers_get_what_is_published_here_and_elsewhere(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.publish(publication(1))
    async with Following(one, t=0) as here, Following(other, t=1) as there:
        for number in range(2, 40):
            await (one, other)[number % 2].publish(publication(number))
        await other.publish(publication(40, status="completed"))
        await until(
            lambda: here.after["t"] == there.after["t"] == 40, "both followers have the end"
        )
    expected = [Entry(n, event_of(n)) for n in range(1, 40)]
    expected.append(Entry(40, event_of(40), "completed"))
    assert here.entries == expected
    assert there.entries == expected[1:]
    assert here.notices == there.notices == []


async def test_a_follower_gets_what_its_own_worker_publishes(new_store: NewStore) -> None:
    one = await new_store("one")
    await one.publish(publication(1))
    async with Following(one, t=0) as follower:
        for number in range(2, 5):
            await until(lambda: follower.entries, "the follower has the newest event")
            follower.entries.clear()
            await one.publish(publication(number))
        await until(lambda: follower.after["t"] == 4, "the follower has the last event")


async def test_nothing_is_published_to_a_topic_after_its_end_and_it_keeps_its_key(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.publish(publication(1))
    assert await one.publish(publication(2, status="completed")) == Published("t", 2)
    for number, status in ((3, None), (4, "completed")):
        late = publication(number, run="u", status=status)
        assert await other.publish(late) == Published("t", 2, ended=True)
    (state,) = await other.load(["t"])
    assert state is not None
    assert (state.status, state.last) == ("completed", 2)
    ended = [Entry(1, event_of(1)), Entry(2, event_of(2), "completed")]
    assert await other.read("t", 0, 9) == ended


async def test_a_topic_holds_its_newest_events_within_the_window(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    limits = Limits(10 * len(event_of(100)), 300)
    for number in range(1, 200):
        published = await (one, other)[number % 2].publish(publication(number, limits=limits))
        entries = await one.read("t", -1, 1000)
        assert published == Published("t", number)
        assert sum(len(entry.frame) for entry in entries) <= limits.window
        assert [entry.number for entry in entries] == list(range(entries[0].number, number + 1))
        assert len(entries) >= min(number, 8)
        (state,) = await other.load(["t"])
        assert state is not None
        assert (state.first, state.last) == (entries[0].number, number)


async def test_a_topic_holds_its_newest_event_even_if_it_is_larger_than_the_window(
    new_store: NewStore,
) -> None:
    one = await new_store("one")
    for number in range(1, 4):
        await one.publish(publication(number, limits=Limits(1, 300)))
        assert await one.read("t", -1, 9) == [Entry(number, event_of(number))]


async def test_a_publish_evicts_a_bounded_number_of_events(new_store: NewStore) -> None:
    one = await new_store("one")
    limits = Limits(1200 * len(event_of(1000)), 300)
    for number in range(1, 1100):
        await one.publish(publication(number, limits=limits))
    large = msgspec.structs.replace(
        publication(1100, limits=limits), event=(None, b"x" * limits.window)
    )
    await one.publish(large)
    (entry,) = await one.read("t", -1, 1)
    assert 0 < entry.number < 1099
    for number in range(1101, 1104):
        await one.publish(publication(number, limits=limits))
    assert (await one.read("t", -1, 1))[0].number >= 1100


async def is_gone(store: Store, run: str = "t") -> bool:
    return await store.load([run]) == [None]


async def test_a_topic_is_gone_unless_it_is_published_to_in_time(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    for attempt in range(50):  # until this machine is fast enough to publish in time
        run, late = f"t-{attempt}", f"late-{attempt}"
        await one.publish(publication(1, run=run, keep=0.2))
        if (await other.publish(publication(2, run=late, keep=60))).run == run:
            break
        await one.discard(late)
    await one.publish(publication(3, run="u", keep=0.05))
    await one.publish(publication(1, run="unread", topic="other", keep=0.3))
    await until_async(lambda: is_gone(other, "unread"), "it is gone")
    assert not await is_gone(other, run)
    assert await one.publish(publication(4, run="u")) == Published(run, 4)


async def test_the_key_of_a_topic_that_is_gone_makes_another_one(new_store: NewStore) -> None:
    one = await new_store("one")
    await one.publish(publication(1, keep=0.01))
    await until_async(lambda: is_gone(one), "it is gone")
    assert await one.publish(publication(1, run="u")) == Published("u", 1)


async def test_an_ended_topic_is_gone_after_its_time(new_store: NewStore) -> None:
    one = await new_store("one")
    limits = Limits(2**20, 0.05)
    await one.publish(publication(1, limits=limits, keep=60))
    await one.publish(publication(2, limits=limits, keep=0.05, status="completed"))
    await until_async(lambda: is_gone(one), "it is gone")
    assert await one.publish(publication(1, run="u")) == Published("u", 1)


async def test_a_cursor_keeps_a_topic_and_the_last_one_that_goes_lets_it_go(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    for attempt in range(50):  # until this machine is fast enough to send the cursor in time
        run = f"t-{attempt}"
        await one.publish(publication(1, run=run, keep=0.2))
        if await one.set_cursors([Cursor(run, "one", 1, 1, keep=60)]) == [True]:
            break
    assert await other.set_cursors([Cursor(run, "other", 1, 1, keep=60)]) == [True]
    await one.publish(publication(1, run="unread", topic="other", keep=0.3))
    await until_async(lambda: is_gone(one, "unread"), "it is gone")
    await one.set_cursors([Cursor(run, "one", None, 0, keep=0.05)])
    await one.publish(publication(1, run="later", topic="other", keep=0.1))
    await until_async(lambda: is_gone(one, "later"), "it is gone")
    assert not await is_gone(one, run), "the other worker has readers"
    await other.set_cursors([Cursor(run, "other", None, 0, keep=0.05)])
    await until_async(lambda: is_gone(one, run), "it is gone")
    assert await one.set_cursors([Cursor(run, "one", 1, 1, keep=60)]) == [False]
    assert await is_gone(one, run), "what has expired does not come back"


async def test_the_death_of_a_worker_changes_nothing_in_the_topics_it_made(
    new_store: NewStore,
) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.publish(publication(1))
    await one.leave()
    assert await other.claim("t", "one") is None
    assert await other.runs_of("one") == []
    assert (await other.renew([])).all == {"other"}
    assert await other.publish(publication(2)) == Published("t", 2)


async def test_any_worker_closes_a_topic(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    await one.publish(publication(1))
    assert await other.close("t", End.cancelled("stopped"), frees_key=False)
    assert await one.publish(publication(2)) == Published("t", 2, ended=True)
    end = frame(b"t", 2, b"end", End.cancelled("stopped").encode())
    assert await one.read("t", 1, 9) == [Entry(2, end, "cancelled")]
