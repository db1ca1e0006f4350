"""What the log keeps of a request of the Responses API: the second event of its run.

What may be megabytes of it stays encoded: a reader needs most of it only to pass it on.
"""

import asyncio
from typing import Any

import msgspec

from streams.event import LARGE, decode_json, encode_json, escape_separators

REQUEST = "request"
"""The name of the event with the request, and its number."""
REQUEST_NUMBER = 1

EMPTY = msgspec.Raw(b"[]")


class Kept(msgspec.Struct, kw_only=True):
    """What a response keeps of its request, as the data of an event."""

    response: dict[str, msgspec.Raw]
    """The members of the response that repeat the request."""
    input: msgspec.Raw = EMPTY
    """Its items, in a list."""
    earlier: msgspec.Raw = EMPTY
    """The items of the conversation that `previous_response_id` continues."""
    input_tokens: int = 0
    """A guess, for a source that does not count them."""
    limit: int | None = None
    """The most pieces to pass on, if the source has no limit of its own."""

    @property
    def model(self) -> str:
        return msgspec.json.decode(self.response["model"], type=str)

    @property
    def stored(self) -> bool:
        return msgspec.json.decode(self.response["store"], type=bool)

    @property
    def size(self) -> int:
        """The bytes of the items of the conversation up to this response."""
        return memoryview(self.earlier).nbytes + memoryview(self.input).nbytes

    async def items(self) -> list[dict[str, Any]]:
        """The items of the conversation up to this response."""
        items: list[dict[str, Any]] = []
        for encoded_items in (self.earlier, self.input):
            await asyncio.sleep(0)
            items += decode_json(encoded_items)
        await asyncio.sleep(0)
        return items

    def without_items(self) -> "Kept":
        """What the events of the API need, independent of the event that this came from."""
        repeated = {name: value.copy() for name, value in self.response.items()}
        return msgspec.structs.replace(self, response=repeated, input=EMPTY, earlier=EMPTY)


async def encoded(value: Any) -> msgspec.Raw:
    """A value for Kept. If it is large, others have their turns meanwhile."""
    json = encode_json(value)
    if json.isascii() or len(json) <= LARGE:
        return msgspec.Raw(escape_separators(json))
    # To escape a megabyte of nothing but separators takes six milliseconds.
    pieces, start = [], 0
    while start < len(json):
        await asyncio.sleep(0)
        end = start + LARGE
        while end < len(json) and 0x80 <= json[end] < 0xC0:  # In the middle of a character.
            end += 1
        pieces.append(escape_separators(json[start:end]))
        start = end
    return msgspec.Raw(b"".join(pieces))
