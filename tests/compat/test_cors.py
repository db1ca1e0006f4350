"""Cross-origin: a page of one origin reads a stream of another origin, with the user's cookies."""

from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streams import Streams
from streams.sources import counter
from tests.compat.browsers import pages, report_of
from tests.compat.processes import first_number
from tests.compat.relay import cutting, has_shown
from tests.compat.test_clients import PATH, assert_complete
from tests.support.servers import serving


class Browser(NamedTuple):
    name: str
    version: str
    program: str


BROWSERS = [
    Browser("Chromium", first_number("chromium", "--version"), "chromium"),
    Browser("Firefox", first_number("firefox-esr", "--version"), "firefox-esr"),
]

every_browser = pytest.mark.parametrize("browser", BROWSERS, ids=lambda browser: browser.name)


class BySession(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.session.get("user")
        return (AuthCredentials(), SimpleUser(name)) if name else None


async def login(request: Request) -> Response:
    request.session["user"] = "ann"
    return Response()


class Site:
    """An app with users and session cookies. It records the requests except logins."""

    def __init__(self, streams: Streams) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._app: ASGIApp = Starlette(
            routes=[Route("/login", login, methods=["POST"]), Mount("/live", streams)],
            middleware=[
                Middleware(SessionMiddleware, secret_key="for tests"),
                Middleware(AuthenticationMiddleware, backend=BySession()),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"] != "/login":
            self.requests.append((scope["method"], headers))
        await self._app(scope, receive, send)


@every_browser
@pytest.mark.column("sends cookies, also when it resumes")
async def test_a_page_of_an_allowed_origin_reads_and_resumes_with_cookies(
    browser: Browser, tmp_path: Path
) -> None:
    async with pages() as there:
        streams = Streams([counter], retry=(0.1, 0.1), origins=[there.url])
        site = Site(streams)
        async with (
            serving(site) as url,
            cutting(url, b'{"number":7}\n\n', lambda: has_shown(there.shown, 7)) as relay,
        ):
            stream = f"{relay}/live{PATH}"
            assert_complete(
                await report_of(browser.program, there, tmp_path, url=stream, login=f"{url}/login")
            )
    first, second, third = site.requests
    for method, headers in site.requests:
        assert method == "GET", "the browser sent a preflight request"
        assert headers["origin"] == there.url
        assert headers["sec-fetch-site"] == "same-site"
        assert "session=" in headers["cookie"]
    assert "last-event-id" not in first[1]
    assert second[1]["last-event-id"].endswith(".8")
    assert third[1]["last-event-id"].endswith(".31")
    run = second[1]["last-event-id"].partition(".")[0]
    assert (await streams.log.find(run)).info.owner == "ann"


@every_browser
@pytest.mark.column("a page of another site is refused")
async def test_a_page_of_another_site_starts_nothing(browser: Browser, tmp_path: Path) -> None:
    async with pages() as there:
        streams = Streams([counter], origins=["https://other.example"])
        site = Site(streams)
        async with serving(site) as url:
            url = url.replace("127.0.0.1", "localhost")  # for a browser another site than 127.0.0.1
            read = await report_of(
                browser.program, there, tmp_path, url=f"{url}/live{PATH}", login=f"{url}/login"
            )
    assert read == []
    [(_, headers)] = site.requests  # an EventSource does not try again after an error status
    assert headers["sec-fetch-site"] == "cross-site"
    assert streams.log.events == 0
