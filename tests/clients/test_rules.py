"""event-stream.js and both clients of streams.client follow one table of rules, cases.py."""

import json
from collections.abc import Iterator

import pytest

from tests.clients.cases import CASES, OWN, Case, busy
from tests.clients.readers import CLIENTS, Read
from tests.support.script import NO_CONTENT, PLAIN, START, Script, end, frame, script, stream


@pytest.fixture(scope="module", params=CLIENTS)
def read(request: pytest.FixtureRequest) -> Iterator[Read]:
    with CLIENTS[request.param]() as read:
        yield read


@pytest.mark.parametrize("name", CASES)
def test_a_client_follows_the_rules(read: Read, name: str) -> None:
    case = CASES[name]
    with script(*case.earlier, *case.answers, path=case.path) as server:
        if case.earlier:
            read(server.url.partition("?")[0], {"body": {}})
        outcome = read(server.url, case.options, case.stop_at)
    assert server.answers == []
    assert (outcome.error or ("", ""))[0] == (case.error or ("", ""))[0], outcome.error
    assert (case.error or ("", ""))[1] in (outcome.error or ("", ""))[1]
    assert outcome.stopped == case.stopped
    if case.data is not None:
        assert [data for _, _, data in outcome.events] == case.data
    if case.events is not None:
        assert outcome.events == case.events
    if case.status is not None:
        assert outcome.status == case.status
    if case.run is not None:
        assert outcome.run == server.url.replace("/streams/s", case.run)
    if case.pauses is not None:
        assert len(outcome.pauses) == len(case.pauses), outcome.pauses
        for pause, (least, most) in zip(outcome.pauses, case.pauses, strict=True):
            assert least - 0.001 <= pause <= most + 0.001, outcome.pauses
    if case.states is not None:
        assert outcome.states in (None, case.states)
    check_requests(server, case)


def check_requests(server: Script, case: Case) -> None:
    requests = server.requests[len(case.earlier) :]
    lines = [f"{method} {path} after {last or ''}" for method, path, last, _ in requests]
    if case.requests is not None:
        assert [line.removesuffix(" after ") for line in lines] == case.requests
    body = case.options.get("body")
    for method, _, _, sent in requests:
        assert sent == ("" if method != "POST" else json.dumps(body, separators=(",", ":")))
    keys = [headers.get("idempotency-key") for headers in server.headers[len(case.earlier) :]]
    if case.keys is not None:
        assert [key and (OWN if len(key) >= 32 else key) for key in keys] == case.keys
        own = {key for key in keys if key and len(key) >= 32}
        assert len(own) == (OWN in case.keys)


@pytest.mark.parametrize("status", [429, 503])
def test_a_client_really_waits(read: Read, status: int) -> None:
    answers = [busy(status, "0.2"), stream(START, frame(1)), busy(status, "0.2"), stream(end(2))]
    with script(*answers) as server:
        outcome = read(server.url, {"body": {}}, waits=True)
    assert outcome.events == [("r.1", "message", 1)]
    assert server.times[1] - server.times[0] > 0.19
    assert server.times[3] - server.times[2] > 0.19


PRIVATE = {"authorization": "Bearer secret", "cookie": "session=1", "x-key": "k"}


def test_a_run_url_of_the_same_origin_gets_the_callers_headers(read: Read) -> None:
    answers = [stream(START, frame(1)), stream(frame(2)), NO_CONTENT, stream(end(3))]
    with script(*answers) as server:
        read(server.url, {"headers": PRIVATE}, "r.2")
    assert len(server.headers) == 4
    assert all(PRIVATE.items() <= headers.items() for headers in server.headers)


@pytest.mark.parametrize("given_in", ["Content-Location", "start"])
def test_a_run_url_of_another_origin_is_never_asked(read: Read, given_in: str) -> None:
    with script() as other:
        url = other.url.replace("/streams/s", "/runs/r")
        start = frame(0, json.dumps({"run": "r", "source": "s", "url": url}), "start")
        first = stream(start, frame(1), **{"Content-Location": url})
        if given_in == "start":
            first = (200, PLAIN, start + frame(1))
        with script(first, (200, PLAIN, frame(2) + end(3))) as server:
            outcome = read(server.url, {"headers": PRIVATE, "body": {}, "key": "k" * 32}, "r.1")
    assert [data for _, _, data in outcome.events] == [1, 2]
    assert outcome.stopped == "NoRunURL"
    assert outcome.run == ""
    assert [request[::2] for request in server.requests] == [("POST", None), ("POST", "r.1")]
    assert other.requests == []
