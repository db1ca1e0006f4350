"""Sources that never wait leave the event loop to others, however many they are."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from streams import MemoryLog
from streams.bursts import BURST_EVENTS, Bursts
from streams.job import Job, Opener
from streams.log import RunLog
from streams.policy import Policy
from streams.runs import Runs

BUSY = 100
SOON = BURST_EVENTS // 8

policy = Policy(window=10**9, linger=None)


class Sources:
    """Runs of sources that never wait, and how many events each of them has yielded."""

    def __init__(self) -> None:
        self.runs = Runs(MemoryLog(), {})
        self.yielded: Counter[int] = Counter()

    async def start(self, number: int) -> RunLog:
        async def busy() -> AsyncIterator[int]:
            while True:
                self.yielded[number] += 1
                yield number

        return await self.runs.start(Job(source="busy", policy=policy, open=opener(busy())))

    async def in_one_turn(self) -> int:
        before = self.yielded.total()
        await asyncio.sleep(0)
        return self.yielded.total() - before


def opener(events: AsyncIterator[int]) -> Opener:
    async def open_source() -> AsyncIterator[int]:
        return events

    return open_source


async def read(log: RunLog) -> None:
    with log.read(-1) as reader:
        async for _ in reader:
            pass


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the events of a burst count, not its time: a busy machine takes any time."""
    for module in ("run", "bursts"):
        monkeypatch.setattr(f"streams.{module}.BURST_SECONDS", 3600.0)


async def test_sources_that_never_wait_take_one_burst_in_a_turn_however_many_they_are() -> None:
    sources = Sources()
    await asyncio.gather(*[sources.start(number) for number in range(BUSY)])
    taken = [await sources.in_one_turn() for _ in range(5 * BUSY)]
    await sources.runs.aclose()
    assert 0 < max(taken) <= BURST_EVENTS


async def test_each_of_them_takes_its_turn_whether_it_is_read_or_not(unhurried: None) -> None:
    sources = Sources()
    logs = await asyncio.gather(*[sources.start(number) for number in range(BUSY)])
    reading = asyncio.create_task(read(logs[0]))
    before = Counter(sources.yielded)
    for _ in range(3 * BUSY):
        await sources.in_one_turn()
    bursts = [(sources.yielded[number] - before[number]) / BURST_EVENTS for number in range(BUSY)]
    await sources.runs.aclose()
    await reading
    assert set(bursts) == {3}


async def test_those_that_begin_in_one_turn_take_little_more_than_a_burst_together(
    unhurried: None,
) -> None:
    sources = Sources()
    starting = [asyncio.create_task(sources.start(number)) for number in range(BUSY)]
    taken = []
    while len(sources.yielded) < BUSY:
        taken.append(await sources.in_one_turn())
    await asyncio.gather(*starting)
    await sources.runs.aclose()
    assert BUSY < max(taken) <= 2 * BURST_EVENTS + (SOON + 1) * BUSY


@pytest.mark.parametrize("events", [SOON, SOON + 1])
async def test_a_source_that_waits_sends_a_few_events_at_once_though_others_never_wait(
    events: int, unhurried: None
) -> None:
    turns = 0
    gate = asyncio.Event()
    news: list[int] = []

    async def waiting() -> AsyncIterator[int]:
        yield 0
        await gate.wait()
        news.append(turns)
        for number in range(events):
            yield number
        news.append(turns)
        await asyncio.Event().wait()

    sources = Sources()
    await asyncio.gather(*[sources.start(number) for number in range(BUSY)])
    log = await sources.runs.start(Job(source="waiting", policy=policy, open=opener(waiting())))
    reading = asyncio.create_task(read(log))
    for _ in range(3 * BUSY):
        await asyncio.sleep(0)
    gate.set()
    while len(news) < 2:
        await asyncio.sleep(0)
        turns += 1
    await sources.runs.aclose()
    await reading
    assert (news[1] == news[0]) == (events == SOON)


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_source_that_waits_for_each_event_does_not_queue_with_those_that_never_wait(
    is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("run", "bursts"):  # Each event takes longer than a burst.
        monkeypatch.setattr(f"streams.{module}.BURST_SECONDS", -1.0)
    yielded = 0

    async def waiting() -> AsyncIterator[int]:
        nonlocal yielded
        while True:
            yielded += 1
            yield yielded
            await asyncio.sleep(0)

    sources = Sources()
    await asyncio.gather(*[sources.start(number) for number in range(BUSY)])
    log = await sources.runs.start(Job(source="waiting", policy=policy, open=opener(waiting())))
    reading = asyncio.create_task(read(log)) if is_read else None
    for _ in range(10 * BUSY):
        await asyncio.sleep(0)
    await sources.runs.aclose()
    if reading is not None:
        await reading
    assert yielded > BUSY, "an event does not take as many turns as there are other sources"


@pytest.mark.parametrize("cancelled", range(4))
@pytest.mark.parametrize("turns", [1, 2])
async def test_a_cancelled_source_leaves_its_turn_to_one_other(cancelled: int, turns: int) -> None:
    bursts, turn = Bursts(), 0
    began: dict[int, int] = {}

    async def begin(number: int) -> None:
        await bursts.next(0)
        began[number] = turn

    tasks = [asyncio.create_task(begin(number)) for number in range(4)]
    for turn in range(10):
        if turn == turns:
            tasks[cancelled].cancel()
        await asyncio.sleep(0)
    assert set(began) >= {0, 1, 2, 3} - {cancelled}
    assert len(set(began.values())) == len(began), "two begin in one turn"
    await asyncio.wait_for(bursts.next(bursts.begin()[2]), 5)


def test_sources_of_a_closed_event_loop_hold_up_none_of_the_next_one() -> None:
    sources = Sources()

    async def start(*numbers: int) -> None:
        for number in numbers:
            await sources.start(number)
        for _ in range(10):
            await sources.in_one_turn()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start(0, 1, 2))
    loop.close()  # Unlike asyncio.run(), this leaves its tasks suspended.

    async def later() -> None:
        await sources.runs.abandon()
        await start(3)
        await sources.runs.aclose()

    asyncio.run(later())
    assert sources.yielded[3] > BURST_EVENTS
