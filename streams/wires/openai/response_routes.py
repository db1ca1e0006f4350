"""The endpoints of the Responses API. A response is a run, so that any reader can resume it.

Invariants:

1. A stored response outlives its client: one in the background until its end, any other one for
   `linger` seconds. One that is not stored ends with its client, and is nowhere to be found.
2. A response belongs to the client that started it, as its run does. To others it does not exist.
3. All that is known of a response is in the log of its run, so any worker answers for it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as HTTPResponse
from starlette.routing import Route

from streams import Event, Source, StreamError, Streams
from streams.errors import InvalidParameters, LostHistory, UnknownRun, abbreviated
from streams.event import LoggedEvent, decode_json, encode_json, parse_frames, payload
from streams.log import RunLog
from streams.response import head_response, json_response
from streams.wires.openai.common import Models, arguments_for, estimated_tokens, read_until
from streams.wires.openai.kept import REQUEST, REQUEST_NUMBER, Kept, encoded
from streams.wires.openai.response_input import (
    ITEMS_PER_TURN,
    ResponsesRequest,
    chat_fields,
    listed,
    messages_of,
    origin,
    parse,
    references,
    repeated,
)
from streams.wires.openai.responses import INVALID, PREFIX, Response, ResponsesWire

RESPONSE_BYTES = 16 * 2**20
"""Bytes of its run's events up to which a stored response can be retrieved from its beginning."""

CONVERSATION_BYTES = 4 * 2**20
"""The most bytes of the items that `previous_response_id` adds."""

_ID = re.compile(PREFIX + r"([A-Za-z0-9_-]{22})")
_ITEM_ID = re.compile(r"(?:msg|rs|fc)_([A-Za-z0-9_-]{22})_(\d{1,6})")

REFERENCES = 100
"""The most responses that the item references of a request lead to: each one is read."""

LISTED = 20
MOST_LISTED = 100


class Responses:
    """The endpoints under /v1/responses."""

    def __init__(self, streams: Streams, models: Models) -> None:
        self._streams = streams
        self._models = models
        one = "/v1/responses/{response}"
        self.routes = [
            self._route("/v1/responses", self._create, "POST"),
            self._route(one, self._one, "GET", "DELETE"),
            self._route(one, self._no_operation, "POST"),
            self._route(f"{one}/cancel", self._cancel, "POST"),
            self._route(f"{one}/input_items", self._input_items, "GET"),
        ]

    def _route(
        self, path: str, answer: Callable[[Request], Awaitable[HTTPResponse]], *methods: str
    ) -> Route:
        return Route(path, self._streams.endpoint(answer), methods=[*methods])

    async def _create(self, request: Request) -> HTTPResponse:
        asked, fields = await parse(await self._streams.read_json(request))
        await asyncio.sleep(0)
        source = self._models.find(asked.model)
        earlier = await self._earlier(request, asked.previous_response_id)
        items = await self._resolved(request, asked.items)
        messages = await messages_of(asked.instructions, earlier, items)
        await asyncio.sleep(0)
        try:
            chat = await chat_fields(asked, fields)
            limit = chat.pop("max_tokens", None)
            arguments = arguments_for(source, messages, chat, {"max_tokens": limit})
        except InvalidParameters as error:
            raise origin(error) from None
        # Each of these may be megabytes, and to encode one takes milliseconds.
        await asyncio.sleep(0)
        kept = Kept(
            response={n: await encoded(value) for n, value in repeated(asked, fields).items()},
            input_tokens=estimated_tokens(messages),
            limit=None if "max_tokens" in arguments else limit,
        )
        await asyncio.sleep(0)
        if asked.stored:
            kept.input = await encoded(items)
            await asyncio.sleep(0)
            kept.earlier = await encoded(earlier)
            await asyncio.sleep(0)
        log = await self._start(request, asked, source, arguments, kept)
        if asked.stream:
            return self._streams.read(request, log, source, ResponsesWire(log.info))
        response = await (_read(log, log.last) if asked.background else _whole(request, log))
        if response.error is not None and not asked.background:
            code = response.error["code"]
            status = 400 if code == INVALID else 500
            raise StreamError(response.error["message"], status=status, code=code)
        return _object(response)

    async def _start(
        self,
        request: Request,
        asked: ResponsesRequest,
        source: Source[..., Any],
        arguments: dict[str, Any],
        kept: Kept,
    ) -> RunLog:
        preface = payload(Event(kept, event=REQUEST))
        await asyncio.sleep(0)
        policy: dict[str, Any] = {} if asked.stored else {"linger": 0}
        if asked.stored:
            policy["window"] = RESPONSE_BYTES + len(preface[1])
        if asked.background:
            policy["linger"] = None
        return await self._streams.start(request, source, arguments, preface=preface, **policy)

    async def _one(self, request: Request) -> HTTPResponse:
        if request.method == "DELETE":
            return await self._delete(request)
        if request.query_params.get("stream") not in ("true", "1"):
            return _object((await self._stored(request))[1])
        after = _whole_number(request, "starting_after", -1)
        log, response = await self._stored(request, REQUEST_NUMBER)
        wire = ResponsesWire(log.info, after)
        if request.method == "HEAD":
            return head_response(wire)
        assert response.kept is not None
        source = self._models.find(response.kept.model)
        return self._streams.read(request, log, source, wire, resumes=after >= 0)

    async def _no_operation(self, request: Request) -> HTTPResponse:
        """A 404 for what only OpenAI has: compact, input_tokens."""
        name = abbreviated(request.path_params["response"])
        detail = f"there is no {name} here; POST to /v1/responses, or to …/{{response}}/cancel"
        raise StreamError(detail, status=404, code="unknown_url")

    async def _cancel(self, request: Request) -> HTTPResponse:
        await self._streams.read_json(request)  # A page of another site may not cancel.
        log, _ = await self._stored(request, REQUEST_NUMBER)
        await self._streams.runs.cancel(log)
        return _object((await self._stored(request))[1])

    async def _delete(self, request: Request) -> HTTPResponse:
        await self._streams.read_json(request)
        log, _ = await self._stored(request, REQUEST_NUMBER)
        await self._streams.runs.cancel(log)
        await self._streams.log.discard(log.info.run)
        deleted = {"id": f"{PREFIX}{log.info.run}", "object": "response", "deleted": True}
        return json_response(deleted)

    async def _input_items(self, request: Request) -> HTTPResponse:
        log, response = await self._stored(request, REQUEST_NUMBER)
        assert response.kept is not None
        items = listed(log.info.run, await response.kept.items())
        if request.query_params.get("order") != "asc":
            items.reverse()
        after, limit = request.query_params.get("after"), _whole_number(request, "limit", LISTED)
        ids = [item["id"] for item in items]
        if after in ids:
            items = items[ids.index(after) + 1 :]
        page = items[: min(max(limit, 1), MOST_LISTED)]
        ends = [item["id"] for item in (*page[:1], *page[-1:])] or [""]
        more = len(items) > len(page)
        about = {"first_id": ends[0], "last_id": ends[-1], "has_more": more}
        return json_response({"object": "list", "data": page, **about})

    async def _stored(
        self, request: Request, up_to: int | None = None, name: str | None = None
    ) -> tuple[RunLog, Response]:
        """The run and the response with the id `name` (default: the one in the path), read up to an
        event (default: to the newest one). Raises StreamError if there is none for this client.
        """
        name = request.path_params["response"] if name is None else name
        unknown = StreamError(
            f"there is no response {abbreviated(name)}, or it is no longer retained", status=404
        )
        if (match := _ID.fullmatch(name)) is None:
            raise unknown
        try:
            log = await self._streams.find(request, match[1])
        except UnknownRun:
            raise unknown from None
        response = await _read(log, log.last if up_to is None else min(up_to, log.last))
        if response.kept is None or not response.kept.stored:
            raise unknown
        return log, response

    async def _earlier(self, request: Request, previous: str | None) -> list[dict[str, Any]]:
        """The items of the conversation that a response continues."""
        if previous is None:
            return []
        param = "previous_response_id"
        try:
            _, response = await self._stored(request, name=previous)
        except StreamError as error:
            if error.status != 404:
                raise
            code = "previous_response_not_found"
            raise StreamError(str(error), status=400, param=param, code=code) from None
        if not response.over:
            raise StreamError(
                f"response {previous} is in progress; wait for its end, or cancel it",
                status=400,
                param=param,
            )
        assert response.kept is not None
        output = _usable(response)
        if (size := response.kept.size + len(encode_json(output))) > CONVERSATION_BYTES:
            raise StreamError(
                f"the conversation before this response has {size} bytes, and at most "
                f"{CONVERSATION_BYTES} are kept; send what matters of it as input, without {param}",
                status=400,
                param=param,
                code="context_length_exceeded",
            )
        return [*await response.kept.items(), *output]

    async def _resolved(
        self, request: Request, items: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The items, in which each reference is replaced by the item of another response."""
        await asyncio.sleep(0)
        found: dict[str, dict[str, Any]] = {}
        runs = set[str]()
        for number, name in enumerate(references(items), 1):
            if number % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)
            if match := _ITEM_ID.fullmatch(name):
                runs.add(match[1])
        if len(runs) > REFERENCES:
            raise StreamError(
                f"input refers to items of {len(runs)} responses, and {REFERENCES} is the limit; "
                "send the items themselves, or previous_response_id",
                status=400,
                param="input",
            )
        for run in runs:
            await asyncio.sleep(0)
            try:
                _, response = await self._stored(request, name=f"{PREFIX}{run}")
            except StreamError:
                continue  # The reference is refused, with its place in the input.
            found |= {item["id"]: item for item in _usable(response)}
        return [
            found.get(str(item.get("id")), item) if item.get("type") == "item_reference" else item
            for item in items
        ]


def _usable(response: Response) -> list[dict[str, Any]]:
    """The items of the output that a conversation can go on with."""
    output = [item.as_dict() for item in response.output if item.is_usable]
    items: list[dict[str, Any]] = decode_json(encode_json(output))
    return items


def _object(response: Response) -> HTTPResponse:
    return json_response(response.as_dict(), {"X-Request-Id": response.run})


def _whole_number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if re.fullmatch(r"-1|\d{1,15}", text) is None:
        detail = f"{name}={abbreviated(text)} is no whole number from 0 on"
        raise StreamError(detail, status=400, param=name)
    return int(text)


async def _read(log: RunLog, up_to: int) -> Response:
    """A response, read up to an event of its run. Raises StreamError if that is lost."""
    response = Response(log.info)
    try:
        with log.read(-1) as reader:
            async for frames in reader:
                number = -1
                for event in parse_frames(frames):
                    await response.take(event)
                    number = event.number
                if response.over or number >= up_to:
                    return response
    except LostHistory:
        pass
    raise _lost()


async def _whole(request: Request, log: RunLog) -> Response:
    """A whole response. Raises StreamError if a part of it is lost."""
    response = Response(log.info)

    async def feed(event: LoggedEvent) -> bool:
        await response.take(event)
        if event.number == REQUEST_NUMBER:
            response.drop_items()
        return response.over

    await read_until(request, log, feed)
    if not response.over:
        raise _lost()
    return response


def _lost() -> StreamError:
    return StreamError("a part of the response is no longer retained", status=410, code="gone")
