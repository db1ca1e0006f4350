"""Every answer under /v1 that is no success has the form that OpenAI's clients read."""

from typing import Any

import openai
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from streams import StreamError, Streams, source
from streams.sources import tokens
from tests.support.mock import HELLO, PATH, mock
from tests.support.sdk import sdk_of
from tests.support.servers import client_of


def error_of(response: Any) -> dict[str, Any]:
    """The error in a response, of which every member that OpenAI's clients read is there."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("root", ["", "/llm"])
@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/x", "/v1/embeddings", "/v1/chat"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_an_unknown_url_is_a_404_that_names_what_there_is(
    method: str, path: str, root: str
) -> None:
    async with client_of(Starlette(routes=[Mount(root, mock())])) as client:
        response = await client.request(method, root + path)
    assert response.status_code == 404
    error = error_of(response)
    for known in ("/v1/chat/completions", "/v1/models"):
        assert known in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")


async def test_the_error_for_an_unknown_url_repeats_little_of_it() -> None:
    async with client_of(mock()) as client:
        response = await client.get(f"/v1/{'x' * 5000}")
    assert error_of(response)["message"].count("x") < 80


@pytest.mark.parametrize("value", ["x" * 900_000, "$.xxxx" * 9000, int("9" * 4000)])
@pytest.mark.parametrize(
    ("path", "field"), [(PATH, "n"), ("/v1/responses", "truncation"), (PATH, "reasoning_effort")]
)
async def test_the_error_for_an_invalid_value_repeats_little_of_it(
    path: str, field: str, value: str | int
) -> None:
    async with client_of(mock()) as client:
        response = await client.post(path, json={**HELLO, "input": "Hi", field: value})
    assert response.status_code == 400
    error = error_of(response)
    assert len(error["message"]) < 500
    assert len(error["param"] or "") < 80
    assert "9" * 81 not in error["message"]
    assert "x" * 81 not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "OPTIONS, POST"),
        ("HEAD", PATH, "OPTIONS, POST"),
        ("PUT", PATH, "OPTIONS, POST"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/mock", "GET, HEAD, OPTIONS"),
    ],
)
async def test_another_method_is_a_405_that_names_those_that_are_allowed(
    method: str, path: str, allowed: str
) -> None:
    async with client_of(mock()) as client:
        response = await client.request(method, path)
        options = await client.options(path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    if method != "HEAD":
        assert allowed in error_of(response)["message"]
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")


async def test_head_of_the_models_is_their_headers() -> None:
    async with client_of(mock()) as client:
        for path in ("/v1/models", "/v1/models/mock"):
            response = await client.head(path)
            assert (response.status_code, response.content) == (200, b"")
            assert response.headers["content-type"] == "application/json"


async def test_a_body_that_is_too_large_or_no_json_is_refused_in_openais_form() -> None:
    async with client_of(mock(max_body=100)) as client:
        large = await client.post(PATH, content=b"x" * 101)
        text = await client.post(PATH, content=b"x", headers={"Content-Type": "text/plain"})
    assert (large.status_code, text.status_code) == (413, 415)
    assert "100 bytes" in error_of(large)["message"]
    assert "application/json" in error_of(text)["message"]


async def test_an_identity_that_refuses_a_client_answers_in_openais_form() -> None:
    def nobody(request: Request) -> str:
        raise HTTPException(401, "send a key", {"WWW-Authenticate": "Bearer"})

    async with client_of(mock(identity=nobody)) as client:
        response = await client.post(PATH, json=HELLO)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["message"] == "send a key"


async def test_a_guard_that_refuses_a_client_answers_in_openais_form() -> None:
    def closed(request: Request) -> bool:
        return False

    @source(guard=closed)
    async def paid(prompt: str) -> Any:
        yield prompt

    async with client_of(Streams(models={"paid": paid})) as client:
        response = await client.post(PATH, json=HELLO)
    assert response.status_code == 403
    assert "does not let you in" in error_of(response)["message"]


async def test_a_refusal_before_the_routes_has_openais_form_only_under_v1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams([tokens], models={"mock": tokens})

    async def refuse() -> None:
        raise StreamError("not now", status=503, retry_after=7)

    async with client_of(streams) as client:
        monkeypatch.setattr(streams._lifetime, "serve", refuse)
        for path in (PATH, "/v1/models", "/v1/x"):
            response = await client.post(path, json=HELLO)
            assert (response.status_code, response.headers["retry-after"]) == (503, "7")
            assert error_of(response)["message"] == "not now"
        response = await client.get("/v10/x")
        assert response.headers["content-type"] == "application/problem+json"


# OpenAI's SDK


async def test_the_sdk_raises_not_found_for_an_endpoint_that_is_not_there() -> None:
    async with sdk_of(mock()) as sdk:
        with pytest.raises(openai.NotFoundError, match="/v1/chat/completions") as raised:
            await sdk.embeddings.create(model="mock", input="Hi")
    assert raised.value.code == "unknown_url"


async def test_the_sdk_raises_an_error_with_the_limit_for_a_large_body() -> None:
    async with sdk_of(mock(max_body=1000)) as sdk:
        with pytest.raises(openai.APIStatusError, match="1000 bytes") as raised:
            await sdk.chat.completions.create(**HELLO, user="x" * 1000)
    assert raised.value.status_code == 413
