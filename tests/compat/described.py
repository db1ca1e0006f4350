"""An app whose streams end, for a program that sends requests of all kinds to each operation."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.types import Message, Receive, Scope, Send

from streams import Streams, source, topic

KEY = "a-key-of-the-tests"


@dataclass
class Progress:
    done: int
    of: int


class Options(Struct):
    quality: Annotated[int, Meta(ge=1, le=9)] = 5


@source(shared=True)
async def job(
    steps: Annotated[int, Meta(ge=0, le=5)] = 2,
    tags: list[Literal["a", "b"]] | None = None,
    options: Options | None = None,
    *,
    after: int = 0,
) -> AsyncIterator[Progress]:
    """Does a job in steps."""
    for step in range(after, steps):
        yield Progress(step + 1, steps)


@source(shared=True)
def words(text: Annotated[str, Meta(max_length=50)], upper: bool = False) -> Iterator[str]:
    """Says a text word by word."""
    yield from (text.upper() if upper else text).split()


@source
async def ready() -> AsyncIterator[bool]:
    """It has no parameters, so that requests with one key ask for the same."""
    yield True


@source
async def answer(prompt: str = "") -> AsyncIterator[str]:
    yield prompt[:20]
    yield "."


@topic
def news(user: Literal["ann", "bob"]) -> None:
    """What a user should hear of."""


app = Streams(
    [job, words, ready, news], models={"mock": answer}, publish=lambda request: None, api_keys=[KEY]
)


async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
    """The same app, with a fault: the ids of its events are not those that it describes."""

    async def send_faulty(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": message["body"].replace(b"\nid: ", b"\nid: ?")}
        await send(message)

    await app(scope, receive, send_faulty if scope["type"] == "http" else send)
