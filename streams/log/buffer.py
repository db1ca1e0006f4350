"""FrameBuffer: the frames of one run, back to back, without input or output.

Invariants:

1. `first - 1 <= committed <= last`; with no frame held, `first == last + 1`.
2. Event n, for first <= n <= last, is the bytes between the ends of n - 1 and of n.
3. Ends are offsets from where this buffer began, so trimming changes none of them.

One slice of the buffer is all the frames that a reader needs, however many they are; an event
costs its bytes and eight more.
"""

from array import array
from bisect import bisect_left, bisect_right


class FrameBuffer:
    """Frames of the events `first` to `last`, `held` bytes in all.

    Readers may see those up to `committed`.
    """

    def __init__(self) -> None:
        self.first = 0
        self.last = -1
        self.committed = -1
        self.held = 0
        self._frames = bytearray()
        self._ends = array("Q")
        self._newest = b""
        self._start = 0  # the offset at which the first frame begins

    def append(self, frame: bytes) -> None:
        """Adds the frame of event `last + 1`, uncommitted."""
        self._frames += frame
        self.held += len(frame)
        self._newest = frame
        self._ends.append(self._start + self.held)
        self.last += 1

    def _end(self, number: int) -> int:
        """The offset at which event `number` ends; for `first - 1`, at which `first` begins."""
        return self._ends[number - self.first] if number >= self.first else self._start

    def size(self, after: int, last: int) -> int:
        """The bytes of the frames after `after`, up to and including `last`."""
        return self._end(last) - self._end(after)

    def slice(self, after: int, max_bytes: int) -> tuple[bytes, int]:
        """The committed frames after `after`, and the number of the last one.

        They have at most `max_bytes` bytes, unless the first frame alone has more. `after` is from
        `first - 1` to `committed - 1`.
        """
        if after == self.last - 1 and self.committed == self.last:  # Most readers keep up.
            return self._newest, self.last
        start, last = self._end(after), self.committed
        end = self._end(last)
        if end - start > max_bytes:
            fitting = bisect_right(self._ends, start + max_bytes, after + 1 - self.first)
            last = max(self.first + fitting - 1, after + 1)
            end = self._end(last)
        return bytes(self._frames[start - self._start : end - self._start]), last

    def frames(self, after: int, max_bytes: int, max_frames: int) -> list[bytes]:
        """Frames after `after`, committed or not, one by one.

        They are at most `max_frames`, and end with the first one that reaches `max_bytes`.
        """
        if after == self.last - 1:
            return [self._newest]
        begin, last = self._end(after), min(self.last, after + max_frames)
        index = after + 1 - self.first
        last = min(last, self.first + bisect_left(self._ends, begin + max_bytes, index))
        ends = [end - begin for end in self._ends[index : last + 1 - self.first]]
        held = bytes(self._frames[begin - self._start : self._end(last) - self._start])
        return [held[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def trim(self, size: int, up_to: int) -> int:
        """Drops the oldest frames, none after event `up_to`, until at most `size` bytes are held.

        Returns the bytes dropped.
        """
        goal = self._start + self.held - size
        last = min(up_to, self.first + bisect_left(self._ends, goal))
        if goal <= self._start or last < self.first:
            return 0
        end = self._end(last)
        dropped = end - self._start
        del self._frames[:dropped]
        del self._ends[: last + 1 - self.first]
        self._start = end
        self.held -= dropped
        self.first = last + 1
        return dropped

    def discard_uncommitted(self) -> int:
        """Drops the frames after `committed`. Returns the bytes dropped."""
        kept = self._end(self.committed) - self._start
        dropped = self.held - kept
        self.held = kept
        del self._frames[kept:]
        del self._ends[max(self.committed + 1 - self.first, 0) :]
        self.last = self.committed
        self._newest = bytes(self._frames[self._end(self.last - 1) - self._start :])
        return dropped

    def reset(self, after: int) -> int:
        """Drops all frames; the next event is `after + 1`. Returns the bytes dropped."""
        dropped, self.held = self.held, 0
        self._newest = b""
        self._frames.clear()
        del self._ends[:]
        self.first, self.last, self.committed = after + 1, after, after
        return dropped
