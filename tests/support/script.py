"""A server with scripted answers, for the tests of clients, and the pieces of an event stream."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

Answer = tuple[int, dict[str, str], str]
"""Status, headers and body."""


class Script(ThreadingHTTPServer):
    """A server that gives one scripted answer per request and records the requests."""

    daemon_threads = True

    def __init__(self, *answers: Answer, path: str = "/streams/s") -> None:
        super().__init__(("127.0.0.1", 0), ScriptHandler)
        self.path = path
        self.answers = list(answers)
        self.requests: list[tuple[str, str, str | None, str]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.deleted = ThreadEvent()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"


class ScriptHandler(BaseHTTPRequestHandler):
    server: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        last = self.headers.get("Last-Event-ID")
        self.server.requests.append((self.command, self.path, last, body))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.times.append(time.monotonic())
        status, headers, answer = self.server.answers.pop(0) if self.server.answers else OVER
        if status == CUT[0]:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "DELETE":
            self.server.deleted.set()
        before, _, after = answer.partition(DELETED)
        self.wfile.write(before.encode())
        if after:
            assert self.server.deleted.wait(30), "not reached in 30 s: the run is deleted"
            self.wfile.write(after.encode())

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        """Does not log requests."""


@contextmanager
def script(*answers: Answer, path: str = "/streams/s") -> Iterator[Script]:
    with Script(*answers, path=path) as server:
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def stream(*frames: str, **headers: str) -> Answer:
    """An event stream that ends after these frames."""
    default = {"Content-Type": "text/event-stream", "Content-Location": "/runs/r"}
    return 200, {**default, **headers}, "retry: 10\n" + "".join(frames)


def problem(status: int, **headers: str) -> Answer:
    body = {"title": "Refused", "detail": f"it is {status}", "errors": [1]}
    return status, {"Content-Type": "application/problem+json", **headers}, json.dumps(body)


def frame(n: int, data: str | None = None, name: str = "") -> str:
    event_line = f"event: {name}\n" if name else ""
    return f"id: r.{n}\n{event_line}data: {n if data is None else data}\n\n"


START = frame(0, '{"run":"r","source":"s"}', "start")
NO_CONTENT = (204, dict[str, str](), "")
DELETED = "(DELETE)"  # In an answer: the rest follows when the client has sent a DELETE.
PLAIN = {"Content-Type": "text/event-stream"}  # Without the Content-Location.
START_WITH_URL = frame(0, '{"run":"r","source":"s","url":"/live/runs/r"}', "start")
OVER = problem(418)  # The client has sent more requests than the script has answers.
CUT = (0, dict[str, str](), "")  # The server closes the connection without an answer.


def end(n: int, status: str = "completed", **members: Any) -> str:
    return frame(n, json.dumps({"status": status, **members}), "end")
