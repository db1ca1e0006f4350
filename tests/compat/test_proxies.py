"""Proxies: nginx and HAProxy, in several configurations, in front of a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx
import pytest

from tests.compat.processes import BIN, first_number, listening, program, running
from tests.compat.test_servers import IDLE, readers, stream
from tests.support.servers import ROOT, every_event, free_port

NGINX = first_number("nginx", "-v")
HAPROXY = first_number("haproxy", "-v")

# The configuration around docs/nginx.conf that lets nginx run from its own folder.
AROUND = """
daemon off;
user root;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=cache:1m;
    {http}
    {site}
}}
"""


class Proxy(NamedTuple):
    """A proxy with its documented configuration, in which `changes` replace one text by another.

    `http` is added to nginx's http block; `encoding` is the expected Content-Encoding.
    """

    name: str
    version: str
    changes: tuple[tuple[str, str], ...] = ()
    http: str = ""
    http2: bool = False
    prefix: str = ""
    encoding: str | None = None

    @property
    def configuration(self) -> Path:
        return ROOT / "docs" / ("haproxy.cfg" if self.version is HAPROXY else "nginx.conf")


ONE_POINT_ZERO = (("proxy_http_version 1.1;", ""), ('proxy_set_header Connection "";', ""))

PROXIES = [
    Proxy("nginx, as documented", NGINX),
    Proxy("nginx, HTTP/1.0 to the app", NGINX, ONE_POINT_ZERO),
    Proxy("nginx, HTTP/2 to the client", NGINX, (("8080", "8080 http2"),), http2=True),
    Proxy(
        "nginx, gzip for all types",
        NGINX,
        ONE_POINT_ZERO,
        "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0; gzip_http_version 1.0;",
        encoding="gzip",
    ),
    Proxy(
        "nginx, cache for all responses",
        NGINX,
        ONE_POINT_ZERO,
        "proxy_cache cache; proxy_cache_valid any 1m; proxy_cache_key $request_uri;",
    ),
    Proxy(
        "nginx, prefix removed",
        NGINX,
        (("location / {", "location /live/ {"), ("http://streams;", "http://streams/;")),
        prefix="/live",
    ),
    Proxy("HAProxy, as documented", HAPROXY),
    Proxy("HAProxy, HTTP/2 to the client", HAPROXY, ((":8080", ":8080 proto h2"),), http2=True),
    Proxy(
        "HAProxy, gzip for all types",
        HAPROXY,
        (("mode http", "mode http\n    compression algo gzip\n    compression type text/"),),
    ),
]

every_proxy = pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
documented = pytest.mark.parametrize(
    "proxy", [PROXIES[0], PROXIES[6]], ids=lambda proxy: proxy.name
)


@asynccontextmanager
async def behind(
    proxy: Proxy, folder: Path, *changes: tuple[str, str], **environ: str
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Runs a server and a proxy for it; gives a client of each, the proxy's first."""
    port, upstream = free_port(), free_port()
    text = proxy.configuration.read_text()
    for old, new in (*proxy.changes, *changes, ("8080", str(port)), ("8000", str(upstream))):
        assert old in text, f"{proxy.configuration} does not contain {old!r}"
        text = text.replace(old, new)
    file = folder / "configuration"
    if proxy.version is NGINX:
        text = AROUND.format(folder=folder, http=proxy.http, site=text)
        command = (program("nginx"), "-c")
    else:
        command = (program("haproxy"), "-f")
    file.write_text(text)
    uvicorn = f"app:app --http h11 --port {upstream} --root-path={proxy.prefix}".split()
    async with (
        running(BIN / "uvicorn", *uvicorn, ready=listening(upstream), **environ),
        running(*command, file, ready=listening(port)),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}{proxy.prefix}",
            http1=not proxy.http2,
            http2=proxy.http2,
        ) as client,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{upstream}") as direct,
    ):
        yield client, direct


@every_proxy
@pytest.mark.column("passes events on immediately")
async def test_an_event_arrives_before_the_next_one_is_sent(proxy: Proxy, tmp_path: Path) -> None:
    headers = {"Accept-Encoding": "gzip"}
    async with behind(proxy, tmp_path) as (client, _):
        for _ in range(2):  # a cache could answer the second request
            with anyio.fail_after(10):  # a heartbeat comes after 15 s
                async with stream(client, IDLE, headers) as opened:
                    assert opened.response.http_version == ("HTTP/2" if proxy.http2 else "HTTP/1.1")
                    assert opened.response.headers.get("content-encoding") == proxy.encoding
                    location = opened.response.headers["content-location"]
                    assert location == f"{proxy.prefix}/runs/{opened.run}"
        events = await every_event(client, "/streams/counter?count=50&interval=0.001")
        assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(50)]
        again = await every_event(client, "/streams/counter?count=50&interval=0.001", events[20].id)
        assert again[0].json() == {"number": 20}


@every_proxy
@pytest.mark.column("passes a disconnect on")
async def test_a_disconnect_is_noticed_before_the_next_heartbeat(
    proxy: Proxy, tmp_path: Path
) -> None:
    async with behind(proxy, tmp_path) as (client, direct):
        async with stream(client, IDLE) as opened:
            assert await readers(direct, opened.run) == 1
        await client.aclose()
        with anyio.fail_after(10):  # a heartbeat comes every 15 s
            while await readers(direct, opened.run):
                await asyncio.sleep(0.01)


# A time-out of the proxy that many heartbeats (0.3 s) fit into, but not a pause between events.
SHORT = {NGINX: (("read_timeout 60s", "read_timeout 3s"),), HAPROXY: (("60s", "3s"),)}
QUIET = "/streams/counter?count=2&interval=5"


@every_proxy
@pytest.mark.column("heartbeats keep streams open")
async def test_heartbeats_keep_a_stream_open_that_is_idle_for_longer_than_the_time_out(
    proxy: Proxy, tmp_path: Path
) -> None:
    short = SHORT[proxy.version]
    async with behind(proxy, tmp_path, *short, STREAMS_HEARTBEAT="0.3") as (client, _):
        events = await every_event(client, QUIET)
        assert [event.event for event in events] == ["start", "message", "message", "end"]


@documented
async def test_without_heartbeats_an_idle_stream_is_cut(proxy: Proxy, tmp_path: Path) -> None:
    short = SHORT[proxy.version]
    async with behind(proxy, tmp_path, *short, STREAMS_HEARTBEAT="30") as (client, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await every_event(client, QUIET)


async def test_nginx_buffers_events_if_it_ignores_the_header(tmp_path: Path) -> None:
    ignoring = "proxy_ignore_headers X-Accel-Buffering;"
    buffering = Proxy("nginx, ignores X-Accel-Buffering", NGINX, ONE_POINT_ZERO, ignoring)
    async with behind(buffering, tmp_path) as (client, _):
        with anyio.move_on_after(2) as scope:
            async with stream(client, IDLE):
                pass
        assert scope.cancelled_caught
