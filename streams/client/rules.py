"""The rules of the client: what it does after a response, an event or a lost connection.

Nothing here does input or output. The rules are also those of page/event-stream.js; tests/clients
has one table of cases for both.

1. No event is given twice, and none is skipped unless the server sends a `gap`.
2. A response that ends without an `end` event is a lost connection: the run is then resumed.
3. A request that can start a run is sent again only if the server refused it and said when to try
   again, or if its answer was lost and the server is known to honour its key.
4. A run's URL of another origin is ignored: the client would send the caller's headers there.
"""

import logging
import random
import re
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import httpx
import msgspec
from httpx_sse import ServerSentEvent

logger = logging.getLogger("streams.client")

T = TypeVar("T")

MAX_TRIES = 5
"""To start a run. A resume has no limit."""

MAX_PAUSE = 2.0**31 / 1000
"""Seconds, as in a browser."""

MAX_HONOURING = 1_000
_honouring: OrderedDict[str, None] = OrderedDict()
"""The newest URLs, without their query, that have sent the URL of a run: they honour keys."""

LOST = (httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError, httpx.TimeoutException)
"""A request that failed with one of these, or the reading of its response, can be repeated."""

Outcome = httpx.Response | httpx.TransportError
"""What a request led to: a response, even one that broke off, or one of LOST."""


class ClientError(Exception):
    """A stream could not be read to its end, or not be stopped."""


class Refused(ClientError):
    """The server answered with an error `status`. `problem` is what it says (RFC 9457)."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.problem: dict[str, Any] = {"status": self.status}
        with suppress(httpx.ResponseNotRead, msgspec.DecodeError, UnicodeDecodeError):
            self.problem |= msgspec.json.decode(response.content, type=dict[str, Any])
        default = f"{response.url} returned status {self.status}"
        super().__init__(self.problem.get("detail", default))


class RunFailed(ClientError):
    """The run failed, after the events that were given. `type` is the class of its error."""

    def __init__(self, type: str, message: str) -> None:  # noqa: A002
        super().__init__(message)
        self.type = type


class ConnectionLost(ClientError):
    """The connection was lost, or none could be made, and there is nothing to resume."""


class NoEventStream(ClientError):
    """The answer is no event stream, but for example a login page."""


class NoRunURL(ClientError):
    """The server sent no URL at which to stop the run."""


class InvalidData(ClientError):
    """The data of an event does not have the type that was asked for."""


@dataclass(frozen=True, slots=True)
class StreamEvent(Generic[T]):
    """An event. `name` is "message" for an event without a name.

    `data` is the decoded JSON, or the text if it is not JSON. `text` is the text as sent.
    """

    id: str
    name: str
    data: T
    text: str


class Options(TypedDict, total=False):
    """The options of `stream` and `stream_sync`."""

    body: Any
    """Sent as JSON with POST. Without a body the request is a GET."""
    headers: Mapping[str, str]
    last_event_id: str
    """The event to start after."""
    control: bool
    """Whether to give the events `start` and `end`, too."""
    key: str
    """Requests with one key are one run. The default is a random key for a POST."""
    retry: bool
    """Says that the server honours keys: a request whose answer is lost can be sent again."""


class Request(NamedTuple):
    method: str
    url: httpx.URL
    headers: httpx.Headers
    content: bytes | None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Control(msgspec.Struct):
    """The members of `start` and `end` that the client uses."""

    url: str = ""
    status: str = ""
    error: _Error | None = None


class Rules(Generic[T]):
    """The state of one stream. `type` is the type of the data of its events."""

    def __init__(
        self,
        url: httpx.URL,
        type: Any,  # noqa: A002
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        last_event_id: str = "",
        control: bool = False,
        key: str | None = None,
        retry: bool = False,
    ) -> None:
        self.run = ""
        self.status = ""
        self.last_event_id = last_event_id
        self.is_located = False
        """Whether the run's URL is known, or it is clear that the server does not send it."""
        self.is_refused = False
        """Whether the server has refused to start a run, and is asked again after a pause."""
        self.is_stopped = False
        self.is_over = False
        self.failure: RunFailed | None = None
        self._url = url
        self._endpoint = str(url.copy_with(userinfo=b"", query=None, fragment=None))
        self._content = None if body is None else msgspec.json.encode(body)
        self._headers = httpx.Headers(headers)
        self._decoder = msgspec.json.Decoder(type)
        self._is_typed = type is not Any
        self._control = control
        self._honours_keys = retry
        self._key: str | None = None  # if it is not in the caller's headers or URL
        self._has_key = "Idempotency-Key" in self._headers or "idempotency_key" in url.params
        if not self._has_key:
            is_new = not last_event_id and (body is not None or retry)
            self._key = key or (str(uuid.uuid4()) if is_new else None)
            self._has_key = self._key is not None
        self._at_run = False  # where the last request went
        self._falls_back = False
        self._has_location = False
        self._has_events = False
        self._failures = 0  # since the last event
        self._retry = 2.0  # seconds

    def request(self) -> Request:
        """The next request: at the run's URL if that is known."""
        self._at_run = self.run != "" and not self._falls_back
        self._falls_back = self.is_refused = False
        if self._at_run:
            return self._request("GET", self.run)
        request = self._request("GET" if self._content is None else "POST", self._url)
        if self._content is not None:
            request.headers["Content-Type"] = "application/json"
        if self._key is not None:
            request.headers["Idempotency-Key"] = self._key
        return request._replace(content=self._content)

    def stop_request(self) -> Request:
        if not self.run:
            raise NoRunURL(f"{self._endpoint} sent no URL at which to stop the run")
        return self._request("DELETE", self.run)

    def _request(self, method: str, target: httpx.URL | str) -> Request:
        url = httpx.URL(target)
        headers = httpx.Headers(self._headers)
        headers["Accept"] = "text/event-stream, application/problem+json"
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        return Request(method, url, headers, None)

    def opened(self, response: httpx.Response) -> bool:
        """Whether the response has events to read. Raises NoEventStream."""
        self.is_over = response.status_code == 204
        if self.is_over or not response.is_success:
            return False
        media_type = response.headers.get("Content-Type", "no Content-Type")
        if not media_type.startswith("text/event-stream"):
            raise NoEventStream(f"{response.url} sent {media_type}, not text/event-stream")
        location = response.headers.get("Content-Location")
        self._has_location = location is not None
        self._locate(response, location)
        return True

    def _locate(self, response: httpx.Response, location: str | None) -> None:
        if location and (url := self._of_own_origin(response, location)):
            self.run = url
            _honouring[self._endpoint] = None
            if len(_honouring) > MAX_HONOURING:
                _honouring.popitem(last=False)
        if self.run:
            self.is_located = True

    def _of_own_origin(self, response: httpx.Response, location: str) -> str | None:
        try:
            url = response.url.join(location)
        except httpx.InvalidURL:
            url = None
        if url is not None and _origin(url) == _origin(self._url):
            return str(url)
        logger.warning(
            "%s: ignored the run's URL %.80r, because it is not of the same origin. The stream can "
            "be neither stopped nor resumed there",
            self._endpoint,
            location,
        )
        return None

    def received(self, sse: ServerSentEvent, response: httpx.Response) -> StreamEvent[T] | None:
        """The event to give to the caller, if any. Raises InvalidData."""
        if sse.retry is not None and sse.retry >= 0:
            self._retry = sse.retry / 1000
        event_id = sse.id or self.last_event_id
        if not sse.data and event_id == self.last_event_id:
            return None  # httpx-sse reports a block without data, too.
        self.last_event_id, self._has_events, self._failures = event_id, True, 0
        control = _control(sse.data) if sse.event in ("start", "end") else None
        if control and sse.event == "start" and not self._has_location:
            self._locate(response, control.url)
        if control and sse.event == "end":
            self.is_over, self.status = True, control.status
            if control.error:
                self.failure = RunFailed(control.error.type, control.error.message)
        self.is_located = True
        if control and not self._control:
            return None
        return StreamEvent(event_id, sse.event, self._data(sse), sse.data)

    def _data(self, sse: ServerSentEvent) -> Any:
        is_typed = self._is_typed and sse.event not in ("start", "end", "gap")
        try:
            return self._decoder.decode(sse.data) if is_typed else msgspec.json.decode(sse.data)
        except msgspec.DecodeError as error:
            if not is_typed:
                return sse.data
            raise InvalidData(f"the data of event {self.last_event_id}: {error}") from error

    def pause(self, outcome: Outcome) -> float:
        """Seconds until the next request, after an outcome without the end of the run.

        Raises Refused or ConnectionLost if there is no next request.
        """
        status = outcome.status_code if isinstance(outcome, httpx.Response) else 0
        if status in (404, 410) and self._at_run and self.last_event_id:
            self._falls_back = True  # The run is gone. A shared source continues with its live one.
            return 0
        after = _retry_after(outcome)
        is_lost = status < 300
        is_known = self.run != "" or self.last_event_id != ""
        has_tries = self._failures + 1 < MAX_TRIES
        may_resume = is_known and (is_lost or status >= 500 or after is not None)
        may_repeat = self._may_repeat and has_tries and (is_lost or _is_gateways(outcome))
        self.is_refused = after is not None and has_tries and not (is_known or self.is_stopped)
        if not (may_resume or may_repeat or self.is_refused):
            raise self._error(outcome)
        failures, self._failures = self._failures, self._failures + 1
        # The first pause is the server's `retry`. Later ones grow; jitter spreads the clients.
        factor = 2 ** min(failures, 4) * random.uniform(0.5, 1) if failures else 1
        seconds = min(after or self._retry * factor, MAX_PAUSE)
        reason = "the connection was lost" if is_lost else f"status {status}"
        logger.info("%s: %s; the next request is in %.1f s", self._endpoint, reason, seconds)
        return seconds

    @property
    def _may_repeat(self) -> bool:
        """Whether the first request, whose answer was lost, can be sent again: it gets the same
        run."""
        honours_keys = self._honours_keys or self._endpoint in _honouring
        return self._has_key and honours_keys and not self._has_events

    def check_stopped(self, outcome: Outcome) -> None:
        """Raises ClientError unless DELETE has stopped the run, or it has been forgotten since."""
        status = outcome.status_code if isinstance(outcome, httpx.Response) else 0
        if not 200 <= status < 300 and not (status == 404 and self.status):
            raise self._error(outcome)

    def _error(self, outcome: Outcome) -> ClientError:
        if not isinstance(outcome, httpx.Response):
            return ConnectionLost(f"{self._endpoint} did not answer: {outcome!r}")
        if outcome.is_success:
            return ConnectionLost("the connection was lost before the first event id")
        return Refused(outcome)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _control(text: str) -> _Control:
    try:
        return msgspec.json.decode(text, type=_Control)
    except msgspec.DecodeError:
        return _Control()


def _is_gateways(outcome: Outcome) -> bool:
    """Whether a proxy reports that it got no answer. The server itself would send a problem."""
    return (
        isinstance(outcome, httpx.Response)
        and outcome.status_code in (502, 504)
        and "problem" not in outcome.headers.get("Content-Type", "")
    )


def _retry_after(outcome: Outcome) -> float | None:
    """Seconds from Retry-After (RFC 9110, section 10.2.3); 0 if it is no time from now."""
    value = None
    if isinstance(outcome, httpx.Response) and not outcome.is_success:
        value = outcome.headers.get("Retry-After")
    if not value:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value).replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return 0
    return max(0, (date - datetime.now(UTC)).total_seconds())
