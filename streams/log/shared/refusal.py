"""The refusal of a run that has not opened, for the clients of other workers: an error as JSON."""

from typing import Any

import msgspec

from streams.errors import StoreFull, StreamError, as_json_value


class Refusal(msgspec.Struct, frozen=True):
    """What clients may see of a StreamError."""

    detail: str
    status: int
    retry_after: int | None
    headers: dict[str, str]
    members: dict[str, Any]
    is_limit: bool
    """Whether it is a StoreFull, which an EventSource survives."""


def encode(error: StreamError) -> bytes:
    refusal = Refusal(
        str(error),
        error.status,
        error.retry_after,
        {**error.headers},
        error.members,
        isinstance(error, StoreFull),
    )
    return msgspec.json.encode(as_json_value(msgspec.structs.asdict(refusal)))


def decode(data: bytes) -> StreamError:
    refusal = msgspec.json.decode(data, type=Refusal)
    kind = StoreFull if refusal.is_limit else StreamError
    error = kind(refusal.detail, status=refusal.status, retry_after=refusal.retry_after)
    error.headers, error.members = refusal.headers, refusal.members
    return error
