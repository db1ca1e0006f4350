"""The operations of the playground."""

from streams.openapi.components import Schema
from streams.openapi.writer import BODY, TEXT, Describe, Operations, Writer, structure
from streams.request import EVENT_STREAM, JSON


def _index(writer: Writer) -> Operations:
    answers = {
        "200": writer.json("The page", TEXT, "text/html"),
        "307": {
            "description": "To the same path with a slash at its end",
            "headers": {"Location": {"required": True, "schema": TEXT}},
        },
    }
    operation = writer.operation("Show the playground", answers, tag="page", is_open=True)
    return {"/": {"get": operation}}


def _about(writer: Writer) -> Operations:
    about = structure({"plain": {"type": "array", "items": TEXT}})
    answer = {"200": writer.json("Which sources are at /plain", about)}
    operation = writer.operation("Describe the playground", answer, tag="page", is_open=True)
    return {"/page/about.json": {"get": operation}}


def _file(writer: Writer) -> Operations:
    name: Schema = {"name": "file", "in": "path", "required": True, "schema": TEXT}
    answer = {"200": {"description": "The file", "content": {"*/*": {}}}}
    operation = writer.operation(
        "Get a file of the playground, or event-stream.js",
        answer,
        404,
        tag="page",
        parameters=[name],
        is_open=True,
    )
    return {"/page/{file}": {"get": operation}}


def _plain(writer: Writer) -> Operations:
    from streams.page.plain import Plain

    sources = writer.streams.sources
    event = {"itemSchema": structure({"data": TEXT})}
    answer = {"200": {"description": "The events, without ids", "content": {EVENT_STREAM: event}}}
    operations = {}
    for name in Plain(writer.streams).names:
        parameters = writer.components.adopted(sources[name].schema)
        body = writer.components.schema(f"{name}_parameters", parameters)
        operation = writer.operation(
            f"Stream {name} without a run, to compare",
            answer,
            *(403, *BODY),
            tag="page",
            body={"required": False, "content": {JSON: {"schema": body}}},
            any_status=True,
        )
        operations[f"/plain/{name}"] = {"post": operation}
    return operations


DESCRIBED: dict[str, Describe] = {
    "/": _index,
    "/page/about.json": _about,
    "/page/{file}": _file,
    "/plain/{source}": _plain,
}
