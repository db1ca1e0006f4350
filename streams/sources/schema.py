"""JSON Schema (draft 2020-12), read with distrust: references, merged schemas, and what fits.

A keyword with a value of a wrong type is ignored, and so are `not`, `if`, `contains`, `pattern` and
the `dependent…` keywords. A `$ref` leads to a place in the same schema.

Invariant: work is bounded, and the event loop gets its turns, whatever the schema is.
"""

from math import lcm
from typing import Any
from urllib.parse import unquote

from streams.errors import abbreviated
from streams.sources.pieces import Turns

MOST_WORK = 50_000
"""Schemas, properties and checks until the schema is refused."""

MOST_CHARACTERS = 100_000
DEEPEST = 32
LONGEST_REF = 1000

LARGEST_STEP = 2**63
"""The largest `multipleOf`: that of a schema merged from many would have a million digits."""

STEP = 20
"""Turns count code points; one step here takes as long as about so many of them."""

LEAST = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
MOST = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
INFERRED = {
    "object": {"properties", "required", "additionalProperties", "minProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": float,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}

Refs = frozenset[str]


class NoExample(Exception):
    """The schema allows no value, or none that can be found. `path` leads to the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []

    def __str__(self) -> str:
        path = "".join(f"[{abbreviated(key)}]" for key in self.path[:8])
        return f"at {path}: {self.reason}" if path else self.reason


class TooLarge(Exception):
    """The example is too much work or too long, whatever alternative is taken."""


class Budget:
    """Limits the work for schemas and the length of examples, all those of one answer together."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.work = 0
        self._characters = 0

    @property
    def is_low(self) -> bool:
        return self.work > MOST_WORK // 2

    async def spend(self, work: int = 1) -> None:
        self.work += work
        if self.work > MOST_WORK:
            raise TooLarge("the schema is too large, or has too many alternatives")
        await self._turns.after(work * STEP)

    def count(self, characters: int) -> None:
        self._characters += characters
        if self._characters > MOST_CHARACTERS:
            raise TooLarge(f"an example is longer than {MOST_CHARACTERS:,} characters")


class SchemaReader:
    """Follows references, merges schemas and checks values, within a budget.

    `takes_any_of_one`: `oneOf` is read as `anyOf`, because a keyword that is not checked, such as
    `pattern`, may exclude the other alternatives.
    """

    def __init__(self, root: Any, budget: Budget) -> None:
        self.budget = budget
        self.takes_any_of_one = False
        self._root = root

    async def flat(self, schema: Any, refs: Refs) -> tuple[dict[str, Any], Refs]:
        """A schema with those merged into it that its $ref and allOf lead to."""
        todo, flat = [schema], dict[str, Any]()
        while todo:
            part = todo.pop()
            if part is False:
                raise NoExample("the schema `false` allows no value")
            if part is True:
                part = {}
            if not isinstance(part, dict):
                raise NoExample(f"a schema is an object, not {abbreviated(part)}")
            await self.budget.spend(1 + len(part) + len(refs) // STEP)
            if isinstance(ref := part.get("$ref"), str):
                if ref in refs:
                    raise NoExample(f"{abbreviated(ref)} contains itself without an end")
                refs |= {ref}
                todo.append(self._target(ref))
            todo.extend(reversed(keyword_list(part, "allOf") or ()))
            for key, value in part.items():
                if key in ("$ref", "allOf", "$defs", "definitions"):
                    continue
                flat[key] = await self._merged(key, flat[key], value) if key in flat else value
        return flat, refs

    async def _merged(self, keyword: str, one: Any, other: Any) -> Any:
        """The value of a keyword that two schemas have which both apply."""
        if keyword != "enum" or not isinstance(one, list) or not isinstance(other, list):
            sizes = [len(each) if isinstance(each, dict | list) else 1 for each in (one, other)]
            await self.budget.spend(sum(sizes))
            return merged(keyword, one, other)
        common = []
        for value in one:
            await self.budget.spend(1 + len(other) // STEP)
            if any(same(value, each) for each in other):
                common.append(value)
        return common

    def _target(self, ref: str) -> Any:
        """What a reference leads to: `#`, or a JSON pointer in a fragment (RFC 6901, section 6)."""
        place: Any = self._root
        marker, *keys = ref[: LONGEST_REF + 1].split("/", DEEPEST)
        try:
            if marker != "#" or len(ref) > LONGEST_REF:
                raise KeyError
            for key in keys:
                key = unquote(key).replace("~1", "/").replace("~0", "~")
                place = place[int(key) if isinstance(place, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise NoExample(f"$ref {abbreviated(ref)} leads to nothing in the schema") from None
        return place

    async def fits(self, value: Any, schema: Any, depth: int) -> bool:
        """Whether a value fits a schema, as far as its keywords are known here."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or depth > DEEPEST:
            return False
        enum = keyword_list(schema, "enum")
        await self.budget.spend(1 + len(enum or ()))
        if enum is not None and not any(same(value, each) for each in enum):
            return False
        if "const" in schema and not same(value, schema["const"]):
            return False
        if isinstance(ref := schema.get("$ref"), str) and not await self.fits(
            value, self._target(ref), depth + 1
        ):
            return False
        for keyword in ("allOf", "anyOf", "oneOf"):
            if each := keyword_list(schema, keyword):
                fitting = 0
                for alternative in each:
                    fitting += await self.fits(value, alternative, depth + 1)
                one = fitting == 1 or (self.takes_any_of_one and fitting > 0)
                needed = {"allOf": fitting == len(each), "oneOf": one}
                if not needed.get(keyword, fitting > 0):
                    return False
        if "type" in schema and not any(is_of_type(value, kind) for kind in types_of(schema)):
            return False
        if isinstance(value, dict | list):
            return await self._parts_fit(value, schema, depth)
        if isinstance(value, str):
            return fits_size(len(value), schema, "Length")
        return not is_number(value) or in_bounds(value, schema)

    async def _parts_fit(self, value: Any, schema: dict[str, Any], depth: int) -> bool:
        if isinstance(value, list):
            prefix = keyword_list(schema, "prefixItems") or keyword_list(schema, "items") or []
            further = schema.get("items", True)
            further = True if isinstance(further, list) else further
            parts = [
                (item, prefix[index] if index < len(prefix) else further)
                for index, item in enumerate(value)
            ]
            size = "Items"
        else:
            properties = keyword_dict(schema, "properties")
            further = True if "patternProperties" in schema else additional(schema)
            required = keyword_list(schema, "required") or ()
            await self.budget.spend(len(required))
            if any(isinstance(key, str) and key not in value for key in required):
                return False
            parts = [(value[key], properties.get(key, further)) for key in value]
            size = "Properties"
        await self.budget.spend(len(parts))
        for part, each in parts:
            if each is not True and not await self.fits(part, each, depth + 1):
                return False
        return fits_size(len(parts), schema, size)


def keyword_list(schema: dict[str, Any], keyword: str) -> list[Any] | None:
    value = schema.get(keyword)
    return value if isinstance(value, list) else None


def keyword_dict(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def additional(schema: dict[str, Any]) -> dict[str, Any] | bool:
    """The schema of properties that `properties` does not name."""
    value = schema.get("additionalProperties")
    return value if isinstance(value, dict | bool) else True


def keyword_size(schema: dict[str, Any], keyword: str) -> int | None:
    value: Any = schema.get(keyword)
    return int(value) if is_number(value) and value >= 0 else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def types_of(schema: dict[str, Any]) -> list[str]:
    """The types that a schema allows, null last. Without `type`, the one that it is about."""
    given = schema.get("type")
    if isinstance(given, str):
        return [given] if given in TYPES else []
    if isinstance(given, list):  # It names each type once.
        known = [kind for kind in given[: len(TYPES)] if isinstance(kind, str) and kind in TYPES]
        return sorted(known, key="null".__eq__)
    inferred = [kind for kind, keywords in INFERRED.items() if keywords & schema.keys()]
    return inferred[:1] or ["string"]


def is_of_type(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        return is_number(value) and (kind == "number" or float(value).is_integer())
    return isinstance(value, TYPES[kind])


def same(one: Any, other: Any) -> bool:
    """Equality in JSON, where true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def in_bounds(value: int | float, schema: dict[str, Any]) -> bool:
    """Whether a number is what `minimum`, `multipleOf` and their like allow."""
    bounds = {key: schema[key] for key in NUMERIC if is_number(schema.get(key))}
    step = bounds.get("multipleOf", 0)
    return bool(
        value >= bounds.get("minimum", value)
        and value <= bounds.get("maximum", value)
        and ("exclusiveMinimum" not in bounds or value > bounds["exclusiveMinimum"])
        and ("exclusiveMaximum" not in bounds or value < bounds["exclusiveMaximum"])
        and (step <= 0 or (value / step).is_integer())
    )


def fits_size(size: int, schema: dict[str, Any], what: str) -> bool:
    least, most = keyword_size(schema, f"min{what}"), keyword_size(schema, f"max{what}")
    return (least is None or size >= least) and (most is None or size <= most)


def merged(keyword: str, one: Any, other: Any) -> Any:
    """The value of a keyword that two schemas have which both apply."""
    if keyword in LEAST | MOST and is_number(one) and is_number(other):
        return max(one, other) if keyword in LEAST else min(one, other)
    match keyword, one, other:
        case (("properties" | "patternProperties"), dict(), dict()):
            both = {key: {"allOf": [one[key], other[key]]} for key in one.keys() & other.keys()}
            return {**one, **other, **both}
        case "prefixItems", list(), list():
            pairs = [{"allOf": [*pair]} for pair in zip(one, other, strict=False)]
            return [*pairs, *one[len(other) :], *other[len(one) :]]
        case "required", list(), list():
            return [*one, *other]
        case "const", _, _ if not same(one, other):
            raise NoExample("it has two values of const, and both apply")
        case "multipleOf", int(), int() if one > 0 and other > 0:
            if (step := lcm(one, other)) > LARGEST_STEP:
                raise NoExample(f"it has a multipleOf of more than {LARGEST_STEP}")
            return step
        case (("anyOf" | "oneOf"), list(), list()):
            return [{"allOf": [each, {keyword: other}]} for each in one]
        case (("items" | "additionalProperties" | "propertyNames"), (dict() | bool()), _):
            return {"allOf": [one, other]}
        case "type", _, _:
            known, others = types_of({"type": one}), types_of({"type": other})
            whole = ["integer"] if {"integer", "number"} <= {*known, *others} else []
            return [kind for kind in known if kind in others] or whole
    return other
