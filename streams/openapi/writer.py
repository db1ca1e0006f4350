"""Writes operations: what all of them have, and the parts that several of them have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from streams.event import RESERVED_NAMES
from streams.openapi.components import Components, Schema, ref
from streams.request import ANONYMOUS_KEY, EVENT_STREAM, JSON, JSON_LINES, MAX_KEY

PROBLEM = "application/problem+json"

REFUSALS = {
    400: "The body broke off",
    401: "No API key, or a wrong one",
    403: "A page of another site, an invalid signature, or a guard",
    404: "There is no such thing, or it is no longer retained",
    406: "`Accept` allows nothing that this can answer with",
    408: "The body did not arrive in time",
    409: "The topic has ended",
    410: "This stream cannot be resumed",
    413: "The body is too large",
    415: "The body is not JSON",
    421: "The server does not answer to the name in `Host`",
    422: "A parameter, the body, a key or an event id is invalid; `errors` has every parameter",
    429: "The client has as many streams and runs as it may have",
    503: "An overload, a shutdown, or a log that does not answer",
}

REFUSED_BY_APP = "A source, a guard, or another function of the app refuses"

BODY = (400, 408, 413, 415, 422)
"""The refusals of a body."""

Operation = dict[str, Any]
Operations = Mapping[str, Mapping[str, Operation]]
"""Operations by path and method."""

EVENT_ID = r"[A-Za-z0-9_-]{22}\.(0|[1-9][0-9]{0,15})"
KEY = r'"([ !#-\[\]-~]|\\["\\]){1,}"|[!#-~]([ -~]{0,}[!-~])?'
ANONYMOUS = KEY.replace("{1,}", "{16,}").replace("([ -~]{0,}[!-~])?", "[ -~]{14,}[!-~]")

OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an app's options mean for its clients."""

    needs_key: bool
    can_sign: bool
    checks_hosts: bool
    limits_clients: bool
    has_identity: bool


class Writer:
    """Writes the operations of one app, a Streams."""

    def __init__(self, streams: Any, facts: Facts) -> None:
        self.streams = streams
        self.facts = facts
        self.components = Components()
        add, schemas = self.components.add, self.components.schema
        if facts.needs_key:
            add("securitySchemes", "key", {"type": "http", "scheme": "bearer"})
        if facts.can_sign:
            add(
                "securitySchemes",
                "signature",
                {
                    "type": "apiKey",
                    "in": "query",
                    "name": "signature",
                    "description": "In a URL that the app has signed, for an EventSource",
                },
            )
        schemas("EventId", {**TEXT, "pattern": f"^{EVENT_ID}$"})
        schemas("RunId", {**TEXT, "pattern": "^[A-Za-z0-9_-]{22}$"})
        schemas("Problem", _PROBLEM)
        started = {"run": ref("schemas", "RunId"), "source": TEXT, "url": _URL}
        schemas("Start", structure(started, "run", "source"))
        schemas("End", _END)
        schemas("Gap", _GAP)
        for name in ("Start", "End", "Gap"):
            named = {"const": name.lower()}
            needed = ("event",) if name == "Gap" else ("id", "event")
            schemas(f"{name}Event", _event(named, json_text(ref("schemas", name)), *needed))
            schemas(f"{name}Line", _line(named, ref("schemas", name), has_id=name != "Gap"))
        for name, header in HEADERS.items():
            add("headers", name, header)

    @property
    def security(self) -> list[dict[str, list[str]]]:
        return [{"key": []}] if self.facts.needs_key else []

    def operation(
        self,
        summary: str,
        answers: Mapping[str, Any],
        *refusals: int,
        tag: str,
        description: str | None = None,
        parameters: Sequence[Schema] = (),
        body: Schema | None = None,
        any_status: bool = False,
        is_open: bool = False,
        is_signed: bool = False,
        any_host: bool = False,
        is_limited: bool = False,
        problem: Callable[[str], Schema] | None = None,
    ) -> Operation:
        """An operation that answers so, and refuses with a status in `refusals`, or any at all.

        `problem` makes the refusal with a description; the default has a problem document.
        `is_open`: without an API key. `is_signed`: also with a signed URL. `any_host`: by any name.
        `is_limited`: a client has at most `max_per_client` of it.
        """
        facts, statuses = self.facts, {*refusals, 503}
        security: list[dict[str, list[str]]] | None = None
        if is_open:
            security = [] if facts.needs_key else None
        elif facts.needs_key:
            statuses.add(401)
        if is_signed and facts.can_sign:
            security = [*(self.security or [{}]), {"signature": []}]
        if is_limited and facts.limits_clients:
            statuses.add(429)
        if facts.checks_hosts and not any_host:
            statuses.add(421)
        responses = dict(answers)
        for status in sorted(statuses):
            if str(status) not in responses:
                responses[str(status)] = self._refusal(status, problem)
        if any_status:
            for any_of in ("4XX", "5XX"):
                responses[any_of] = (problem or self._problem)(REFUSED_BY_APP)
        described = {
            "summary": summary,
            "description": description,
            "tags": [tag],
            "parameters": list(parameters) or None,
            "requestBody": body,
            "security": security,
        }
        kept = {key: value for key, value in described.items() if value is not None}
        return {**kept, "responses": responses}

    def _refusal(self, status: int, problem: Callable[[str], Schema] | None) -> Schema:
        refusal = (problem or self._problem)(REFUSALS[status])
        if status == 401:
            refusal["headers"] = {"WWW-Authenticate": ref("headers", "WWWAuthenticate")}
        if status in (429, 503):
            refusal["headers"] = {"Retry-After": ref("headers", "RetryAfter")}
        if problem is not None:
            return refusal
        return self.components.add("responses", f"Problem{status}", refusal)

    def _problem(self, description: str) -> Schema:
        return {
            "description": description,
            "content": {PROBLEM: {"schema": ref("schemas", "Problem")}},
        }

    def json(self, description: str, schema: Schema, media_type: str = JSON) -> Schema:
        return {"description": description, "content": {media_type: {"schema": schema}}}

    def stream(self, name: str, data: Schema | None) -> dict[str, Any]:
        """The answers of a stream whose events have such data (None: any), and begin with `name`.

        An event stream has an event for an item, with its data as text (section 4.14.4).
        """
        refs = self.components.schema
        data = None if data is None else self.components.adopted(data)
        other = {**TEXT, "not": {"enum": sorted(RESERVED_NAMES)}}
        event = refs(
            f"{name}_event", _event(other, TEXT if data is None else json_text(data), "id")
        )
        line = refs(f"{name}_line", _line(other, {} if data is None else data))
        own = {
            kind: [ref("schemas", f"{n}{kind}") for n in ("Start", "End", "Gap")] for kind in _KINDS
        }
        return {
            "200": {
                "description": "The stream. A response without `end` was cut",
                "headers": {name: ref("headers", key) for name, key in _OF_A_STREAM.items()},
                "content": {
                    EVENT_STREAM: {"itemSchema": {"oneOf": [*own["Event"], event]}},
                    **{
                        media_type: {"itemSchema": {"oneOf": [*own["Line"], line]}}
                        for media_type in JSON_LINES
                    },
                },
            },
            "204": {"description": "The client has had the `end` of the run"},
        }

    def resuming(self, *, in_query: bool) -> list[Schema]:
        """The parameters that say after which event a stream begins."""
        add, schema = self.components.add, {**TEXT, "pattern": f"^({EVENT_ID})?$"}
        about = "The id of the last event that the client has had; the stream begins after it"
        found = [_parameter(add, "LastEventId", "header", "Last-Event-ID", schema, about)]
        if in_query:
            about = "Likewise, for a client that cannot send headers"
            found.append(_parameter(add, "last_event_id", "query", "last_event_id", schema, about))
            about = "Likewise, as some polyfills of EventSource name it"
            found.append(_parameter(add, "lastEventId", "query", "lastEventId", schema, about))
        return found

    def keyed(self, *, in_query: bool = False) -> list[Schema]:
        """The parameters that name a run, so that requests with the same key are one run."""
        key = KEY if self.facts.needs_key else ANONYMOUS
        schema = {**TEXT, "maxLength": MAX_KEY, "pattern": f"^({key})$"}
        about = (
            "Requests with the same key attach to one run. From a client without a login, it has "
            f"{ANONYMOUS_KEY} characters or more"
        )
        add = self.components.add
        found = [_parameter(add, "IdempotencyKey", "header", "Idempotency-Key", schema, about)]
        if in_query:
            about = "Likewise, for a client that cannot send headers"
            name = "idempotency_key"
            found.append(_parameter(add, name, "query", name, schema, about))
        return found


Describe = Callable[[Writer], Operations]
"""Describes a route."""

_KINDS = ("Event", "Line")

_URL: Schema = {**TEXT, "format": "uri-reference"}


def structure(properties: Mapping[str, Schema], *required: str) -> Schema:
    """The schema of an object. Without `required`, it has all of its properties."""
    return {
        "type": "object",
        "properties": {**properties},
        "required": [*(required or properties)],
    }


def _parameter(
    add: Callable[[str, str, Schema], Schema],
    key: str,
    place: str,
    name: str,
    schema: Schema,
    about: str,
) -> Schema:
    parameter = {"name": name, "in": place, "description": about, "schema": schema}
    return add("parameters", key, parameter)


def json_text(schema: Schema) -> Schema:
    """A text that is JSON."""
    return {**TEXT, "contentMediaType": JSON, "contentSchema": schema}


def _event(name: Schema, data: Schema, *required: str) -> Schema:
    """An event of an event stream. One without a name is a `message`."""
    properties = {"id": ref("schemas", "EventId"), "event": name, "data": data, "retry": COUNT}
    return structure(properties, "data", *required)


def _line(name: Schema, data: Schema, *, has_id: bool = True) -> Schema:
    id_ = ref("schemas", "EventId")
    return structure(
        {"id": id_ if has_id else {"oneOf": [id_, {"type": "null"}]}, "event": name, "data": data}
    )


_PROBLEM = {
    "title": "Problem",
    "description": "A problem (RFC 9457). An error of the app may have other members, too",
    **structure(
        {
            "type": {"const": "about:blank"},
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {**TEXT, "description": "What is wrong, and what to do"},
            "errors": {"type": "array", "items": structure({"name": TEXT, "detail": TEXT})},
        },
        "type",
        "title",
        "status",
        "detail",
    ),
}

_END = structure(
    {
        "status": {"enum": ["completed", "failed", "cancelled"]},
        "reason": {**TEXT, "description": "Why it was cancelled"},
        "error": {"description": "Why it failed", **structure({"type": TEXT, "message": TEXT})},
    },
    "status",
)

_GAP = structure(
    {
        "missed": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "How many events the client has missed, if that is known",
        }
    }
)


def _header(schema: Schema, description: str, *, required: bool = True) -> Schema:
    return {"description": description, "required": required, "schema": schema}


HEADERS = {
    "CacheControl": _header({"const": "no-store, no-transform"}, "No cache keeps a stream"),
    "ContentLocation": _header(_URL, "The URL of the run, where there is one", required=False),
    "Incremental": _header({"const": "?1"}, "Proxies pass on each piece at once (RFC 10036)"),
    "RetryAfter": _header(COUNT, "Seconds after which the client may try again", required=False),
    "Vary": _header(TEXT, "The answer depends on `Accept`"),
    "WWWAuthenticate": _header(TEXT, "What to send (RFC 6750)"),
    "XAccelBuffering": _header({"const": "no"}, "nginx holds nothing back"),
}

_OF_A_STREAM = {
    "Cache-Control": "CacheControl",
    "Content-Location": "ContentLocation",
    "Incremental": "Incremental",
    "Vary": "Vary",
    "X-Accel-Buffering": "XAccelBuffering",
}
