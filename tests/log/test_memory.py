"""What only a MemoryLog promises."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from streams import MemoryLog
from streams.event import COMPLETED, frame
from streams.log.memory_run import CHUNK
from tests.support.event_logs import DATA, SIZE, new, read_all


async def test_discarding_a_run_lets_the_producer_of_another_run_continue() -> None:
    store = MemoryLog(max_bytes=10 * SIZE)
    first, second = await new(store, "first"), await new(store, "second")
    first.append(None, b"x" * 9_500)
    second.append(None, DATA)
    assert second.is_full()
    room = asyncio.ensure_future(second.room())
    await asyncio.sleep(0)
    assert not room.done()
    await store.discard("first")
    await asyncio.wait_for(room, 5)


async def test_a_replay_comes_in_pieces_of_limited_size_that_end_with_a_whole_frame() -> None:
    log = await new(MemoryLog(), window=2**30)
    for _ in range(1000):
        log.append(None, DATA)
    log.append(None, b"x" * (2 * CHUNK))
    log.append(None, DATA)
    log.close(COMPLETED)
    with log.read(-1) as one, log.read(-1) as other:
        pieces = [piece async for piece in one]
        assert [piece async for piece in other] == pieces
    assert all(len(piece) <= CHUNK for piece in pieces if b"id: r.1000\n" not in piece)
    assert all(piece.endswith(b"\n\n") for piece in pieces)
    assert sum(map(len, pieces)) >= len(pieces) * CHUNK / 2


@given(
    st.lists(st.binary(max_size=50), max_size=40),
    st.lists(st.integers(0, 45)),
    st.integers(1, 2000),
)
async def test_a_memory_log_gives_the_same_frames_as_a_list(
    events: list[bytes], reads: list[int], window: int
) -> None:
    store = MemoryLog()
    log = await new(store, window=window)
    frames = []
    with log.read(-1) as reader:
        for number, data in enumerate(events):
            data = data.replace(b"\n", b"").replace(b"\r", b"")
            frames.append(frame(b"r", number, None, data))
            log.append(None, data)
            if number in reads:
                while reader.ready:
                    await anext(reader)
        held = b"".join(frames[log.first :])
        assert store.bytes == len(held)
    log.close(COMPLETED)
    for after in range(log.first - 1, len(events)):
        expected = b"".join(frames[after + 1 :]) + frame(
            b"r", len(events), b"end", COMPLETED.encode()
        )
        assert await read_all(log, after) == expected
    await store.discard("r")
