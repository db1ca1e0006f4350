"""The endpoints of OpenAI's chat completions, over any source of text.

The law of this file: what goes out is what OpenAI's clients understand and nothing else: data
blocks without ids, names or retry, and errors as OpenAI's error objects. The run beneath is one
like any other, but its client cannot resume, so it ends when the client goes. asgi.py adds the
routes.
"""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams.errors import StreamError, shown
from streams.event import encode_json
from streams.request import JSON, check_site, identity, read_json
from streams.response import EventStreamResponse
from streams.run import Place, Runs
from streams.source import Policy, Source
from streams.wires.openai.chat import Answer, arguments_for, error_object, events_in, parsed


class Completions:
    """The endpoints, for the models that there are, each a source.

    A source is given what it has parameters for: `messages`, or the last one's text as `prompt`;
    `max_tokens`, `temperature`, `seed`, and whatever else a client sends. Each of its events is a
    text, or an object like those of the source `tokens`.
    """

    def __init__(
        self,
        models: Mapping[str, Source],
        runs: Runs,
        policy: Policy,
        max_body: int,
        origins: frozenset[str],
    ) -> None:
        self._models = models
        self._runs = runs
        self._policy = policy
        self._max_body = max_body
        self._origins = origins
        self.routes = [
            Route("/v1/models", self._list),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._described(model) for model in self._models]})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        try:
            self._source(model)
        except StreamError as error:
            return refusal(error)
        return _json(self._described(model))

    def _described(self, model: str) -> dict[str, Any]:
        created = int(self._runs.since.timestamp())
        return {"id": model, "object": "model", "created": created, "owned_by": "streams"}

    def _source(self, model: str) -> Source:
        try:
            return self._models[model]
        except KeyError:
            known = ", ".join(self._models)
            raise StreamError(
                f"there is no model {shown(model)}; there are: {known}",
                status=404,
                param="model",
                code="model_not_found",
            ) from None

    async def _complete(self, request: Request) -> Response:
        try:
            check_site(request, self._origins)
            body = await read_json(request, self._max_body)
            asked, given = parsed(body)
            source = self._source(asked.model)
            arguments = source.from_json(encode_json(arguments_for(source, asked, given)))
            policy = self._policy.but({**source.policy, "linger": 0})
            opener = partial(source.open, arguments, request)
            log = await self._runs.start(source, policy, opener, identity(request.scope))
            limit = None if "max_tokens" in arguments else asked.limit
            answer = Answer(log, asked, limit)
            if asked.stream:
                root = str(request.scope.get("root_path", "")).rstrip("/")
                location = f"{root}/runs/{log.info.run}"
                return CompletionStream(self._runs, answer, policy, location)
            return await self._whole(request, answer)
        except StreamError as error:
            return refusal(error)

    async def _whole(self, request: Request, answer: Answer) -> Response:
        """The whole answer, unless the client goes."""
        text = ""
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await request.receive()  # the body has been read: what can follow is a disconnect
                group.cancel_scope.cancel()

            group.start_soon(watch)
            text = await self._text(answer)
            group.cancel_scope.cancel()
        answer.interrupted()
        if answer.error is not None:
            raise answer.error
        return _json(answer.completion(text), {"X-Request-Id": answer.log.info.run})

    async def _text(self, answer: Answer) -> str:
        text = ""
        with answer.log.read(-1) as reader:
            async for frames in reader:
                for name, data in events_in(frames):
                    text += answer.text_of(name, data)
                if answer.over:
                    break
        return text


class CompletionStream(EventStreamResponse):
    """Sends a run's events as chunks of a completion."""

    def __init__(self, runs: Runs, answer: Answer, policy: Policy, location: str) -> None:
        super().__init__(runs, Place(answer.log, -1), policy, location)
        self.headers["X-Request-Id"] = answer.log.info.run
        self._answer = answer
        self.body_iterator = self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        answer = self._answer
        yield answer.chunk({"role": "assistant", "content": ""})
        with answer.log.read(-1) as reader:
            self._shutdown.stops(reader)
            async for frames in reader:
                chunks = b""
                for name, data in events_in(frames):
                    if text := answer.text_of(name, data):
                        chunks += answer.chunk({"content": text})
                if chunks:
                    yield chunks
                if answer.over:
                    break
        answer.interrupted()
        yield answer.ending()


def refusal(error: StreamError) -> Response:
    """An error as OpenAI's clients know it; what is wrong in a request is 400 there."""
    retry_after = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    status = 400 if error.status == 422 else error.status
    return _json(error_object(error), retry_after, status)


def _json(value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(encode_json(value), status, headers, JSON)
