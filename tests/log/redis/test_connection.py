"""The URL of a RedisStore, and its connections: authentication, TLS, cancellation."""

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import trustme
from redis.exceptions import NoScriptError

from streams import Streams
from streams.errors import StoreDown
from streams.event import COMPLETED, frame
from streams.log.redis import RedisStore
from streams.log.redis.connection import RedisLink
from streams.log.redis.scripts import LOAD_STATE
from tests.support.event_logs import new, read_all
from tests.support.stores import shared_log
from tests.support.valkey import Valkey


def test_an_unreachable_redis_raises_an_error_with_its_address() -> None:
    with pytest.raises(StoreDown, match=r"Redis at redis://127\.0\.0\.1:1 cannot"):
        Streams(log="redis://127.0.0.1:1?prefix=mine")


def test_a_redis_before_6_2_is_refused(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis.Redis, "info", lambda *_: {"redis_version": "6.0.16"})
    with pytest.raises(StoreDown, match=r"6\.0\.16.*6\.2"):
        Streams(log=redis_url)


@pytest.mark.parametrize("lease", ["soon", "0", "-1", "nan", "inf"])
def test_an_invalid_lease_is_refused(lease: str) -> None:
    with pytest.raises(ValueError, match=f"lease='{lease}'.*lease=2.5"):
        RedisStore(f"redis://127.0.0.1?lease={lease}")


def test_the_error_for_a_password_that_is_not_encoded_does_not_show_it() -> None:
    with pytest.raises(ValueError, match="%-encoded") as refused:
        RedisStore("redis://:hush#hush@127.0.0.1:6379")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redsi://:hush@127.0.0.1"])
def test_the_error_for_a_url_that_is_not_of_redis_says_how_one_begins(url: str) -> None:
    with pytest.raises(ValueError, match=r"begins with redis://.*not with '") as refused:
        RedisStore(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["unix", "redis+unix"])
def test_a_url_of_a_socket_needs_no_host(shared_valkey: Valkey, scheme: str) -> None:
    RedisStore(f"{scheme}://{shared_valkey.directory}/socket?prefix=mine").check()


async def test_a_url_can_have_a_socket_a_password_and_a_prefix(shared_valkey: Valkey) -> None:
    shared_valkey.client.config_set("requirepass", "secret")
    address = shared_valkey.url.removeprefix("redis://")
    path = f"{shared_valkey.directory}/socket"
    try:
        with pytest.raises(StoreDown, match="at redis://127") as refused:
            Streams(log=f"redis://:wrong@{address}")
        assert "wrong" not in str(refused.value), "the error does not show the password"
        for url in (f"redis://:secret@{address}/0", f"redis+unix://:secret@{path}"):
            log = shared_log(f"{url}?prefix=mine")
            log.store.check()
            (await new(log)).append(None, b"0")
            await log.written()
            assert shared_valkey.client.exists("mine:run:r")
            await log.discard("r")
            await log.aclose()
    finally:
        shared_valkey.client.config_set("requirepass", "")


async def test_rediss_encrypts_and_refuses_a_server_with_an_untrusted_certificate(
    shared_valkey: Valkey, tmp_path: Path
) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with anyio.create_task_group() as group:
            back, forth = await asyncio.open_connection("127.0.0.1", shared_valkey.port)

            async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with suppress(ConnectionError):
                    while data := await reader.read(65536):
                        writer.write(data)
                writer.close()

            group.start_soon(copy, reader, forth)
            group.start_soon(copy, back, writer)

    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = await asyncio.start_server(relay, "localhost", 0, ssl=context)
    url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}?prefix=tls"
    async with server:
        log = shared_log(f"{url}&ssl_ca_certs={tmp_path}/ca.pem")
        await asyncio.to_thread(log.store.check)
        (await new(log)).close(COMPLETED)
        await log.written()
        assert await read_all(await log.find("r")) == frame(b"r", 0, b"end", COMPLETED.encode())
        await log.discard("r")
        await log.aclose()
        with pytest.raises(StoreDown, match="certificate verify failed"):
            await asyncio.to_thread(RedisStore(url).check)


async def test_a_call_can_be_cancelled_at_any_moment_without_losing_a_connection(
    redis_url: str,
) -> None:
    link = RedisLink(redis_url, prefix="")
    stream = f"{link.prefix}:log:r"
    for turns in range(40):
        for request in (link.read({stream: "0-0"}), link.call(LOAD_STATE, "worker", "r")):
            task = asyncio.ensure_future(request)
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            await asyncio.wait([task], timeout=5)
            assert task.cancelled() == cancelled
            assert not link._pool._in_use_connections
    calls = [link.call(LOAD_STATE, "worker", "r") for _ in range(50)]
    await asyncio.wait_for(asyncio.gather(*calls), 5)
    await link.aclose()


async def test_only_calls_of_a_script_that_redis_does_not_know_are_made_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_url, prefix="streams", lease="1")
    pipelined, made = link._pipelined, []

    async def forgetful(calls: Any) -> list[Any]:
        made.append([run for _, (_, run) in calls])
        replies = await pipelined(calls)
        if len(made) == 1:
            replies[1] = NoScriptError("NOSCRIPT")
        return replies

    await link.call(LOAD_STATE, "worker", "known")
    monkeypatch.setattr(link, "_pipelined", forgetful)
    replies = await link.call_all([(LOAD_STATE, ("worker", run)) for run in "abc"])
    assert made == [["a", "b", "c"], ["b"]]
    assert [reply[0] for reply in replies] == [None, None, None]
    await link.aclose()
