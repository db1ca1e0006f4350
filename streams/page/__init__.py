"""The playground, and the client event-stream.js, as two routes."""

from mimetypes import guess_type
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from streams import StreamError
from streams.errors import abbreviated

SUFFIXES = {".css", ".html", ".js", ".svg"}
FILES = {path.name: path for path in Path(__file__).parent.iterdir() if path.suffix in SUFFIXES}

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


def _file(name: str) -> Response:
    if name not in FILES:
        raise StreamError(f"the page has no file {abbreviated(name)}", status=404)
    # Not a FileResponse, which answers to Range as well: these files have a few kilobytes.
    return Response(FILES[name].read_bytes(), headers=HEADERS, media_type=guess_type(name)[0])


routes = [Route("/", _index), Route("/page/{file}", _asset)]
