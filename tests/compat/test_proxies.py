"""Proxies: each in front of a server, as documented and in other configurations."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import anyio
import anyio.to_thread
import httpx
import pytest

from tests.compat.browsers import pages, report_of
from tests.compat.processes import BIN, first_number, listening, program, running
from tests.compat.test_servers import IDLE, cut_body, readers, stream
from tests.page.test_event_stream import reading
from tests.support.servers import ROOT, every_event, free_port

# The configurations around the documented ones that let a proxy run from its own folder.
AROUND_NGINX = """
daemon off;
user root;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=cache:1m;
    {more}
    {documented}
}}
"""
AROUND_APACHE = """
ServerRoot /usr/lib/apache2
ServerName localhost
User www-data
Group www-data
PidFile {folder}/pid
ErrorLog /dev/stderr
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule proxy_module modules/mod_proxy.so
LoadModule proxy_http_module modules/mod_proxy_http.so
LoadModule deflate_module modules/mod_deflate.so
{documented}
{more}
"""
AROUND_CADDY = """
{{
    admin off
}}
{documented}
"""

Changes = tuple[tuple[str, str], ...]


class Program(NamedTuple):
    """A proxy: its version, the file in docs/ that configures it, and the command that runs it.

    `short` gives it a time-out of 3 s.
    """

    version: str
    file: str
    command: str
    short: Changes
    around: str = "{documented}"


NGINX = Program(
    first_number("nginx", "-v"),
    "nginx.conf",
    "nginx -c",
    (("read_timeout 60s", "read_timeout 3s"),),
    AROUND_NGINX,
)
HAPROXY = Program(first_number("haproxy", "-v"), "haproxy.cfg", "haproxy -f", (("60s", "3s"),))
APACHE = Program(
    first_number("apache2", "-v"),
    "apache.conf",
    "apache2 -DFOREGROUND -f",
    (("timeout=60", "timeout=3"),),
    AROUND_APACHE,
)
LIGHTTPD = Program(
    first_number("lighttpd", "-v"),
    "lighttpd.conf",
    "lighttpd -D -f",
    (('"read-timeout" => 60', '"read-timeout" => 3'),),
)
VARNISH = Program(
    first_number("varnishd", "-V"),
    "varnish.vcl",
    "varnishd -F -j none -n {folder}/varnish -a 127.0.0.1:8080 -p pipe_timeout=60 -f",
    (("pipe_timeout=60", "pipe_timeout=3"),),
)
CADDY = Program(
    first_number("caddy", "version"),
    "Caddyfile",
    "caddy run --adapter caddyfile --config",
    (("8000", "8000 {\ntransport http {\nread_timeout 3s\n}\n}"),),
    AROUND_CADDY,
)


class Proxy(NamedTuple):
    """A proxy with its documented configuration, in which `changes` replace one text by another.

    `more` is added to the configuration; `encoding` is the expected Content-Encoding; `late` says
    when it passes a disconnect on, if not at once; `ends` if it ends a body properly that the
    server has cut.
    """

    name: str
    program: Program
    changes: Changes = ()
    more: str = ""
    http2: bool = False
    prefix: str = ""
    encoding: str | None = None
    late: str = ""
    ends: Literal["never", "sometimes", "always"] = "never"

    @property
    def version(self) -> str:
        return self.program.version


LATE = "only at the first or second heartbeat after it"
ENDED = "the body ends properly; only the missing `end` event says that it is incomplete"
SOMETIMES = "but now and then the body ends properly, without the `end` event"

ONE_POINT_ZERO = (("proxy_http_version 1.1;", ""), ('proxy_set_header Connection "";', ""))

PROXIES = [
    Proxy("nginx, as documented", NGINX),
    Proxy("nginx, HTTP/1.0 to the app", NGINX, ONE_POINT_ZERO, ends="always"),
    Proxy("nginx, HTTP/2 to the client", NGINX, (("8080", "8080 http2"),), http2=True),
    Proxy(
        "nginx, gzip for all types",
        NGINX,
        ONE_POINT_ZERO,
        "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0; gzip_http_version 1.0;",
        encoding="gzip",
        ends="always",
    ),
    Proxy(
        "nginx, cache for all responses",
        NGINX,
        ONE_POINT_ZERO,
        "proxy_cache cache; proxy_cache_valid any 1m; proxy_cache_key $request_uri;",
        ends="always",
    ),
    Proxy(
        "nginx, prefix removed",
        NGINX,
        (("location / {", "location /live/ {"), ("http://streams;", "http://streams/;")),
        prefix="/live",
    ),
    Proxy("HAProxy, as documented", HAPROXY),
    Proxy(
        "HAProxy, HTTP/2 to the client",
        HAPROXY,
        ((":8080", ":8080 proto h2"),),
        http2=True,
        ends="always",
    ),
    Proxy(
        "HAProxy, gzip for all types",
        HAPROXY,
        (("mode http", "mode http\n    compression algo gzip\n    compression type text/"),),
    ),
    Proxy("Apache, as documented", APACHE, late=LATE),
    Proxy(
        "Apache, gzip for all types",
        APACHE,
        more="SetOutputFilter DEFLATE",
        encoding="gzip",
        late=LATE,
    ),
    Proxy("lighttpd, as documented", LIGHTTPD, late=LATE, ends="sometimes"),
    Proxy("Varnish, as documented", VARNISH),
    Proxy("Caddy, as documented", CADDY, ends="always"),
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
    command, text = proxy.program.command, (ROOT / "docs" / proxy.program.file).read_text()
    for old, new in (*proxy.changes, *changes, ("8080", str(port)), ("8000", str(upstream))):
        assert old in command + text, f"docs/{proxy.program.file} does not contain {old!r}"
        command, text = command.replace(old, new), text.replace(old, new)
    file = folder / "configuration"
    around = proxy.program.around
    file.write_text(around.format(folder=folder, documented=text, more=proxy.more))
    name, *arguments = command.format(folder=folder).split()
    uvicorn = f"app:app --http h11 --port {upstream} --root-path={proxy.prefix}".split()
    async with (
        running(BIN / "uvicorn", *uvicorn, ready=listening(upstream), **environ),
        running(program(name), *arguments, file, ready=listening(port), HOME=str(folder)),
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
                    assert opened.response.headers["incremental"] == "?1"
                    assert location == f"{proxy.prefix}/runs/{opened.run}"
        events = await every_event(client, "/streams/counter?count=50&interval=0.001")
        assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(50)]
        again = await every_event(client, "/streams/counter?count=50&interval=0.001", events[20].id)
        assert again[0].json() == {"number": 20}


@every_proxy
@pytest.mark.column("passes a disconnect on")
async def test_a_disconnect_is_noticed_before_the_next_heartbeat_or_by_some(
    proxy: Proxy, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    heartbeat = "1" if proxy.late else "15"
    async with behind(proxy, tmp_path, STREAMS_HEARTBEAT=heartbeat) as (client, direct):
        async with stream(client, IDLE) as opened:
            assert await readers(direct, opened.run) == 1
        await client.aclose()
        with anyio.fail_after(10):
            while await readers(direct, opened.run):
                await asyncio.sleep(0.01)
    if proxy.late:
        record_property("remark", proxy.late)


class EndedProperly(Exception):
    """A body that the server has cut looks complete to the client."""


DROPPED = "/streams/tokens?drop_after=3&tokens_per_second=1000&first_token=0"


@every_proxy
@pytest.mark.column("passes a cut on")
async def test_a_client_learns_that_the_server_has_cut_a_stream_and_resumes(
    proxy: Proxy,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, str], None],
) -> None:
    if proxy.ends == "always":
        request.applymarker(pytest.mark.xfail(reason=ENDED, raises=EndedProperly))
    async with behind(proxy, tmp_path) as (client, _):
        plain = {"Accept-Encoding": "identity"}
        body, broke_off = await cut_body(client, "GET", DROPPED, headers=plain)
        assert b"event: end" not in body
        run = re.findall('"run":"(.+?)"', body.decode())[0]
        rest = await every_event(client, DROPPED, f"{run}.3")
        assert rest[0].id == f"{run}.4"
        assert rest[-1].json() == {"status": "completed"}
    if proxy.ends == "sometimes":
        record_property("remark", SOMETIMES)
    elif not broke_off:
        raise EndedProperly


@pytest.mark.parametrize("name", ["EventSource", "event-stream.js"])
async def test_a_client_resumes_although_caddy_ends_a_cut_stream_properly(
    name: str, tmp_path: Path
) -> None:
    proxy = next(proxy for proxy in PROXIES if proxy.program is CADDY)
    async with behind(proxy, tmp_path, STREAMS_ORIGINS="*") as (client, _):
        url = f"{client.base_url}{DROPPED}&reply=1+2+3+4+5+6".replace("//streams", "/streams")
        if name == "EventSource":
            async with pages() as site:
                events = await report_of("chromium", site, tmp_path, client=name, url=url)
            assert [events[0]["type"], events[-1]["type"]] == ["start", "end"]
            texts = [json.loads(event["data"]) for event in events[1:-1]]
        else:
            with reading() as read:
                texts = (await anyio.to_thread.run_sync(read, url)).data
    assert "".join(text["message"]["content"] for text in texts) == "1 2 3 4 5 6"


# The proxy's time-out is then 3 s: many heartbeats fit into it, but not a pause between events.
QUIET = "/streams/counter?count=2&interval=5"


@every_proxy
@pytest.mark.column("heartbeats keep streams open")
async def test_heartbeats_keep_a_stream_open_that_is_idle_for_longer_than_the_time_out(
    proxy: Proxy, tmp_path: Path
) -> None:
    async with behind(proxy, tmp_path, *proxy.program.short, STREAMS_HEARTBEAT="0.3") as (
        client,
        _,
    ):
        events = await every_event(client, QUIET)
        assert [event.event for event in events] == ["start", "message", "message", "end"]


@documented
async def test_without_heartbeats_an_idle_stream_is_cut(proxy: Proxy, tmp_path: Path) -> None:
    short = proxy.program.short
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
