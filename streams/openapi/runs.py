"""The operations of runs, and of the server."""

from collections.abc import Mapping

from streams.openapi.components import Schema, ref
from streams.openapi.writer import (
    COUNT,
    HEADERS,
    OBJECT,
    PROBLEM,
    TEXT,
    Describe,
    Operations,
    Writer,
    structure,
)
from streams.request import ANONYMOUS_KEY, JSON, LISTED_RUNS, LISTED_STATUSES, MAX_KEY

TIME: Schema = {**TEXT, "format": "date-time"}


def _state() -> Mapping[str, Schema]:
    return {
        "run": ref("schemas", "RunId"),
        "source": TEXT,
        "status": {"enum": [*LISTED_STATUSES]},
        "started": TIME,
        "producer": {**TEXT, "description": "The worker that runs the source"},
        "first_event": {**COUNT, "description": "The number of the oldest retained event"},
        "last_event": {"type": "integer", "minimum": -1},
        "readers": COUNT,
    }


def _asks(writer: Writer) -> bool:
    """Whether a function of the app may refuse to show a run."""
    guarded = any(source.guard is not None for source in writer.streams.sources.values())
    return guarded or writer.facts.has_identity


def _list(writer: Writer) -> Operations:
    key: Schema = {**TEXT, "pattern": "^[ -~]+$", "maxLength": MAX_KEY}
    prefix = {**key, "pattern": "^[ -~]*$"}
    given: dict[str, tuple[Schema, str]] = {
        "key": (key, f"Of an anonymous client: {ANONYMOUS_KEY} characters or more"),
        "key_prefix": (prefix, "The beginning of the key"),
        "source": (TEXT, "The name of the source"),
        "status": ({"enum": [*LISTED_STATUSES], "default": "running"}, "The status"),
        "limit": (
            {"type": "integer", "minimum": 1, "maximum": LISTED_RUNS, "default": LISTED_RUNS},
            "The most runs of a page",
        ),
        "after": (
            {**TEXT, "pattern": "^[0-9]{1,16}\\.[A-Za-z0-9_-]{1,64}$"},
            "From the member `next` of a page",
        ),
    }
    run = structure({**_state(), "key": {"type": ["string", "null"]}, "url": TEXT})
    runs = writer.components.schema("ListedRun", run)
    page = structure(
        {
            "runs": {"type": "array", "items": runs},
            "next": {"type": ["string", "null"], "description": "The URL of the next page"},
        }
    )
    operation = writer.operation(
        "List your own runs, newest first",
        {"200": writer.json("A page of runs", writer.components.schema("Runs", page))},
        *(403, 422),
        tag="runs",
        parameters=[
            {"name": name, "in": "query", "description": description, "schema": schema}
            for name, (schema, description) in given.items()
        ],
        any_status=_asks(writer),
    )
    return {"/runs": {"get": operation}}


def _one(writer: Writer) -> Operations:
    run = {"name": "run", "in": "path", "required": True, "schema": ref("schemas", "RunId")}
    answers = writer.stream("run", None)
    state = writer.components.schema("RunState", structure(_state()))
    answers["200"] = {
        "description": "The stream of the run, or its state, whichever `Accept` prefers",
        "headers": {
            "Content-Location": ref("headers", "ContentLocation"),
            "Incremental": {**HEADERS["Incremental"], "required": False},
            "Vary": ref("headers", "Vary"),
        },
        "content": {**answers["200"]["content"], JSON: {"schema": state}},
    }
    checks = [422] if _asks(writer) else []
    get = writer.operation(
        "Read a run",
        answers,
        *(403, 404, 406, 410, 422),
        tag="runs",
        parameters=[run, *writer.resuming(in_query=True)],
        any_status=True,
        is_signed=True,
        is_limited=True,
    )
    delete = writer.operation(
        "Stop a run",
        {"204": {"description": "The run ends for every viewer, or has ended"}},
        *(403, 404, *checks),
        tag="runs",
        parameters=[run],
        any_status=_asks(writer),
    )
    return {"/runs/{run}": {"get": get, "delete": delete}}


def _health(writer: Writer) -> Operations:
    counts = ("runs", "running", "threads", "readers", "events", "bytes", "restarts", "gaps")
    state = {
        "version": TEXT,
        "worker": TEXT,
        **dict.fromkeys(counts, COUNT),
        "since": TIME,
        "bodies": COUNT,
    }
    works = structure({"status": {"const": "ok"}, **state})
    fails = structure({"status": {"const": "unavailable"}, "detail": TEXT, **state})
    problem = ref("schemas", "Problem")  # It is the answer during a shutdown.
    unavailable = writer.json("The log cannot be used", writer.components.schema("Trouble", fails))
    unavailable["headers"] = {"Retry-After": ref("headers", "RetryAfter")}
    unavailable["content"][PROBLEM] = {"schema": problem}
    operation = writer.operation(
        "Tell whether the server works, and what it holds",
        {
            "200": writer.json("It works", writer.components.schema("Health", works)),
            "503": unavailable,
        },
        tag="server",
        is_open=True,
        any_host=True,
    )
    return {"/health": {"get": operation}}


def _metrics(writer: Writer) -> Operations:
    answer = {"200": writer.json("Prometheus' text format", TEXT, "text/plain")}
    operation = writer.operation("Say what this worker does", answer, 403, tag="server")
    return {"/metrics": {"get": operation}}


def _document(writer: Writer) -> Operations:
    operation = writer.operation(
        "Describe this server", {"200": writer.json("This document", OBJECT)}, tag="server"
    )
    return {"/openapi.json": {"get": operation}}


DESCRIBED: dict[str, Describe] = {
    "/runs": _list,
    "/runs/{run}": _one,
    "/health": _health,
    "/metrics": _metrics,
    "/openapi.json": _document,
}
