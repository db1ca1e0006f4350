"""Back ends of `useChat`: one with sources for each case, and the example of the documentation."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from streams import Streams
from streams.wires.ui_stream import UIStream, chat_messages
from tests.support.servers import ROOT

Messages = list[dict[str, Any]]
Model = Callable[[Messages], AsyncIterator[Any]]

EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use-chat.md").read_text(), re.DOTALL)[0]
WORDS = ["one ", "two ", "three ", "four ", "five "]


class Gate:
    """Lets answers go on that wait in the middle."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self.closed = 0
        """How many answers have been closed in the middle."""

    async def words(self, messages: Messages) -> AsyncIterator[str]:
        """Waits for the gate after two words."""
        try:
            for number, word in enumerate(WORDS):
                if number == 2:
                    await self._open.wait()
                yield word
        except asyncio.CancelledError:
            self.closed += 1
            raise

    async def open(self, request: Request) -> Response:
        self._open.set()
        return Response(status_code=204)

    async def state(self, request: Request) -> Response:
        return JSONResponse({"closed": self.closed})


def back_end(streams: Streams, model: Model, gate: Gate | None = None) -> Starlette:
    """The endpoints of a chat whose answers come from a model."""

    async def ask(request: Request) -> Response:
        body = await request.json()
        last = body["messages"][-1]
        message_id = last["id"] if last["role"] == "assistant" else None
        return streams.response(
            request,
            lambda: model(chat_messages(body["messages"])),
            name="answer",
            key=f"{body['id']}/{len(body['messages'])}",
            owner=request.headers.get("x-user"),
            wire=lambda run: UIStream(run, message_id),
        )

    async def resume(request: Request) -> Response:
        prefix, owner = f"{request.path_params['chat']}/", request.headers.get("x-user")
        return await streams.resume(request, key_prefix=prefix, owner=owner, wire="ui")

    routes = [
        Route("/api/chat", ask, methods=["POST"]),
        Route("/api/chat/{chat}/stream", resume),
    ]
    if gate is not None:
        routes.append(Route("/gate", gate.open, methods=["POST"]))
    return Starlette(routes=routes, lifespan=streams.lifespan)


def example() -> Any:
    """The example, with a model that waits for a gate, and a page of React at the root.

    In the environment, PAGE is the folder of the page, and RUNS the one for the runs.
    """
    namespace: dict[str, Any] = {"__name__": "example"}
    os.chdir(os.environ["RUNS"])
    exec(compile(EXAMPLE, "docs/use-chat.md", "exec"), namespace)
    app, gate = namespace["app"], Gate()
    namespace["tokens"] = gate.words
    page = os.environ["PAGE"]

    async def file(request: Request) -> Response:
        return FileResponse(f"{page}/{request.path_params.get('name', 'index.html')}")

    app.router.routes += [
        Route("/gate", gate.open, methods=["POST"]),
        Route("/gate", gate.state),
        Route("/", file),
        Route("/{name}", file),
    ]
    return app


if "PAGE" in os.environ:
    app = example()
