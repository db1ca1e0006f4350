"""Arguments: what a client gives for the parameters of a source, checked against their types.

Invariants:

1. All faults are reported at once, at most MAX_FAULTS of them one by one.
2. Whatever a client sends, it is checked in one pass, and the answer is short.
"""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

import msgspec
from starlette.datastructures import QueryParams

from streams.encoding import MAX_FAULTS, decode_json, decode_json_object, decode_model
from streams.errors import (
    InvalidBody,
    InvalidParameters,
    abbreviated,
    shortened,
    without_long_quotes,
)

MAX_PARAMETERS = 100
"""A query has at most this many parameters, and the JSON object of a POST this many members."""

MAX_EXACT = 2**53
"""A larger number with a point or an exponent may be another one than the client wrote."""

CONTAINERS = (list, tuple, set, frozenset)


def check_query(query: bytes) -> None:
    """Raises InvalidParameters for a query with too many parameters, before it is parsed.

    A parser spends time on each separator, even if there is nothing between two of them.
    """
    if (separators := query.count(b"&")) >= MAX_PARAMETERS:
        raise InvalidParameters(
            f"the query has {separators + 1} parameters; give at most {MAX_PARAMETERS}"
        )


def items_of(query: QueryParams) -> list[tuple[str, str]]:
    """The names and values in a query. Raises InvalidParameters if there are too many."""
    items = query.multi_items()
    if len(items) > MAX_PARAMETERS:
        raise InvalidParameters(
            f"the query has {len(items)} parameters; give at most {MAX_PARAMETERS}"
        )
    return items


def decode_value(body: bytes) -> Any:
    """The value that a client sent as JSON. Raises InvalidBody."""
    return _decoded(body, decode_json, "JSON")


def _decoded(body: bytes, decode: Callable[[bytes], Any], kind: str) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidBody(f"the body must be {kind}: {without_long_quotes(str(error))}") from None


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a client sent; an empty body is an empty one. Raises InvalidBody."""
    given: dict[str, Any] = _decoded(body or b"{}", decode_json_object, "a JSON object")
    if len(given) > MAX_PARAMETERS:
        raise InvalidBody(f"the body has {len(given)} members; give at most {MAX_PARAMETERS}")
    return given


def converted(
    given: Mapping[str, Any], types: Mapping[str, Any], required: Iterable[str], *, strict: bool
) -> dict[str, Any]:
    """The given values as the declared types. Raises InvalidParameters with all faults."""
    arguments = {}
    faults = {name: "is required" for name in required if name not in given}
    for name, value in given.items():
        if name not in types:
            known = ", ".join(types) or "none"
            faults[name] = f"is not a parameter of this source; its parameters: {known}"
            continue
        try:
            argument = _converted(value, types[name], strict=strict)
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
            text = without_long_quotes(str(error)) or "is invalid"
            faults[name] = f"{text[:1].lower()}{text[1:]}, given {abbreviated(value)}"
        else:
            arguments[name] = argument
            if not strict and not _is_finite(argument):
                faults[name] = f"is not a finite number, given {abbreviated(value)}"
    if faults:
        raise _invalid(faults)
    return arguments


def _converted(value: Any, type_: Any, *, strict: bool) -> Any:
    """A value as the declared type. 5.0 is an integer, also inside lists and objects.

    JSON Schema, Validation (draft 2020-12), section 6.1.1. Raises what msgspec raises.
    """
    try:
        return msgspec.convert(value, type_, strict=strict, dec_hook=decode_model)
    except msgspec.ValidationError as error:
        if not strict or "got `float`" not in str(error):
            raise
        fault = error
    try:
        return msgspec.convert(_with_integers(value), type_, dec_hook=decode_model)
    except msgspec.ValidationError:
        raise fault from None


def _with_integers(value: Any) -> Any:
    """A JSON value with an integer for each number that has no fraction, and is exact."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= MAX_EXACT else value
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_integers(item) for name, item in value.items()}
    return value


def _is_finite(argument: Any) -> bool:
    """Whether a value from a query is not NaN or an infinity, which JSON does not have either."""
    if isinstance(argument, float):
        return isfinite(argument)
    return not isinstance(argument, CONTAINERS) or all(map(_is_finite, argument))


def _invalid(faults: Mapping[str, str]) -> InvalidParameters:
    errors = [{"name": shortened(name), "detail": faults[name]} for name in [*faults][:MAX_FAULTS]]
    details = [f"{error['name']}: {error['detail']}" for error in errors]
    if more := len(faults) - len(errors):
        details.append(f"and {more} more")
    return InvalidParameters("; ".join(details), errors=errors)
