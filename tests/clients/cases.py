"""The rules of a client as a table: what a server sends, and what a client then gives and sends.

test_rules.py runs each case with event-stream.js and with both clients of streams.client.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.support.script import (
    CUT,
    DELETED,
    NO_CONTENT,
    PLAIN,
    START,
    START_WITH_URL,
    Answer,
    end,
    frame,
    problem,
    stream,
)

NEVER_KNOWN = "/streams/never-known"
"""A path from which no client ever gets the URL of a run, so that none expects keys there."""

OWN = "a random key"


@dataclass(frozen=True, kw_only=True)
class Case:
    """`answers` are the server's, one for each request; the other fields are about the client.

    None means that the case is not about it. `error` is the class of streams.client and what its
    message contains.
    """

    answers: list[Answer]
    path: str = "/streams/s"
    options: dict[str, Any] = field(default_factory=dict)
    """By the names of streams.client."""
    earlier: list[Answer] = field(default_factory=list)
    """The answers for a stream of the same URL, without its query, that the client reads before."""
    stop_at: str = ""
    """When stop() is called: an event id, "connecting", "waiting", or before or after the loop."""

    data: list[Any] | None = None
    events: list[tuple[str, str, Any]] | None = None
    """Id, name and data."""
    error: tuple[str, str] | None = None
    status: str | None = None
    run: str | None = None
    stopped: Literal["", "stopped", "Refused", "NoRunURL"] = ""
    """What stop() did or raised. Called before the loop, it only returns, and acts in the loop."""
    requests: list[str] | None = None
    """Method, path and Last-Event-ID."""
    keys: list[str | None] | None = None
    pauses: list[tuple[float, float]] | None = None
    """In milliseconds, the least and the most of each."""
    states: list[str] | None = None
    """Of event-stream.js, which alone has them."""


def pauses(*milliseconds: float) -> list[tuple[float, float]]:
    return [(each, each) for each in milliseconds]


def busy(status: int = 503, seconds: str = "7") -> Answer:
    return problem(status, **{"Retry-After": seconds})


READ_TO_ITS_END: dict[str, Case] = {
    "a stream is read to its end": Case(
        answers=[stream(START, frame(1, '{"a": [1]}'), frame(2, "no JSON"), end(3))],
        events=[("r.1", "message", {"a": [1]}), ("r.2", "message", "no JSON")],
        status="completed",
        run="/runs/r",
        requests=["GET /streams/s"],
    ),
    "the option control also gives start and end": Case(
        answers=[stream(START, frame(1), end(2))],
        options={"control": True},
        events=[
            ("r.0", "start", {"run": "r", "source": "s"}),
            ("r.1", "message", 1),
            ("r.2", "end", {"status": "completed"}),
        ],
    ),
    "reading starts after a given event": Case(
        answers=[stream(frame(6), end(7))],
        options={"last_event_id": "r.5"},
        data=[6],
        requests=["GET /streams/s after r.5"],
    ),
    "an event has the name that the server gives it": Case(
        answers=[stream(START, frame(1, "1", "tick"), end(2))], events=[("r.1", "tick", 1)]
    ),
    "lost history is given as a gap": Case(
        answers=[stream(START, frame(4, '{"missed":4}', "gap"), frame(5), end(6))],
        events=[("r.4", "gap", {"missed": 4}), ("r.5", "message", 5)],
    ),
    "lines of data are joined": Case(
        answers=[stream(START, "id: r.1\ndata: a\ndata: b\n\n", end(2))], data=["a\nb"]
    ),
    "Unicode line separators do not end a line": Case(
        answers=[stream(START, frame(1, '"a\u2028b\u2029c\x85d"'), end(2))],
        data=["a\u2028b\u2029c\x85d"],
    ),
    "an event with empty data is given": Case(
        answers=[stream(START, frame(1, ""), end(2))], data=[""]
    ),
    "comments, with and without a blank line, are no events": Case(
        answers=[stream(":\n", START, ":\n\n:\n", frame(1), ": ping\n\n", end(2))], data=[1]
    ),
    "an event without an id has that of the event before, also after a resume": Case(
        answers=[stream(START, frame(1), "data: 2\n\n"), stream("data: 3\n\n", end(2))],
        events=[("r.1", "message", 1), ("r.1", "message", 2), ("r.1", "message", 3)],
        requests=["GET /streams/s", "GET /runs/r after r.1"],
    ),
    "a 204 ends the stream": Case(
        answers=[stream(START, frame(1)), NO_CONTENT], data=[1], status=""
    ),
    "a failed run throws the error of its source after all its events": Case(
        answers=[
            stream(
                START, frame(1), end(2, "failed", error={"type": "Bad", "message": "it is broken"})
            )
        ],
        data=[1],
        error=("RunFailed", "it is broken"),
        status="failed",
    ),
    **{
        f"a run that ended as {status} throws nothing": Case(
            answers=[stream(START, end(1, status))], data=[], status=status
        )
        for status in ("completed", "cancelled")
    },
}

RESUMED: dict[str, Case] = {
    **{
        f"a response that is {how} {where} is resumed": Case(
            answers=[stream(START, frame(1), cut, **headers), stream(frame(2), frame(3), end(4))],
            options={"body": {"n": 3}},
            data=[1, 2, 3],
            requests=["POST /streams/s", "GET /runs/r after r.1"],
            states=["connecting", "open", "waiting", "connecting", "open", "closed"],
        )
        for how, headers in {"closed": {}, "aborted": {"Content-Length": "1000"}}.items()
        for where, cut in {
            "between two events": "",
            "inside a line": "id: r.2\nda",
            "before the blank line": "id: r.2\ndata: 2\n",
        }.items()
    },
    "a resume takes the URL of the run from the start event": Case(
        answers=[
            (200, PLAIN, f"retry: 10\n{START_WITH_URL}{frame(1)}"),
            (200, PLAIN, frame(2) + end(3)),
        ],
        options={"body": {}},
        data=[1, 2],
        run="/live/runs/r",
        requests=["POST /streams/s", "GET /live/runs/r after r.1"],
    ),
    "Content-Location has precedence over the start event": Case(
        answers=[stream(START_WITH_URL, end(1))], run="/runs/r"
    ),
    "without a run URL the first request is repeated with the last event id": Case(
        answers=[(200, PLAIN, START + frame(1)), (502, {}, ""), (200, PLAIN, end(2))],
        options={"body": {}},
        data=[1],
        requests=["POST /streams/s", *["POST /streams/s after r.1"] * 2],
    ),
    "a network failure is retried if a resume is possible": Case(
        answers=[stream(START), CUT, stream(end(1))],
        data=[],
        requests=["GET /streams/s", *["GET /runs/r after r.0"] * 2],
    ),
    "a gateway error is retried once the run is known": Case(
        answers=[stream(START, frame(1)), (502, {}, ""), (504, {}, ""), stream(end(2))], data=[1]
    ),
    "a resume is tried without a limit": Case(
        answers=[stream(START, frame(1)), *[busy(429, "1")] * 6, stream(end(2))],
        data=[1],
        pauses=pauses(10, *[1000] * 6),
    ),
    **{
        f"a run that is gone ({status}) is asked for with the first request": Case(
            answers=[stream(START, frame(1)), problem(status), stream(frame(2), end(3))],
            options={"body": {"n": 2}},
            data=[1, 2],
            requests=["POST /streams/s", "GET /runs/r after r.1", "POST /streams/s after r.1"],
        )
        for status in (404, 410)
    },
    "a run that cannot be resumed throws the server's error": Case(
        answers=[stream(START, frame(1)), problem(404), problem(410)],
        data=[1],
        error=("Refused", "it is 410"),
        status="",
    ),
    "a run that is lost before its first event is not started again": Case(
        answers=[stream(), problem(404)],
        error=("Refused", "it is 404"),
        requests=["GET /streams/s", "GET /runs/r"],
    ),
    "a lost connection without run URL and event id is an error": Case(
        answers=[(200, PLAIN, "data: 1\n\n")],
        options={"body": {}},
        data=[1],
        error=("ConnectionLost", "before the first event id"),
    ),
    "pauses grow while no event arrives": Case(
        answers=[
            stream(START, "retry: 100\n\n"),
            *[stream("retry: 100\n")] * 6,
            stream(end(1)),
        ],
        pauses=[
            *[(100, 100), (100, 200), (200, 400), (400, 800), (800, 1600), (800, 1600)],
            (800, 1600),
        ],
    ),
    "a retry that is no number of milliseconds is ignored": Case(
        answers=[stream(START, "retry: -5\n\nretry: 1.5\n\nretry:\n\n"), stream(end(1))],
        pauses=pauses(10),
    ),
    "pauses do not grow while events arrive": Case(
        answers=[
            stream(START, "retry: 100\n\n"),
            *[stream("retry: 100\n", frame(n)) for n in range(1, 6)],
            stream(end(6)),
        ],
        data=[1, 2, 3, 4, 5],
        pauses=pauses(*[100] * 6),
    ),
}

REFUSED: dict[str, Case] = {
    "a problem response throws its detail": Case(
        answers=[problem(422)], error=("Refused", "it is 422")
    ),
    **{
        f"an error response with {what} throws its status": Case(
            answers=[(500, {}, body)], error=("Refused", "/streams/s returned status 500")
        )
        for what, body in {"HTML": "<h1>no", "null": "null", "no body": ""}.items()
    },
    "a response that is not an event stream is an error": Case(
        answers=[(200, {"Content-Type": "text/html"}, "<h1>Login</h1>")],
        error=("NoEventStream", "/streams/s sent text/html, not text/event-stream"),
    ),
    **{
        f"the client waits as long as Retry-After says ({status})": Case(
            answers=[busy(status), stream(START, frame(1)), busy(status, "0.2"), stream(end(2))],
            options={"body": {}},
            data=[1],
            requests=["POST /streams/s"] * 2 + ["GET /runs/r after r.1"] * 2,
            pauses=pauses(7000, 10, 200),
        )
        for status in (429, 503)
    },
    **{
        f"a run that is refused five times with Retry-After is an error ({status})": Case(
            answers=[busy(status)] * 5,
            options={"body": {}},
            error=("Refused", f"it is {status}"),
            requests=["POST /streams/s"] * 5,
            pauses=pauses(*[7000] * 4),
        )
        for status in (429, 503)
    },
    "Retry-After may be a date": Case(
        answers=[busy(503, "Fri, 01 Jan 2999 00:00:00 GMT"), stream(START, end(1))],
        pauses=[(2**31 - 1, 2**31)],  # the longest one of a browser
    ),
    **{
        f"a Retry-After that is {what} does not cause a busy loop": Case(
            answers=[
                stream(START, "retry: 100\n\n"),
                busy(503, value),
                busy(503, value),
                stream(end(1)),
            ],
            pauses=[(100, 100), (100, 200), (200, 400)],
        )
        for what, value in {
            "zero": "0",
            "in the past": "Wed, 21 Oct 2015 07:28:00 GMT",
            "no time": "soon",
        }.items()
    },
}

STOPPED: dict[str, Case] = {
    "stop deletes the run, and its end event ends the loop": Case(
        answers=[
            stream(START, frame(1)),
            NO_CONTENT,
            stream(end(2, "cancelled", reason="stopped")),
        ],
        stop_at="r.1",
        data=[1],
        status="cancelled",
        stopped="stopped",
        requests=["GET /streams/s", "DELETE /runs/r after r.1", "GET /runs/r after r.1"],
    ),
    "stop throws if the server does not know the run": Case(
        answers=[stream(START, frame(1)), problem(404), stream(end(2))],
        stop_at="r.1",
        data=[1],
        requests=["GET /streams/s", "DELETE /runs/r after r.1", "GET /runs/r after r.1"],
        stopped="Refused",  # The run may be somebody else's, and go on.
    ),
    "stop is content if the server has forgotten a run whose end was read": Case(
        answers=[stream(START, end(1)), problem(404)],
        stop_at="after the loop",
        stopped="stopped",
        requests=["GET /streams/s", "DELETE /runs/r after r.1"],
    ),
    **{
        f"stop {moment} stops the run as soon as it is known": Case(
            answers=[stream(START, DELETED, end(1, "cancelled")), NO_CONTENT],
            stop_at=stop_at,
            status="cancelled",
            stopped="stopped",
        )
        for moment, stop_at in {
            "before the loop": "before the loop",
            "before the response": "connecting",
        }.items()
    },
    **{
        f"stop {moment} takes the URL of the run from the start event": Case(
            answers=[
                (200, PLAIN, START_WITH_URL + frame(1) + DELETED + end(2, "cancelled")),
                NO_CONTENT,
            ],
            stop_at=stop_at,
            run="/live/runs/r",
            stopped="stopped",
        )
        for moment, stop_at in {
            "before the loop": "before the loop",
            "before the response": "connecting",
            "in the loop": "r.1",
        }.items()
    },
    **{
        f"stop {moment} throws if the server does not send the URL of the run": Case(
            answers=[(200, PLAIN, START + frame(1) + end(2))],
            stop_at=stop_at,
            data=[1],
            stopped="NoRunURL",
            requests=["GET /streams/s"],
        )
        for moment, stop_at in {
            "before the response": "connecting",
            "in the loop": "r.1",
            "after the loop": "after the loop",
        }.items()
    },
    "stop before the loop throws in the loop if the run has no URL": Case(
        answers=[(200, PLAIN, START + frame(1) + end(2))],
        stop_at="before the loop",
        error=("NoRunURL", "/streams/s sent no URL at which to stop the run"),
        stopped="stopped",  # It returns at once.
    ),
    **{
        f"a refusal is not retried after stop ({answer[0]})": Case(
            answers=[answer],
            stop_at="connecting",
            error=("Refused", f"it is {answer[0]}"),
            stopped="NoRunURL",
            states=["connecting", "closed"],
        )
        for answer in (problem(422), busy(503, "3600"))
    },
    "stop stops a run that was refused at first": Case(
        answers=[busy(), stream(START, frame(1)), NO_CONTENT, stream(end(2, "cancelled"))],
        stop_at="r.1",
        status="cancelled",
        stopped="stopped",
        requests=[*["GET /streams/s"] * 2, "DELETE /runs/r after r.1", "GET /runs/r after r.1"],
    ),
    **{
        f"a run's URL of another origin is ignored ({url})": Case(
            answers=[
                stream(START, frame(1), **{"Content-Location": url}),
                (200, PLAIN, frame(2) + end(3)),
            ],
            stop_at="r.1",
            data=[1, 2],
            stopped="NoRunURL",
            requests=["GET /streams/s", "GET /streams/s after r.1"],
        )
        for url in (
            "http://other.example/runs/r",
            "//other.example/runs/r",
            "http://127.0.0.1/runs/r",
            "https://127.0.0.1/runs/r",
            "javascript:alert(1)",
            "http://[",
        )
    },
    "a URL of another origin in the start event is ignored": Case(
        answers=[
            (200, PLAIN, START_WITH_URL.replace("/live", "//other.example/live") + frame(1)),
            (200, PLAIN, frame(2) + end(3)),
        ],
        stop_at="r.1",
        data=[1, 2],
        stopped="NoRunURL",
        requests=["GET /streams/s", "GET /streams/s after r.1"],
    ),
    "stop while the client waits to start a run ends the loop": Case(
        answers=[busy(503, "3600")],
        stop_at="waiting",
        data=[],
        stopped="stopped",
        requests=["GET /streams/s"],
        states=["connecting", "waiting", "closed"],
    ),
}

STARTED = stream(START, end(1))

KEYS: dict[str, Case] = {
    "a POST has a key, which the run's URL does not get": Case(
        answers=[stream(START, frame(1)), stream(end(2))], options={"body": {}}, keys=[OWN, None]
    ),
    "a request that is sent again has the same key": Case(
        answers=[busy(), busy(), STARTED], options={"body": {}}, keys=[OWN, OWN, OWN]
    ),
    "a GET has no key": Case(answers=[STARTED], keys=[None]),
    "a stream that starts after an event has no key of its own": Case(
        answers=[stream(end(2))], options={"body": {}, "last_event_id": "r.1"}, keys=[None]
    ),
    **{
        f"the caller's key is used instead, for a {method}": Case(
            answers=[STARTED], options={**options, "key": "chat-7/3"}, keys=["chat-7/3"]
        )
        for method, options in {"POST": {"body": {}}, "GET": dict[str, Any]()}.items()
    },
    "the caller's header is used instead": Case(
        answers=[STARTED],
        options={"body": {}, "headers": {"idempotency-key": "chat-7/3"}},
        keys=["chat-7/3"],
    ),
    "the caller's query is used instead": Case(
        answers=[STARTED],
        path="/streams/s?idempotency_key=chat-7/3",
        options={"body": {}},
        requests=["POST /streams/s?idempotency_key=chat-7/3"],
        keys=[None],
    ),
    "a POST whose answer is lost is sent again if its URL has sent the URL of a run": Case(
        earlier=[STARTED],
        answers=[CUT, CUT, stream(START, frame(1), end(2))],
        options={"body": {"n": 1}},
        data=[1],
        requests=["POST /streams/s"] * 3,
        keys=[OWN, OWN, OWN],
        pauses=[(2000, 2000), (2000, 4000)],
    ),
    "a POST is sent again if its URL with another query has sent the URL of a run": Case(
        earlier=[STARTED],
        answers=[CUT, STARTED],
        path="/streams/s?n=1",
        options={"body": {}},
        keys=[OWN, OWN],
    ),
    "a POST is sent again if a start event has had the URL of a run": Case(
        earlier=[(200, PLAIN, START_WITH_URL + end(1))],
        answers=[CUT, STARTED],
        options={"body": {}},
        keys=[OWN, OWN],
    ),
    "a POST is sent again with the option retry": Case(
        answers=[CUT, STARTED],
        path=NEVER_KNOWN,
        options={"body": {}, "retry": True},
        keys=[OWN, OWN],
    ),
    "a GET is sent again with the option retry, and has a key then": Case(
        answers=[CUT, STARTED], path=NEVER_KNOWN, options={"retry": True}, keys=[OWN, OWN]
    ),
    "a POST is not sent again if nothing says that the server honours keys": Case(
        answers=[CUT],
        path=NEVER_KNOWN,
        options={"body": {}},
        error=("ConnectionLost", ""),
        keys=[OWN],
    ),
    "a request without a key is not sent again": Case(
        earlier=[STARTED], answers=[CUT], error=("ConnectionLost", ""), keys=[None]
    ),
    "a request whose answer is lost five times is an error": Case(
        answers=[CUT] * 5,
        options={"body": {}, "retry": True},
        error=("ConnectionLost", ""),
        requests=["POST /streams/s"] * 5,
    ),
    "a response that is lost before its first event counts as a lost answer": Case(
        answers=[(200, PLAIN, "retry: 10\n"), (200, PLAIN, START + frame(1) + end(2))],
        options={"body": {}, "retry": True},
        data=[1],
        keys=[OWN, OWN],
    ),
    "a response that is lost after an event without an id does not count as a lost answer": Case(
        answers=[(200, PLAIN, "data: 1\n\n")],
        options={"body": {}, "retry": True},
        data=[1],
        error=("ConnectionLost", "before the first event id"),
    ),
    **{
        f"a gateway without an answer ({status}) counts as a lost answer": Case(
            answers=[(status, {"Content-Type": "text/html"}, "<h1>"), STARTED],
            options={"body": {}, "retry": True},
            keys=[OWN, OWN],
        )
        for status in (502, 504)
    },
    "a gateway without an answer is an error if nothing says that the server honours keys": Case(
        answers=[(502, {"Content-Type": "text/html"}, "<h1>")],
        path=NEVER_KNOWN,
        options={"body": {}},
        error=("Refused", "502"),
    ),
    **{
        f"the server's own answer {status} is not retried": Case(
            answers=[answer],
            options={"body": {}, "retry": True},
            error=("Refused", str(status)),
        )
        for status, answer in {500: (500, {}, ""), 502: problem(502), 422: problem(422)}.items()
    },
    "stop while the client waits to repeat a lost request stops the run": Case(
        answers=[
            (200, PLAIN, "retry: 10\n\n"),
            stream(START, DELETED, end(1, "cancelled")),
            NO_CONTENT,
        ],
        options={"body": {}, "retry": True},
        stop_at="waiting",
        status="cancelled",
        stopped="stopped",
    ),
}

CASES = {**READ_TO_ITS_END, **RESUMED, **REFUSED, **STOPPED, **KEYS}
