"""What a source's function declares: its name, its parameters' types, and their JSON Schema.

Each fault is a TypeError that says what to do.
"""

import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from difflib import get_close_matches
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from streams.encoding import BINARY, hoist_definitions, is_model, model_schema, sent_schema
from streams.event import Event

_ARRAYS = (list, set, frozenset, Sequence, Set)
_OBJECTS = (dict, Mapping)
_ITERATORS = (AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question for an error message, or nothing if no name is similar."""
    nearest = get_close_matches(name, names, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def inner_function(function: Any) -> Callable[..., Any]:
    """The function inside a partial or a callable object. A bound method stays what it is.

    Raises TypeError for a value that cannot be called.
    """
    function, _ = _without_partials(function)
    if isinstance(function, str):
        raise TypeError(f"give a source's name by keyword: @source(name={function!r})")
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{function!r} is not a function, so it cannot be a source")
    if not inspect.isroutine(function) and not hasattr(function, "__name__"):
        function = type(function).__call__
    inner: Callable[..., Any] = function
    return inner


def _without_partials(function: Any) -> tuple[Any, dict[str, Any]]:
    """What partials are made of, and the keyword arguments that they have bound."""
    bound: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        bound = {**function.keywords, **bound}
        function = function.func
    return function, bound


def name_of(function: Any) -> str:
    """The name of a function, or of a callable object's class."""
    function, _ = _without_partials(function)
    return str(getattr(function, "__name__", type(function).__name__))


def parameters_of(name: str, function: Any) -> list[tuple[inspect.Parameter, Any]]:
    """The parameters that a caller of source `name` gives, with their types (None: untyped).

    Arguments that a partial has bound are left out. The return annotation is not evaluated: it may
    need imports that only type checkers do.
    """
    code = _annotated(function)
    inner, bound = _without_partials(function)
    # In a partial's signature, all parameters after one that it has bound are keyword-only.
    kinds = {p.name: p.kind for p in inspect.signature(inner).parameters.values()}
    annotations = getattr(code, "__annotations__", {})
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in bound:
            continue
        type_ = None
        if parameter.name in annotations:
            try:
                type_ = _evaluated(code, parameter.name)
            except NameError as error:
                raise TypeError(
                    f"source {name!r}: the annotation of {parameter.name!r} cannot be evaluated: "
                    f"{error}; define it in the module, and not under `if TYPE_CHECKING`"
                ) from None
        _check_parameter(name, parameter, type_)
        parameters.append((parameter.replace(kind=kinds[parameter.name]), type_))
    return parameters


def _annotated(function: Any) -> Callable[..., Any]:
    """The function that has the annotations."""
    code: Callable[..., Any] = inspect.unwrap(inner_function(function))
    return code


def _evaluated(code: Callable[..., Any], name: str) -> Any:
    """One annotation of a function. Raises what its evaluation raises."""
    one = SimpleNamespace(__annotations__={name: code.__annotations__[name]})
    return get_type_hints(one, getattr(code, "__globals__", {}), include_extras=True)[name]


def _check_parameter(name: str, parameter: inspect.Parameter, type_: Any) -> None:
    metadata = get_args(type_)[1:] if get_origin(type_) is Annotated else ()
    for marker in (parameter.default, *metadata):
        kind = type(marker)
        if kind.__module__.partition(".")[0] == "fastapi":
            raise TypeError(
                f"source {name!r}: FastAPI does not call a source, so {kind.__name__}() of "
                f"{parameter.name!r} has no effect; use it in an endpoint, and give its value to "
                f"streams.response(request, {name}(…)); for bounds, use msgspec.Meta"
            )
    if type_ is None and parameter.name in ("self", "cls"):
        raise TypeError(f"source {name!r} is a method; give the bound method to source(…)")


def schema_of(name: str, types: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a source's parameters.

    Raises TypeError for one that cannot be published.
    """
    try:
        return _schema(name, types, defaults)
    except TypeError as error:
        for parameter, type_ in types.items():
            one = {parameter: defaults[parameter]} if parameter in defaults else {}
            try:
                _schema(name, {parameter: type_}, one)
            except TypeError as fault:
                reason = str(fault).splitlines()[-1]
                raise TypeError(
                    f"source {name!r}: {parameter!r} cannot be published as JSON Schema: {reason}; "
                    "use a type and a default that msgspec encodes, or a pydantic model"
                ) from None
        raise TypeError(f"source {name!r}: {error}") from None


def _schema(name: str, types: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    fields: list[Any] = []
    for parameter, type_ in types.items():
        if parameter not in defaults:
            fields.append((parameter, type_))
        elif is_model(defaults[parameter]):  # msgspec cannot publish it.
            fields.append((parameter, type_, msgspec.field(default_factory=object)))
        else:
            fields.append((parameter, type_, defaults[parameter]))
    struct = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
    _, definitions = msgspec.json.schema_components(
        (struct,), ref_template="#/$defs/{name}", schema_hook=model_schema
    )
    schema: dict[str, Any] = definitions.pop(name)
    for parameter, default in defaults.items():
        if is_model(default):
            schema["properties"][parameter]["default"] = default.model_dump(mode="json")
    definitions |= hoist_definitions([schema, *definitions.values()])
    if definitions:
        schema["$defs"] = definitions
    return schema


def events_schema_of(function: Any) -> dict[str, Any] | None:
    """The JSON Schema of the values that a source yields, from its return annotation.

    None if nothing is known: there is no annotation of an iterator; it can be evaluated only by
    type checkers; JSON Schema cannot represent its types; or an Event is among them, which may hold
    anything. Binary types are left out: their values are refused when a run yields them, not
    earlier, because the annotation is evaluated only when the schema is asked for.
    """
    try:
        yielded = _evaluated(_annotated(function), "return")
    except Exception:  # Whatever an annotation raises that nobody else evaluates.
        return None
    if get_origin(yielded) not in _ITERATORS or not get_args(yielded):
        return None
    types = _members(get_args(yielded)[0])
    if Any in types or Event in types:
        return None
    parts: list[tuple[Any, dict[str, Any]]] = []
    types = [type_ for type_ in types if not (isinstance(type_, type) and type_ in BINARY)]
    try:
        schema = _outline(types, parts)
        schemas, definitions = _sent_schemas([type_ for type_, _ in parts])
    except (RecursionError, KeyError):
        # A type contains itself, without a class between; or two classes have the same name.
        return None
    if not parts:
        return None
    for (_, part), found in zip(parts, schemas, strict=True):
        part.update(found)
    definitions |= hoist_definitions([schema, *definitions.values()])
    return {**schema, "$defs": definitions} if definitions else schema


def _sent_schemas(types: Sequence[Any]) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
    """The JSON Schemas of values that are sent, and the definitions to which they refer."""
    return msgspec.json.schema_components(
        types, ref_template="#/$defs/{name}", schema_hook=sent_schema
    )


def _outline(types: Sequence[Any], parts: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """The JSON Schema of a value of one of the types.

    msgspec refuses a union of several types that are JSON objects, alone and inside others. So
    types are split until it knows them: these become `parts`, with schemas that are still empty. Of
    a type that cannot be split, such as a class with such a field, only the title is published.
    """
    if len(types) != 1:
        return {"anyOf": [_outline([type_], parts) for type_ in types]}
    (type_,) = types
    schema: dict[str, Any] = {}
    try:
        _sent_schemas(types)
    except Exception:  # pydantic raises errors of several classes.
        origin, args = get_origin(type_), get_args(type_)
        if origin in _ARRAYS or (origin is tuple and args[1:] == (...,)):
            return {"type": "array", "items": _outline(_members(args[0]), parts)}
        if origin in _OBJECTS:
            return {"type": "object", "additionalProperties": _outline(_members(args[1]), parts)}
        return {"title": getattr(type_, "__name__", str(type_))}
    parts.append((type_, schema))
    return schema


def _members(type_: Any) -> list[Any]:
    """The types of a union; else the type itself."""
    type_ = getattr(type_, "__value__", type_)  # What a `type` statement makes.
    if get_origin(type_) is Annotated and len(members := _members(get_args(type_)[0])) > 1:
        return members
    if get_origin(type_) not in (Union, UnionType):
        return [type_]
    return [member for part in get_args(type_) for member in _members(part)]
