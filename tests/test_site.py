"""Cross-site requests, and the names in the Host header."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import StreamError, Streams, source, topic
from streams.log import Status
from streams.sources import clock, counter, tokens
from tests.support.servers import client_of, connection, serving
from tests.test_asgi import problem

EVIL = "https://evil.example"
CROSS = {"Sec-Fetch-Site": "cross-site", "Origin": EVIL}
SAME_SITE = {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}
NO_ORIGIN = {"Sec-Fetch-Site": "cross-site"}
PLAIN_HTTP = {"Origin": EVIL}
SANDBOX = {"Origin": "null"}
STRANGERS = [CROSS, SAME_SITE, NO_ORIGIN, PLAIN_HTTP, SANDBOX]

UNKNOWN = "A" * 22


@source
async def endless() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


@topic
def news() -> None:
    """What is new."""


def all_of_it(**options: Any) -> tuple[Streams, Starlette]:
    streams = Streams(
        [counter, clock, endless, news],
        models={"mock": tokens},
        publish=lambda request: None,
        **options,
    )

    async def ask(request: Request) -> Response:
        return streams.response(request, endless.function)

    async def resume(request: Request) -> Response:
        return await streams.resume(request, key_prefix="k" * 16)

    routes = [Route("/ask", ask, methods=["GET", "POST"]), Route("/resume", resume)]
    return streams, Starlette(routes=[*routes, Mount("/", streams)], lifespan=streams.lifespan)


async def statuses(streams: Streams) -> list[Status]:
    return [log.status for log in await streams.runs.list()]


@pytest.mark.parametrize("stranger", STRANGERS, ids=str)
async def test_a_page_of_another_site_starts_joins_and_stops_nothing(
    stranger: dict[str, str],
) -> None:
    streams, app = all_of_it()
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/endless") as stream:
            await stream.until(lambda stream: b"\ndata: 1\n" in stream.body, "it runs")
            chat = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
            again = {"Last-Event-ID": f"{stream.run}.0"}
            requests: list[tuple[str, str, dict[str, Any]]] = [
                ("GET", "/streams/counter", {}),
                ("GET", "/streams/clock", {}),
                ("GET", "/streams/news", {}),
                ("GET", "/streams/endless", {"headers": again}),
                ("POST", "/streams/counter", {}),
                ("GET", f"/runs/{stream.run}", {}),
                ("DELETE", f"/runs/{stream.run}", {}),
                ("POST", "/topics/news", {"json": 1}),
                ("POST", "/v1/chat/completions", {"json": chat}),
                ("POST", "/v1/responses", {"json": {"model": "mock", "input": "hi"}}),
                ("DELETE", f"/v1/responses/resp_{stream.run}", {}),
                ("POST", f"/v1/responses/resp_{stream.run}/cancel", {}),
                ("GET", "/ask", {}),
                ("POST", "/ask", {}),
                ("GET", "/ask", {"headers": again}),
                ("GET", "/resume", {}),
            ]
            for method, path, options in requests:
                options = {**options, "headers": {**stranger, **options.get("headers", {})}}
                response = await client.request(method, path, **options)
                assert response.status_code == 403, (method, path, response.text)
                assert "origins=" in response.text
            assert await statuses(streams) == ["running"]
            assert streams.log.readers == 1


@pytest.mark.parametrize("stranger", [CROSS, PLAIN_HTTP], ids=str)
async def test_the_refusal_is_the_line_that_allows_the_origin(stranger: dict[str, str]) -> None:
    async with client_of(Streams([counter])) as client:
        said = problem(await client.get("/streams/counter", headers=stranger), 403)
    assert 'origins=["https://evil.example"]' in said
    assert f"STREAMS_ORIGINS={EVIL}" in said
    async with client_of(Streams([counter], origins=[EVIL])) as client:
        for method in ("GET", "POST"):
            response = await client.request(method, "/streams/counter?count=0", headers=stranger)
            assert response.status_code == (200 if method == "GET" else 422)
            assert response.headers["access-control-allow-origin"] == EVIL
            assert response.headers["access-control-allow-credentials"] == "true"


async def test_the_refusal_repeats_no_long_or_odd_origin() -> None:
    async with client_of(Streams([counter])) as client:
        for origin in ["https://" + "a" * 5000, "https://a\"b'c", "x y" * 500, "null"]:
            headers = {"Origin": origin}
            said = problem(await client.get("/streams/counter", headers=headers), 403)
            assert len(said) < 350
            assert "origins" in said


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-origin", "Origin": EVIL},
        {"Host": "streams.example", "Origin": "http://streams.example"},
        {"Host": "streams.example", "Origin": "https://streams.example"},
        {"Host": "Streams.example:443", "Origin": "https://streams.example"},
        {"Host": "streams.example.:8080", "Origin": "http://streams.example:8080"},
        {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
    ],
    ids=str,
)
async def test_a_page_of_the_same_origin_starts_a_run(headers: dict[str, str]) -> None:
    async with client_of(Streams([counter])) as client:
        for method in ("GET", "POST"):
            response = await client.request(
                method, "/streams/counter", headers=headers, **arguments_of(method)
            )
            assert response.status_code == 200, response.text


def arguments_of(method: str) -> dict[str, Any]:
    return {"params": {"count": 0}} if method == "GET" else {"json": {"count": 0}}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "streams.example", "Origin": "http://streams.example:8080"},
        {"Host": "streams.example:8080", "Origin": "http://streams.example"},
        {"Host": "streams.example:443", "Origin": "http://streams.example"},
        {"Host": "streams.example", "Origin": "http://evil.streams.example"},
        {"Host": "streams.example", "Origin": "http://streams.example.evil"},
        {"Host": "streams.example", "X-Forwarded-Host": "evil.example", "Origin": EVIL},
    ],
    ids=str,
)
async def test_another_host_or_port_is_another_origin(headers: dict[str, str]) -> None:
    async with client_of(Streams([counter]), proxy_headers=False) as client:
        problem(await client.get("/streams/counter", headers=headers), 403)
        problem(await client.post("/streams/counter", json={}, headers=headers), 403)


async def test_the_host_that_a_trusted_proxy_passes_on_counts() -> None:
    proxied = {
        "Host": "upstream:8000",
        "Origin": "http://streams.example:8080",
        "X-Forwarded-Host": "spoofed.example, streams.example:8080",
        "X-Forwarded-For": "203.0.113.7",
    }
    spoofed = {**proxied, "Origin": "http://spoofed.example"}
    path = "/streams/counter?count=0"
    async with client_of(Streams([counter])) as client:
        assert (await client.get(path, headers=proxied)).status_code == 200
        problem(await client.get(path, headers=spoofed), 403)
    async with client_of(Streams([counter]), forwarded_allow_ips="192.0.2.1") as client:
        problem(await client.get(path, headers=proxied), 403)


@pytest.mark.parametrize("purpose", ["image", "iframe", "script", "object", "video", "document"])
async def test_an_element_starts_nothing_even_of_an_allowed_origin(purpose: str) -> None:
    streams = Streams([counter], origins=[EVIL])
    async with client_of(streams) as client:
        for site in ("same-origin", "cross-site"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": purpose, "Origin": EVIL}
            if (site, purpose) != ("same-origin", "document"):
                assert "Sec-Fetch-Dest" in problem(
                    await client.get("/streams/counter", headers=headers), 403
                )
                assert (await client.head("/streams/counter", headers=headers)).status_code == 403
    assert await statuses(streams) == []


async def test_all_origins_start_runs_only_without_cookies_and_keys() -> None:
    for origins in ("*", ["*"]):
        streams = Streams([counter], origins=origins)
        async with client_of(streams) as client:
            for stranger in STRANGERS:
                response = await client.get("/streams/counter?count=0", headers=stranger)
                assert response.status_code == 200
                if "Origin" in stranger:
                    assert response.headers["access-control-allow-origin"] == "*"
                assert "access-control-allow-credentials" not in response.headers
                for name in ("Cookie", "Authorization"):
                    headers = {**stranger, name: "x"}
                    said = problem(await client.get("/streams/counter", headers=headers), 403)
                    assert "origins=[" in said
            own = {"Sec-Fetch-Site": "same-origin", "Cookie": "x", "Authorization": "x"}
            response = await client.get("/streams/counter?count=0", headers=own)
            assert response.status_code == 200
        assert len(await statuses(streams)) == len(STRANGERS) + 1


async def test_a_guard_is_not_asked_about_a_page_of_another_site() -> None:
    def nobody(request: Request) -> None:
        raise StreamError("asked", status=402)

    @source(guard=nobody)
    async def guarded() -> AsyncIterator[int]:
        yield 1

    async with client_of(Streams([guarded])) as client:
        problem(await client.get("/streams/guarded", headers=CROSS), 403)
        problem(await client.get("/streams/guarded"), 402)


async def test_the_page_and_what_starts_nothing_is_there_for_every_site() -> None:
    async with client_of(Streams([counter], models={"mock": tokens})) as client:
        for path in ("/", "/page/event-stream.js", "/health", "/streams", "/v1/models"):
            assert (await client.get(path, headers=CROSS)).status_code == 200
        assert (await client.options("/v1/models", headers=CROSS)).status_code in (204, 405)


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ("https://a.example", r"one text; give a list: origins=\['https://a.example'\]"),
        (["https://a.example/"], "is not an origin as browsers send it"),
        (["https://a.example/path"], "without a default port and a path"),
        (["https://A.example"], "in lower case"),
        (["https://a.example:443"], "without a default port"),
        (["http://a.example:80"], "without a default port"),
        (["a.example"], "is not an origin"),
        (["null"], "is not an origin"),
        ([""], "is not an origin"),
        ([1], "origins: 1 is not an origin"),
        (["https://*.example"], "is not an origin"),
        (["*", "https://a.example"], 'origins: "\\*" stands alone'),
    ],
)
def test_an_invalid_origin_is_a_type_error(origins: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Streams([counter], origins=origins)


def test_origins_as_browsers_send_them_are_valid() -> None:
    Streams(
        [counter],
        origins=[
            "https://a.example",
            "http://localhost:5173",
            "http://[::1]:8000",
            "https://a.example:80",
            "chrome-extension://abcdefghijklmnop",
        ],
    )


def test_all_origins_and_api_keys_exclude_each_other_without_signed_urls() -> None:
    with pytest.raises(TypeError, match='origins="\\*" starts runs only without a key'):
        Streams([counter], origins="*", api_keys=["k" * 16])
    Streams([counter], origins="*", api_keys=["k" * 16], secret="s" * 32)


# The Host header

NAMED = ["streams.example", "Streams.Example:8000", "streams.example."]
FIXED = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "192.0.2.7:1",
    "[::1]",
    "[::1]:8000",
    "[2001:DB8::1]:80",
    "localhost",
    "localhost:8000",
    "LOCALHOST.",
    "a.b.localhost:8000",
]
OTHERS = [
    "evil.example",
    "evil.example:8000",
    "streams.example.evil",
    "sub.streams.example",
    "notlocalhost",
    "127.0.0.1.evil.example",
    "127.1",
    "a@127.0.0.1",
    "evil.example:x",
    "[::1",
    ":8000",
]


@pytest.mark.parametrize("host", OTHERS)
async def test_another_name_in_the_host_header_is_misdirected(host: str) -> None:
    streams, app = all_of_it(hosts=["streams.example"])
    async with client_of(app) as client:
        headers = {"Host": host}
        for path in ("/streams/counter?count=0", "/", "/runs", f"/runs/{UNKNOWN}", "/ask", "/no"):
            said = problem(await client.get(path, headers=headers), 421)
            assert "hosts" in said
        response = await client.post("/v1/chat/completions", json={}, headers=headers)
        assert response.status_code == 421
        assert "hosts" in response.json()["error"]["message"]
        assert (await client.get("/health", headers=headers)).status_code == 200
    assert await statuses(streams) == []


async def test_the_servers_names_addresses_and_the_machines_own_names_pass() -> None:
    async with client_of(Streams([counter], hosts=["Streams.example"])) as client:
        for host in (*NAMED, *FIXED, ""):  # An empty one is no name.
            response = await client.get("/streams/counter?count=0", headers={"Host": host})
            assert response.status_code == 200, host


@pytest.mark.parametrize("hosts", [None, "*", ["*"]])
async def test_without_hosts_every_name_passes(hosts: Any) -> None:
    async with client_of(Streams([counter], hosts=hosts)) as client:
        for host in (*NAMED, *FIXED, *OTHERS):
            response = await client.get("/streams/counter?count=0", headers={"Host": host})
            assert response.status_code == 200, host


async def test_the_421_says_what_to_set_and_repeats_nothing_long() -> None:
    async with client_of(Streams([counter], hosts=[])) as client:
        said = problem(await client.get("/streams", headers={"Host": "a.example:80"}), 421)
        assert 'hosts=["a.example"]' in said
        assert "STREAMS_HOSTS=a.example" in said
        said = problem(await client.get("/streams", headers={"Host": "a" * 5000}), 421)
        assert len(said) < 250


async def test_a_name_that_a_page_puts_into_x_forwarded_host_does_not_pass() -> None:
    async with client_of(Streams([counter], hosts=[])) as client:
        headers = {
            "Host": "evil.example",
            "X-Forwarded-Host": "localhost",
            "X-Forwarded-For": "127.0.0.1",
        }
        problem(await client.get("/streams/counter", headers=headers), 421)


async def test_health_passes_under_a_mount_too() -> None:
    app = Starlette(routes=[Mount("/live", Streams([counter], hosts=[]))])
    async with client_of(app) as client:
        headers = {"Host": "evil.example"}
        assert (await client.get("/live/health", headers=headers)).status_code == 200
        problem(await client.get("/live/streams", headers=headers), 421)
        assert (await client.get("/live/streams")).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("a.example", r"one text; give a list: hosts=\['a.example'\]"),
        (["https://a.example"], "is not a host name; write it without a scheme"),
        (["a.example:8000"], "without a scheme, a port"),
        (["a.example/"], "is not a host name"),
        (["*.example"], "is not a host name"),
        ([""], "is not a host name"),
        ([1], "hosts: 1 is not a host name"),
    ],
)
def test_an_invalid_host_name_is_a_type_error(hosts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Streams([counter], hosts=hosts)
