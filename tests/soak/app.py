"""What app.py serves, and GET /debug: what this worker holds."""

import os

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streams.settings import from_environ
from tests.soak.held import held

_streams = from_environ(os.environ)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["path"] == "/debug":
        await Response(msgspec.json.encode(held()))(scope, receive, send)
    else:
        await _streams(scope, receive, send)
