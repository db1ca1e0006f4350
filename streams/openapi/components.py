"""What the operations of the document share: schemas, parameters, headers and refusals.

Invariant: two different schemas never get one name, and the same schema gets one name only.
"""

import re
from typing import Any

from streams.event import encode_json

Schema = dict[str, Any]

_DEFINITION = re.compile(r"#/\$defs/(.+)")


def ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


class Components:
    """Components of the document by kind and name, in the order in which they were used."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Any]] = {}
        self._closures: dict[str, bytes] = {}

    def as_dict(self) -> dict[str, Any]:
        return self._kinds

    def add(self, kind: str, name: str, component: Any) -> Schema:
        """A reference to a component whose name is not that of any other."""
        self._kinds.setdefault(kind, {})[name] = component
        return ref(kind, name)

    def schema(self, name: str, schema: Schema) -> Schema:
        """A reference to a schema, which gets another name if a different one has this."""
        return ref("schemas", self._named(name, schema, encode_json(schema)))

    def resolved(self, schema: Schema) -> Schema:
        """What a reference that this has made refers to; another schema is itself."""
        while "$ref" in schema:
            schema = self._kinds["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def adopted(self, schema: Schema) -> Schema:
        """A schema whose definitions, `$defs`, have become components."""
        definitions: dict[str, Schema] = schema.get("$defs", {})
        names: dict[str, str] = {}
        for name, definition in definitions.items():
            reached = encode_json({n: definitions[n] for n in sorted(_reached(name, definitions))})
            names[name] = self._named(name, definition, reached)
        for name, definition in definitions.items():
            self._kinds["schemas"][names[name]] = _renamed(definition, names)
        rest = {key: value for key, value in schema.items() if key != "$defs"}
        return _renamed(rest, names)  # type: ignore[no-any-return]

    def _named(self, name: str, schema: Schema, closure: bytes) -> str:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        number, found = 1, plain
        while self._closures.setdefault(found, closure) != closure:
            number += 1
            found = f"{plain}_{number}"
        self._kinds.setdefault("schemas", {}).setdefault(found, schema)
        return found


def _reached(name: str, definitions: dict[str, Schema]) -> set[str]:
    """The definitions that a definition consists of, itself included."""
    reached, todo = {name}, [name]
    while todo:
        for text in _texts(definitions[todo.pop()]):
            found = _DEFINITION.fullmatch(text)
            if found is not None and found[1] in definitions and found[1] not in reached:
                reached.add(found[1])
                todo.append(found[1])
    return reached


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value.values()]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A copy of a part of a schema, in which references to definitions are those to components."""
    if isinstance(value, str) and (found := _DEFINITION.fullmatch(value)) and found[1] in names:
        return f"#/components/schemas/{names[found[1]]}"
    if isinstance(value, dict):
        return {key: _renamed(part, names) for key, part in value.items()}
    return [_renamed(part, names) for part in value] if isinstance(value, list) else value
