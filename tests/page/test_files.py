"""The files of the page, as a server sends them."""

from streams import Streams
from streams.page import FILES
from tests.support.servers import client_of

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
}


async def test_each_file_has_its_media_type() -> None:
    async with client_of(Streams()) as client:
        for name, path in FILES.items():
            response = await client.get(f"/page/{name}")
            assert response.content == path.read_bytes()
            assert response.headers["content-type"] == TYPES[path.suffix], name
    assert {"event-stream.js", "event-stream.d.ts"} <= set(FILES)
