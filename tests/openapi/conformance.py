"""Checks that an answer is as an OpenAPI document says, with parsers and validators of others."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from httpx_sse import EventSource
from jsonschema import Draft202012Validator, ValidationError, validators
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DOCUMENT = "urn:document"


def _content_schema(
    validator: Any, schema: Any, instance: Any, _: Any
) -> Iterator[ValidationError]:
    """Validates a text that is JSON. JSON Schema leaves that to applications."""
    try:
        value = json.loads(instance)
    except ValueError as error:
        yield ValidationError(f"{instance!r} is not JSON: {error}")
    else:
        yield from validator.descend(value, schema)


_extend: Any = validators.extend  # It has no types.
Validator: Any = _extend(Draft202012Validator, {"contentSchema": _content_schema})


class Conformance:
    """Checks answers against a document, and remembers which of its operations they were of."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.asked: set[tuple[str, str]] = set()
        resource = DRAFT202012.create_resource(document)
        self._registry: Any = Registry().with_resource(DOCUMENT, resource)

    @property
    def operations(self) -> set[tuple[str, str]]:
        paths = self.document["paths"].items()
        return {(method, path) for path, operations in paths for method in operations}

    def check(
        self, method: str, path: str, response: httpx.Response, *, by_app: bool = False
    ) -> list[Any]:
        """Raises AssertionError unless the answer of an operation is as the document says.

        Only a refusal by the app has a status that the document does not name. Returns the items of
        a stream.
        """
        self.asked.add((method.lower(), path))
        responses = self.document["paths"][path][method.lower()]["responses"]
        status = str(response.status_code)
        found = responses.get(f"{status[0]}XX" if by_app else status)
        assert found, f"{method} {path} answers {status}, which is not described: {response.text}"
        described = self._resolved(found)
        for name, reference in described.get("headers", {}).items():
            header = self._resolved(reference)
            if name in response.headers:
                value: Any = response.headers[name]
                if header["schema"].get("type") == "integer":
                    value = int(value)
                self._validate(header["schema"], value, f"{name} of {method} {path}")
            else:
                assert not header.get("required"), f"{method} {path} answers without {name}"
        return self._check_content(described.get("content", {}), response, f"{method} {path}")

    def _check_content(
        self, content: dict[str, Any], response: httpx.Response, what: str
    ) -> list[Any]:
        kind = response.headers.get("content-type", "").partition(";")[0]
        if not content:
            assert not response.content, f"{what}: a body is not described"
            return []
        media_type = content.get(kind, content.get("*/*"))
        assert media_type is not None, f"{what}: {kind} is not described"
        if "schema" in media_type:
            value = response.json() if kind.endswith("json") else response.text
            self._validate(media_type["schema"], value, what)
        items = list(items_of(kind, response)) if "itemSchema" in media_type else []
        for item in items:
            self._validate(media_type["itemSchema"], item, f"an item of {what}")
        return items

    def _validate(self, schema: Any, value: Any, what: str) -> None:
        # References in the schema begin at the root of the document.
        wrapped = {"$schema": Draft202012Validator.META_SCHEMA["$id"], **_absolute(schema)}
        errors = list(Validator(wrapped, registry=self._registry).iter_errors(value))
        assert not errors, f"{what}: {errors[0].message}: {value!r}"

    def _resolved(self, value: Any) -> Any:
        while "$ref" in value:
            found: Any = self.document
            for step in value["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            value = found
        return value


def _absolute(schema: Any) -> Any:
    """A schema of the document whose references work outside of it."""
    if isinstance(schema, dict):
        return {
            key: f"{DOCUMENT}{part}" if key == "$ref" else _absolute(part)
            for key, part in schema.items()
        }
    return [_absolute(part) for part in schema] if isinstance(schema, list) else schema


def items_of(media_type: str, response: httpx.Response) -> Iterator[Any]:
    """The items of a stream, as section 4.14.4 of OpenAPI models them."""
    if media_type == "text/event-stream":
        for event in EventSource(response).iter_sse():
            fields = {"event": event.event, "id": event.id, "data": event.data}
            retry = {} if event.retry is None else {"retry": event.retry}
            yield {key: value for key, value in fields.items() if value} | retry
    else:
        yield from map(json.loads, filter(None, response.text.split("\n")))
