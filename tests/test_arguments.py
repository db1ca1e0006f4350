"""arguments.py: how much a client can give, and how little of it an answer repeats."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
import pytest
from msgspec import Meta
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import QueryParams

from streams import Streams, source, topic
from streams.arguments import MAX_PARAMETERS, converted
from streams.encoding import MAX_FAULTS
from streams.errors import InvalidBody, InvalidParameters
from streams.sources import counter, tokens
from tests.support.servers import client_of
from tests.test_asgi import problem

LONG = "x" * 5000
JSON = {"Content-Type": "application/json"}


@source
async def anything(
    value: Any = None, numbers: Sequence[float] = (), number: float = 0
) -> AsyncIterator[Any]:
    """Takes what comes."""
    yield value


class Nested(msgspec.Struct):
    inner: "Nested | None" = None


def test_a_value_that_cannot_be_converted_is_a_fault_of_its_parameter() -> None:
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"inner": deep}
    for value, type_ in (("\ud800", int), (deep, Nested)):
        with pytest.raises(InvalidParameters) as raised:
            converted({"value": value}, {"value": type_}, [], strict=type_ is Nested)
        assert re.match("value: [^A-Z]", str(raised.value))
        assert len(str(raised.value)) < 300


class Picky(msgspec.Struct):
    def __post_init__(self) -> None:
        raise ValueError


def test_a_fault_without_words_is_called_invalid() -> None:
    with pytest.raises(InvalidParameters, match=r"^value: is invalid, given {}$"):
        converted({"value": {}}, {"value": Picky}, [], strict=True)


async def test_json_that_opens_a_thousand_arrays_and_closes_none_is_a_422() -> None:
    async with client_of(Streams([anything])) as client:
        answer = await client.post(
            "/streams/anything", content=b'{"value":' + b"[" * 5000, headers=JSON
        )
    assert "the body must be a JSON object: " in problem(answer, 422)


@pytest.mark.parametrize("type_", [list[float], set[float], frozenset[float], tuple[float, ...]])
def test_each_number_of_a_list_in_a_query_is_finite(type_: Any) -> None:
    def given(*numbers: str) -> Any:
        return converted({"value": list(numbers)}, {"value": type_}, [], strict=False)["value"]

    assert list(given("1", "2")) == [1, 2]
    with pytest.raises(InvalidParameters, match="value: is not a finite number"):
        given("1", "inf")


async def test_an_empty_body_gives_no_arguments() -> None:
    async with client_of(Streams([anything])) as client:
        answer = await client.post("/streams/anything", headers=JSON)
    assert "data: null" in answer.text


def test_a_query_has_at_most_100_parameters() -> None:
    def query(count: int) -> QueryParams:
        return QueryParams([("value", "1")] * count)

    assert len(anything.from_query(query(MAX_PARAMETERS))["value"]) == MAX_PARAMETERS
    with pytest.raises(InvalidParameters, match="the query has 101 parameters; give at most 100"):
        anything.from_query(query(MAX_PARAMETERS + 1))
    with pytest.raises(InvalidParameters, match="the query has 101 parameters; give at most 100"):
        anything.check_query_of_post(query(MAX_PARAMETERS + 1))


@pytest.mark.parametrize("path", ["/streams/anything", "/runs", "/openapi.json", "/x"])
async def test_empty_parameters_count_and_are_not_parsed(path: str) -> None:
    async with client_of(Streams([anything])) as client:
        few = await client.get(f"{path}?{'&' * (MAX_PARAMETERS - 1)}")
        many = await client.get(f"{path}?{'&' * MAX_PARAMETERS}")
    assert few.status_code != 422
    assert "the query has 101 parameters; give at most 100" in problem(many, 422)


def test_a_body_has_at_most_100_members() -> None:
    def body(count: int) -> bytes:
        return json.dumps({f"name{n}": n for n in range(count)}).encode()

    with pytest.raises(InvalidParameters, match="name0: is not a parameter"):
        anything.from_json(body(MAX_PARAMETERS))
    with pytest.raises(InvalidBody, match="the body has 101 members; give at most 100"):
        anything.from_json(body(MAX_PARAMETERS + 1))


def test_the_first_20_faults_are_reported_and_the_rest_is_counted() -> None:
    def query(count: int) -> QueryParams:
        return QueryParams([(f"name{n}", "1") for n in range(count)])

    for count in (MAX_FAULTS, MAX_FAULTS + 1, MAX_PARAMETERS):
        with pytest.raises(InvalidParameters) as raised:
            anything.from_query(query(count))
        assert len(raised.value.members["errors"]) == MAX_FAULTS
        more = count - MAX_FAULTS
        assert str(raised.value).endswith(f"; and {more} more") == bool(more)


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", "-inf", "Infinity", "1e400", "9" * 5000])
def test_a_number_in_a_query_is_finite(number: str) -> None:
    for name in ("number", "numbers"):
        with pytest.raises(InvalidParameters, match=f"{name}: .*, given ") as raised:
            anything.from_query(QueryParams([(name, number)]))
        assert len(str(raised.value)) < 200


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e400", b"9" * 5000, b'"nan"'])
def test_a_number_in_json_is_finite(number: bytes) -> None:
    with pytest.raises((InvalidBody, InvalidParameters)) as raised:
        anything.from_json(b'{"number":%b}' % number)
    assert len(str(raised.value)) < 200


class Point(msgspec.Struct):
    x: int
    label: Any = None


@source
async def integers(
    one: Annotated[int, Meta(ge=0)] = 0,
    choice: Literal[1, 2] = 1,
    many: Sequence[int] = (),
    point: Point | None = None,
    flag: bool = False,
    text: str = "",
) -> AsyncIterator[Any]:
    """Takes integers, alone and inside other values."""
    yield one


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        (b'{"one":5.0}', {"one": 5}),
        (b'{"one":5e0}', {"one": 5}),
        (b'{"one":-0.0}', {"one": 0}),
        (b'{"one":9007199254740992.0}', {"one": 2**53}),
        (b'{"choice":2.0}', {"choice": 2}),
        (b'{"many":[1,2.0,3]}', {"many": [1, 2, 3]}),
        (b'{"point":{"x":1.0,"label":"1.0"}}', {"point": Point(1, "1.0")}),
    ],
)
def test_a_number_in_json_without_a_fraction_is_an_integer(body: bytes, arguments: Any) -> None:
    found = integers.from_json(body)
    assert found == arguments
    assert [type(value) for value in found.values()] == [type(v) for v in arguments.values()]
    assert integers.from_values(json.loads(body)) == arguments


@pytest.mark.parametrize(
    "body",
    [
        b'{"one":5.5}',
        b'{"one":-1.0}',
        b'{"one":"5"}',
        b'{"one":true}',
        b'{"one":9007199254740994.0}',
        b'{"one":1e300}',
        b'{"choice":3.0}',
        b'{"many":[1.5]}',
        b'{"many":["1"]}',
        b'{"point":{"x":"1"}}',
        b'{"flag":1.0}',
        b'{"text":1.0}',
    ],
)
def test_nothing_else_in_json_becomes_an_integer(body: bytes) -> None:
    (name,) = json.loads(body)
    with pytest.raises(InvalidParameters, match=f"^{name}: "):
        integers.from_json(body)


def test_the_fault_is_the_one_of_what_the_client_sent() -> None:
    with pytest.raises(InvalidParameters, match=r"got `float`, given 1\.0$"):
        integers.from_json(b'{"flag":1.0}')


@pytest.mark.parametrize(
    "body", [b'{"value":"\\ud800"}', b'{"\\udfff":1}', b'{"value":"\xed\xa0\x80"}']
)
async def test_a_lone_surrogate_in_json_is_a_422(body: bytes) -> None:
    async with client_of(Streams([anything])) as client:
        answer = await client.post("/streams/anything", content=body, headers=JSON)
    assert "the body must be a JSON object" in problem(answer, 422)


async def test_of_a_member_that_is_given_twice_the_last_one_counts() -> None:
    async with client_of(Streams([counter])) as client:
        body = b'{"count":"x","interval":0.01,"count":0}'
        answer = await client.post("/streams/counter", content=body, headers=JSON)
    assert answer.status_code == 200


@topic
def room(name: str) -> None:
    """A room."""


@pytest.mark.parametrize(
    ("method", "path", "headers", "content"),
    [
        ("GET", f"/{LONG}", {}, None),
        ("GET", f"/streams/{LONG}", {}, None),
        ("GET", f"/streams/counter?{LONG}=1", {}, None),
        ("GET", f"/streams/counter?count={LONG}", {}, None),
        ("GET", f"/streams/tokens?every={LONG}&prompt={LONG}", {}, None),
        ("GET", "/streams/counter", {"Accept": LONG}, None),
        ("GET", "/streams/counter", {"Last-Event-ID": LONG}, None),
        ("GET", "/streams/counter", {"Idempotency-Key": LONG}, None),
        ("GET", "/streams/counter", {"Idempotency-Key": f'"{LONG}'}, None),
        ("POST", "/streams/counter", {"Content-Type": LONG}, "1"),
        ("POST", "/streams/counter", JSON, json.dumps({LONG: 1})),
        ("POST", "/streams/counter", JSON, json.dumps({"count": LONG})),
        ("POST", "/streams/counter", JSON, json.dumps({"count": [LONG] * 9})),
        ("POST", "/streams/counter", JSON, json.dumps({"count": {LONG: {LONG: LONG}}})),
        ("GET", f"/runs/{LONG}", {}, None),
        ("DELETE", f"/runs/{LONG}", {}, None),
        ("GET", f"/runs?{LONG}=1", {}, None),
        ("GET", f"/runs?status={LONG}", {}, None),
        ("GET", f"/runs?key={LONG}", {}, None),
        ("GET", f"/runs?key_prefix={LONG}", {}, None),
        ("POST", f"/topics/{LONG}", JSON, "1"),
        ("POST", f"/topics/room?{LONG}=1", JSON, "1"),
        ("GET", f"/page/{LONG}", {}, None),
        ("GET", f"/v1/models/{LONG}", {}, None),
        ("POST", "/v1/chat/completions", JSON, json.dumps({"model": LONG, "messages": [{}]})),
        (LONG.upper(), "/streams", {}, None),
    ],
)
async def test_nothing_that_a_client_sends_is_repeated_beyond_80_characters(
    method: str, path: str, headers: dict[str, str], content: str | None
) -> None:
    streams = Streams(
        [counter, tokens, room], models={"mock": tokens}, publish=lambda request: None
    )
    async with client_of(streams, http="h11") as client:
        answer = await client.request(method, path, headers=headers, content=content)
    assert 400 <= answer.status_code < 500, answer.text
    assert "x" * 81 not in answer.text.lower()
    assert all("x" * 81 not in value for value in answer.headers.values())


async def test_unicode_in_names_and_values_is_a_422() -> None:
    odd = quote("\r\n\x1b[31m\u202e☃" * 3)
    async with client_of(Streams([counter])) as client:
        for query in (f"{odd}=1", f"count={odd}", "%ED%A0%80=1", "count=%ED%A0%80", "count=%00"):
            answer = await client.get(f"/streams/counter?{query}")
            assert "\x1b" not in problem(answer, 422)


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int


@source
async def modelled(value: Model) -> AsyncIterator[Any]:
    """Takes a model of pydantic."""
    yield value


@pytest.mark.parametrize(
    "value", [{LONG: 1}, {"number": LONG}, {f"n{n}": n for n in range(5000)}, {"number": [LONG]}]
)
async def test_the_faults_of_a_model_are_few_and_short(value: Any) -> None:
    async with client_of(Streams([modelled])) as client:
        answer = await client.post("/streams/modelled", json={"value": value})
    assert problem(answer, 422)
    assert len(answer.text) < 1500
    assert "x" * 81 not in answer.text


def test_a_value_without_a_float_in_the_place_of_an_integer_is_converted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second look at 50,000 values would take 20 ms."""
    monkeypatch.setattr("streams.arguments._with_integers", pytest.fail)
    with pytest.raises(InvalidParameters, match="got `str`"):
        converted({"a": ["x"]}, {"a": list[int]}, [], strict=True)
