"""asgi.py: the routes, the requests that they refuse, and Streams inside other apps."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import StreamError, Streams, source
from streams.request import MAX_ACCEPT
from streams.sources import clock, counter, tokens
from tests.support.servers import client_of, connection, every_event, retry_of, serving, until

UNKNOWN = "AAAAAAAAAAAAAAAAAAAAAA"
EVENT_STREAM = "text/event-stream"
JSON_LINES = "application/jsonl"
EVENT_SOURCE = {"Accept": EVENT_STREAM, "Cache-Control": "no-cache"}


def problem(response: httpx.Response, status: int) -> str:
    """Checks that a response is a problem document with this status; returns its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    return str(body["detail"])


async def test_the_source_list_describes_each_source_and_its_parameters() -> None:
    async with client_of(Streams([counter, clock])) as client:
        for path in ("/streams", "/streams/"):
            first, second = (await client.get(path)).json()["sources"]
    assert first["name"] == "counter"
    assert first["description"] == "Counts, with a pause between two numbers."
    assert first["parameters"]["properties"]["count"]["maximum"] == 10**9
    assert (first["shared"], first["restartable"], first["url"]) == (
        False,
        True,
        "/streams/counter",
    )
    assert (second["shared"], second["restartable"]) == (True, False)


async def test_a_query_and_a_json_body_start_the_same_stream() -> None:
    async with client_of(Streams([counter])) as client:
        query = await every_event(client, "/streams/counter/?start=5&count=2&interval=0")
        body = await every_event(
            client, "/streams/counter", method="POST", json={"start": 5, "count": 2, "interval": 0}
        )
        empty = await client.post("/streams/counter")
    assert [event.data for event in query[1:]] == [event.data for event in body[1:]]
    assert query[1].json() == {"number": 5}
    assert empty.text.count('"number"') == 10


async def test_unknown_sources_runs_and_paths_get_a_404() -> None:
    async with client_of(Streams([counter, tokens])) as client:
        detail = problem(await client.get("/streams/nope"), 404)
        assert "'nope'" in detail
        assert "counter, tokens" in detail
        for method in ("GET", "DELETE"):
            assert UNKNOWN in problem(await client.request(method, f"/runs/{UNKNOWN}"), 404)
        assert "'/nowhere'" in problem(await client.get("/nowhere"), 404)
        assert "'nope.js'" in problem(await client.get("/page/nope.js"), 404)
        problem(await client.get("/page/..%2fasgi.py"), 404)


async def test_an_unsupported_method_gets_a_405_that_lists_the_supported_ones() -> None:
    async with client_of(Streams([counter])) as client:
        response = await client.put("/streams/counter")
        assert "PUT is not allowed here; use " in problem(response, 405)
        assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
        response = await client.post(f"/runs/{UNKNOWN}")
        assert set(response.headers["allow"].split(", ")) == {"DELETE", "GET", "HEAD"}
        response = await client.delete("/runs")
        assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_one_422_names_every_invalid_parameter() -> None:
    async with client_of(Streams([counter])) as client:
        response = await client.get("/streams/counter?count=ten&interval=-1&speed=3")
        detail = problem(response, 422)
        assert all(name in detail for name in ("count", "'ten'", "interval", "'-1'", "speed"))
        names = [error["name"] for error in response.json()["errors"]]
        assert names == ["count", "interval", "speed"]
        again = await client.post("/streams/counter", json={"count": "ten", "interval": -1})
        assert [error["name"] for error in again.json()["errors"]] == ["count", "interval"]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"count=3", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b'{"prompt":"%s"}' % (b"x" * 500), "application/json", 413),
        (b'{"count":0}', "application/json; charset=utf-8", 200),
        (b'{"count":0}', "application/merge-patch+json", 200),
        (b'{"count":0, "interval":%s1}' % (b" " * 475), "application/json", 200),
        (b'{"count":0, "interval":%s1}' % (b" " * 476), "application/json", 413),
    ],
)
async def test_a_body_must_be_a_json_object_of_at_most_max_body_bytes(
    body: bytes, content_type: str | None, status: int
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    async with client_of(Streams([counter], max_body=500)) as client:
        response = await client.post("/streams/counter", content=body, headers=headers)
        if status == 200:
            assert response.status_code == 200
        else:
            assert problem(response, status)


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("image/png", None),
        ("application/json", None),
        ("text/event-stream;q=0", None),
        ("text/event-stream; q=0.000, */*;q=0", None),
        ("text/event-stream", EVENT_STREAM),
        ("text/event-stream;charset=utf-8", EVENT_STREAM),
        ("text/html, text/*;q=0.5", EVENT_STREAM),
        ("*/*", EVENT_STREAM),
        ("", EVENT_STREAM),
        ("application/jsonl", JSON_LINES),
        ("Application/JSONL;q=0.1", JSON_LINES),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/*", JSON_LINES),
        ("application/jsonl, text/event-stream", EVENT_STREAM),
        ("application/jsonl, application/x-ndjson", JSON_LINES),
        ("application/jsonl;q=0.9, application/x-ndjson", "application/x-ndjson"),
        ("text/event-stream;q=0.5, application/jsonl;q=0.51", JSON_LINES),
        ("*/*;q=0.5, application/jsonl", JSON_LINES),
        ("*/*, text/event-stream;q=0.1", JSON_LINES),
        ("text/event-stream;q=0, */*", JSON_LINES),
        ("text/*;q=0, application/x-ndjson;q=0.001", "application/x-ndjson"),
        ("application/jsonl;q=2, text/event-stream;q=x;q=0.2", JSON_LINES),
    ],
)
async def test_the_accept_header_chooses_the_stream_or_gets_a_406(
    accept: str, answer: str | None
) -> None:
    async with client_of(Streams([counter])) as client:
        response = await client.get("/streams/counter?count=0", headers={"Accept": accept})
        if answer is None:
            detail = problem(response, 406)
            assert accept in detail
            assert f"send Accept: {EVENT_STREAM}" in detail
        else:
            assert response.headers["content-type"].partition(";")[0] == answer
            assert response.headers["vary"] == "Accept"


async def test_of_a_long_accept_header_the_beginning_is_read() -> None:
    rest = f",{JSON_LINES}"
    async with client_of(Streams([counter])) as client:
        for length, status in ((MAX_ACCEPT, 200), (MAX_ACCEPT + 1, 406)):
            headers = {"Accept": rest.rjust(length, ",")}
            response = await client.get("/streams/counter?count=0", headers=headers)
            assert response.status_code == status


async def test_the_accept_header_may_come_in_several_lines() -> None:
    async with client_of(Streams([counter])) as client:
        headers = [("Accept", "text/event-stream;q=0.5"), ("Accept", JSON_LINES)]
        response = await client.get("/streams/counter?count=0", headers=headers)
    assert response.headers["content-type"] == JSON_LINES


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("nonsense", 422),
        (f"{UNKNOWN}.-1", 422),
        (f"{UNKNOWN}.01", 422),
        (f"{UNKNOWN}.99999999999999999999", 422),
        (f"{UNKNOWN}.1é", 422),
        ("x" * 10_000, 422),
        (f"{UNKNOWN}.1", 410),
        ("{run}.7", 410),
        ("{other}.1", 410),
    ],
)
async def test_an_unusable_last_event_id_is_refused(last: str, status: int) -> None:
    """A malformed id gets a 422; one of another run, or of no event so far, gets a 410."""
    gate = asyncio.Event()

    @source
    async def slow() -> AsyncIterator[int]:
        yield 1
        await gate.wait()

    streams = Streams([slow, counter])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        other = (await every_event(client, "/streams/counter?count=1"))[0].json()["run"]
        async with connection(url, "/streams/slow") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            last = last.replace("{run}", stream.run).replace("{other}", other)
            headers = {b"Last-Event-ID": last.encode()}
            assert problem(await client.get("/streams/slow", headers=headers), status)
            if status == 422:
                assert problem(await client.get(f"/runs/{stream.run}", headers=headers), 422)
                query = {"last_event_id": last}
                assert problem(await client.get("/streams/slow", params=query), 422)
        assert problem(
            await client.get(f"/runs/{stream.run}", headers={"Last-Event-ID": f"{other}.1"}), 422
        )
        gate.set()


async def test_an_empty_last_event_id_starts_a_new_run() -> None:
    async with client_of(Streams([counter])) as client:
        events = await every_event(client, "/streams/counter?count=0&last_event_id=")
        assert events[0].event == "start"


async def test_a_client_that_accepts_json_gets_the_state_of_a_run() -> None:
    gate = asyncio.Event()

    @source
    async def slow() -> AsyncIterator[int]:
        yield 1
        await gate.wait()

    streams = Streams([slow])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        headers = {"Accept": "application/json"}
        async with connection(url, "/streams/slow") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            state = (await client.get(f"/runs/{stream.run}", headers=headers)).json()
            assert re.match(r"20\d\d-\d\d-\d\dT", state.pop("started"))
            assert state == {
                "run": stream.run,
                "source": "slow",
                "status": "running",
                "producer": streams.log.worker,
                "first_event": 0,
                "last_event": 1,
                "readers": 1,
            }
            gate.set()
            await stream.until(lambda stream: stream.terminated, "the stream has ended")
        response = await client.get(f"/runs/{stream.run}", headers=headers)
        state = response.json()
        assert response.headers["vary"] == "Accept"
        assert (state["status"], state["last_event"], state["readers"]) == ("completed", 2, 0)
        for accept in ("application/*", "text/event-stream;q=0.5, application/json"):
            response = await client.get(f"/runs/{stream.run}", headers={"Accept": accept})
            assert response.json() == state
        browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        response = await client.get(f"/runs/{stream.run}", headers=browser)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert problem(
            await client.get(f"/runs/{stream.run}", headers={"Accept": "image/png"}), 406
        )


async def test_health_reports_runs_readers_events_and_bytes() -> None:
    async with serving(Streams([counter])) as url, httpx.AsyncClient(base_url=url) as client:
        await every_event(client, "/streams/counter?count=3&interval=0")
        async with connection(url, "/streams/counter?count=3&interval=60") as stream:
            await stream.until(
                lambda stream: stream.body.count(b"\n\n") == 2, "two events have arrived"
            )
            health = (await client.get("/health")).json()
    assert health["since"].startswith("20")
    assert health["bytes"] > 300
    assert {name: health[name] for name in ("runs", "running", "readers", "events")} == {
        "runs": 2, "running": 1, "readers": 1, "events": 7,
    }  # fmt: skip
    assert (health["restarts"], health["gaps"]) == (0, 0)


async def test_head_sends_the_headers_and_starts_no_run() -> None:
    streams = Streams([counter, clock])
    async with client_of(streams) as client:
        for path in ("/streams/counter", "/streams/clock"):
            response = await client.head(path)
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-store, no-transform"
            assert "content-location" not in response.headers
        assert (await client.head("/streams/counter?count=x")).status_code == 422
        assert (await client.head("/streams")).status_code == 200
        assert (await client.head("/health")).status_code == 200
        assert len(streams.log) == 0
        run = (await every_event(client, "/streams/counter?count=0"))[0].json()["run"]
        response = await client.head(f"/runs/{run}")
        assert response.headers["content-location"] == f"/runs/{run}"
        assert (await client.head(f"/runs/{UNKNOWN}")).status_code == 404


async def test_head_sends_the_headers_of_a_get_in_each_media_type() -> None:
    streams = Streams([counter])

    async def own(request: Request) -> Response:
        return streams.response(request, iter([1]), name="own")

    app = Starlette(routes=[Route("/own", own), Mount("/live", streams)])
    async with client_of(app) as client:
        first = await client.get("/live/streams/counter?count=0")
        for path in (
            "/live/streams/counter?count=0",
            "/own",
            first.headers["content-location"],
            "/live/streams",
            "/live/health",
        ):
            for media_type in ("text/event-stream", "application/jsonl", "application/x-ndjson"):
                accept = {"Accept": media_type}
                got = dict((await client.get(path, headers=accept)).headers)
                head = dict((await client.head(path, headers=accept)).headers)
                for headers in (got, head):
                    for name in ("date", "content-length", "transfer-encoding"):
                        headers.pop(name, None)
                if "runs" not in path:  # HEAD has started none.
                    got.pop("content-location", None)
                assert head == got, (path, media_type)


async def test_a_trailing_slash_changes_nothing_and_causes_no_redirect() -> None:
    for app in (
        Streams([counter]),
        Starlette(routes=[Mount("/live", Streams([counter]))]),
    ):
        prefix = "" if isinstance(app, Streams) else "/live"
        async with client_of(app) as client:
            for path in ("/streams", "/streams/counter", "/health"):
                for slash in ("", "/"):
                    response = await client.get(
                        f"{prefix}{path}{slash}?count=0"
                        if "counter" in path
                        else f"{prefix}{path}{slash}"
                    )
                    assert response.status_code == 200, (prefix, path, slash)
            assert response.json()["runs"] == 2


async def test_urls_include_the_mount_path_and_the_root_path() -> None:
    deep = Starlette(routes=[Mount("/a", routes=[Mount("/b", Streams([counter]))])])
    for app, root, prefix in (
        (Streams([counter]), "", ""),
        (deep, "", "/a/b"),
        (Streams([counter]), "/proxy", "/proxy"),
        (deep, "/proxy", "/proxy/a/b"),
    ):
        path = prefix.removeprefix(root)
        async with client_of(app, root_path=root) as client:
            response = await client.get(f"{path}/streams/counter?count=0")
            run = re.findall(r'"run":"(.+?)"', response.text)[0]
            assert response.headers["content-location"] == f"{prefix}/runs/{run}"
            assert f'"url":"{prefix}/runs/{run}"}}' in response.text
            sources = (await client.get(f"{path}/streams")).json()["sources"]
            assert sources[0]["url"] == f"{prefix}/streams/counter"
            assert (await client.get(f"{path}/runs/{run}")).status_code == 200
            assert (await client.get(f"{path}/")).status_code == 200


async def test_urls_are_quoted_under_a_mount_with_a_path_parameter() -> None:
    streams = Streams([counter])

    async def endpoint(request: Request) -> Response:
        return streams.response(request, [1])

    app = Starlette(routes=[Route("/own", endpoint), Mount("/{tenant}", streams)])
    async with client_of(app) as client:
        response = await client.get("/%E6%97%A5%0D%0AX: y/streams/counter?count=0")
        assert response.headers["content-location"].startswith("/%E6%97%A5%0D%0AX%3A%20y/runs/")
        assert "x" not in response.headers
        assert (await client.get(response.headers["content-location"])).status_code == 200
        sources = (await client.get("/%E6%97%A5/streams")).json()["sources"]
        assert sources[0]["url"] == "/%E6%97%A5/streams/counter"
        assert f'"url":"{response.headers["content-location"]}"}}' in response.text
        assert "content-location" not in (await client.get("/own")).headers


async def test_a_path_without_its_root_path_is_found() -> None:
    """Some servers set root_path and remove it from the path."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for path in ("", "/"):
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "headers": []}
        scope["root_path"] = "/live"
        await Streams([counter])(scope, anyio.sleep_forever, send)  # type: ignore[arg-type]
        assert sent.pop(0)["status"] == 200
        sent.clear()


@pytest.mark.parametrize("prefix", ["/live", "/streams", "/a b"])
async def test_urls_include_a_prefix_that_only_the_raw_path_has(prefix: str) -> None:
    """Some hosts remove a mount's prefix from the path and set no root_path."""
    streams = Streams([counter])
    quoted = prefix.replace(" ", "%20")

    async def host(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix(prefix).rstrip("/") + "/"
        await streams({**scope, "path": path}, receive, send)

    async with client_of(host) as client:
        response = await client.get(f"{prefix}/streams/counter?count=1")
        run = re.findall(r'"run":"(.+?)"', response.text)[0]
        assert response.headers["content-location"] == f"{quoted}/runs/{run}"
        sources = (await client.get(f"{prefix}/streams")).json()["sources"]
        assert sources[0]["url"] == f"{quoted}/streams/counter"
        for path in ("/", f"/runs/{run}"):
            assert (await client.get(f"{prefix}{path}")).status_code == 200
        page = await client.get(prefix, follow_redirects=True)
        assert page.url.path == f"{prefix}/", "the page's relative URLs need the slash"
        assert page.headers["content-type"].startswith("text/html")


async def test_page_false_leaves_out_the_playground_and_keeps_the_client() -> None:
    async with client_of(Streams([counter])) as client:
        response = await client.get("/")
        assert response.headers["content-type"].startswith("text/html")
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
        assert (await client.get("/page/index.html")).text == response.text
    async with client_of(Streams([counter], page=False)) as client:
        assert problem(await client.get("/"), 404)
        assert problem(await client.get("/page/index.html"), 404)
        assert problem(await client.get("/page/about.json"), 404)
        script = await client.get("/page/event-stream.js")
        assert script.headers["content-type"].startswith("text/javascript")


async def test_a_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/streams/counter", "headers": []}
    await Streams([counter])(scope, anyio.sleep_forever, send)  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"


async def test_at_max_runs_a_new_run_gets_a_503_with_retry_after() -> None:
    streams = Streams([counter], max_runs=1)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/counter?interval=60") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            response = await client.get("/streams/counter")
            assert "holds 1 runs (limit 1)" in problem(response, 503)
            assert 10 <= int(response.headers["retry-after"]) <= 20
            response = await client.get("/streams/counter", headers=EVENT_SOURCE)
            assert response.status_code == 200
            assert 10_000 <= retry_of(response) <= 20_000
            assert response.headers["content-type"].startswith("text/event-stream")
            await client.delete(f"/runs/{stream.run}")
        assert (await client.get("/streams/counter?count=0")).status_code == 200


async def test_at_max_bytes_a_source_pauses_and_new_runs_get_a_503() -> None:
    gate = asyncio.Event()

    @source
    async def big() -> AsyncIterator[str]:
        yield "x" * 1000
        await gate.wait()
        while True:
            yield "x" * 1000

    streams = Streams([big, counter], max_bytes=100_000)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/big") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            # This reader takes nothing, so the log cannot drop any event.
            with (await streams.log.find(stream.run)).read(-1):
                gate.set()
                await until(lambda: streams.log.bytes >= 100_000, "the log holds max_bytes")
                assert (await client.get("/streams/counter")).status_code == 503
                assert streams.log.bytes < 110_000
                await client.delete(f"/runs/{stream.run}")
        await until(lambda: not streams.log.readers, "no reader is attached")
        assert (await client.get("/streams/counter?count=0")).status_code == 200


CROSS = {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"}


async def test_a_cross_site_page_starts_a_run_only_from_an_allowed_origin() -> None:
    streams = Streams([counter, clock])
    async with client_of(streams) as client:
        for headers in (CROSS, {"Sec-Fetch-Site": "cross-site"}):
            assert "origins" in problem(await client.get("/streams/counter", headers=headers), 403)
            problem(await client.post("/streams/counter", headers=headers), 403)
            problem(await client.get("/streams/clock", headers=headers), 403)
            again = {**headers, "Last-Event-ID": f"{UNKNOWN}.0"}
            problem(await client.get("/streams/counter", headers=again), 403)
        assert len(streams.log) == 0
        same = {"Sec-Fetch-Site": "same-origin"}
        assert (await client.get("/streams/counter?count=0", headers=same)).status_code == 200
    for origins in (["https://other.example"], ["*"]):
        async with client_of(Streams([counter], origins=origins)) as client:
            response = await client.get("/streams/counter?count=0", headers=CROSS)
            assert response.status_code == 200
            assert "Content-Location" in response.headers["access-control-expose-headers"]
            refused = await client.get("/streams/nope", headers=CROSS)
            assert refused.status_code == 404
            assert "access-control-allow-origin" in refused.headers, "the page can read the refusal"
            preflight = await client.options(
                "/streams/counter",
                headers={
                    **CROSS,
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "last-event-id",
                },
            )
            assert preflight.status_code == 200


class ByHeader(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        if name == "nameless":
            return AuthCredentials(), Nameless()
        return (AuthCredentials(), SimpleUser(name)) if name else None


class Nameless(UnauthenticatedUser):
    """A user without an identity; the display name takes its place."""

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return "ann"

    @property
    def identity(self) -> str:
        raise NotImplementedError


async def test_only_the_user_who_started_a_run_can_read_or_stop_it() -> None:
    app = Starlette(
        routes=[Mount("/", Streams([counter]))],
        middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())],
    )
    async with client_of(app) as client:
        ann, bob = {"X-User": "ann"}, {"X-User": "bob"}
        response = await client.get("/streams/counter?count=1", headers=ann)
        path = response.headers["content-location"]
        run = path.rpartition("/")[2]
        assert (await client.get(path, headers=ann)).status_code == 200
        assert (await client.get(path, headers={"X-User": "nameless"})).status_code == 200
        for stranger in (bob, {}):
            assert run in problem(await client.get(path, headers=stranger), 404)
            problem(await client.delete(path, headers=stranger), 404)
            last = {**stranger, "Last-Event-ID": f"{run}.0"}
            problem(await client.get("/streams/counter", headers=last), 410)
        anonymous = await client.get("/streams/counter?count=1")
        path = anonymous.headers["content-location"]
        response = await client.get(path, headers=bob)
        assert response.status_code == 200, "a run without an owner is open to everybody"


async def test_two_streams_apps_in_one_process_share_no_runs() -> None:
    one, other = Streams([counter]), Streams([counter])
    app = Starlette(routes=[Mount("/one", one), Mount("/other", other)])
    async with client_of(app) as client:
        response = await client.get("/one/streams/counter?count=0")
        path = response.headers["content-location"]
        assert (await client.get(path)).status_code == 200
        assert (await client.get(path.replace("one", "other"))).status_code == 404
        assert len(other.log) == 0


async def test_a_source_receives_the_request_that_started_its_run() -> None:
    @source
    async def who(request: Request) -> AsyncIterator[str]:
        yield request.headers["x-who"]

    async with client_of(Streams([who])) as client:
        response = await client.get("/streams/who", headers={"X-Who": "me"})
    assert 'data: "me"' in response.text


def test_streams_refuses_invalid_sources_and_options() -> None:
    async def plain() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="is not a source; decorate it with @source"):
        Streams([plain])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="two sources have the name 'counter'"):
        Streams([counter, counter])
    with pytest.raises(
        TypeError, match="'speed' is not an option of Streams; policy options: heartbeat, "
    ):
        Streams([counter], speed=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="status 200 is not an error"):
        StreamError("fine", status=200)
    with pytest.raises(TypeError, match=r"retry"):
        Streams([counter], retry=3)  # type: ignore[arg-type]


def test_a_model_must_be_a_source_and_a_name_must_fit_into_a_url() -> None:
    with pytest.raises(TypeError, match="is not a source; decorate it with @source"):
        Streams(models={"m": print})  # type: ignore[dict-item]
    request: Any = Request({"type": "http", "headers": []})
    with pytest.raises(TypeError, match="'bad name' does not fit into a URL"):
        Streams().response(request, iter([1]), name="bad name")
