"""The refusal of a run that has not opened, for the clients of other workers: an error as JSON."""

from typing import Any

import msgspec

from streams.errors import StreamError, Unavailable, as_json_value
from streams.event import parse_frames


class Refusal(msgspec.Struct, frozen=True):
    """What clients may see of a StreamError."""

    detail: str
    status: int
    retry_after: Any  # A source may give any values here. The response shows them, or fails.
    headers: dict[str, Any]
    members: dict[str, Any]
    passes: bool
    """Whether it is Unavailable: an EventSource then tries again."""


def encode(error: StreamError) -> bytes:
    """The data of the event that is the refusal."""
    refusal = Refusal(
        str(error),
        error.status,
        error.retry_after,
        {**error.headers},
        error.members,
        isinstance(error, Unavailable),
    )
    return msgspec.json.encode(as_json_value(msgspec.structs.asdict(refusal)))


def decode(frame: bytes) -> StreamError:
    """The error in the frame of a refusal."""
    try:
        (end,) = parse_frames(frame)
        refusal = msgspec.json.decode(end.data, type=Refusal)
        kind = Unavailable if refusal.passes else StreamError
        error = kind(refusal.detail, status=refusal.status, retry_after=refusal.retry_after)
    except ValueError:  # It is damaged: no worker writes such a frame.
        return StreamError("the log has lost the reason why the source refused this run")
    error.headers, error.members = refusal.headers, refusal.members
    return error
