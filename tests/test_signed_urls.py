"""URLs that the app has signed."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from streams import StreamError, Streams, credentials, source
from streams.sources import counter
from tests.support.owners import BEARER, COUNTER, JSON, KEY, news, owner, owner_of
from tests.support.servers import client_of, connection, every_event, serving, until
from tests.test_asgi import problem

SECRET = "s" * 32


@source(shared=True)
async def feed(room: str = "a") -> AsyncIterator[Any]:
    yield room
    await asyncio.Event().wait()


class Clock:
    """A clock that a test sets."""

    now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(credentials, "time", clock)
    return clock


def signing(*sources: Any, **options: Any) -> Streams:
    own: list[Any] = [counter, owner, feed, news]
    return Streams(sources or own, secret=SECRET, **options)


async def test_a_signed_url_starts_a_stream_without_a_key() -> None:
    streams = signing(api_keys=[KEY])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        problem(await client.get(COUNTER), 401)
        assert len(await every_event(client, streams.signed_url(COUNTER))) == 4
        async with connection(url, streams.signed_url("/streams/news?user=ann")) as stream:
            await stream.until(lambda stream: b"event: start" in stream.body, "it has joined")
            await streams.publish("news", "hello", user="ann")
            await stream.until(lambda stream: b'"hello"' in stream.body, "it has the event")


async def test_the_run_belongs_to_the_owner_that_is_signed() -> None:
    def identity(request: Request) -> str | None:
        return request.headers.get("x-user")

    for options in ({}, {"identity": identity}, {"api_keys": [KEY]}):
        streams = signing(**options)
        async with serving(streams) as url:
            for name in ("ann", "Zoë/1.2", "a" * 300):
                signed = streams.signed_url("/streams/owner", owner=name)
                assert await owner_of(url, signed, "X-User: bob\r\n") == name
            unnamed = streams.signed_url("/streams/owner")
            named_else = "bob" if options.get("identity") else None
            assert await owner_of(url, unnamed, "X-User: bob\r\n") == named_else


CHANGES = [
    ("counter", "owner"),
    ("count=2", "count=3"),
    ("count=2&", ""),
    ("count=2&", "count=2&count=2&"),
    ("count=2&interval=0", "interval=0&count=2"),
    ("&signature", "&x=1&signature"),
    ("&signature", "&idempotency_key=aaaaaaaaaaaaaaaaaaaa&signature"),
    ("signature=1000300", "signature=1000301"),
    ("signature=1000300", "signature=01000300"),
    ("signature=1000300", "signature="),
    (".YW5u.", ".Ym9i."),
    (".YW5u.", ".."),
    (".YW5u.", ".YW5u=."),
    (".YW5u.", ".YW5v."),
    (".YW5u.", "."),
]


@pytest.mark.parametrize("change", CHANGES, ids=" to ".join)
async def test_whoever_changes_a_signed_url_gets_a_403(
    change: tuple[str, str], clock: Clock
) -> None:
    streams = signing(api_keys=[KEY])
    signed = streams.signed_url(COUNTER, owner="ann")
    changed = signed.replace(*change)
    assert changed != signed
    async with client_of(streams) as client:
        for headers in ({}, BEARER):
            said = problem(await client.get(changed, headers=headers), 403)
            assert "the signature is not one for this URL" in said
        assert (await client.get(signed)).status_code == 200
    assert len(await streams.runs.list()) == 1


async def test_a_signature_has_no_other_character_at_any_place(clock: Clock) -> None:
    streams = signing()
    signed = streams.signed_url(COUNTER, owner="ann")
    start = signed.index("signature=") + len("signature=")
    async with client_of(streams) as client:
        for place in range(start, len(signed)):
            other = "B" if signed[place] == "A" else "A"
            changed = f"{signed[:place]}{other}{signed[place + 1 :]}"
            assert (await client.get(changed)).status_code == 403, place
            if place % 7 == 0:
                assert (await client.get(signed[:place])).status_code == 403, place
        for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=":
            changed = f"{signed[:-1]}{other}"
            assert changed == signed or (await client.get(changed)).status_code == 403, other


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_a_signed_url_is_for_get(method: str) -> None:
    streams = signing()
    async with client_of(streams) as client:
        response = await client.request(method, streams.signed_url("/streams/counter"), json={})
        problem(response, 403)
        assert (await client.head(streams.signed_url(COUNTER))).status_code == 200
    assert not await streams.runs.list()


async def test_another_secret_or_none_accepts_no_signature() -> None:
    signed = signing().signed_url(COUNTER)
    for secret in (None, "t" * 32):
        async with client_of(Streams([counter], secret=secret)) as client:
            problem(await client.get(signed), 403)


async def test_no_request_with_a_signature_that_is_not_valid_gets_to_a_guard() -> None:
    asked = []

    def has_signature(request: Request) -> None:
        asked.append(request.url.query)
        if "signature" not in request.query_params:
            raise StreamError("no", status=402)

    @source(guard=has_signature)
    async def guarded(count: int = 1) -> AsyncIterator[int]:
        yield count

    for streams in (signing(guarded), Streams([guarded])):
        async with client_of(streams) as client:
            for query in (
                "signature=x",
                "%73ignature=x",
                "s%69gnature",
                "a=1&signature=",
                "signature=x&signature=y",
                "count=1;signature=x&signature",
            ):
                problem(await client.get(f"/streams/guarded?{query}"), 403)
    assert not asked
    streams = signing(guarded)
    async with client_of(streams) as client:
        assert "data: 1" in (await client.get(streams.signed_url("/streams/guarded"))).text
        problem(await client.get("/streams/guarded"), 402)
    assert len(asked) == 2


async def test_after_its_time_a_signed_url_starts_and_joins_nothing(clock: Clock) -> None:
    streams = signing()
    async with client_of(streams) as client:
        for path in (COUNTER, "/streams/feed", "/streams/news?user=ann"):
            signed = streams.signed_url(path, seconds=10)
            clock.now += 11
            for headers in (
                {},
                {"Last-Event-ID": ""},
                {"Idempotency-Key": "k" * 20},
            ):
                said = problem(await client.get(signed, headers=headers), 403)
                assert "is over; ask the app for another one" in said
            gone = {"Last-Event-ID": f"{'A' * 22}.1"}
            assert (await client.get(signed, headers=gone)).status_code in (403, 410)
        assert not await streams.runs.list()


async def test_just_before_the_end_of_its_time_it_starts_a_stream(clock: Clock) -> None:
    streams = signing()
    async with client_of(streams) as client:
        signed = streams.signed_url(COUNTER, seconds=10)
        clock.now += 10
        assert (await client.get(signed)).status_code == 200


@pytest.mark.parametrize("path", ["/streams/owner", "/streams/feed", "/streams/feed?room=b"])
async def test_after_its_time_it_resumes_the_run_that_it_started(path: str, clock: Clock) -> None:
    streams = signing()
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        signed = streams.signed_url(path, owner="ann")
        async with connection(url, signed) as first:
            await first.until(lambda stream: b"data: " in stream.body.partition(b".1\n")[2], "1")
        clock.now += 10_000
        last = f"{first.run}.0"
        for again in (
            (signed, f"Last-Event-ID: {last}\r\n"),
            (f"{signed}&last_event_id={last}", ""),
            (f"{signed}&lastEventId={last}", ""),
        ):
            async with connection(url, again[0], headers=again[1]) as second:
                await second.until(lambda stream: b".1\n" in stream.body, "event 1")
                assert second.run == first.run
        others = streams.signed_url(path, owner="bob")
        clock.now += 10_000
        if path == "/streams/owner":
            response = await client.get(others, headers={"Last-Event-ID": last})
            problem(response, 410)
        else:
            async with connection(url, others, headers=f"Last-Event-ID: {last}\r\n") as third:
                await third.until(lambda stream: b".1\n" in stream.body, "a shared run is for all")
    assert len(await streams.runs.list()) <= 1


async def test_after_its_time_it_does_not_join_another_run_of_a_shared_source(
    clock: Clock,
) -> None:
    streams = signing()
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        signed = streams.signed_url("/streams/feed")
        async with connection(url, signed) as first:
            await first.until(lambda stream: b".1\n" in stream.body, "the run has begun")
            clock.now += 10_000
            gone = {"Last-Event-ID": f"{'A' * 22}.1"}
            problem(await client.get(signed, headers=gone), 403)


async def test_a_signed_url_of_a_run_reads_that_run_of_its_owner() -> None:
    streams = signing(api_keys=[KEY])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, streams.signed_url("/streams/owner", owner="ann")) as first:
            await first.until(lambda stream: b".1\n" in stream.body, "the run has begun")
            path = f"/runs/{first.run}"
            problem(await client.get(path), 401)
            problem(await client.get(path, headers=BEARER), 404)
            problem(await client.get(streams.signed_url(path, owner="bob")), 404)
            state = await client.get(streams.signed_url(path, owner="ann"), headers=JSON)
            assert state.json()["status"] == "running"
            async with connection(url, streams.signed_url(path, owner="ann")) as second:
                await second.until(lambda stream: b".1\n" in stream.body, "it has event 1")


async def test_a_signed_url_works_under_a_mount_and_at_no_other_one() -> None:
    streams = signing(api_keys=[KEY])
    app = Starlette(
        routes=[Mount("/a/live", streams), Mount("/b b/ü", streams), Mount("/{tenant}", streams)]
    )
    async with client_of(app) as client:
        for mount in ("/a/live", quote("/b b/ü"), "/tenant-1"):
            signed = streams.signed_url(f"{mount}{COUNTER}")
            assert signed.startswith(f"{mount}{COUNTER}&signature=")
            assert len(await every_event(client, signed)) == 4
            moved = signed.replace(mount, "/tenant-2")
            problem(await client.get(moved), 403)


async def test_it_does_not_matter_how_the_url_is_quoted() -> None:
    @source
    async def echo(text: str) -> AsyncIterator[str]:
        yield text

    streams = signing(echo)
    async with client_of(streams) as client:
        for text in ("a b+c&d=e", "日本 ü", "100 %", "a;b", "''\"<>"):
            signed = streams.signed_url(f"/streams/echo?text={quote(text)}")
            events = await every_event(client, signed.replace("%20", "+"))
            assert events[1].json() == text
        signed = streams.signed_url("/streams/echo/?text=日本")
        assert (await every_event(client, signed))[1].json() == "日本"


@pytest.mark.parametrize(
    "path",
    [
        "streams/counter",
        "//evil.example/streams/counter",
        "https://a.example/streams/counter",
        "/streams",
        "/runs",
        "/",
        "",
        "/v1/models",
        "/topics/news",
        "/streams/counter#x",
        "/streams/counter?text=a\r\nSet-Cookie: a=b",
        "/streams/a\x7f",
    ],
)
def test_only_the_path_of_a_stream_is_signed(path: str) -> None:
    with pytest.raises(ValueError, match="is not the path of a stream; give one as"):
        signing().signed_url(path)


async def test_no_other_url_takes_a_signature() -> None:
    streams = signing(api_keys=[KEY])
    signature = streams.signed_url(COUNTER).partition("signature=")[2]
    async with client_of(streams) as client:
        for path in ("/streams", "/runs", "/v1/models", "/", "/health"):
            for headers in ({}, BEARER):
                response = await client.get(f"{path}?signature={signature}", headers=headers)
                assert response.status_code == 403
        elsewhere = streams.signed_url(f"/live{COUNTER}")  # for a Streams that is mounted
        assert (await client.get(elsewhere)).status_code == 403
        twice = f"{streams.signed_url(COUNTER)}&signature={signature}"
        assert (await client.get(twice)).status_code == 403


def test_invalid_arguments_of_signed_url() -> None:
    streams = signing()
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give a positive number of seconds"):
            streams.signed_url(COUNTER, seconds=seconds)
    with pytest.raises(ValueError, match="has a signature already"):
        streams.signed_url(streams.signed_url(COUNTER))
    with pytest.raises(TypeError, match="owner= names a user with 1"):
        streams.signed_url(COUNTER, owner=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"signed_url\(\) needs Streams\(secret=…\)"):
        Streams([counter]).signed_url(COUNTER)


@pytest.mark.parametrize("secret", ["", "s" * 31, b"s" * 32, 1])
def test_an_invalid_secret_is_a_type_error_that_does_not_show_it(secret: Any) -> None:
    with pytest.raises(TypeError, match="fewer than 32 characters could be guessed") as raised:
        Streams([counter], secret=secret)
    assert "sss" not in str(raised.value)


def test_a_secret_as_it_is_recommended_is_long_enough() -> None:
    Streams([counter], secret=secrets.token_urlsafe(32))


def test_a_source_has_no_parameter_with_the_name_of_the_signature() -> None:
    async def signed(signature: str) -> AsyncIterator[str]:
        yield signature

    with pytest.raises(TypeError, match="the parameter name 'signature' is reserved"):
        source(signed)


async def test_pages_of_another_site_need_to_be_allowed_with_a_signed_url_too() -> None:
    cross = {"Sec-Fetch-Site": "cross-site", "Origin": "https://a.example"}
    streams = signing()
    async with client_of(streams) as client:
        problem(await client.get(streams.signed_url(COUNTER), headers=cross), 403)
    streams = signing(origins="*", api_keys=[KEY])
    async with client_of(streams) as client:
        response = await client.get(streams.signed_url(COUNTER), headers=cross)
        assert response.status_code == 200
    await until(lambda: not streams.log.readers, "no reader is attached")
