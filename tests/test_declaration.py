"""declaration.py: what may be a source, and errors that say what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, Query

from streams import Event, Source, Streams, source
from streams.sources import counter
from tests.support.servers import client_of, every_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


async def both(n: int, factor: int = 2) -> AsyncIterator[int]:
    """Multiplies."""
    yield n * factor


async def sequence(numbers: Sequence[int]) -> AsyncIterator[int]:
    yield sum(numbers)


async def depends(db: Any = Depends(both)) -> AsyncIterator[int]:  # noqa: B008
    yield db


async def queried(n: Annotated[int, Query(ge=1)] = 1) -> AsyncIterator[int]:
    yield n


async def pathed(n: int, path: Path) -> AsyncIterator[int]:
    yield n


class Multiply:
    """Multiplies by its factor."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.schema = "of the object"

    async def __call__(self, n: int) -> AsyncIterator[int]:
        """Multiplies."""
        yield n * self.factor

    async def method(self, n: int) -> AsyncIterator[int]:
        """Multiplies."""
        yield n * self.factor


@pytest.mark.parametrize(
    ("function", "name", "factor"),
    [
        (both, "both", 2),
        (partial(both, factor=3), "both", 3),
        (partial(partial(both), factor=3), "both", 3),
        (Multiply(5), "Multiply", 5),
        (Multiply(5).method, "method", 5),
    ],
)
async def test_anything_that_can_be_called_like_a_function_is_a_source(
    function: Any, name: str, factor: int
) -> None:
    made = Source(function)
    assert (made.name, made.description) == (name, "Multiplies.")
    parameters = ["n", "factor"] if function is both else ["n"]
    assert list(made.schema["properties"]) == parameters
    async with client_of(Streams([made])) as client:
        events = await every_event(client, f"/streams/{name}?n=7")
        assert events[1].json() == 7 * factor


def test_a_partial_leaves_the_other_parameters_as_they_are() -> None:
    async def counted(first: int, after: int = 0, *, last: int) -> AsyncIterator[int]:
        yield first + after + last

    made = Source(partial(counted, first=1), name="counted")
    assert list(made.schema["properties"]) == ["after", "last"]
    assert not made.restartable


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (sequence, r"annotation of 'numbers' .* name 'Sequence' is not defined; define it in the"),
        (
            depends,
            r"FastAPI does not call a source, so Depends\(\) of 'db' has no effect; use it in",
        ),
        (queried, r"Query\(\) of 'n' has no effect; .* for bounds, use msgspec.Meta"),
        (pathed, r"source 'pathed': 'path' cannot be published .*Path'> is not supported; use a"),
        (Multiply.method, "source 'method' is a method; give the bound method"),
        (Multiply, "is not a function, so it cannot be a source"),
        ("name", r"give a source's name by keyword: @source\(name='name'\)"),
        (3, "3 is not a function"),
    ],
)
def test_the_error_for_an_invalid_declaration_says_what_to_do(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        source(function)


def test_the_error_for_a_misspelt_option_gives_the_nearest_one() -> None:
    options: list[tuple[Any, str, str]] = [
        (Streams, "hearbeat", "heartbeat"),
        (Streams, "max_run", "max_runs"),
        (partial(Source, both), "lingr", "linger"),
        (partial(Source, both), "share", "shared"),
    ]
    for make, misspelt, option in options:
        with pytest.raises(TypeError, match=f"{misspelt!r} is not .* did you mean {option!r}"):
            make(**{misspelt: 3})


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["pkg:name"], "'pkg:name' is not a source; import it and give the source itself"),
        (counter, r"takes a list of sources: Streams\(\[source\]\)"),
        (both, r"takes a list of sources: Streams\(\[source\]\)"),
        ([both], "decorate it with @source"),
    ],
)
def test_the_error_for_wrong_sources_says_what_to_give(sources: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Streams(sources)


def test_a_model_must_be_a_source() -> None:
    with pytest.raises(TypeError, match="decorate it with @source"):
        Streams(models={"m": both})  # type: ignore[dict-item]


def test_an_event_refuses_a_name_or_text_that_is_not_a_string() -> None:
    with pytest.raises(TypeError, match=r"event must be a name, not {'a': 1}; data comes first"):
        Event("message", {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text must be a str, not b'x'"):
        Event(text=b"x")  # type: ignore[arg-type]
