"""FrameBuffer, compared with a list of frames by properties."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.log.buffer import FrameBuffer

FRAMES = st.binary(min_size=1, max_size=60)


class BufferMachine(RuleBasedStateMachine):
    """Drives a FrameBuffer and a list in step, and compares everything that can be observed."""

    @initialize(after=st.integers(-1, 50))
    def begin(self, after: int) -> None:
        self.buffer = FrameBuffer()
        self.buffer.reset(after)
        self.frames: list[bytes] = []
        self.first = after + 1
        self.committed = after

    @property
    def last(self) -> int:
        return self.first + len(self.frames) - 1

    @rule(frame=FRAMES)
    def append(self, frame: bytes) -> None:
        self.buffer.append(frame)
        self.frames.append(frame)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.committed = data.draw(st.integers(max(self.committed, self.first - 1), self.last))
        self.buffer.committed = self.committed

    @rule(size=st.integers(0, 300), data=st.data())
    def trim(self, size: int, data: st.DataObject) -> None:
        up_to = data.draw(st.integers(self.first - 1, self.committed))
        dropped = 0
        while sum(map(len, self.frames)) > size and self.first <= up_to:
            dropped += len(self.frames.pop(0))
            self.first += 1
        assert self.buffer.trim(size, up_to) == dropped

    @rule()
    def discard_uncommitted(self) -> None:
        kept = self.frames[: self.committed + 1 - self.first]
        dropped = self.buffer.discard_uncommitted()
        assert dropped == sum(map(len, self.frames)) - sum(map(len, kept))
        self.frames = kept

    @rule(after=st.integers(-1, 100))
    def reset(self, after: int) -> None:
        assert self.buffer.reset(after) == sum(map(len, self.frames))
        self.frames, self.first, self.committed = [], after + 1, after

    @rule(data=st.data(), max_bytes=st.integers(1, 400))
    def slice(self, data: st.DataObject, max_bytes: int) -> None:
        if self.committed < self.first:
            return
        after = data.draw(st.integers(self.first - 1, self.committed - 1))
        sliced, last = self.buffer.slice(after, max_bytes)
        assert sliced == b"".join(self.frames[after + 1 - self.first : last + 1 - self.first])
        assert after < last <= self.committed
        assert len(sliced) <= max_bytes or last == after + 1
        if last < self.committed:
            assert len(sliced) + len(self.frames[last + 1 - self.first]) > max_bytes

    @rule(data=st.data(), max_bytes=st.integers(1, 400), max_frames=st.integers(1, 8))
    def single_frames(self, data: st.DataObject, max_bytes: int, max_frames: int) -> None:
        after = data.draw(st.integers(self.first - 1, self.last))
        frames = self.buffer.frames(after, max_bytes, max_frames)
        rest = self.frames[after + 1 - self.first :]
        assert frames == rest[: len(frames)]
        assert len(frames) <= max_frames
        assert sum(map(len, frames[:-1])) < max_bytes
        if len(frames) < min(max_frames, len(rest)):
            assert sum(map(len, frames)) >= max_bytes

    @invariant()
    def numbers_and_sizes_agree(self) -> None:
        buffer = self.buffer
        assert (buffer.first, buffer.last, buffer.committed) == (
            self.first,
            self.last,
            self.committed,
        )
        assert buffer.first - 1 <= buffer.committed <= buffer.last
        assert buffer.held == sum(map(len, self.frames)) == buffer.size(self.first - 1, self.last)


TestBuffer = BufferMachine.TestCase


@given(st.lists(FRAMES, min_size=1, max_size=30))
def test_a_reader_that_takes_slices_gets_every_frame_once(frames: list[bytes]) -> None:
    """Slices of any size, one after the other, are the frames back to back."""
    buffer = FrameBuffer()
    for frame in frames:
        buffer.append(frame)
    buffer.committed = buffer.last
    got, after = b"", -1
    while after < buffer.committed:
        piece, after = buffer.slice(after, 64)
        got += piece
    assert got == b"".join(frames)
