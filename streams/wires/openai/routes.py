"""The endpoints of OpenAI's API, over any source of text.

Each model is a source. It is given what it has parameters for: `messages`, or the text of the last
one as `prompt`; `max_tokens`, `temperature`, `seed`, and whatever else a client sends. Each of its
events is a text, or an object like those of the source `tokens`.

A client of chat completions cannot resume, so a run is cancelled when its client disconnects,
unless an Idempotency-Key names it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from streams import Source, StreamError, Streams
from streams.errors import abbreviated
from streams.response import json_response
from streams.wires.openai.chat import ChatAnswer, ChatWire, Completion, parse
from streams.wires.openai.common import Models, read_whole
from streams.wires.openai.response_routes import Responses


class Endpoints:
    """The endpoints under /v1, for `models`: a source for each model's name."""

    def __init__(self, streams: Streams, models: Mapping[str, Source[..., Any]]) -> None:
        self._streams = streams
        self._models = Models(streams, models)
        self._known = [
            Route("/v1/models", self._list, methods=["GET"]),
            Route("/v1/models/{model:path}", self._model, methods=["GET"]),
            Route("/v1/chat/completions", streams.endpoint(self._complete), methods=["POST"]),
            *Responses(streams, self._models).routes,
        ]
        other = [Route(path, streams.endpoint(self._other)) for path in ("/v1", "/v1/{path:path}")]
        self.routes = [*self._known, *other]

    async def _list(self, request: Request) -> Response:
        return json_response(self._models.list())

    async def _model(self, request: Request) -> Response:
        return json_response(self._models.describe(request.path_params["model"]))

    async def _other(self, request: Request) -> Response:
        """The answer to OPTIONS, to other methods of an endpoint, and where there is none."""
        matches = ((route, route.matches(request.scope)[0]) for route in self._known)
        here = next((route for route, match in matches if match is not Match.NONE), None)
        if here is None:
            paths = ", ".join(route.path for route in self._known)
            detail = f"there is nothing at {abbreviated(request.url.path)}; there are: {paths}"
            raise StreamError(detail, status=404, code="unknown_url")
        allowed = ", ".join(sorted([*(here.methods or ()), "OPTIONS"]))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        detail = f"{abbreviated(request.method)} is not allowed here; use {allowed}"
        error = StreamError(detail, status=405, code="method_not_supported")
        error.headers = {"Allow": allowed}
        raise error

    async def _complete(self, request: Request) -> Response:
        chat, fields = await parse(await self._streams.read_json(request))
        await asyncio.sleep(0)  # To parse a megabyte takes milliseconds.
        source = self._models.find(chat.model)
        arguments = chat.arguments(source, fields)
        log = await self._streams.start(request, source, arguments, linger=0)
        answer = ChatAnswer(log.info, chat, None if "max_tokens" in arguments else chat.limit)
        if chat.stream:
            return self._streams.read(request, log, source, ChatWire(log.info, answer))
        completion = Completion()
        await read_whole(request, log, answer, completion.add)
        if answer.error is not None:
            raise answer.error
        return json_response(answer.whole(completion), {"X-Request-Id": log.info.run})
