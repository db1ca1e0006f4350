"""errors.py: problem responses, and what clients see of an error."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from streams import StreamError, Streams, source
from tests.support.servers import client_of, every_event


def failing_with(error: Callable[[], BaseException], *, after: int = 0) -> Any:
    """A source that raises a new `error` after `after` events."""

    @source(name="failing")
    async def failing(prompt: str = "") -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise error()

    return failing


async def refusal_of(error: Callable[[], BaseException]) -> httpx.Response:
    """The response to a request whose source raises `error` before its first event."""
    async with client_of(Streams([failing_with(error)])) as client:
        return await client.get("/streams/failing")


async def failure_of(error: Callable[[], BaseException]) -> dict[str, str]:
    """The error in the `end` event of a run whose source raises `error` after its first event."""
    async with client_of(Streams([failing_with(error, after=1)])) as client:
        end = (await every_event(client, "/streams/failing"))[-1].json()
    assert end["status"] == "failed"
    return dict(end["error"])


@pytest.mark.parametrize(
    ("status", "title"),
    [(402, "Payment Required"), (499, "Error 499"), (529, "Error 529"), (599, "Error 599")],
)
async def test_any_status_from_400_to_599_is_the_status_of_the_problem(
    status: int, title: str
) -> None:
    response = await refusal_of(lambda: StreamError("not today", status=status))
    assert response.status_code == status
    assert response.json() == {
        "type": "about:blank", "title": title, "status": status, "detail": "not today",
    }  # fmt: skip


class Unknown:
    """A type that JSON cannot represent."""


def odd_error() -> StreamError:
    circle: list[Any] = []
    circle.append(circle)
    return StreamError(
        "out of \ud800 paper",
        status=409,
        text="\udfff",
        value=Unknown(),
        nested={"\ud800": [Unknown(), {1}]},
        circle=circle,
        **{"\ud800": 1},
    )


async def test_what_a_problem_cannot_represent_is_replaced() -> None:
    response = await refusal_of(odd_error)
    assert response.status_code == 409
    problem = response.json()
    assert problem.pop("circle")
    assert problem == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "out of ? paper",
        "text": "?",
        "value": "<Unknown>",
        "nested": {"?": ["<Unknown>", [1]]},
        "?": 1,
    }


@pytest.mark.parametrize("after", [0, 1])
async def test_what_an_error_object_of_openai_cannot_represent_is_replaced(after: int) -> None:
    def error() -> StreamError:
        return StreamError("no \ud800", status=529, param="\ud800", code=Unknown(), errors="none")

    model = failing_with(error, after=after)
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with client_of(Streams(models={"m": model})) as client:
        response = await client.post("/v1/chat/completions", json=chat)
        described = response.json()["error"]
        assert described["message"] == "no ?"
        if not after:
            assert response.status_code == 529
            assert described == {
                "message": "no ?", "type": "server_error", "param": "?", "code": "<Unknown>",
            }  # fmt: skip
