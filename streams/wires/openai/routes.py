"""The endpoints of chat completions.

Each model is a source. It is given what it has parameters for: `messages`, or the text of the last
one as `prompt`; `max_tokens`, `temperature`, `seed`, and whatever else a client sends. Each of its
events is a text, or an object like those of the source `tokens`.

OpenAI's clients cannot resume, so a run is cancelled when its client disconnects.
"""

from collections.abc import Mapping
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams import Source, StreamError, Streams
from streams.errors import LostHistory, abbreviated
from streams.event import encode_json, parse_frames
from streams.log import RunLog
from streams.response import json_response
from streams.wires.openai.chat import Answer, ChatWire, arguments_for, error_object, parse


class Completions:
    """The endpoints, for `models`: a source for each model's name."""

    def __init__(self, streams: Streams, models: Mapping[str, Source[..., Any]]) -> None:
        self._streams = streams
        self._models = models
        self.routes = [
            Route("/v1/models", self._list),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/chat/completions", streams.endpoint(self._complete), methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        models = [self._describe(model) for model in self._models]
        return json_response({"object": "list", "data": models})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        try:
            self._source(model)
        except StreamError as error:
            return refusal(error)
        return json_response(self._describe(model))

    def _describe(self, model: str) -> dict[str, Any]:
        created = int(self._streams.runs.since.timestamp())
        return {"id": model, "object": "model", "created": created, "owned_by": "streams"}

    def _source(self, model: str) -> Source[..., Any]:
        try:
            return self._models[model]
        except KeyError:
            known = ", ".join(self._models)
            raise StreamError(
                f"there is no model {abbreviated(model)}; there are: {known}",
                status=404,
                param="model",
                code="model_not_found",
            ) from None

    async def _complete(self, request: Request) -> Response:
        try:
            chat, fields = parse(await self._streams.read_json(request))
            source = self._source(chat.model)
            arguments = source.from_json(encode_json(arguments_for(source, chat, fields)))
            log = await self._streams.start(request, source, arguments, linger=0)
            answer = Answer(log.info, chat, None if "max_tokens" in arguments else chat.limit)
            if chat.stream:
                wire = ChatWire(log.info, answer)
                return self._streams.read(request, log, source, wire)
            return await self._whole(request, log, answer)
        except StreamError as error:
            return refusal(error)

    async def _whole(self, request: Request, log: RunLog, answer: Answer) -> Response:
        """The whole answer. Reading ends early, and with it the run, if the client disconnects."""
        text = ""
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await request.receive()  # The body is read, so this is a disconnect.
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                with log.read(-1) as reader:
                    async for frames in reader:
                        text += "".join([answer.text_of(event) for event in parse_frames(frames)])
                        if answer.over:
                            break
            except LostHistory:
                answer.lose()
            group.cancel_scope.cancel()
        answer.interrupt()
        if answer.error is not None:
            raise answer.error
        return json_response(answer.completion(text), {"X-Request-Id": log.info.run})


def refusal(error: StreamError) -> Response:
    """An error response of OpenAI's API, where 400 is the status for invalid parameters."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    status = 400 if error.status == 422 else error.status
    return json_response(error_object(error), headers, status)
