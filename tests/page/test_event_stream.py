"""event-stream.js in Node: its parser against the specification, and what is special about it.

Most of its rules are those of the Python clients, too: tests/clients has them. test_page.py runs
the parser in a browser.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.browser import CLIENT, Node, base64_of, node_command, running_node
from tests.support.script import (
    CUT,
    DELETED,
    NO_CONTENT,
    PLAIN,
    START,
    START_WITH_URL,
    end,
    frame,
    problem,
    script,
    stream,
)
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


def test_a_problem_response_throws_an_error_with_its_members(read: Read) -> None:
    with script(problem(422)) as server:
        [error] = read(server.url).of("error")
    assert (error["name"], error["message"]) == ("Refused", "it is 422")
    assert (error["problem"]["status"], error["problem"]["errors"]) == (422, [1])


def test_a_failed_run_throws_the_error_of_its_source_after_all_its_events(read: Read) -> None:
    failure = {"type": "Broken", "message": "the source broke"}
    with script(stream(START, frame(1), end(2, "failed", error=failure))) as server:
        output = read(server.url)
    assert output.data == [1]
    assert output.of("error") == [{"name": "Broken", "message": "the source broke"}]
    assert output.of("status") == ["failed"]


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


PRIVATE = {"authorization": "Bearer secret", "cookie": "session=1", "x-key": "k"}


def test_a_run_url_of_the_same_origin_gets_the_callers_headers_and_cookies(read: Read) -> None:
    answers = [stream(START, frame(1)), stream(frame(2)), NO_CONTENT, stream(end(3))]
    with script(*answers) as server:
        output = read(server.url, stopAt="r.2", options={"headers": PRIVATE})
    assert output.data == [1, 2]
    assert all(PRIVATE.items() <= headers.items() for headers in server.headers)
    assert output.of("credentials") == ["same-origin"] * 4


def test_stop_takes_the_url_of_the_run_from_the_start_event(read: Read) -> None:
    body = START_WITH_URL + frame(1) + DELETED + end(2, "cancelled")
    with script((200, PLAIN, body), NO_CONTENT) as server:
        output = read(server.url, stopAt="open")
    assert server.requests[1][:2] == ("DELETE", "/live/runs/r")
    assert output.of("stop") == ["stopped"]
    assert output.of("done")
    assert output.of("run") == [server.url.replace("/streams/s", "/live/runs/r")]


@pytest.mark.parametrize("moment", ["open", "closed"])
def test_stop_rejects_if_the_server_does_not_send_the_url_of_the_run(
    read: Read, moment: str
) -> None:
    with script((200, PLAIN, START + frame(1) + end(2))) as server:
        output = read(server.url, stopAt=moment)
    assert output.of("stop") == ["NoRunURL"]
    assert output.data == [1]
    assert output.of("done")
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


@pytest.mark.parametrize("query", ["", "?n=1"])
def test_another_origin_than_the_pages_gets_the_key_in_the_query(read: Read, query: str) -> None:
    """A strict `allow_headers` of its CORS middleware would refuse the header."""
    with script(problem(503, **{"Retry-After": "1"}), stream(START, end(1))) as server:
        page = {"origin": "http://page.example", "skipPauses": True}
        output = read(f"{server.url}{query}", options={"body": {}}, **page)
    assert output.of("done")
    [(_, first, *_), (_, second, *_)] = server.requests
    path, _, key = first.rpartition("idempotency_key=")
    assert path == f"/streams/s{query}{'&' if query else '?'}"
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert second == first
    assert not any("idempotency-key" in headers for headers in server.headers)


def test_the_callers_key_for_another_origin_is_in_the_query_too(read: Read) -> None:
    with script(stream(START, frame(1)), stream(end(2))) as server:
        read(server.url, origin="http://page.example", options={"key": "a b&c"})
    assert [path for _, path, *_ in server.requests] == [
        "/streams/s?idempotency_key=a+b%26c",
        "/runs/r",
    ]


def test_the_pages_own_origin_gets_the_key_in_the_header(read: Read) -> None:
    with script(stream(START, end(1))) as server:
        origin = server.url.removesuffix("/streams/s")
        read(server.url, origin=origin, options={"body": {}})
    assert re.fullmatch("[0-9a-f]{32}", server.headers[0]["idempotency-key"])
    assert server.requests[0][1] == "/streams/s"


@pytest.mark.parametrize(("others", "tries"), [(99, 2), (100, 1)])
def test_the_client_remembers_the_newest_100_urls_that_honour_keys(
    read: Read, others: int, tries: int
) -> None:
    with script(*[stream(START, end(1))] * (1 + others)) as server:
        read(server.url)
        for number in range(others):
            read(f"{server.url}/{number}")
        server.answers[:] = [CUT, stream(START, end(1))][:tries]
        output = read(server.url, options={"body": {}}, skipPauses=True)
    assert bool(output.of("done")) == (tries == 2)
    assert server.answers == []


def test_a_lost_answer_is_no_refusal(read: Read) -> None:
    with script(CUT, stream(START, end(1))) as server:
        output = read(server.url, options={"body": {}, "retry": True}, skipPauses=True)
    assert output.of("reason") == [{"wait": 2000}]
    assert output.of("state") == ["connecting", "waiting", "connecting", "open", "closed"]


def test_the_client_has_at_most_279_lines() -> None:
    assert len(CLIENT.read_text().splitlines()) <= 279
