"""Runs Chromium and Firefox without a driver: they open a page that reports what it has read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.compat.processes import HERE, program, running
from tests.support.servers import serving

FIREFOX_PREFERENCES = """
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
"""


class Pages:
    """A site with clients/page.html, which reports here what it has read.

    `shown` has the data of its events, as they come; `report` has all events, after the end.
    """

    def __init__(self, shown: bytearray | None = None) -> None:
        self.url = ""
        self.shown = bytearray() if shown is None else shown
        self.report: asyncio.Future[list[dict[str, str]]] = asyncio.Future()
        self.app = Starlette(
            routes=[
                Route("/show", self._show, methods=["POST"]),
                Route("/report", self._report, methods=["POST"]),
                Route("/modules/{path:path}", self._module),
                Mount("/clients", StaticFiles(directory=HERE / "clients")),
            ]
        )

    async def _show(self, request: Request) -> Response:
        self.shown += await request.body()
        return Response(status_code=204)

    async def _report(self, request: Request) -> Response:
        self.report.set_result(json.loads(await request.body()))
        return Response(status_code=204)

    async def _module(self, request: Request) -> Response:
        path = HERE / "node_modules" / request.path_params["path"]
        return FileResponse(path if path.suffix else path.with_suffix(".js"))


@asynccontextmanager
async def pages(shown: bytearray | None = None) -> AsyncIterator[Pages]:
    site = Pages(shown)
    async with serving(site.app) as site.url:
        yield site


async def report_of(browser: str, site: Pages, folder: Path, **query: Any) -> list[dict[str, str]]:
    """Opens the page in a browser; returns the events that it read until its client stopped."""
    url = f"{site.url}/clients/page.html?{urlencode(query)}"
    if browser == "chromium":
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    else:
        (folder / "user.js").write_text(FIREFOX_PREFERENCES)
        options = ["--headless", "--no-remote", "--profile", str(folder)]
    async with running(program(browser), *options, url, ready=lambda: True, HOME=str(folder)):
        with anyio.fail_after(40):
            return await site.report
