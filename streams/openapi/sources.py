"""The operations of sources and topics."""

from collections.abc import Iterator
from typing import Any

from streams.openapi.components import Schema, ref
from streams.openapi.writer import BODY, TEXT, Describe, Operation, Operations, Writer, structure
from streams.request import JSON
from streams.source import Source

STREAM = (403, 406, 410, 422)
"""The refusals of every stream of a source."""


def _list(writer: Writer) -> Operations:
    listed = structure(
        {
            "name": TEXT,
            "description": TEXT,
            "parameters": {"type": "object", "description": "The JSON Schema of its parameters"},
            "events": {
                "type": ["object", "null"],
                "description": "The JSON Schema of the data of its events; null: not declared",
            },
            "shared": {"type": "boolean"},
            "restartable": {"type": "boolean"},
            "url": {"type": "string", "format": "uri-reference"},
            "topic": {"const": True},
        },
        *("name", "description", "parameters", "events", "shared", "restartable", "url"),
    )
    sources = writer.components.schema("SourceDescription", listed)
    schema = structure({"sources": {"type": "array", "items": sources}})
    answer = {"200": writer.json("The sources", schema)}
    return {"/streams": {"get": writer.operation("List the sources", answer, tag="sources")}}


def _sources(writer: Writer) -> Operations:
    sources = writer.streams.sources.values()
    return {f"/streams/{source.name}": _source(writer, source) for source in sources}


def _source(writer: Writer, source: Source[..., Any]) -> dict[str, Operation]:
    name = source.name
    parameters = writer.components.adopted(source.schema)
    required = parameters.get("required", [])
    asks = source.guard is not None or writer.facts.has_identity
    common: dict[str, Any] = {
        "description": source.description or None,
        "is_limited": True,
        "tag": "topics" if source.is_topic else "sources",
        # A source that fails in its first step refuses with any status.
        "any_status": asks or not source.is_topic,
    }
    answers = writer.stream(name, source.events_schema)
    if source.guard is not None:
        answers["3XX"] = {"description": "The guard sends the client elsewhere"}
    doing = f"Join {name}" if source.shared else f"Start a run of {name}, or resume one"
    keyed = not source.shared
    get = writer.operation(
        doing,
        answers,
        *STREAM,
        parameters=[
            *in_query(writer, parameters),
            *writer.resuming(in_query=True),
            *(writer.keyed(in_query=True) if keyed else ()),
        ],
        is_signed=True,
        **common,
    )
    body = writer.components.schema(f"{name}_parameters", parameters)
    post = writer.operation(
        doing,
        answers,
        *STREAM,
        *BODY,
        parameters=[*writer.resuming(in_query=False), *(writer.keyed() if keyed else ())],
        body={"required": bool(required), "content": {JSON: {"schema": body}}},
        **common,
    )
    return {"get": get, "post": post}


def in_query(writer: Writer, schema: Schema) -> Iterator[Schema]:
    """The parameters of a source that a query can have: no objects, which only a body can."""
    required = schema.get("required", ())
    for name, property_ in schema.get("properties", {}).items():
        found = as_text(writer, property_)
        if found is None:
            continue
        parameter: Schema = {"name": name, "in": "query", "schema": found}
        if description := found.pop("description", None):
            parameter["description"] = description
        if name in required:
            parameter["required"] = True
        yield parameter


def as_text(writer: Writer, schema: Schema) -> Schema | None:
    """The part of a schema whose values a query can have; None if there is no such part.

    There, null is to leave the parameter out.
    """
    kind = writer.components.resolved(schema)
    if alternatives := kind.get("anyOf"):
        parts = [as_text(writer, part) for part in alternatives if part != {"type": "null"}]
        found = [part for part in parts if part is not None]
        rest = {key: value for key, value in kind.items() if key not in ("anyOf", "default")}
        if kind.get("default") is not None:
            rest["default"] = kind["default"]
        if not found:
            return None
        return {**found[0], **rest} if len(found) == 1 else {"anyOf": found, **rest}
    if kind.get("type") == "object" or "allOf" in kind or "oneOf" in kind:
        return None
    if kind.get("type") == "array":
        parts = [kind.get("items") or {}, *kind.get("prefixItems", ())]
        if any(as_text(writer, part) is None for part in parts if isinstance(part, dict)):
            return None
    return dict(schema)


def _topics(writer: Writer) -> Operations:
    return {
        f"/topics/{source.name}": {"post": _publish(writer, source)}
        for source in writer.streams.sources.values()
        if source.is_topic
    }


def _publish(writer: Writer, topic: Source[..., Any]) -> Operation:
    published = writer.components.schema("Published", structure({"id": ref("schemas", "EventId")}))
    return writer.operation(
        f"Publish to {topic.name}",
        {
            "200": writer.json("The event's id, once the log has the event", published),
            "3XX": {"description": "The app sends the client elsewhere"},
        },
        *(403, 409, *BODY),
        tag="topics",
        description=topic.description or None,
        parameters=[*in_query(writer, writer.components.adopted(topic.schema))],
        body={"required": True, "content": {JSON: {"schema": {}}}},
        any_status=True,
    )


DESCRIBED: dict[str, Describe] = {
    "/streams": _list,
    "/streams/{source}": _sources,
    "/topics/{topic}": _topics,
}
