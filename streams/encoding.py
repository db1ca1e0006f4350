"""Values as JSON: what msgspec encodes, pydantic's models, and types that an app knows.

pydantic is not a dependency. Only an app that has imported it can have its models.

Invariant: a value that msgspec encodes by itself costs nothing more than that.
"""

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from math import isinf
from typing import Any

import msgspec

from streams.errors import shortened

# msgspec encodes these, but not their subclasses, as base64.
BINARY = frozenset({bytes, bytearray, memoryview})
_SCALARS = frozenset({str, int, float, bool, type(None)})

MAX_FAULTS = 20
"""An answer describes this many faults at most, and counts the rest."""

# How many containers in a run's first event are searched for binary values.
SEARCHED_CONTAINERS = 1000


LARGE = 2**16
"""To check, decode, encode or hash a megabyte takes up to 5 ms each. What does several of these
with more than this many bytes gives the event loop a turn between them."""


async def give_turn(size: int) -> None:
    """Gives the event loop a turn between two steps of work on `size` bytes, if they are many."""
    if size > LARGE:
        await asyncio.sleep(0)


class HookFailed(Exception):
    """The app's `encode` function raised the error that is the cause of this one."""


def is_model(value: Any) -> bool:
    """Whether a value is a model of pydantic."""
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and isinstance(value, base)


def is_model_type(type_: Any) -> bool:
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and isinstance(type_, type) and issubclass(type_, base)


def hook(encode: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """msgspec's `enc_hook`: encodes the types that msgspec does not know.

    It raises TypeError for one that `encode` does not know either.
    """

    def encode_unknown(value: Any) -> Any:
        if is_model(value):
            return value.model_dump(mode="json")
        unknown = f"Encoding objects of type {type(value).__name__} is unsupported"
        if encode is not None:
            try:
                encoded = encode(value)
            except (NotImplementedError, TypeError) as error:
                raise TypeError(f"{unknown} (`encode` raised {error!r})") from error
            except Exception as error:
                raise HookFailed from error
            if type(encoded) in BINARY:
                raise TypeError(f"`encode` returned {type(encoded).__name__}, which is binary")
            return encoded
        raise TypeError(unknown)

    return encode_unknown


encode_json = msgspec.json.Encoder(enc_hook=hook(None)).encode
encode_sorted = msgspec.json.Encoder(enc_hook=hook(None), order="deterministic").encode


def _finite(number: str) -> float:
    """A number in JSON. msgspec alone takes 25 µs for 1e308, and a client may send 50,000 of it."""
    value = float(number)
    if isinf(value):
        raise ValueError("Number out of range")
    return value


decode_json = msgspec.json.Decoder(float_hook=_finite).decode
decode_json_object = msgspec.json.Decoder(dict[str, Any], float_hook=_finite).decode
"""For JSON from outside. Both raise msgspec.DecodeError, UnicodeDecodeError and RecursionError."""


def decode_model(type_: Any, value: Any) -> Any:
    """msgspec's `dec_hook`: validates a model of pydantic, with all faults in one line."""
    if not is_model_type(type_):
        raise NotImplementedError
    try:
        return type_.model_validate(value)
    except ValueError as error:
        details: Any = getattr(error, "errors", list)()
        faults = [f"{_dotted(fault['loc'])}{fault['msg']}" for fault in details[:MAX_FAULTS]]
        if more := len(details) - len(faults):
            faults.append(f"and {more} more")
        raise ValueError("; ".join(faults) or str(error)) from None


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ".".join(shortened(str(step)) for step in location)
    return f"{path}: " if path else ""


def model_schema(type_: Any) -> dict[str, Any]:
    """msgspec's `schema_hook`: the JSON Schema of a model of pydantic."""
    if not is_model_type(type_):
        raise NotImplementedError
    schema: dict[str, Any] = type_.model_json_schema(ref_template="#/$defs/{model}")
    return schema


def sent_schema(type_: Any) -> dict[str, Any]:
    """msgspec's `schema_hook` for values that are sent: the JSON Schema of a model of pydantic.

    Only the app knows what becomes of other types.
    """
    if not is_model_type(type_):
        return {"title": getattr(type_, "__name__", str(type_))}
    by_alias = bool(type_.model_config.get("serialize_by_alias"))
    schema: dict[str, Any] = type_.model_json_schema(
        by_alias=by_alias, ref_template="#/$defs/{model}", mode="serialization"
    )
    return schema


def hoist_definitions(schema: Any) -> dict[str, Any]:
    """Removes the `$defs` inside a schema, and returns them all: references begin at its root."""
    definitions: dict[str, Any] = {}
    if isinstance(schema, dict):
        definitions |= schema.pop("$defs", {})
    children = schema.values() if isinstance(schema, dict) else schema
    for child in children:
        if isinstance(child, dict | list):
            definitions |= hoist_definitions(child)
    return definitions


def find_unencodable(value: Any, encode: Callable[[Any], bytes]) -> tuple[str, Any]:
    """The path to the innermost part of a value that cannot be encoded, and that part."""
    path: tuple[Any, ...] = ()
    for _ in range(20):  # A value may contain itself.
        for key, child in _children(value):
            try:
                encode(child)
            except Exception:
                path, value = (*path, key), child
                break
        else:
            break
    return _formatted(path), value


def find_binary(value: Any) -> tuple[str, Any] | None:
    """The path to a binary part or key of a value, and that part."""
    containers: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    for path, parent in containers:  # The list grows.
        for key, child in parent.items() if type(parent) is dict else _children(parent):
            if type(key) in BINARY:
                return _formatted((*path, key)), key
            if type(child) in BINARY:
                return _formatted((*path, key)), child
            if type(child) not in _SCALARS and len(containers) < SEARCHED_CONTAINERS:
                containers.append(((*path, key), child))
    return None


def _formatted(path: tuple[Any, ...]) -> str:
    steps = (f".{key}" if str(key).isidentifier() else f"[{key!r}]" for key in path)
    return "".join(steps).removeprefix(".")


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    """The parts of a value, each with its key, index or attribute name."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return ()
