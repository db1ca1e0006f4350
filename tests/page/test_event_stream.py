"""event-stream.js in Node: its parser against the specification, its client against a server with
scripted answers. test_page.py runs the parser in a browser."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.browser import CLIENT, Node, base64_of, node_command, running_node
from tests.support.servers import free_port

Event = dict[str, str]


def event(text: str, type: str = "message", id: str = "") -> Event:  # noqa: A002
    return {"type": type, "text": text, "id": id}


# The first four cases are the examples of WHATWG HTML, section 9.2.6.
CASES: dict[str, tuple[bytes, list[Event]]] = {
    "data lines are joined with LF": (
        b"data: YHOO\ndata: +2\ndata: 10\n\n",
        [event("YHOO\n+2\n10")],
    ),
    "comments are ignored, an empty id resets the id, only the first space is removed": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        [event("first event", id="1"), event("second event")],
    ),
    "an event with empty data is dispatched, an incomplete block is not": (
        b"data\n\ndata\ndata\n\ndata:",
        [event(""), event("\n")],
    ),
    "one space after the colon is removed": (
        b"data:test\n\ndata: test\n\ndata:  test\n\n",
        [event("test"), event("test"), event(" test")],
    ),
    "lines end with LF, CR or CRLF": (
        b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\rdata: e\n\ndata: f\r\n\r\n",
        [event("a\nb\nc"), event("d"), event("e"), event("f")],
    ),
    "only a byte order mark at the start is removed": (
        "\ufeffdata: a\n\n\ufeffdata: b\n\ndata: \ufeffc\n\n".encode(),
        [event("a"), event("\ufeffc")],
    ),
    "characters have up to four bytes": ("data: é€😀\n\n".encode(), [event("é€😀")]),
    "invalid UTF-8 becomes U+FFFD": (b"data: \xff\xe2\x82\n\n", [event("\ufffd\ufffd")]),
    "an id applies until the next id, and an id with NUL is ignored": (
        b"id: 7\ndata: a\n\ndata: b\n\nid: 8\0\ndata: c\n\nid: 9\n\ndata: d\n\n",
        [event("a", id="7"), event("b", id="7"), event("c", id="7"), event("d", id="9")],
    ),
    "a type applies to one event": (
        b"event: gap\ndata: 1\n\ndata: 2\n\nevent: none\n\ndata: 3\n\n",
        [event("1", "gap"), event("2"), event("3")],
    ),
    "unknown fields are ignored": (
        b"Data: 1\ndata : 2\n data: 3\nfoo\nfoo: bar\nid : 3\ndata: 4\n\n",
        [event("4")],
    ),
    "Unicode line separators do not end a line": (
        "data: a\u2028b\u2029c\u0085d\x0b\x0c\n\n".encode(),
        [event("a\u2028b\u2029c\u0085d\x0b\x0c")],
    ),
    "data may contain colons": (b"data: a: b:c\n\ndata::\n\n", [event("a: b:c"), event(":")]),
}


@pytest.fixture(scope="module")
def parser() -> Iterator[Node]:
    with running_node("parse.js") as node:
        yield node


@pytest.mark.parametrize("case", CASES)
def test_events_do_not_depend_on_where_the_bytes_are_split(parser: Node, case: str) -> None:
    stream, events = CASES[case]
    assert parser.ask(bytes=base64_of(stream)) == [{"events": events, "retry": None}]


@pytest.mark.parametrize(
    ("line", "retry"),
    [("retry: 1500", 1500), ("retry:007", 7), ("retry: 1.5", None), ("retry:", None)],
)
def test_a_retry_is_valid_only_if_it_consists_of_digits(
    parser: Node, line: str, retry: int | None
) -> None:
    stream = f"{line}\n".encode()
    assert parser.ask(bytes=base64_of(stream)) == [{"events": [], "retry": retry}]


def expected_events(stream: bytes) -> list[Event]:
    """The events of a whole stream: a direct transcription of the specification."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    *lines, _incomplete = re.split("\r\n|\n|\r", text)
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
def test_the_parser_agrees_with_the_specification_on_any_stream_in_any_pieces(
    parser: Node, stream: bytes, draw: st.DataObject
) -> None:
    positions = st.integers(min_value=0, max_value=len(stream))
    cuts = draw.draw(st.lists(positions, min_size=1, max_size=8).map(sorted))
    outcome = parser.ask(bytes=base64_of(stream), cuts=cuts)
    assert outcome["events"] == expected_events(stream)


def test_parsing_takes_time_linear_in_the_size_of_an_event() -> None:
    [small, large] = json.loads(output_of("cost.js", "[1000000, 10000000]"))
    assert large < 30 * small  # quadratic time would be a factor of 100


# ---- the client


class Script(ThreadingHTTPServer):
    """A server that gives one scripted answer per request and records the requests."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, dict[str, str], str]) -> None:
        super().__init__(("127.0.0.1", 0), ScriptHandler)
        self.answers = list(answers)
        self.requests: list[tuple[str, str, str | None, str]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.deleted = ThreadEvent()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/streams/s"


class ScriptHandler(BaseHTTPRequestHandler):
    server: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        last = self.headers.get("Last-Event-ID")
        self.server.requests.append((self.command, self.path, last, body))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.times.append(time.monotonic())
        status, headers, answer = self.server.answers.pop(0)
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
    """An event stream that ends after these frames."""
    default = {"Content-Type": "text/event-stream", "Content-Location": "/runs/r"}
    return 200, {**default, **headers}, "retry: 10\n" + "".join(frames)


def problem(status: int, **headers: str) -> tuple[int, dict[str, str], str]:
    body = {"title": "Refused", "detail": f"it is {status}", "errors": [1]}
    return status, {"Content-Type": "application/problem+json", **headers}, json.dumps(body)


def frame(n: int, data: str | None = None, name: str = "") -> str:
    event_line = f"event: {name}\n" if name else ""
    return f"id: r.{n}\n{event_line}data: {n if data is None else data}\n\n"


START = frame(0, '{"run":"r","source":"s"}', "start")
NO_CONTENT = (204, dict[str, str](), "")
DELETED = "(DELETE)"  # In an answer: the rest follows when the client has sent a DELETE.
CUT = (0, dict[str, str](), "")  # The server closes the connection without an answer.


def end(n: int, status: str = "completed", **members: Any) -> str:
    return frame(n, json.dumps({"status": status, **members}), "end")


class Output(list[Any]):
    """The lines that read.js printed."""

    def of(self, name: str) -> list[Any]:
        return [line[name] for line in self if name in line]

    @property
    def data(self) -> list[Any]:
        return [event["data"] for event in self.of("event")]


def output_of(script: str, argument: str) -> str:
    """What a script in tests/page/js prints. Raises TimeoutExpired after 60 s."""
    command = node_command(script, argument)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


Read = Callable[..., Output]


@contextmanager
def reading() -> Iterator[Read]:
    """Reads a stream with read.js, whose first comment explains the description."""
    with running_node("read.js") as node:

        def read(url: str, **description: Any) -> Output:
            lines = Output(node.ask(**{"url": url, "options": {}, **description}))
            assert not lines.of("unfinished") + lines.of("timersLeft"), lines
            return lines

        yield read


@pytest.fixture(scope="module")
def read() -> Iterator[Read]:
    with reading() as read:
        yield read


def test_a_stream_is_read_to_its_end(read: Read) -> None:
    with script(stream(START, frame(1, '{"a": [1]}'), frame(2, "no JSON"), end(3))) as server:
        output = read(server.url)
    assert output.of("event") == [
        {"type": "message", "data": {"a": [1]}, "text": '{"a": [1]}', "id": "r.1"},
        {"type": "message", "data": "no JSON", "text": "no JSON", "id": "r.2"},
    ]
    assert output.of("state") == ["connecting", "open", "closed"]
    assert output.of("done")
    assert output.of("run") == [server.url.replace("/streams/s", "/runs/r")]
    assert server.requests == [("GET", "/streams/s", None, "")]


def test_the_option_control_also_yields_start_and_end(read: Read) -> None:
    with script(stream(START, frame(1), end(2))) as server:
        output = read(server.url, options={"control": True})
    assert [event["type"] for event in output.of("event")] == ["start", "message", "end"]


@pytest.mark.parametrize("cut", ["", "id: r.2\nda", "id: r.2\ndata: 2\n"])
@pytest.mark.parametrize("headers", [{}, {"Content-Length": "1000"}], ids=["closed", "aborted"])
def test_a_response_without_the_end_event_is_resumed(
    read: Read, headers: dict[str, str], cut: str
) -> None:
    first = stream(START, frame(1), cut, **headers)
    with script(first, stream(frame(2), frame(3), end(4))) as server:
        output = read(server.url, options={"body": {"n": 3}})
    assert output.data == [1, 2, 3]
    assert output.of("state") == ["connecting", "open", "waiting", "connecting", "open", "closed"]
    assert server.requests == [
        ("POST", "/streams/s", None, '{"n":3}'),
        ("GET", "/runs/r", "r.1", ""),
    ]


@pytest.mark.parametrize("status", [404, 410])
def test_a_run_that_the_server_no_longer_has_is_asked_for_with_the_first_request(
    read: Read, status: int
) -> None:
    """A shared source then continues with its live run."""
    answers = [stream(START, frame(1)), problem(status), stream(frame(2), end(3))]
    with script(*answers) as server:
        output = read(server.url, options={"body": {"n": 2}})
    assert output.data == [1, 2]
    assert server.requests[1:] == [
        ("GET", "/runs/r", "r.1", ""),
        ("POST", "/streams/s", "r.1", '{"n":2}'),
    ]


def test_a_run_that_cannot_be_resumed_throws_the_servers_error(read: Read) -> None:
    with script(stream(START, frame(1)), problem(404), problem(410)) as server:
        output = read(server.url)
    assert output.data == [1]
    assert output.of("error")[0]["message"] == "it is 410"
    assert output.of("status") == [""], "nobody knows how the run ended"


def test_a_run_lost_before_its_first_event_is_not_started_again(read: Read) -> None:
    with script(stream(), problem(404)) as server:
        output = read(server.url)
    assert output.of("error")[0]["message"] == "it is 404"


def test_a_204_ends_the_stream(read: Read) -> None:
    with script(stream(START, frame(1)), NO_CONTENT) as server:
        output = read(server.url)
    assert output.data == [1]
    assert output.of("done")


def test_a_problem_response_throws_an_error_with_its_members(read: Read) -> None:
    with script(problem(422)) as server:
        [error] = read(server.url).of("error")
    assert (error["name"], error["message"]) == ("Refused", "it is 422")
    assert (error["problem"]["status"], error["problem"]["errors"]) == (422, [1])


@pytest.mark.parametrize("body", ["<h1>no", "null", ""])
def test_an_error_response_that_is_not_a_problem_throws_its_status(read: Read, body: str) -> None:
    with script((500, {}, body)) as server:
        [error] = read(server.url).of("error")
    assert error["message"] == f"{server.url} returned status 500"


def test_a_failed_run_throws_the_error_of_its_source_after_all_its_events(read: Read) -> None:
    failure = {"type": "Broken", "message": "the source broke"}
    with script(stream(START, frame(1), end(2, "failed", error=failure))) as server:
        output = read(server.url)
    assert output.data == [1]
    assert output.of("error") == [{"name": "Broken", "message": "the source broke"}]
    assert output.of("status") == ["failed"]


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_cancelled_run_ends_without_an_error_and_with_its_own_status(
    read: Read, status: str
) -> None:
    with script(stream(START, end(1, status))) as server:
        output = read(server.url)
    assert output.of("done")
    assert output.of("status") == [status]


def test_lost_history_is_yielded_as_a_gap_event(read: Read) -> None:
    with script(stream(START, frame(4, '{"missed":4}', "gap"), frame(5), end(6))) as server:
        output = read(server.url)
    assert output.of("event")[0] == {
        "type": "gap",
        "data": {"missed": 4},
        "text": '{"missed":4}',
        "id": "r.4",
    }


@pytest.mark.parametrize("status", [429, 503])
def test_the_client_waits_as_long_as_retry_after_says(read: Read, status: int) -> None:
    busy = problem(status, **{"Retry-After": "0.2"})
    with script(busy, stream(START, frame(1)), busy, stream(end(2))) as server:
        output = read(server.url, options={"body": {}})
    assert output.data == [1]
    assert output.of("done")
    assert [method for method, *_ in server.requests] == ["POST", "POST", "GET", "GET"]
    assert server.times[1] - server.times[0] > 0.19
    assert server.times[3] - server.times[2] > 0.19


@pytest.mark.parametrize("status", [429, 503])
def test_a_run_that_is_refused_five_times_with_retry_after_is_an_error(
    read: Read, status: int
) -> None:
    with script(*[problem(status, **{"Retry-After": "7"})] * 6) as server:
        output = read(server.url, options={"body": {}}, skipPauses=True)
    assert output.of("error")[0]["message"] == f"it is {status}"
    assert output.of("reason") == [{"status": status, "wait": 7000}] * 4
    assert output.of("pause") == [7000] * 4
    assert output.of("state")[-2:] == ["connecting", "closed"]
    assert len(server.requests) == 5


def test_a_resume_is_tried_without_a_limit(read: Read) -> None:
    refusals = [problem(429, **{"Retry-After": "1"})] * 6
    with script(stream(START, frame(1)), *refusals, stream(end(2))) as server:
        output = read(server.url, skipPauses=True)
    assert output.of("done")
    assert output.of("reason") == [{"wait": 10}] + [{"status": 429, "wait": 1000}] * 6


def test_retry_after_may_be_a_date(read: Read) -> None:
    future = problem(503, **{"Retry-After": "Fri, 01 Jan 2999 00:00:00 GMT"})
    with script(future, stream(START, end(1))) as server:
        output = read(server.url, skipPauses=True)
    assert output.of("done")
    assert output.of("reason")[0]["wait"] > 10**12


@pytest.mark.parametrize("value", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])
def test_a_retry_after_that_is_no_time_from_now_does_not_cause_a_busy_loop(
    read: Read, value: str
) -> None:
    busy = problem(503, **{"Retry-After": value})
    with script(stream(START, "retry: 100\n"), busy, busy, stream(end(1))) as server:
        output = read(server.url, skipPauses=True)
    assert output.of("done")
    assert all(pause >= 100 for pause in output.of("pause"))


def test_a_gateway_error_is_retried_once_the_run_is_known(read: Read) -> None:
    answers = [stream(START, frame(1)), (502, {}, ""), (504, {}, ""), stream(end(2))]
    with script(*answers) as server:
        assert read(server.url).of("done")


def test_pauses_grow_while_no_event_arrives(read: Read) -> None:
    retry = "retry: 100\n"
    with script(stream(START, retry), *[stream(retry)] * 6, stream(end(1))) as server:
        output = read(server.url, skipPauses=True)
    assert output.of("done")
    ranges = [(100, 100), (100, 200), (200, 400), (400, 800), (800, 1600), (800, 1600), (800, 1600)]
    for pause, (least, most) in zip(output.of("pause"), ranges, strict=True):
        assert least <= pause <= most


def test_pauses_do_not_grow_while_events_arrive(read: Read) -> None:
    retry = "retry: 100\n"
    answers = [stream(START, retry), *[stream(retry, frame(n)) for n in range(1, 6)]]
    with script(*answers, stream(end(6))) as server:
        output = read(server.url, skipPauses=True)
    assert output.data == [1, 2, 3, 4, 5]
    assert output.of("pause") == [100] * 6


@pytest.mark.parametrize("moment", ["online", "visible"])
def test_the_client_reconnects_at_once_when_the_browser_is(read: Read, moment: str) -> None:
    an_hour = "retry: 3600000\n"
    with script(stream(START, an_hour), stream(end(1))) as server:
        output = read(server.url, wakeBy=moment)
    assert output.of("pause") == [3_600_000]
    assert output.of("done")


def test_a_page_that_becomes_hidden_does_not_reconnect(read: Read) -> None:
    with script(stream(START, "retry: 3600000\n")) as server:
        assert read(server.url, wakeBy="hidden").of("stillWaiting")


@pytest.mark.parametrize("moment", ["online", "visible"])
def test_the_browser_does_not_shorten_a_retry_after(read: Read, moment: str) -> None:
    with script(problem(503, **{"Retry-After": "3600"})) as server:
        assert read(server.url, wakeBy=moment).of("stillWaiting")


def test_an_abort_skips_the_remaining_events_of_a_chunk(read: Read) -> None:
    with script(stream(START, frame(1), frame(2), end(3))) as server:
        output = read(server.url, abortAt="r.1")
    assert output.data == [1]
    assert output.of("error") == [{"name": "Error", "message": "aborted by the test"}]
    assert output.of("state")[-1] == "closed"


@pytest.mark.parametrize("state", ["connecting", "open", "waiting"])
def test_an_abort_ends_the_loop_in_any_state(read: Read, state: str) -> None:
    an_hour = "retry: 3600000\n"
    with script(stream(START, an_hour), stream(end(1))) as server:
        output = read(server.url, abortAt=state)
    assert output.of("error") == [{"name": "Error", "message": "aborted by the test"}]


def test_leaving_the_loop_closes_the_stream(read: Read) -> None:
    with script(stream(START, frame(1), frame(2), end(3))) as server:
        output = read(server.url, leaveAt="r.1")
    assert output.data == [1]
    assert output.of("state")[-1] == "closed"


@pytest.mark.parametrize("moment", ["connecting", "r.1", "closed"])
def test_a_second_loop_throws_and_leaves_the_first_one_alone(read: Read, moment: str) -> None:
    with script(stream(START, frame(1), frame(2), end(3))) as server:
        output = read(server.url, readAgainAt=moment)
    assert output.of("secondLoop") == ["AlreadyRead"]
    assert output.data == [1, 2]
    assert output.of("state") == ["connecting", "open", "closed"]
    assert output.of("done")
    assert len(server.requests) == 1


def test_stop_deletes_the_run_and_its_end_event_ends_the_loop(read: Read) -> None:
    stopped = stream(end(2, "cancelled", reason="stopped"))
    with script(stream(START, frame(1)), NO_CONTENT, stopped) as server:
        output = read(server.url, stopAt="r.1", options={"headers": {"X-Key": "k"}})
    assert server.requests[1][:2] == ("DELETE", "/runs/r")
    assert output.of("done")


def test_stop_rejects_if_the_server_does_not_know_the_run(read: Read) -> None:
    answers = [stream(START, frame(1)), problem(404), stream(end(2))]
    with script(*answers) as server:
        output = read(server.url, stopAt="r.1")
    assert server.requests[1][:2] == ("DELETE", "/runs/r")
    assert output.of("stop") == ["Refused"], "the run may be somebody else's, and go on"
    assert output.of("done")


def test_stop_resolves_if_the_server_has_forgotten_a_run_whose_end_was_read(read: Read) -> None:
    with script(stream(START, end(1)), problem(404)) as server:
        output = read(server.url, stopAfterwards=True)
    assert output.of("stop") == ["stopped"]


PRIVATE = {"authorization": "Bearer secret", "cookie": "session=1", "x-key": "k"}


def test_a_run_url_of_the_same_origin_gets_the_callers_headers_and_cookies(read: Read) -> None:
    answers = [stream(START, frame(1)), stream(frame(2)), NO_CONTENT, stream(end(3))]
    with script(*answers) as server:
        output = read(server.url, stopAt="r.2", options={"headers": PRIVATE})
    assert output.data == [1, 2]
    assert all(PRIVATE.items() <= headers.items() for headers in server.headers)
    assert output.of("credentials") == ["same-origin"] * 4


def test_a_run_url_of_another_origin_gets_no_headers_and_no_cookies_of_the_caller(
    read: Read,
) -> None:
    with script(stream(frame(2)), NO_CONTENT, stream(end(3))) as other:
        location = {"Content-Location": other.url}
        with script(stream(START, frame(1), **location)) as server:
            options = {"headers": PRIVATE, "credentials": "include"}
            output = read(server.url, stopAt="r.2", options=options)
    assert output.data == [1, 2]
    assert PRIVATE.items() <= server.headers[0].items()
    assert [method for method, *_ in other.requests] == ["GET", "DELETE", "GET"]
    assert not any(PRIVATE.keys() & headers.keys() for headers in other.headers)
    assert [headers.get("last-event-id") for headers in other.headers] == ["r.1", "r.2", "r.2"]
    assert output.of("credentials") == ["include", "omit", "omit", "omit"]


@pytest.mark.parametrize("moment", ["before the loop", "connecting"])
def test_stop_before_the_run_is_known_stops_it_as_soon_as_it_is_known(
    read: Read, moment: str
) -> None:
    with script(stream(START, DELETED, end(1, "cancelled")), NO_CONTENT) as server:
        output = read(server.url, stopAt=moment)
    assert [method for method, *_ in server.requests] == ["GET", "DELETE"]
    assert output.of("stop") == ["stopped"]
    assert output.of("done")


PLAIN = {"Content-Type": "text/event-stream"}  # Without the Content-Location.
START_WITH_URL = frame(0, '{"run":"r","source":"s","url":"/live/runs/r"}', "start")


@pytest.mark.parametrize("moment", ["before the loop", "connecting", "open", "r.1"])
def test_stop_takes_the_url_of_the_run_from_the_start_event(read: Read, moment: str) -> None:
    body = START_WITH_URL + frame(1) + DELETED + end(2, "cancelled")
    with script((200, PLAIN, body), NO_CONTENT) as server:
        output = read(server.url, stopAt=moment)
    assert server.requests[1][:2] == ("DELETE", "/live/runs/r")
    assert output.of("stop") == ["stopped"]
    assert output.of("done")
    assert output.of("run") == [server.url.replace("/streams/s", "/live/runs/r")]


def test_a_resume_takes_the_url_of_the_run_from_the_start_event(read: Read) -> None:
    first = "retry: 10\n" + START_WITH_URL + frame(1)
    with script((200, PLAIN, first), (200, PLAIN, frame(2) + end(3))) as server:
        output = read(server.url, options={"body": {}})
    assert output.data == [1, 2]
    assert server.requests[1] == ("GET", "/live/runs/r", "r.1", "")


@pytest.mark.parametrize("moment", ["connecting", "open", "r.1", "closed"])
def test_stop_rejects_if_the_server_does_not_send_the_url_of_the_run(
    read: Read, moment: str
) -> None:
    with script((200, PLAIN, START + frame(1) + end(2))) as server:
        output = read(server.url, stopAt=moment)
    assert output.of("stop") == ["NoRunURL"]
    assert output.data == [1]
    assert output.of("done")
    assert len(server.requests) == 1


def test_stop_before_the_loop_throws_in_the_loop_if_the_run_has_no_url(read: Read) -> None:
    with script((200, PLAIN, START + frame(1) + end(2))) as server:
        output = read(server.url, stopAt="before the loop")
    assert output.of("error")[0]["name"] == "NoRunURL"


@pytest.mark.parametrize("answer", [problem(422), problem(503, **{"Retry-After": "3600"})])
def test_a_refusal_is_not_retried_after_stop(
    read: Read, answer: tuple[int, dict[str, str], str]
) -> None:
    with script(answer) as server:
        output = read(server.url, stopAt="connecting")
    assert output.of("stop") == ["NoRunURL"]
    assert output.of("error")[0]["name"] == "Refused"
    assert output.of("state") == ["connecting", "closed"]


def test_stop_while_the_client_waits_to_start_a_run_ends_the_loop(read: Read) -> None:
    with script(problem(503, **{"Retry-After": "3600"})) as server:
        output = read(server.url, stopAt="waiting")
    assert output.of("stop") == ["stopped"]
    assert output.of("done")
    assert output.of("state") == ["connecting", "waiting", "closed"]
    assert len(server.requests) == 1


def test_a_failed_first_connection_is_an_error(read: Read) -> None:
    output = read(f"http://127.0.0.1:{free_port()}/streams/s")
    assert output.of("error")[0]["name"] == "TypeError"
    assert output.of("state") == ["connecting", "closed"]


MISTAKES: dict[str, dict[str, Any]] = {
    "an invalid URL": {"url": "http://["},
    "an invalid header": {"options": {"lastEventId": "r.1", "headers": {"no name": "1"}}},
    "a body that is not JSON": {"circular": True},
    "a last event id that is not Latin-1": {"options": {"lastEventId": "€.1"}},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_request_that_no_retry_can_mend_throws_at_once(read: Read, mistake: str) -> None:
    with script() as server:
        given = {"url": server.url, "options": {"lastEventId": "r.1"}, **MISTAKES[mistake]}
        output = read(**given)
    assert output.of("error")[0]["name"] == "TypeError"
    assert output.of("state") == ["connecting", "closed"]
    assert server.requests == []


def test_an_event_id_that_is_not_latin_1_throws_instead_of_reconnecting(read: Read) -> None:
    with script(stream(START, "id: €\ndata: 1\n\n")) as server:
        output = read(server.url)
    assert output.data == [1]
    assert output.of("error")[0]["name"] == "TypeError"
    assert len(server.requests) == 1


def test_a_network_failure_is_retried_when_a_resume_is_possible(read: Read) -> None:
    with script(stream(START), CUT, stream(end(1))) as server:
        output = read(server.url)
    assert output.of("done")
    assert len(server.requests) == 3


def test_without_a_run_url_the_first_request_is_repeated_with_the_last_event_id(read: Read) -> None:
    first = f"retry: 10\n{START}{frame(1)}"
    with script((200, PLAIN, first), (502, {}, ""), (200, PLAIN, end(2))) as server:
        output = read(server.url, options={"body": {}})
    assert output.data == [1]
    assert output.of("done")
    assert server.requests[2] == ("POST", "/streams/s", "r.1", "{}")


def test_a_lost_connection_without_run_url_and_event_id_is_an_error(read: Read) -> None:
    with script((200, {"Content-Type": "text/event-stream"}, "data: 1\n\n")) as server:
        output = read(server.url, options={"body": {}})
    assert output.data == [1]
    assert output.of("error")[0]["name"] == "Broken"
    assert len(server.requests) == 1


def test_a_response_that_is_not_an_event_stream_is_an_error(read: Read) -> None:
    with script((200, {"Content-Type": "text/html"}, "<h1>Login</h1>")) as server:
        [error] = read(server.url).of("error")
    assert error["message"] == f"{server.url} sent text/html, not text/event-stream"


def test_reading_can_start_after_a_given_event(read: Read) -> None:
    with script(stream(frame(6), end(7))) as server:
        assert read(server.url, options={"lastEventId": "r.5"}).data == [6]
    assert server.requests == [("GET", "/streams/s", "r.5", "")]


def test_the_client_has_at_most_232_lines() -> None:
    assert len(CLIENT.read_text().splitlines()) <= 232
