"""Apps for a server process that shuts down. Their sources write the file SAVED."""

import os
from collections.abc import AsyncIterator

import anyio
from fastapi import FastAPI, Request, Response

from streams import Streams, source


def save(text: str) -> None:
    with open(os.environ.get("SAVED", os.devnull), "w") as file:
        file.write(text)


async def answer() -> AsyncIterator[str]:
    """Yields half an answer, and saves it when it is closed."""
    half = "half an answer"
    try:
        yield half
        await anyio.sleep_forever()
    finally:
        await anyio.sleep(0.5)  # A database would need its time.
        save(half)


@source
async def slow() -> AsyncIterator[str]:
    """Is never opened."""
    try:
        await anyio.sleep_forever()
    finally:
        save("the opening was cancelled")
    raise AssertionError


def host(streams: Streams, **options: object) -> FastAPI:
    """An app that mounts a Streams, and streams answers in an endpoint of its own."""
    app = FastAPI(**options)  # type: ignore[arg-type]

    @app.get("/ask")
    async def ask(request: Request) -> Response:
        return streams.response(request, answer)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    app.mount("/live", streams)
    return app


mounted = host(Streams([source(answer), slow]))
_streams = Streams([source(answer), slow])
with_lifespan = host(_streams, lifespan=_streams.lifespan)
alone = Streams([source(answer), slow])
