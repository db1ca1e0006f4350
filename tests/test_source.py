"""source.py: parameters come from the signature and are checked before the source is called."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from starlette.datastructures import QueryParams
from starlette.requests import Request

from streams import Policy, Source, StreamError, Streams, source
from streams.errors import InvalidBody, InvalidParameters
from tests.support.servers import client_of, every_event
from tests.test_asgi import problem


class Box(msgspec.Struct):
    side: int


@source
async def everything(
    count: Annotated[int, Meta(ge=0, le=10, description="How many")],
    names: list[str] = [],  # noqa: B006
    colour: Literal["red", "blue"] = "red",
    box: Box | None = None,
    precise: bool = False,
    *,
    request: Request,
    after: int = 0,
) -> AsyncIterator[Any]:
    """The first line.

    The second.
    """
    yield count, names, colour, precise, request["path"], after


def request(path: str = "/") -> Request:
    return Request({"type": "http", "path": path})


async def test_a_source_receives_its_arguments_the_request_and_after() -> None:
    arguments = everything.from_query(QueryParams("count=3&names=a&names=b&precise=true"))
    events = await everything.open(arguments, request("/x"), after=7)
    assert [event async for event in events] == [(3, ["a", "b"], "red", True, "/x", 7)]


def test_a_query_and_a_body_give_the_same_arguments() -> None:
    query = everything.from_query(QueryParams("count=3&names=a&colour=blue"))
    assert query == {"count": 3, "names": ["a"], "colour": "blue"}
    assert query == everything.from_json(b'{"count":3,"names":["a"],"colour":"blue"}')
    assert everything.from_json(b'{"count":1,"box":{"side":2}}') == {"count": 1, "box": Box(2)}


async def test_the_attributes_of_a_function_do_not_replace_those_of_its_source() -> None:
    async def scheduled() -> AsyncIterator[int]:
        yield 1

    scheduled.job = "every day"  # type: ignore[attr-defined]
    made = Source(scheduled)
    assert (await made.job({}, None, policy=Policy())).source == "scheduled"
    assert made.__doc__ is scheduled.__doc__


@pytest.mark.parametrize(
    "type_",
    [
        list,
        list[int],
        list[int] | None,
        Optional[tuple[int, ...]],  # noqa: UP045
        Annotated[set[int], Meta(max_length=3)],
        Annotated[list[Annotated[int, Meta(ge=0)]] | None, Meta(description="Numbers")],
    ],
)
def test_one_value_in_a_query_is_a_list_if_the_parameter_is(type_: Any) -> None:
    async def numbers(values: Any = None) -> AsyncIterator[Any]:
        yield values

    numbers.__annotations__["values"] = type_
    made = Source(numbers)
    for query in ("values=1", "values=1&values=2"):
        (values,) = made.from_query(QueryParams(query)).values()
        assert [*map(int, values)] == [1, 2][: len(values)] != []


def test_one_value_in_a_query_is_not_a_list_if_the_parameter_may_be_text() -> None:
    @source
    async def names(value: str | list[str]) -> AsyncIterator[Any]:
        yield value

    assert names.from_query(QueryParams("value=a")) == {"value": "a"}
    assert names.from_query(QueryParams("value=a&value=b")) == {"value": ["a", "b"]}


def test_the_last_event_id_in_a_query_is_not_a_parameter() -> None:
    query = QueryParams("count=3&last_event_id=x&lastEventId=y")
    assert everything.from_query(query) == {"count": 3}


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("", {"count": "is required"}),
        ("count=11", {"count": "expected `int` <= 10, given '11'"}),
        ("count=1&count=2", {"count": "expected `int`, got `array`, given ['1', '2']"}),
        (
            "count=ten&colour=green&speed=3",
            {
                "count": "expected `int`, got `str`, given 'ten'",
                "colour": "invalid enum value 'green', given 'green'",
                "speed": "is not a parameter of this source; its parameters: "
                "count, names, colour, box, precise",
            },
        ),
        (
            "count=1&after=3",
            {
                "after": "is not a parameter of this source; its parameters: "
                "count, names, colour, box, precise"
            },
        ),
    ],
)
def test_one_error_lists_every_invalid_parameter(query: str, faults: dict[str, str]) -> None:
    with pytest.raises(InvalidParameters) as caught:
        everything.from_query(QueryParams(query))
    errors = caught.value.members["errors"]
    assert {error["name"]: error["detail"] for error in errors} == faults
    assert all(f"{name}: {fault}" in str(caught.value) for name, fault in faults.items())


def test_an_error_without_a_message_in_a_type_of_the_user_is_a_fault() -> None:
    class Positive(msgspec.Struct):
        value: int

        def __post_init__(self) -> None:
            if self.value < 0:
                raise ValueError

    async def positive(n: Any) -> AsyncIterator[Any]:
        yield n

    positive.__annotations__["n"] = Positive
    with pytest.raises(InvalidParameters, match=r"n: is invalid, given \{'value': -1\}"):
        Source(positive).from_json(b'{"n":{"value":-1}}')


def test_the_error_message_shortens_a_long_name() -> None:
    with pytest.raises(InvalidParameters, match=r"x… \(100 characters\): is not a parameter"):
        everything.from_query(QueryParams({"count": "1", "x" * 100: "1"}))


def test_the_error_message_shortens_a_long_value() -> None:
    with pytest.raises(InvalidParameters, match=r"… \(10000 characters\)$"):
        everything.from_query(QueryParams({"count": "x" * 10_000}))


def test_values_in_a_json_body_are_not_converted_from_strings() -> None:
    with pytest.raises(InvalidParameters, match="count: expected `int`, got `str`, given '3'"):
        everything.from_json(b'{"count":"3"}')


@pytest.mark.parametrize("body", [b"[]", b"3", b"{", b"\xff", b'{"a":"\\ud800"}', b"[" * 10**5])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidBody, match="the body must be a JSON object"):
        everything.from_json(body)


@given(st.dictionaries(st.text(), st.text()))
def test_any_query_gives_known_arguments_or_an_error(query: dict[str, str]) -> None:
    with suppress(InvalidParameters):
        assert everything.from_query(QueryParams(query)).keys() <= {
            *everything.schema["properties"]
        }


def test_the_schema_describes_the_signature_as_json_schema() -> None:
    schema = everything.schema
    assert schema["required"] == ["count"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["count"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 10,
        "description": "How many",
    }
    assert properties["precise"] == {"type": "boolean", "default": False}
    assert list(properties) == ["count", "names", "colour", "box", "precise"]
    assert schema["$defs"]["Box"]["properties"] == {"side": {"type": "integer"}}


def test_a_source_has_a_name_a_description_and_its_properties() -> None:
    assert (everything.name, everything.description) == ("everything", "The first line.")
    assert everything.restartable
    assert not everything.shared
    assert repr(everything) == "<Source everything>"

    @source(name="other", shared=True, linger=None)
    async def original() -> AsyncIterator[int]:
        yield 1

    assert (original.name, original.shared, original.restartable) == ("other", True, False)
    assert Policy().replace(original.policy, "other").linger is None


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (ValueError("secret"), 500, "the source failed with ValueError; see the server's log"),
        (StreamError("no such model", status=404), 404, "no such model"),
    ],
)
async def test_what_restartable_raises_is_a_problem(
    error: Exception, status: int, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    def restartable(arguments: Any) -> bool:
        raise error

    @source(restartable=restartable)
    async def some(*, after: int = 0) -> AsyncIterator[int]:
        yield 1

    streams = Streams([some])
    async with client_of(streams) as client:
        assert problem(await client.get("/streams/some"), status) == detail
        assert len(streams.log) == 0
    assert ("secret" in caplog.text) == (status == 500)


async def test_a_source_may_be_restartable_with_some_arguments_only() -> None:
    @source(restartable=lambda arguments: not arguments["joined"])
    async def some(joined: bool = False, *, after: int = 0) -> AsyncIterator[int]:
        yield after

    assert some.restartable
    job = await some.job({}, None, policy=Policy())
    assert (job.arguments, job.fingerprint) == ("{}", some.fingerprint)
    job = await some.job({"joined": True}, None, policy=Policy())
    assert (job.arguments, job.fingerprint) == (None, None)
    with pytest.raises(TypeError, match="needs a keyword-only parameter `after`"):

        @source(restartable=lambda arguments: True)
        async def never() -> AsyncIterator[int]:
            yield 1


async def test_a_source_can_be_called_like_its_function() -> None:
    events = everything(1, request=request())
    assert [event async for event in events] == [(1, [], "red", False, "/", 0)]


def test_an_after_that_is_not_keyword_only_is_an_ordinary_parameter() -> None:
    @source
    async def page(after: int = 0) -> AsyncIterator[int]:
        yield after

    assert not page.restartable
    assert page.from_query(QueryParams("after=3")) == {"after": 3}


async def test_an_async_function_may_return_an_iterator() -> None:
    @source
    async def opened(n: int) -> AsyncIterator[int]:
        return _fine()

    events = await opened.open({"n": 2}, request())
    assert [event async for event in events] == [1]


async def test_a_generator_function_returns_its_generator_when_it_is_opened() -> None:
    @source
    def numbers() -> Iterator[int]:
        yield 1

    assert list(await numbers.open({}, request())) == [1]


async def _fine() -> AsyncIterator[int]:
    yield 1


async def _star(*numbers: int) -> AsyncIterator[int]:
    yield 1


async def _positional(number: int, /) -> AsyncIterator[int]:
    yield 1


async def _untyped(number) -> AsyncIterator[int]:  # type: ignore[no-untyped-def]
    yield 1


async def _taken(last_event_id: str) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda: None, {}, "does not fit into a URL; use ASCII letters, digits and _ . ~ -"),
        (_fine, {"name": "größe"}, "does not fit into a URL"),
        (_fine, {"name": ".."}, "does not fit into a URL"),
        (lambda: None, {"name": "x"}, "must be an async generator function"),
        (_star, {}, r"\*numbers cannot be published"),
        (_positional, {}, "must not be positional-only"),
        (_untyped, {}, "'number' needs a type annotation"),
        (_taken, {}, "'last_event_id' is reserved"),
        (
            _fine,
            {"heartbeat": 0},
            r"policy of source '_fine': Expected `float` >= 0.01 - at `\$.heartbeat`",
        ),
        (_fine, {"speed": 3}, "'speed' is not an option of source '_fine'; policy options: "),
    ],
)
def test_the_error_for_an_invalid_source_gives_the_reason(
    function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Source(function, **options)


async def test_an_optional_request_is_passed_by_streams_and_may_be_left_out_of_a_call() -> None:
    @source
    async def either(request: Request | None = None) -> AsyncIterator[Any]:
        yield request is not None

    assert [value async for value in either()] == [False]
    request = Request({"type": "http"})
    assert [value async for value in await either.open({}, request)] == [True]
    assert either.schema["properties"] == {}


async def test_an_app_calls_the_aclose_of_a_source_once_at_shutdown() -> None:
    closed = 0

    async def aclose() -> None:
        nonlocal closed
        closed += 1

    @source(aclose=aclose)
    async def owner() -> AsyncIterator[Any]:
        yield closed

    streams = Streams([owner], models={"a": owner, "b": owner})
    async with client_of(streams, lifespan="on") as client:
        events = await every_event(client, "/streams/owner")
        assert events[1].data == "0"
        assert closed == 0
    assert closed == 1


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_the_aclose_of_a_source_that_fails_is_logged_and_stops_nothing_else(
    lifespan: str, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []

    async def fails() -> None:
        raise ValueError("cannot be closed")

    async def works() -> None:
        closed.append("other")

    @source(aclose=fails)
    async def broken() -> AsyncIterator[Any]:
        yield 1

    @source(aclose=works)
    async def other() -> AsyncIterator[Any]:
        yield 2

    streams = Streams([broken, other])
    for servers in (1, 2):  # The second one, in the same event loop, serves as the first did.
        async with client_of(streams, lifespan=lifespan) as client:
            assert len(await every_event(client, "/streams/broken")) == 3
        assert closed == ["other"] * servers
    assert caplog.text.count("ValueError: cannot be closed") == 2
