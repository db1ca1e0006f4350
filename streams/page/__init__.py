"""The playground, and the client event-stream.js, as routes.

The playground shows the mock model's answer twice, as a run and as a plain StreamingResponse of
Starlette, so that one sees what a run is for. See `plain`.
"""

from collections.abc import Container
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from streams.errors import StreamError, abbreviated
from streams.page.plain import Plain

SUFFIXES = {".css", ".html", ".js", ".svg", ".ts"}
FILES = {path.name: path for path in Path(__file__).parent.iterdir() if path.suffix in SUFFIXES}
CLIENT = ("event-stream.js", "event-stream.d.ts")
"""The files that an app needs which has a page of its own."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; frame-ancestors 'self'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


async def _index(request: Request) -> Response:
    path = str(request.scope.get("raw_path") or b"", "latin-1").partition("?")[0]
    if last := path.rpartition("/")[2]:
        return RedirectResponse(f"./{last}/")  # Without the slash, its relative URLs are wrong.
    return _file("index.html")


async def _asset(request: Request) -> Response:
    return _file(request.path_params["file"])


async def _client(request: Request) -> Response:
    return _file(request.path_params["file"], CLIENT)


def _file(name: str, files: Container[str] = FILES) -> Response:
    if name not in files:
        raise StreamError(f"the page has no file {abbreviated(name)}", status=404)
    # Not a FileResponse, which answers to Range as well: these files have a few kilobytes.
    # To `mimetypes`, .ts is a video.
    media_type = "text/plain" if name.endswith(".ts") else guess_type(name)[0]
    return Response(FILES[name].read_bytes(), headers=HEADERS, media_type=media_type)


def routes(streams: Any, *, playground: bool) -> list[Route]:
    """The routes of a Streams for the client event-stream.js, and those for the playground."""
    if not playground:
        return [Route("/page/{file}", _client)]
    plain = Plain(streams)

    async def about(request: Request) -> Response:
        return JSONResponse({"plain": plain.names}, headers={"Cache-Control": "no-store"})

    found = [
        Route("/", _index),
        Route("/page/about.json", about),
        Route("/page/{file}", _asset),
    ]
    if plain.names:
        found.append(Route("/plain/{source}", streams.endpoint(plain.answer), methods=["POST"]))
    return found
