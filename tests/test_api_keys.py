"""API keys."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import Streams
from streams.sources import counter, tokens
from tests.support.owners import (
    BEARER,
    COUNTER,
    JSON,
    KEY,
    OTHER_KEY,
    news,
    owner,
    owner_of,
)
from tests.support.servers import client_of, connection, serving
from tests.test_asgi import problem

OTHER = {"Authorization": f"Bearer {OTHER_KEY}"}


async def test_with_api_keys_all_but_the_page_and_health_need_one() -> None:
    streams = Streams(
        [counter, news], models={"mock": tokens}, api_keys=[KEY], publish=lambda request: None
    )
    async with client_of(streams) as client:
        for method, path in [
            ("GET", "/streams"),
            ("GET", COUNTER),
            ("HEAD", COUNTER),
            ("POST", "/streams/counter"),
            ("GET", "/runs"),
            ("GET", f"/runs/{'A' * 22}"),
            ("DELETE", f"/runs/{'A' * 22}"),
            ("POST", "/topics/news?user=ann"),
            ("GET", "/nothing"),
            ("GET", "/health/x"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/page"),
            ("GET", "/%70age"),
        ]:
            response = await client.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == 'Bearer realm="streams"'
            if method != "HEAD":
                assert "Authorization: Bearer" in problem(response, 401)
        for path in ("/", "/health", "/page/page.js", "/page/event-stream.js"):
            assert (await client.get(path)).status_code == 200
        assert not await streams.runs.list()
        assert (await client.get("/streams", headers=BEARER)).status_code == 200
        assert "event: end" in (await client.get(COUNTER, headers=BEARER)).text


async def test_where_streams_is_mounted_the_page_and_health_need_no_key_either() -> None:
    app = Starlette(routes=[Mount("/live", Streams([counter], api_keys=[KEY]))])
    async with client_of(app) as client:
        for path in ("/", "/health", "/page/page.js"):
            assert (await client.get(f"/live{path}")).status_code == 200
        assert (await client.get(f"/live{COUNTER}")).status_code == 401


async def test_under_v1_the_401_is_openais() -> None:
    async with client_of(Streams(models={"mock": tokens}, api_keys=[KEY])) as client:
        for path in ("/v1/models", "/v1/nothing"):
            response = await client.get(path)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        chat = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
        response = await client.post("/v1/chat/completions", json=chat, headers=OTHER)
        assert response.status_code == 401
        assert "not one of" in response.json()["error"]["message"]
        response = await client.post("/v1/chat/completions", json=chat, headers=BEARER)
        assert response.status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        OTHER_KEY,
        f"Bearer {OTHER_KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        "Bearer",
        "",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY} {KEY}",
        f"Bearer\t{KEY}",
    ],
)
async def test_what_is_not_a_key_is_refused(given: str) -> None:
    async with client_of(Streams([counter], api_keys=[KEY])) as client:
        response = await client.get("/streams", headers={"Authorization": given})
        said = problem(response, 401)
        assert "is not one of this server's" in said
        assert KEY not in said
        assert 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY}"])
async def test_the_scheme_has_any_case(given: str) -> None:
    async with client_of(Streams([counter], api_keys=[OTHER_KEY, KEY])) as client:
        assert (await client.get("/streams", headers={"Authorization": given})).status_code == 200


async def test_two_authorization_headers_are_refused() -> None:
    async with client_of(Streams([counter], api_keys=[KEY])) as client:
        both = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {OTHER_KEY}")]
        problem(await client.get("/streams", headers=both), 401)


async def test_each_key_has_its_own_runs() -> None:
    streams = Streams([owner], api_keys=[KEY, OTHER_KEY])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(
            url, "/streams/owner", headers=f"Authorization: Bearer {KEY}\r\n"
        ) as stream:
            await stream.until(lambda stream: b'"owner":"key:' in stream.body, "it has an owner")
            assert KEY.encode() not in stream.received
            path = f"/runs/{stream.run}"
            problem(await client.get(path, headers={**OTHER, **JSON}), 404)
            problem(await client.delete(path, headers=OTHER), 404)
            problem(await client.delete(path), 401)
            listed = (await client.get("/runs", headers=BEARER)).json()["runs"]
            assert [run["run"] for run in listed] == [stream.run]
            assert (await client.get("/runs", headers=OTHER)).json()["runs"] == []
            assert (await client.delete(path, headers=BEARER)).status_code == 204


async def test_what_identity_says_comes_before_the_key() -> None:
    def identity(request: Request) -> str | None:
        return request.headers.get("x-user")

    streams = Streams([owner], api_keys=[KEY], identity=identity)
    async with serving(streams) as url:
        bearer = f"Authorization: Bearer {KEY}\r\n"
        assert await owner_of(url, headers=f"{bearer}X-User: ann\r\n") == "ann"
        assert str(await owner_of(url, headers=bearer)).startswith("key:")


async def test_a_run_of_an_endpoint_belongs_to_the_key_that_its_client_sends() -> None:
    streams = Streams([], api_keys=[KEY])

    async def ask(request: Request) -> Response:
        return streams.response(request, owner.function)

    app = Starlette(routes=[Route("/ask", ask), Mount("/live", streams)])
    async with serving(app) as url:
        named = await owner_of(url, "/ask", f"Authorization: Bearer {KEY}\r\n")
        assert str(named).startswith("key:")
        for headers in ("", "Authorization: Bearer the-apps-own-token\r\n"):
            assert await owner_of(url, "/ask", headers) is None, "the endpoint is the app's"


async def test_a_preflight_request_needs_no_key() -> None:
    origin = "https://a.example"
    async with client_of(Streams([counter], api_keys=[KEY], origins=[origin])) as client:
        asking = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        response = await client.options("/streams/counter", headers=asking)
        assert response.status_code == 200
        assert response.headers["access-control-allow-headers"] == "authorization"
        refused = await client.get(COUNTER, headers={"Origin": origin})
        problem(refused, 401)
        assert refused.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (KEY, "is one text; give a list"),
        (["k" * 15], "key 1 has 15 characters"),
        ([KEY, ""], "key 2 has 0 characters"),
        ([KEY, 1], "key 2 is not a text"),
        (["ä" * 16], "key 1 is not a text of printable ASCII"),
        (["k k" * 10], "without spaces"),
    ],
)
def test_an_invalid_key_is_a_type_error_that_does_not_show_it(keys: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as raised:
        Streams([counter], api_keys=keys)
    assert KEY not in str(raised.value)


def test_a_key_of_16_characters_is_enough() -> None:
    Streams([counter], api_keys=["k" * 16])
