"""The operations of OpenAI's API, over the models of an app.

Their requests are described as far as the wires check them. A model's source gets all other fields
for which it has parameters.

Source: https://platform.openai.com/docs/api-reference
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from streams.openapi.components import Schema
from streams.openapi.writer import (
    COUNT,
    OBJECT,
    TEXT,
    Describe,
    Operation,
    Operations,
    Writer,
    json_text,
    structure,
)
from streams.request import EVENT_STREAM, JSON
from streams.wires.openai.chat import ChatRequest
from streams.wires.openai.response_input import ResponsesRequest
from streams.wires.openai.response_routes import MOST_LISTED

REFUSED = (400, 403, 404, 408, 413, 415)
"""The refusals of a request with a body. OpenAI's status for invalid parameters is 400."""

RESPONSE: Schema = {
    "name": "response",
    "in": "path",
    "required": True,
    "schema": {**TEXT, "pattern": "^resp_[A-Za-z0-9_-]{22}$"},
}


def _error(writer: Writer) -> Schema:
    optional = {"type": ["string", "null"]}
    error = structure({"message": TEXT, "type": TEXT, "param": optional, "code": optional})
    return writer.components.schema("ModelError", structure({"error": error}))


def _operation(
    writer: Writer, summary: str, answers: Mapping[str, Any], *refusals: int, **more: Any
) -> Operation:
    def refusal(description: str) -> Schema:
        return writer.json(description, _error(writer))

    return writer.operation(summary, answers, *refusals, tag="models", problem=refusal, **more)


def _object(kind: str, *others: str) -> Schema:
    """An object of OpenAI's API. Its reference says more."""
    return structure({"object": {"const": kind}, "id": TEXT, **{key: {} for key in others}})


def _model(writer: Writer) -> Schema:
    return writer.components.schema("Model", _object("model", "created", "owned_by"))


def _response(writer: Writer) -> Schema:
    return writer.components.schema("Response", _object("response", "status", "model", "output"))


def _body(writer: Writer, type_: Any) -> Schema:
    (schema,), definitions = msgspec.json.schema_components((type_,), ref_template="#/$defs/{name}")
    for definition in definitions.values():
        definition.pop("description", None)  # It is for those who read the code.
    adopted = writer.components.adopted({**schema, "$defs": definitions})
    return {"required": True, "content": {JSON: {"schema": adopted}}}


def _answer(description: str, whole: Schema, item: Schema | None = None) -> dict[str, Any]:
    """An answer as a whole, and as a stream of such items."""
    stream = {} if item is None else {EVENT_STREAM: {"itemSchema": item}}
    request_id = {"description": "The id of the run", "required": True, "schema": TEXT}
    return {
        "200": {
            "description": description,
            "headers": {"X-Request-Id": request_id},
            "content": {JSON: {"schema": whole}, **stream},
        }
    }


def _list(writer: Writer) -> Operations:
    models = structure(
        {"object": {"const": "list"}, "data": {"type": "array", "items": _model(writer)}}
    )
    operation = _operation(writer, "List the models", {"200": writer.json("The models", models)})
    return {"/v1/models": {"get": operation}}


def _one(writer: Writer) -> Operations:
    name = {"name": "model", "in": "path", "required": True, "schema": TEXT}
    answer = {"200": writer.json("The model", _model(writer))}
    operation = _operation(writer, "Describe a model", answer, 404, parameters=[name])
    return {"/v1/models/{model}": {"get": operation}}


def _chat(writer: Writer) -> Operations:
    members = ("created", "model", "choices")
    whole = writer.components.schema("ChatCompletion", _object("chat.completion", *members))
    chunk = _object("chat.completion.chunk", *members)
    data = writer.components.schema("ChatCompletionChunk", {"anyOf": [chunk, _error(writer)]})
    item = structure(
        {"data": {"anyOf": [{"const": "[DONE]"}, json_text(data)]}},
    )
    operation = _operation(
        writer,
        "Complete a chat",
        _answer("The answer, or with `stream` its pieces and `[DONE]`", whole, item),
        *REFUSED,
        parameters=writer.keyed(),
        body=_body(writer, ChatRequest),
        any_status=True,
        is_limited=True,
    )
    return {"/v1/chat/completions": {"post": operation}}


def _events(writer: Writer) -> Schema:
    event = structure({"type": TEXT, "sequence_number": COUNT})
    data = json_text(writer.components.schema("ResponseEvent", event))
    return structure({"event": TEXT, "data": data})


def _create(writer: Writer) -> Operations:
    operation = _operation(
        writer,
        "Start a response",
        _answer("The response, or with `stream` its events", _response(writer), _events(writer)),
        *REFUSED,
        parameters=writer.keyed(),
        body=_body(writer, ResponsesRequest),
        any_status=True,
        is_limited=True,
    )
    return {"/v1/responses": {"post": operation}}


def _stored(writer: Writer) -> Operations:
    after: Schema = {"type": "integer", "minimum": -1, "maximum": 10**15 - 1}
    get = _operation(
        writer,
        "Get a stored response",
        _answer("The response, or with `stream` its events", _response(writer), _events(writer)),
        *(400, 403, 404, 410),
        parameters=[
            RESPONSE,
            _query("stream", {"type": "boolean", "default": False}),
            _query("starting_after", after),
        ],
        any_status=True,
        is_limited=True,
    )
    deleted = structure({"object": {"const": "response"}, "id": TEXT, "deleted": {"const": True}})
    delete = _operation(
        writer,
        "Stop and forget a stored response",
        {"200": writer.json("It is forgotten", deleted)},
        *(*REFUSED, 410),
        parameters=[RESPONSE],
        any_status=True,
        is_limited=True,
    )
    return {"/v1/responses/{response}": {"get": get, "delete": delete}}


def _cancel(writer: Writer) -> Operations:
    operation = _operation(
        writer,
        "Stop a stored response",
        _answer("The response", _response(writer)),
        *(*REFUSED, 410),
        parameters=[RESPONSE],
        any_status=True,
        is_limited=True,
    )
    return {"/v1/responses/{response}/cancel": {"post": operation}}


def _items(writer: Writer) -> Operations:
    listed = structure(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": OBJECT},
            "first_id": TEXT,
            "last_id": TEXT,
            "has_more": {"type": "boolean"},
        }
    )
    operation = _operation(
        writer,
        "List the input of a stored response",
        {"200": writer.json("A page of items", listed)},
        *(400, 403, 404, 410),
        parameters=[
            RESPONSE,
            _query("after", TEXT),
            _query("limit", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED}),
            _query("order", {"enum": ["asc", "desc"], "default": "desc"}),
        ],
        any_status=True,
        is_limited=True,
    )
    return {"/v1/responses/{response}/input_items": {"get": operation}}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


DESCRIBED: dict[str, Describe] = {
    "/v1/models": _list,
    "/v1/models/{model:path}": _one,
    "/v1/chat/completions": _chat,
    "/v1/responses": _create,
    "/v1/responses/{response}": _stored,
    "/v1/responses/{response}/cancel": _cancel,
    "/v1/responses/{response}/input_items": _items,
}
