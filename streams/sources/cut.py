"""A middleware that cuts the connection in the middle of an answer, to test clients with.

Invariants:

1. A cut stream contains whole events only.
2. Nothing is sent after the cut.
"""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A piece of an answer that is not empty, in an event of the mock and in those of the wires alike:
# text, reasoning, a refusal, or a tool call. Text cannot contain this: JSON escapes its quotes.
PIECE = re.compile(
    rb'"(?:content|reasoning|reasoning_content|refusal|arguments|delta)":"(?!")|"function":\{"name":'
)
# What ends an event, for each media type of a stream.
EVENT_ENDS = {
    "text/event-stream": b"\n\n",
    "application/jsonl": b"\n",
    "application/x-ndjson": b"\n",
}

TOKENS = re.compile(rb'"(?:completion|output)_tokens":(\d+)')


class CutConnection:
    """Cuts the connection at the end of the first event after `pieces` pieces of an answer.

    A chat completion or a response in JSON is cut in the middle of its body if its answer has at
    least `pieces` tokens. Other responses pass unchanged.
    """

    def __init__(self, app: ASGIApp, pieces: int) -> None:
        self._app = app
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cutter = _Cutter(send, self._pieces, more_body=_server_cuts(scope))
        try:
            await self._app(scope, receive, cutter.send)
        except* _Cut:
            pass


class _Cut(Exception):
    """Ends the app: the connection is cut."""


class _Cutter:
    """Sends one response up to the cut. `more_body` is what the last message before it says."""

    def __init__(self, send: Send, pieces: int, *, more_body: bool) -> None:
        self._send = send
        self._pieces = pieces
        self._more_body = more_body
        self._start: Message | None = None
        self._event_end: bytes | None = None
        self._open_event = b""
        self._cut = False

    async def send(self, message: Message) -> None:
        if self._cut:
            raise _Cut
        if message["type"] == "http.response.start":
            # It waits for the body, which decides whether Content-Length is right.
            self._start = message
            content_type = Headers(raw=message.get("headers", [])).get("content-type", "")
            self._event_end = EVENT_ENDS.get(content_type.partition(";")[0])
            return
        body = message.get("body", b"")
        if self._event_end is None:
            end = self._end_in_json(body)
        else:
            end = self._end_in_stream(body, self._event_end)
        if self._start is not None:
            start, self._start = self._start, None
            if end is not None:
                # daphne keeps the connection open until the body is as long as Content-Length.
                del MutableHeaders(raw=start["headers"])["content-length"]
            await self._send(start)
        if end is None:
            await self._send(message)
            return
        self._cut = True
        await self._send({**message, "body": body[:end], "more_body": self._more_body})
        raise _Cut

    def _end_in_stream(self, body: bytes, event_end: bytes) -> int | None:
        """Where to cut this part of a stream; None: not here."""
        data, end = self._open_event + body, 0
        while (found := data.find(event_end, end)) >= 0:
            self._pieces -= PIECE.search(data, end, found) is not None
            end = found + len(event_end)
            if self._pieces <= 0:
                return end - len(self._open_event)
        self._open_event = data[end:]
        return None

    def _end_in_json(self, body: bytes) -> int | None:
        """Where to cut a JSON body; None: not here."""
        tokens = TOKENS.search(body)
        return len(body) // 2 if tokens and int(tokens[1]) >= self._pieces else None


def _server_cuts(scope: Scope) -> bool:
    """Whether the server cuts the connection when the app returns without completing a response.

    uvicorn, granian and hypercorn over HTTP/1.1 do, and clients see an error. Elsewhere the client
    would wait for ever, so the body is ended there: clients see no `end` event. These are
    hypercorn over HTTP/2 and HTTP/3, recognized by its extension for server push, and daphne,
    which names no spec_version. To raise an exception instead would cut at none of them, would
    log a traceback at all servers, and would stop daphne's clean-up of connections.
    """
    if "http.response.push" in (scope.get("extensions") or {}):
        return False
    return "spec_version" in scope.get("asgi", {})
