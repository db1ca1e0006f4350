"""An example value of a JSON Schema, like the output of a model with structured output.

It says what the schema suggests: the first value of `enum`, an example, the default. `pattern` is
met as far as patterns.py can. Nothing else that schema.py ignores is met on purpose.

Invariants:

1. The schema alone determines the example.
2. A recursive schema gets the smallest example: no `$ref` is followed inside itself.
3. Work and size are bounded, and the event loop gets its turns, whatever the schema is.
"""

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from streams.errors import abbreviated
from streams.sources.patterns import MOST_STEPS, matching
from streams.sources.schema import (
    DEEPEST,
    MOST_CHARACTERS,
    STEP,
    Budget,
    NoExample,
    Refs,
    SchemaReader,
    TooLarge,
    additional,
    fits_size,
    in_bounds,
    is_number,
    keyword_dict,
    keyword_list,
    keyword_size,
    types_of,
)

LEAN = 8
"""Depth from which optional properties are left out."""

FORMATS = {
    "byte": "dGV4dA==",
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "PT1H",
    "email": "ann@example.com",
    "hostname": "example.com",
    "idn-email": "ann@example.com",
    "ipv4": "192.0.2.1",
    "ipvanyaddress": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "iri": "https://example.com/",
    "json-pointer": "/a",
    "json-string": "{}",
    "regex": "a",
    "time": "12:00:00Z",
    "uri": "https://example.com/",
    "uri-reference": "/a",
    "url": "https://example.com/",
    "uuid": "3b241101-e2bb-4255-8caf-4136c566a962",
    "uuid4": "3b241101-e2bb-4255-8caf-4136c566a962",
}


async def example(schema: Any, budget: Budget) -> Any:
    """A value that fits the schema. Raises NoExample."""
    maker = _Maker(schema, budget)
    try:
        value = await maker.value(schema, "text", frozenset("#"), 0)
        maker.takes_any_of_one = True
        if not await maker.fits(value, schema, 0):  # A merged schema may say less than its parts.
            raise NoExample("the parts of an allOf exclude the value that was made for them")
    except TooLarge as error:
        raise NoExample(str(error)) from None
    except OverflowError:
        raise NoExample("it has a number that is too large") from None
    except RecursionError:
        raise NoExample("it is nested too deep") from None
    return value


class _Maker(SchemaReader):
    def __init__(self, root: Any, budget: Budget) -> None:
        super().__init__(root, budget)
        self._nth = 0  # Makes the items of an array differ if they must.

    async def value(self, schema: Any, name: str, refs: Refs, depth: int) -> Any:
        """A value for a schema; `name` is what a text says if it may say anything."""
        flat, refs = await self.flat(schema, refs)
        if depth > DEEPEST:
            raise NoExample(f"it is nested deeper than {DEEPEST} levels")
        rest = {key: flat[key] for key in flat.keys() - {"const", "enum", "examples", "default"}}
        more = {"enum": flat["enum"]} if "const" in flat and "enum" in flat else {}
        for given in _given(flat, self._nth):
            if await self.fits(given, rest | more, 0):
                is_text = isinstance(given, str)
                self.budget.count(len(given if is_text else msgspec.json.encode(given)))
                return given
        if "const" in flat or keyword_list(flat, "enum") is not None:
            raise NoExample("none of the values in enum or const fits the rest of the schema")
        for keyword in ("oneOf", "anyOf"):
            if keyword_list(flat, keyword):
                return await self._alternative(rest, keyword, name, refs, depth)
        reason = NoExample(f"type {abbreviated(flat.get('type'))} is none of JSON's")
        for kind in types_of(flat):
            try:
                return await self._of_type(kind, rest, name, refs, depth)
            except NoExample as error:
                reason = error
        raise reason

    async def _alternative(
        self, schema: dict[str, Any], keyword: str, name: str, refs: Refs, depth: int
    ) -> Any:
        """A value for the first alternative that allows one; null comes last."""
        alternatives = schema[keyword]
        await self.budget.spend(len(alternatives))
        rest = {key: value for key, value in schema.items() if key != keyword}
        found: list[Any] = []
        reason = NoExample("")
        for each in sorted(alternatives, key=_is_null):
            try:
                value = await self.value({"allOf": [each, rest]}, name, refs, depth + 1)
            except NoExample as error:
                reason = error
                continue
            if keyword == "anyOf" or await self.fits(value, schema, 0):
                return value
            found.append(value)
        if not found:
            raise reason
        return found[0]  # What is not checked, such as a pattern, may exclude the others.

    async def _of_type(
        self, kind: str, schema: dict[str, Any], name: str, refs: Refs, depth: int
    ) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                return self._nth % 2 == 0
            case "integer" | "number":
                found = _number(schema, self._nth, whole=kind == "integer")
                if found is None:
                    raise NoExample("no number is within its bounds")
                self.budget.count(1)
                return found
            case "string":
                return await self._text(schema, name)
            case "array":
                return await self._array(schema, name, refs, depth)
            case _:
                return await self._object(schema, refs, depth)

    async def _text(self, schema: dict[str, Any], name: str) -> str:
        shortest = keyword_size(schema, "minLength") or 0
        longest = keyword_size(schema, "maxLength")
        _check_least("minLength", shortest)
        if longest is not None and longest < shortest:
            raise NoExample(f"minLength {shortest} is more than maxLength {longest}")
        longest = MOST_CHARACTERS if longest is None else longest
        if isinstance(pattern := schema.get("pattern"), str):
            await self.budget.spend(MOST_STEPS // 5)
            if (text := matching(pattern, shortest, longest)) is not None:
                return text
        text = FORMATS.get(str(schema.get("format")), "")
        if text and shortest <= len(text) <= longest:
            return text
        text = name[:80].replace("_", " ") or "text"
        if self._nth:
            text = f"{self._nth} {text}"
        if len(text) < shortest:
            text = (f"{text} " * shortest)[: shortest - 1] + "."
        self.budget.count(len(text))
        return text[:longest]

    async def _array(self, schema: dict[str, Any], name: str, refs: Refs, depth: int) -> list[Any]:
        prefix = keyword_list(schema, "prefixItems") or keyword_list(schema, "items") or []
        further = schema.get("items", not prefix)
        further = further if isinstance(further, dict | bool) else True
        least, most = keyword_size(schema, "minItems") or 0, keyword_size(schema, "maxItems")
        _check_least("minItems", least)
        wanted = max(least, len(prefix), 1 if isinstance(further, dict) else 0)
        wanted = wanted if most is None else min(wanted, most)
        if wanted < least:
            raise NoExample(f"minItems {least} is more than maxItems {most}")
        outer, items = self._nth, list[Any]()
        for index in range(wanted):
            self._nth = index if schema.get("uniqueItems") is True else outer
            part = prefix[index] if index < len(prefix) else further
            try:
                item = await self.value(part, name, refs, depth + 1)
                if self._nth and schema.get("uniqueItems") is True and item in items:
                    raise NoExample("not enough different items are found")
            except NoExample as error:
                if index >= least:
                    break
                error.path.insert(0, str(index))
                raise
            finally:
                self._nth = outer
            items.append(item)
            await self.budget.spend(
                1 + (len(items) if schema.get("uniqueItems") is True else 0) // STEP
            )
        return items

    async def _object(self, schema: dict[str, Any], refs: Refs, depth: int) -> dict[str, Any]:
        properties = keyword_dict(schema, "properties")
        names = keyword_list(schema, "required") or ()
        await self.budget.spend(len(properties))
        required = dict[str, None]()
        for name in names:
            await self.budget.spend()
            if isinstance(name, str):
                required[name] = None
        further = additional(schema)
        least = keyword_size(schema, "minProperties") or 0
        most = keyword_size(schema, "maxProperties")
        _check_least("minProperties", least)
        made, missing = dict[str, Any](), len(required)
        for key in {**properties, **required}:
            is_full = most is not None and len(made) + missing >= most
            is_lean = depth >= LEAN or self.budget.is_low
            if key not in required and (is_full or is_lean) and len(made) >= least:
                continue
            try:
                made[key] = await self.value(properties.get(key, further), key, refs, depth + 1)
            except NoExample as error:
                if key in required:
                    error.path.insert(0, key)
                    raise
            else:
                missing -= key in required
                self.budget.count(len(key))
        wanted = max(least, 1 if not properties and isinstance(further, dict) else 0)
        wanted = wanted if most is None else min(wanted, most)
        await self._fill(made, schema, wanted, refs, depth)
        if not fits_size(len(made), schema, "Properties"):
            sizes = f"{least} to {'any number' if most is None else abbreviated(most)}"
            raise NoExample(f"{len(made)} properties can be made, and it must have {sizes}")
        return made

    async def _fill(
        self,
        made: dict[str, Any],
        schema: dict[str, Any],
        wanted: int,
        refs: Refs,
        depth: int,
    ) -> None:
        """Adds properties of any name until there are as many as wanted."""
        patterns = keyword_dict(schema, "patternProperties")
        names = schema.get("propertyNames", {"pattern": next(iter(patterns))} if patterns else {})
        further = next(iter(patterns.values()), additional(schema))
        outer = self._nth
        try:
            for _ in range(wanted - len(made)):
                self._nth = len(made)
                key = await self.value(
                    {"allOf": [names, {"type": "string"}]}, "key", refs, depth + 1
                )
                self._nth = outer
                if key in made:
                    break
                made[key] = await self.value(further, key, refs, depth + 1)
        except NoExample:
            pass  # Fewer properties may do.
        finally:
            self._nth = outer


def _given(schema: dict[str, Any], nth: int) -> Iterator[Any]:
    """The values that a schema names, the one to take first. `const` and `enum` allow no others."""
    if "const" in schema:
        yield schema["const"]
        return
    for keyword in ("enum", "examples"):
        values = keyword_list(schema, keyword) or []
        for index in range(len(values)):
            yield values[(index + nth) % len(values)]
        if keyword_list(schema, "enum") is not None:
            return
    if schema.get("default") is not None:
        yield schema["default"]


def _check_least(keyword: str, least: int) -> None:
    if least > MOST_CHARACTERS:
        raise NoExample(
            f"{keyword} {abbreviated(least)} is more than the mock makes, {MOST_CHARACTERS}"
        )


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _number(schema: dict[str, Any], nth: int, *, whole: bool) -> int | float | None:
    """A number within the bounds of a schema: the `nth` from 1, or else one near a bound."""
    step: Any = schema.get("multipleOf")
    step = step if is_number(step) and step > 0 else 1
    ends = [
        schema[key]
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if is_number(schema.get(key))
    ]
    near = [1, *([sum(ends) / len(ends)] if ends else []), *ends]
    for more in (nth, nth + 1, -nth, -nth - 1):
        for about in near:
            candidates = [(math.ceil(about / step) + more) * step]
            if "multipleOf" not in schema and not whole:
                candidates = [about + more, about + more / 1000]
            for value in candidates:
                value = int(value) if float(value).is_integer() else value
                if in_bounds(value, schema) and (not whole or isinstance(value, int)):
                    return value
    return None
