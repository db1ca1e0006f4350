"""event-stream.js in Node: the parser against the specification, the client against a server
that answers as it is told. The parser in a browser is in test_page.py."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.browser import CLIENT, Node, base64_of, node, node_command
from tests.support.servers import free_port

Event = dict[str, str]


def event(text: str, type: str = "message", id: str = "") -> Event:  # noqa: A002
    return {"type": type, "text": text, "id": id}


# The first four are the examples of WHATWG HTML, section 9.2.6.
CASES: dict[str, tuple[bytes, list[Event]]] = {
    "several data lines are one text": (
        b"data: YHOO\ndata: +2\ndata: 10\n\n",
        [event("YHOO\n+2\n10")],
    ),
    "comments, an id that is kept, an id that is reset, a space that is data": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        [event("first event", id="1"), event("second event")],
    ),
    "empty data is data, and an unfinished block is none": (
        b"data\n\ndata\ndata\n\ndata:",
        [event(""), event("\n")],
    ),
    "one space after the colon is no data": (
        b"data:test\n\ndata: test\n\ndata:  test\n\n",
        [event("test"), event("test"), event(" test")],
    ),
    "lines end in LF, CR or CRLF": (
        b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\rdata: e\n\ndata: f\r\n\r\n",
        [event("a\nb\nc"), event("d"), event("e"), event("f")],
    ),
    "a byte order mark at the beginning is dropped, any other is not": (
        "\ufeffdata: a\n\n\ufeffdata: b\n\ndata: \ufeffc\n\n".encode(),
        [event("a"), event("\ufeffc")],
    ),
    "characters of two to four bytes": ("data: é€😀\n\n".encode(), [event("é€😀")]),
    "bytes that are no UTF-8 become U+FFFD": (b"data: \xff\xe2\x82\n\n", [event("\ufffd\ufffd")]),
    "an id stays until another one comes, and one with NUL is none": (
        b"id: 7\ndata: a\n\ndata: b\n\nid: 8\0\ndata: c\n\nid: 9\n\ndata: d\n\n",
        [event("a", id="7"), event("b", id="7"), event("c", id="7"), event("d", id="9")],
    ),
    "a type is for one event": (
        b"event: gap\ndata: 1\n\ndata: 2\n\nevent: none\n\ndata: 3\n\n",
        [event("1", "gap"), event("2"), event("3")],
    ),
    "fields with other names are ignored": (
        b"Data: 1\ndata : 2\n data: 3\nfoo\nfoo: bar\nid : 3\ndata: 4\n\n",
        [event("4")],
    ),
    "line separators of Unicode do not end a line": (
        "data: a\u2028b\u2029c\u0085d\x0b\x0c\n\n".encode(),
        [event("a\u2028b\u2029c\u0085d\x0b\x0c")],
    ),
    "a colon in data is data": (b"data: a: b:c\n\ndata::\n\n", [event("a: b:c"), event(":")]),
}


@pytest.fixture(scope="module")
def parser() -> Iterator[Node]:
    with node("parse.js") as process:
        yield process


@pytest.mark.parametrize("case", CASES)
def test_wherever_the_bytes_are_cut(parser: Node, case: str) -> None:
    stream, events = CASES[case]
    assert parser.ask(bytes=base64_of(stream)) == [{"events": events, "retry": None}]


@pytest.mark.parametrize(
    ("line", "retry"),
    [("retry: 1500", 1500), ("retry:007", 7), ("retry: 1.5", None), ("retry:", None)],
)
def test_a_retry_of_digits_only_is_one(parser: Node, line: str, retry: int | None) -> None:
    stream = f"{line}\n".encode()
    assert parser.ask(bytes=base64_of(stream)) == [{"events": [], "retry": retry}]


def specified(stream: bytes) -> list[Event]:
    """What the specification makes of a whole stream, in the plainest words."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    *lines, _unfinished = re.split("\r\n|\n|\r", text)
    events = []
    data, type_, last_id = "", "", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if data != "":
                events.append(event(data[:-1], type_ or "message", last_id))
            data, type_ = "", ""
        elif name == "data":
            data += value + "\n"
        elif name == "event":
            type_ = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


LINES = ["data: x\n", "data\n", "id: 7\n", "id: \0\n", "event: a\n", "retry: 7\n", ": c\n"]
FIELDS = ["data", "id", "event", "retry", ":", " ", "\n", "\r", "\r\n", "\n\n"]
VALUES = ["a", "7", "\0", "\ufeff", "é", "😀"]
TEXTS = st.sampled_from(LINES) | st.sampled_from(FIELDS) | st.sampled_from(VALUES)
PIECES = TEXTS.map(str.encode) | st.sampled_from([b"\xe2\x82", b"\xff"])


@given(st.lists(PIECES, max_size=40).map(b"".join), st.data())
def test_any_stream_in_any_pieces_gives_what_the_specification_says(
    parser: Node, stream: bytes, draw: st.DataObject
) -> None:
    places = st.integers(min_value=0, max_value=len(stream))
    cuts = draw.draw(st.lists(places, min_size=1, max_size=8).map(sorted))
    given = parser.ask(bytes=base64_of(stream), cuts=cuts)
    assert given["events"] == specified(stream)


def test_an_event_of_ten_megabytes_takes_linear_time(parser: Node) -> None:
    def seconds(size: int) -> float:
        stream = b"data: " + b"x" * size + b"\n\n"
        began = time.perf_counter()
        answer = parser.ask(bytes=base64_of(stream), cuts=list(range(0, len(stream), 1000)))
        assert len(answer["events"][0]["text"]) == size
        return time.perf_counter() - began

    small, large = seconds(10**6), seconds(10**7)
    assert large < 30 * small + 1  # quadratic would be 100 times


# ---- the client


class Script(ThreadingHTTPServer):
    """Gives the answers of a script, one for each request, and keeps the requests."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, dict[str, str], str]) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = list(answers)
        self.requests: list[tuple[str, str, str | None, str]] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/streams/s"


class Answering(BaseHTTPRequestHandler):
    server: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        last = self.headers.get("Last-Event-ID")
        self.server.requests.append((self.command, self.path, last, body))
        self.server.times.append(time.monotonic())
        status, headers, answer = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.encode())

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@contextmanager
def script(*answers: tuple[int, dict[str, str], str]) -> Iterator[Script]:
    with Script(*answers) as server:
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def stream(*frames: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """An event stream that stops after these frames."""
    own = {"Content-Type": "text/event-stream", "Content-Location": "/runs/r"}
    return 200, {**own, **headers}, "retry: 10\n" + "".join(frames)


def problem(status: int, **headers: str) -> tuple[int, dict[str, str], str]:
    body = {"title": "Refused", "detail": f"it is {status}", "errors": [1]}
    return status, {"Content-Type": "application/problem+json", **headers}, json.dumps(body)


def frame(n: int, data: str | None = None, name: str = "") -> str:
    named = f"event: {name}\n" if name else ""
    return f"id: r.{n}\n{named}data: {n if data is None else data}\n\n"


START = frame(0, '{"run":"r","source":"s"}', "start")
NO_CONTENT = (204, dict[str, str](), "")


def end(n: int, status: str = "completed", **members: Any) -> str:
    return frame(n, json.dumps({"status": status, **members}), "end")


class Told(list[Any]):
    """What the client told, line by line."""

    def of(self, name: str) -> list[Any]:
        return [line[name] for line in self if name in line]

    @property
    def data(self) -> list[Any]:
        return [event["data"] for event in self.of("event")]


def read(url: str, **how: Any) -> Told:
    command = node_command("read.js", json.dumps({"url": url, "options": {}, **how}))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return Told(map(json.loads, done.stdout.splitlines()))


def test_a_stream_is_read_to_its_end() -> None:
    with script(stream(START, frame(1, '{"a": [1]}'), frame(2, "no JSON"), end(3))) as server:
        told = read(server.url)
    assert told.of("event") == [
        {"type": "message", "data": {"a": [1]}, "text": '{"a": [1]}', "id": "r.1"},
        {"type": "message", "data": "no JSON", "text": "no JSON", "id": "r.2"},
    ]
    assert told.of("state") == ["connecting", "open", "closed"]
    assert told.of("done")
    assert told.of("run") == [server.url.replace("/streams/s", "/runs/r")]
    assert server.requests == [("GET", "/streams/s", None, "")]


def test_start_and_end_are_yielded_to_who_asks_for_them() -> None:
    with script(stream(START, frame(1), end(2))) as server:
        told = read(server.url, options={"control": True})
    assert [event["type"] for event in told.of("event")] == ["start", "message", "end"]


@pytest.mark.parametrize("cut", ["", "id: r.2\nda", "id: r.2\ndata: 2\n"])
@pytest.mark.parametrize("headers", [{}, {"Content-Length": "1000"}], ids=["end", "break"])
def test_without_the_end_event_it_is_a_break_and_the_run_is_read_on(
    headers: dict[str, str], cut: str
) -> None:
    first = stream(START, frame(1), cut, **headers)
    with script(first, stream(frame(2), frame(3), end(4))) as server:
        told = read(server.url, options={"body": {"n": 3}})
    assert told.data == [1, 2, 3]
    assert told.of("state") == ["connecting", "open", "waiting", "connecting", "open", "closed"]
    assert server.requests == [
        ("POST", "/streams/s", None, '{"n":3}'),
        ("GET", "/runs/r", "r.1", ""),
    ]


@pytest.mark.parametrize("status", [404, 410])
def test_where_the_run_is_forgotten_the_first_request_goes_on_with_it(status: int) -> None:
    answers = [stream(START, frame(1)), problem(status), stream(frame(2), end(3))]
    with script(*answers) as server:
        told = read(server.url, options={"body": {"n": 2}})
    assert told.data == [1, 2]
    assert server.requests[1:] == [
        ("GET", "/runs/r", "r.1", ""),
        ("POST", "/streams/s", "r.1", '{"n":2}'),
    ]


def test_a_run_that_is_gone_for_good_is_the_servers_error() -> None:
    with script(stream(START, frame(1)), problem(404), problem(410)) as server:
        told = read(server.url)
    assert told.data == [1]
    assert told.of("error")[0]["message"] == "it is 410"


def test_a_run_forgotten_before_its_first_event_is_not_started_again() -> None:
    with script(stream(), problem(404)) as server:
        told = read(server.url)
    assert told.of("error")[0]["message"] == "it is 404"


def test_204_says_that_there_is_no_more() -> None:
    with script(stream(START, frame(1)), NO_CONTENT) as server:
        told = read(server.url)
    assert told.data == [1]
    assert told.of("done")


def test_a_refusal_throws_what_the_problem_says() -> None:
    with script(problem(422)) as server:
        [error] = read(server.url).of("error")
    assert (error["name"], error["message"]) == ("Refused", "it is 422")
    assert (error["problem"]["status"], error["problem"]["errors"]) == (422, [1])


@pytest.mark.parametrize("body", ["<h1>no", "null", ""])
def test_a_refusal_that_is_no_problem_response_throws_its_status(body: str) -> None:
    with script((500, {}, body)) as server:
        [error] = read(server.url).of("error")
    assert error["message"] == f"{server.url} answers 500"


def test_a_failed_run_throws_the_sources_error_after_all_its_events() -> None:
    failure = {"type": "Broken", "message": "the source broke"}
    with script(stream(START, frame(1), end(2, "failed", error=failure))) as server:
        told = read(server.url)
    assert told.data == [1]
    assert told.of("error") == [{"name": "Broken", "message": "the source broke"}]


def test_a_cancelled_run_ends_without_an_error() -> None:
    with script(stream(START, end(1, "cancelled", reason="stopped"))) as server:
        assert read(server.url).of("done")


def test_lost_history_is_an_event() -> None:
    with script(stream(START, frame(4, '{"missed":4}', "gap"), frame(5), end(6))) as server:
        told = read(server.url)
    assert told.of("event")[0] == {
        "type": "gap",
        "data": {"missed": 4},
        "text": '{"missed":4}',
        "id": "r.4",
    }


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_to_come_back_is_waited_for(status: int) -> None:
    busy = problem(status, **{"Retry-After": "1"})
    with script(busy, stream(START, frame(1)), busy, stream(end(2))) as server:
        told = read(server.url, options={"body": {}})
    assert told.data == [1]
    assert told.of("done")
    assert [method for method, *_ in server.requests] == ["POST", "POST", "GET", "GET"]
    assert server.times[1] - server.times[0] > 0.9
    assert server.times[3] - server.times[2] > 0.9


def test_retry_after_may_be_a_date() -> None:
    past = problem(503, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    with script(past, stream(START, end(1))) as server:
        assert read(server.url).of("done")


def test_a_proxy_without_its_server_is_a_break_once_the_run_is_known() -> None:
    answers = [stream(START, frame(1)), (502, {}, ""), (504, {}, ""), stream(end(2))]
    with script(*answers) as server:
        assert read(server.url).of("done")


def test_pauses_grow_while_no_event_comes() -> None:
    retry = "retry: 100\n"
    with script(stream(START, retry), *[stream(retry)] * 4, stream(end(1))) as server:
        assert read(server.url).of("done")
    pauses = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    for pause, least in zip(pauses, [0.1, 0.1, 0.2, 0.4, 0.8], strict=True):
        assert pause >= least * 0.99


def test_pauses_do_not_grow_while_events_come() -> None:
    retry = "retry: 100\n"
    answers = [stream(START, retry), *[stream(retry, frame(n)) for n in range(1, 6)]]
    with script(*answers, stream(end(6))) as server:
        assert read(server.url).data == [1, 2, 3, 4, 5]
    assert server.times[-1] - server.times[-2] < 0.8  # the least that it would have grown to


def test_an_abort_leaves_at_once_in_the_midst_of_a_chunk() -> None:
    with script(stream(START, frame(1), frame(2), end(3))) as server:
        told = read(server.url, abortAt="r.1")
    assert told.data == [1]
    assert told.of("error") == [{"name": "Error", "message": "left"}]
    assert told.of("state")[-1] == "closed"


@pytest.mark.parametrize("state", ["connecting", "open", "waiting"])
def test_an_abort_leaves_at_once_whatever_the_state(state: str) -> None:
    began = time.monotonic()
    with script(stream(START, "retry: 60000\n"), stream(end(1))) as server:
        told = read(server.url, abortAt=state)
    assert told.of("error") == [{"name": "Error", "message": "left"}]
    assert time.monotonic() - began < 20


def test_leaving_the_loop_closes_the_connection() -> None:
    with script(stream(START, frame(1), frame(2), end(3))) as server:
        told = read(server.url, leaveAt="r.1")
    assert told.data == [1]
    assert told.of("state")[-1] == "closed"


def test_stop_deletes_the_run_and_the_loop_ends_with_it() -> None:
    stopped = stream(end(2, "cancelled", reason="stopped"))
    with script(stream(START, frame(1)), NO_CONTENT, stopped) as server:
        told = read(server.url, stopAt="r.1", options={"headers": {"X-Key": "k"}})
    assert server.requests[1][:2] == ("DELETE", "/runs/r")
    assert told.of("done")


def test_stop_before_the_run_has_a_name_stops_it_when_it_has() -> None:
    with script(stream(START), NO_CONTENT, stream(end(1, "cancelled"))) as server:
        told = read(server.url, stopAt="connecting")
    assert [method for method, *_ in server.requests] == ["GET", "DELETE", "GET"]
    assert told.of("done")


def test_nobody_there_at_the_first_request_is_an_error() -> None:
    told = read(f"http://127.0.0.1:{free_port()}/streams/s")
    assert told.of("error")[0]["name"] == "TypeError"
    assert told.of("state") == ["connecting", "closed"]


def test_a_server_that_names_no_run_is_asked_again_with_the_last_event_id() -> None:
    plain = {"Content-Type": "text/event-stream"}
    first = f"retry: 10\n{START}{frame(1)}"
    with script((200, plain, first), (502, {}, ""), (200, plain, end(2))) as server:
        told = read(server.url, options={"body": {}})
    assert told.data == [1]
    assert told.of("done")
    assert server.requests[2] == ("POST", "/streams/s", "r.1", "{}")


def test_without_a_run_or_an_id_a_break_is_an_error() -> None:
    with script((200, {"Content-Type": "text/event-stream"}, "data: 1\n\n")) as server:
        told = read(server.url, options={"body": {}})
    assert told.data == [1]
    assert told.of("error")[0]["name"] == "Broken"
    assert len(server.requests) == 1


def test_what_is_no_event_stream_is_an_error() -> None:
    with script((200, {"Content-Type": "text/html"}, "<h1>Login</h1>")) as server:
        [error] = read(server.url).of("error")
    assert error["message"] == f"{server.url} is text/html, not an event stream"


def test_a_reader_may_begin_behind_an_event() -> None:
    with script(stream(frame(6), end(7))) as server:
        assert read(server.url, options={"lastEventId": "r.5"}).data == [6]
    assert server.requests == [("GET", "/streams/s", "r.5", "")]


def test_it_is_short_enough_to_be_read() -> None:
    assert len(CLIENT.read_text().splitlines()) < 200
