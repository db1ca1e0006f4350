"""Example values of JSON Schemas. jsonschema and pydantic say whether they fit."""

import asyncio
import re
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

import anyio.lowlevel
import pytest
from hypothesis import example as for_example
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openai.lib._pydantic import to_strict_json_schema
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, IPvAnyAddress, SecretStr

from streams.event import encode_json
from streams.sources.example import example
from streams.sources.patterns import LONGEST_PATTERN, matching
from streams.sources.pieces import TURN, Turns
from streams.sources.schema import (
    DEEPEST,
    LONGEST_REF,
    MOST_CHARACTERS,
    MOST_WORK,
    Budget,
    NoExample,
)


def example_of(schema: Any) -> Any:
    return asyncio.run(example(schema, Budget(Turns())))


def assert_fits(value: Any, schema: Any) -> None:
    Draft202012Validator(schema).validate(value)


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None


class Linked(BaseModel):
    value: int
    next: "Linked | None"


class Tree(BaseModel):
    name: str
    children: "list[Tree]"


class Formats(BaseModel):
    day: date
    moment: datetime
    hour: time
    span: timedelta
    id: UUID
    url: AnyUrl
    address: IPvAnyAddress
    secret: SecretStr
    price: Decimal = Field(gt=1, max_digits=5, decimal_places=2)


class Bounded(BaseModel):
    model_config = ConfigDict(extra="forbid")
    many: int = Field(gt=5, lt=10, multiple_of=3)
    share: float = Field(gt=0, lt=1)
    tiny: float = Field(ge=0.001, le=0.002)
    below: int = Field(lt=-3)
    short: str = Field(max_length=3)
    long: str = Field(min_length=200)
    code: str = Field(pattern=r"^[A-Z]{2}-\d{4}$")
    several: list[int] = Field(min_length=3, max_length=5)
    none: list[int] = Field(max_length=0)
    different: set[int] = Field(min_length=4)
    colors: set[Color] = Field(min_length=2)


class Nested(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")
    pets: list[Dog | Cat]
    pair: tuple[int, str]
    by_color: dict[Color, float]
    by_code: dict[str, list[dict[str, bool]]]
    anything: Any
    literal: Literal["x", 3, None]
    optional: str | None = None
    number: int = 4
    linked: Linked
    tree: Tree


MODELS = [Cat, Dog, Linked, Tree, Formats, Bounded, Nested]


@pytest.mark.parametrize("model", MODELS)
def test_an_example_is_a_valid_instance_of_a_pydantic_model(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    value = example_of(schema)
    assert_fits(value, schema)
    model.model_validate_json(encode_json(value))


@pytest.mark.parametrize("model", MODELS)
def test_an_example_fits_openais_strict_schema_of_a_pydantic_model(model: type[BaseModel]) -> None:
    schema = to_strict_json_schema(model)
    value = example_of(schema)
    assert_fits(value, schema)
    model.model_validate_json(encode_json(value))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (True, "text"),
        ({}, "text"),
        ({"const": None}, None),
        ({"enum": ["b", "a"]}, "b"),
        ({"enum": ["b", 3], "type": "integer"}, 3),
        ({"enum": [True, 1], "type": "integer"}, 1),
        ({"type": "string", "examples": ["Ulm"], "default": "Bonn"}, "Ulm"),
        ({"type": "string", "default": "Bonn"}, "Bonn"),
        ({"type": "string", "default": 5}, "text"),
        ({"type": "string", "minLength": 3, "examples": ["Ul"]}, "text"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}, 1),
        ({"type": ["null", "boolean"]}, True),
        ({"anyOf": [{"type": "null"}, {"type": "number"}]}, 1),
        ({"anyOf": [False, {"type": "string", "minLength": 9, "maxLength": 8}, {"const": 3}]}, 3),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "null"}]}, None),
        ({"allOf": [{"minimum": 3}, {"minimum": 5}, {"type": "integer"}]}, 5),
        ({"allOf": [{"type": "number"}, {"type": "integer"}, {"maximum": -2}]}, -2),
        ({"allOf": [{"enum": [1, 2]}, {"enum": [3, 2]}]}, 2),
        (
            {
                "allOf": [
                    {"properties": {"a": {"minLength": 6}}, "required": ["a"]},
                    {"properties": {"a": {"maxLength": 6}, "b": {"const": 1}}, "required": ["c"]},
                ]
            },
            {"a": "a a a.", "b": 1, "c": "c"},
        ),
        ({"properties": {"first_name": {"type": "string"}}}, {"first_name": "first name"}),
        ({"properties": {"a": False, "b": {"const": 1}}}, {"b": 1}),
        ({"required": ["a"], "additionalProperties": {"const": 1}}, {"a": 1}),
        ({"type": "object", "minProperties": 2}, {"key": "key", "1 key": "1 key"}),
        (
            {"properties": {"a": {}, "b": {}}, "required": ["b"], "maxProperties": 1},
            {"b": "b"},
        ),
        (
            {"properties": {"a": {}, "b": {}, "c": {}}, "required": ["a"], "maxProperties": 2},
            {"a": "a", "b": "b"},
        ),
        ({"patternProperties": {"^x-[0-9]$": {"const": 1}}, "minProperties": 1}, {"x-0": 1}),
        ({"propertyNames": {"enum": ["k"]}, "additionalProperties": {"const": 1}}, {"k": 1}),
        ({"prefixItems": [{"const": 1}, {"const": 2}], "items": False}, [1, 2]),
        ({"items": [{"const": 1}]}, [1]),
        ({"type": "array", "items": False}, []),
        ({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "uniqueItems": True}, [1, 2]),
        ({"type": "number", "multipleOf": 0.5, "exclusiveMinimum": 1}, 1.5),
        ({"type": "string", "pattern": "(?=unknown)", "minLength": 2}, "text"),
        ({"type": "string", "format": "unknown"}, "text"),
        ({"type": "string", "format": "date", "maxLength": 3}, "tex"),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, 1),
        ({"$ref": "#/allOf/0", "allOf": [{"const": 1}]}, 1),
        (
            {
                "properties": {"v": {"const": 1}, "next": {"anyOf": [{"$ref": "#"}, {"const": 0}]}},
                "required": ["v", "next"],
            },
            {"v": 1, "next": 0},
        ),
    ],
)
def test_an_example_says_what_the_schema_says(schema: Any, value: Any) -> None:
    assert example_of(schema) == value


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (False, "the schema `false` allows no value"),
        (5, "a schema is an object, not 5"),
        ({"type": "map"}, "type 'map' is none of JSON's"),
        ({"enum": []}, "none of the values in enum"),
        ({"const": 1, "type": "string"}, "none of the values in enum or const"),
        ({"$ref": "#"}, "'#' contains itself without an end"),
        ({"$ref": "#/$defs/x"}, "'#/$defs/x' leads to nothing"),
        ({"$ref": "https://example.com/"}, "leads to nothing"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "minLength 2 is more than maxLength"),
        ({"minLength": 10**400, "maxLength": 1, "type": "string"}, "… is more than the mock makes"),
        (
            {"additionalProperties": False, "minProperties": 1, "maxProperties": 10**400},
            "0 properties can be made, and it must have 1 to 1000",
        ),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems 2 is more than maxItems 1"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no number is within its bounds"),
        ({"items": {"type": "null"}, "minItems": 2, "uniqueItems": True}, "not enough different"),
        (
            {"minProperties": 1, "additionalProperties": False},
            "0 properties can be made",
        ),
        (
            {"properties": {"a": {"items": False, "minItems": 1}}, "required": ["a"]},
            "at ['a']['0']: the schema `false`",
        ),
        ({"minimum": 10**400, "multipleOf": 0.5}, "a number that is too large"),
    ],
)
def test_a_schema_without_an_example_is_refused_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(NoExample, match=re.escape(reason)):
        example_of(schema)


def keyword(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(st.just({}), values.map(lambda value: {name: value}))


def schema_with(type_: str, *keywords: st.SearchStrategy[dict[str, Any]]) -> Any:
    return st.tuples(*keywords).map(
        lambda given: {"type": type_} | {k: v for part in given for k, v in part.items()}
    )


SIZES, NUMBERS = st.integers(0, 4), st.integers(-9, 9)
LEAVES = st.one_of(
    st.sampled_from([True, {}, {"type": "null"}, {"type": "boolean"}, {"const": "c"}]),
    st.lists(st.sampled_from([0, 1, "a", None, [1]]), min_size=1).map(lambda e: {"enum": e}),
    schema_with("string", keyword("minLength", SIZES), keyword("maxLength", SIZES)),
    *(
        schema_with(
            kind,
            keyword("minimum", NUMBERS),
            keyword("maximum", NUMBERS),
            keyword("exclusiveMinimum", NUMBERS),
            keyword("exclusiveMaximum", NUMBERS),
            keyword("multipleOf", st.integers(1, 5)),
        )
        for kind in ("integer", "number")
    ),
)


def containers(parts: Any) -> Any:
    named = st.dictionaries(st.sampled_from("abc"), parts, max_size=3)
    return st.one_of(
        schema_with(
            "object",
            keyword("properties", named),
            keyword("required", st.lists(st.sampled_from("abcd"), unique=True)),
            keyword("additionalProperties", parts),
            keyword("minProperties", SIZES),
            keyword("maxProperties", SIZES),
        ),
        schema_with(
            "array",
            keyword("items", parts),
            keyword("prefixItems", st.lists(parts, min_size=1, max_size=2)),
            keyword("minItems", SIZES),
            keyword("maxItems", SIZES),
            keyword("uniqueItems", st.booleans()),
        ),
        keyword("anyOf", st.lists(parts, min_size=1, max_size=3)),
        keyword("allOf", st.lists(parts, min_size=1, max_size=3)),
        st.just({"oneOf": [{"type": "string", "minLength": 9}, {"type": ["string", "null"]}]}),
    )


@for_example({"allOf": [{"prefixItems": [{"enum": [0]}]}, {"prefixItems": [True, {"const": 1}]}]})
@for_example({"allOf": [{"const": "c"}, {"enum": [0]}]})
@for_example({"allOf": [{"const": 1}, {"const": 2}]})
@for_example(
    {
        "allOf": [
            {"type": "array", "items": {"type": "null"}},
            {"prefixItems": [True], "minItems": 1},
        ]
    }
)
@for_example({"allOf": [{"multipleOf": 2}, {"multipleOf": 3}], "type": "integer"})
@for_example({"enum": [0], "type": "string", "examples": ["a"], "default": "b"})
@for_example({"const": 0, "type": "string", "enum": [0, "a"], "default": "b"})
@given(st.recursive(LEAVES, containers, max_leaves=8))
def test_an_example_fits_its_schema_if_one_is_found(schema: Any) -> None:
    try:
        value = example_of(schema)
    except NoExample:
        return
    assert_fits(value, schema)


@given(LEAVES)
def test_the_simple_schemas_have_an_example_if_a_small_value_fits(schema: Any) -> None:
    small = [None, True, "", "a", "ab", "abc", "abcd", *range(-20, 21), 0.5, -0.5]
    if any(Draft202012Validator(schema).is_valid(value) for value in small):
        assert_fits(example_of(schema), schema)


KEYWORDS = [
    "$ref", "additionalProperties", "allOf", "anyOf", "const", "default", "enum", "examples",
    "exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength",
    "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf",
    "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames",
    "required", "type", "uniqueItems",
]  # fmt: skip
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [10**400, 1e308, 5e-324, "", "#", "object", "array", "string", "date", "^a{3}$"]
    ),
)


@given(
    st.recursive(
        ODD,
        lambda parts: st.one_of(
            st.lists(parts, max_size=3), st.dictionaries(st.sampled_from(KEYWORDS), parts)
        ),
        max_leaves=20,
    )
)
def test_any_json_as_a_schema_gives_an_example_or_a_reason(schema: Any) -> None:
    reason = "none"
    try:
        encode_json(example_of(schema))
    except NoExample as error:
        reason = str(error)
    assert 0 < len(reason) < 400


def doubling(levels: int) -> dict[str, Any]:
    """A schema whose example doubles with each level."""
    two = [{"$ref": f"#/$defs/{level + 1}"} for level in range(levels)]
    definitions = {
        str(n): {"prefixItems": [each, each], "minItems": 2} for n, each in enumerate(two)
    }
    return {"$ref": "#/$defs/0", "$defs": {**definitions, str(levels): {"const": "x" * 100}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}, "required": ["a"]}
    return schema


NOTHING = {"type": "integer", "minimum": 2, "maximum": 1}
HOSTILE = {
    "doubling": doubling(25),
    "alternatives that fail": {
        "$ref": "#/$defs/0",
        "$defs": {
            **{str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 3} for n in range(20)},
            "20": NOTHING,
        },
    },
    "deep": nested(400),
    "long": {"type": "string", "minLength": MOST_CHARACTERS + 1},
    "many": {"type": "array", "minItems": 10**9},
    "a long value many times": {
        "$defs": {"long": {"const": "x" * 10_000}},
        "type": "array",
        "minItems": 1000,
        "items": {"$ref": "#/$defs/long"},
    },
    "many enums": {"allOf": [{"enum": [*range(n, n + 5000)]} for n in range(0, 50, 2)]},
    "unique": {
        "type": "array",
        "uniqueItems": True,
        "minItems": 5000,
        "items": {"enum": [*range(5000)]},
    },
    "many keywords": {"allOf": [{f"x{n}": n for n in range(1000)}] * 100},
    "slow patterns": {
        "type": "array",
        "minItems": 10_000,
        "items": {"type": "string", "pattern": "(((((a{9}){9}){9}){9}){9}){9}"},
    },
    "many properties": {
        "properties": {f"p{n}": {} for n in range(MOST_WORK)},
        "required": ["p0"],
    },
    "many required names for each item": {
        "type": "array",
        "minItems": 900,
        "items": {"default": {"a": 1}, "required": ["a"] * 1500},
    },
    "many alternatives for each item": {
        "type": "array",
        "minItems": 1000,
        "items": {"anyOf": [{"type": "null"}] * 1500},
    },
    "a chain of references": {
        "$ref": "#/$defs/0",
        "$defs": {**{str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(9000)}, "9000": {}},
    },
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_schema_is_refused_after_bounded_work(name: str) -> None:
    budget, spent, longest = Budget(Turns()), 0, 0

    async def watch() -> None:
        nonlocal spent, longest
        while True:
            if budget.work <= MOST_WORK:  # What is more is not done.
                longest, spent = max(longest, budget.work - spent), budget.work
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with anyio.fail_after(50), pytest.raises(NoExample):
            await example(HOSTILE[name], budget)
        group.cancel_scope.cancel()
    assert longest <= 2 * TURN


class Counted(str):
    """A text that counts how often all such texts are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize("keyword", ["type", "enum"])
async def test_long_lists_that_apply_both_are_compared_step_by_step(keyword: str) -> None:
    Counted.compared = longest = 0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = Counted.compared
            await anyio.lowlevel.checkpoint()
            longest = max(longest, Counted.compared - before)

    one, other = ([Counted(kind)] * 900 for kind in ("integer", "string"))
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with pytest.raises(NoExample):
            await example({"allOf": [{keyword: one}, {keyword: other}]}, Budget(Turns()))
        group.cancel_scope.cancel()
    assert longest <= 2 * TURN


def test_merged_multiples_and_long_references_are_refused() -> None:
    multiples = {"allOf": [{"multipleOf": 2**62 + n} for n in (1, 3)]}
    with pytest.raises(NoExample, match="multipleOf of more than 9223372036854775808"):
        example_of(multiples)
    assert example_of({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}]}) == 12
    name = "a" * (LONGEST_REF - len("#/$defs/"))
    assert example_of({"$ref": f"#/$defs/{name}", "$defs": {name: {"const": 1}}}) == 1
    with pytest.raises(NoExample, match="leads to nothing"):
        example_of({"$ref": f"#/$defs/{name}b", "$defs": {f"{name}b": {"const": 1}}})


def test_a_large_schema_within_the_limits_has_an_example() -> None:
    schema = to_strict_json_schema(Nested)
    large = {
        "type": "object",
        "properties": {f"p{n}": schema for n in range(100)},
        "$defs": schema["$defs"],
    }
    value = example_of(large)
    assert_fits(value, large)
    assert len(value) == 100
    assert example_of(nested(DEEPEST))
    assert len(example_of({"type": "string", "minLength": MOST_CHARACTERS})) == MOST_CHARACTERS


PATTERNS = [
    r"^[A-Z]{2}-\d{4}$", r"^\+?[1-9]\d{1,14}$", r"^#[0-9a-f]{6}$", r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
    r"^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}$", "a|b", "(?:ab){2,3}?", r"(?P<x>a)\1", "a{3}+", "(?>ab)",
    r"\d\D\w\W\s\S", "[^a-z]+", "[^-a-z_0]", "[\\s\\S]*", "(a+)+$", "^$", "a.b", "[^x]", "[^\\d]",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_text_matches_its_pattern(pattern: str) -> None:
    text = matching(pattern, 0, 100)
    assert text is not None
    assert re.search(pattern, text)


def test_a_repetition_makes_the_text_as_long_as_it_must_be() -> None:
    for pattern in ("^[a-z]+$", "^[a-z]*[0-9]*$", "^x.*y$"):
        text = matching(pattern, 50, 60)
        assert text is not None
        assert 50 <= len(text) <= 60
        assert re.search(pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a", r"\p{L}", "a{5}", "a{1000000000}", "(a)?(?(1)b|c)", "((((a{99}){99}){99}){99})",
        "a" * (LONGEST_PATTERN + 1), "(" * 500 + "a" + ")" * 500, "[^\\s\\S]", "(?:){4000000000}",
        "(a)" + "".join(rf"(\{n}\{n})" for n in range(1, 40)),
    ],
)  # fmt: skip
def test_for_a_pattern_that_is_unknown_or_long_no_text_is_found(pattern: str) -> None:
    assert matching(pattern, 0, 4) is None
    assert matching("a", LONGEST_PATTERN + 1, 10**6) is None


def test_a_long_class_is_searched_once_however_often_it_is_repeated() -> None:
    others = "".join(map(chr, range(0x4E00, 0x4E00 + 900)))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        text = matching(f"[^a{others}]{{200}}", 0, 1000)
    finally:
        sys.setprofile(None)
    assert text == "A" * 200
    assert calls < 50_000


@given(st.text("ab0[](){}|*+?^$.\\,-dwsDWS12", max_size=12))
def test_any_text_as_a_pattern_gives_a_text_or_nothing(pattern: str) -> None:
    text = matching(pattern, 1, 20)
    assert text is None or 1 <= len(text) <= 20
