"""errors.py: problem responses, and what clients see of an error."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import anyio
import httpx
import pytest
from starlette.exceptions import HTTPException

from streams import StreamError, Streams, source
from streams.tracebacks import MAX_LINE, MAX_LINES, safe_traceback
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
    [
        (402, "Payment Required"),
        (499, "Error 499"),
        (520, "Error 520"),
        (529, "Error 529"),
        (599, "Error 599"),
    ],
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


async def test_what_the_end_event_cannot_represent_is_replaced() -> None:
    error = await failure_of(odd_error)
    assert error == {"type": "StreamError", "message": "out of ? paper"}


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


def http_error() -> HTTPException:
    return HTTPException(404, "no such thing", {"X-Hint": "look elsewhere"})


async def test_an_http_exception_before_the_first_event_is_its_status_and_detail() -> None:
    response = await refusal_of(http_error)
    assert response.status_code == 404
    assert response.headers["x-hint"] == "look elsewhere"
    assert response.json()["title"] == "Not Found"
    assert response.json()["detail"] == "no such thing"


async def test_an_http_exception_after_an_event_is_the_message_of_the_end() -> None:
    assert await failure_of(http_error) == {"type": "HTTPException", "message": "no such thing"}


async def test_an_http_exception_may_have_a_detail_that_is_not_a_text() -> None:
    response = await refusal_of(lambda: HTTPException(409, cast(str, {"why": "\ud800"})))
    assert response.json()["detail"] == '{"why":"?"}'


async def test_an_http_exception_that_is_no_error_is_a_failure_like_any_other() -> None:
    response = await refusal_of(lambda: HTTPException(304, "secret"))
    assert response.status_code == 500
    assert "secret" not in response.text


def grouped(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("outer", [ExceptionGroup("inner", errors)])


GROUPS = [
    lambda: grouped(StreamError("no paper", status=409)),
    lambda: grouped(HTTPException(409, "no paper")),
    lambda: grouped(ValueError("secret"), StreamError("no paper", status=409)),
]


@pytest.mark.parametrize("error", GROUPS)
async def test_the_only_stream_error_in_a_group_is_the_status_before_the_first_event(
    error: Callable[[], BaseException],
) -> None:
    response = await refusal_of(error)
    assert response.status_code == 409
    assert response.json()["detail"] == "no paper"


@pytest.mark.parametrize("error", GROUPS)
async def test_the_only_stream_error_in_a_group_is_the_message_after_an_event(
    error: Callable[[], BaseException],
) -> None:
    assert (await failure_of(error))["message"] == "no paper"


async def test_a_group_with_two_stream_errors_is_a_failure_like_any_other() -> None:
    error = await failure_of(lambda: grouped(StreamError("one"), StreamError("two")))
    assert error["type"] == "ExceptionGroup"
    assert "one" not in error["message"]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("group", [anyio.create_task_group, asyncio.TaskGroup])
async def test_an_error_in_a_task_group_before_the_first_event_is_the_status(
    depth: int, group: Any
) -> None:
    async def nested(depth: int) -> None:
        async with group() as tasks:
            if depth == 1:
                raise StreamError("no paper", status=409)
            (tasks.start_soon if group is anyio.create_task_group else create_in(tasks))(
                nested, depth - 1
            )

    def create_in(tasks: asyncio.TaskGroup) -> Any:
        return lambda function, *args: tasks.create_task(function(*args))

    @source
    async def grouping() -> AsyncIterator[int]:
        await nested(depth)
        yield 1

    async with client_of(Streams([grouping])) as client:
        response = await client.get("/streams/grouping")
    assert response.status_code == 409


async def logged(
    caplog: pytest.LogCaptureFixture, error: Callable[[], BaseException]
) -> logging.LogRecord:
    """What is logged about a source that raises `error`, before or after its first event."""
    caplog.set_level(logging.INFO, "streams")
    await refusal_of(error)
    await failure_of(error)
    first, second = [record for record in caplog.records if " failed: " in record.getMessage()]
    assert first.levelno == second.levelno
    assert "of source failing failed" in second.getMessage()
    return second


@pytest.mark.parametrize("error", [http_error, *GROUPS[:2], lambda: StreamError("no", status=499)])
async def test_a_refusal_on_purpose_is_logged_at_info(
    error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    record = await logged(caplog, error)
    assert (record.levelno, record.exc_info) == (logging.INFO, None)


async def test_a_stream_error_from_500_on_is_logged_at_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = await logged(caplog, lambda: StreamError("no", status=503))
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)


@pytest.mark.parametrize("error", [GROUPS[2], lambda: ValueError("secret")])
async def test_an_unexpected_error_is_logged_with_its_traceback(
    error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    record = await logged(caplog, error)
    assert record.levelno == logging.ERROR
    assert record.exc_info


CLIENTS_TEXT = "no\r\nINFO: all is well\n\x1b[2J\x07\x85\u2028\u202e"


async def test_no_line_of_a_traceback_can_be_taken_for_another_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = await logged(caplog, lambda: ValueError(CLIENTS_TEXT))
    assert record.exc_text is not None
    lines = logging.Formatter().format(record).split("\n")[1:]
    assert len(lines) > 5
    assert all(line.startswith("    ") and line.isprintable() for line in lines)
    assert any(line.endswith(r"ValueError: no\r") for line in lines)
    assert any(line.endswith(r"\x1b[2J\x07\x85\u2028\u202e") for line in lines)


def test_a_traceback_has_200_short_lines_at_most() -> None:
    short = safe_traceback("\n".join(["x" * MAX_LINE] * MAX_LINES))
    assert "…" not in short
    assert short.count("\n") == MAX_LINES - 1
    long = safe_traceback("\n".join(["first", *["x" * (MAX_LINE + 1)] * MAX_LINES, "last"]))
    lines = long.split("\n")
    assert (lines[0], lines[-1]) == ("    first", "    last")
    assert lines[MAX_LINES // 2] == "    … 2 more lines"
    assert len(lines) == MAX_LINES + 1
    assert {len(line) for line in lines[1:-1]} == {len(lines[MAX_LINES // 2]), 4 + MAX_LINE}
