"""A source: a function that makes events, its parameters, its policy.

The law of this file: a source's signature is its contract. What it declares is checked before it
is called, all faults at once, the same for a query string and a JSON body, and is published as
JSON Schema. asgi.py reads the arguments, run.py opens and pumps what comes out.
"""

import functools
import inspect
import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Annotated, Any, get_args, get_origin, get_type_hints, overload

import anyio
import msgspec
from anyio import to_thread
from msgspec import Meta
from starlette.datastructures import QueryParams
from starlette.requests import Request

from streams.errors import InvalidBody, InvalidParameters, shown

# A Last-Event-ID that a browser cannot send as a header (its first request) comes like this.
EVENT_ID_PARAMETERS = ("last_event_id", "lastEventId")

Seconds = Annotated[float, Meta(ge=0, le=10**9)]
Interval = Annotated[float, Meta(ge=0.01, le=86_400)]
Bytes = Annotated[int, Meta(ge=0)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run and its readers are treated: defaults on Streams, exceptions per source."""

    heartbeat: Interval = 15.0
    """Seconds between the comment lines that keep an idle connection open."""
    retry: tuple[Seconds, Seconds] = (1.0, 3.0)
    """Seconds a client waits before it reconnects: a random value of this range for each."""
    linger: Seconds | None = 30.0
    """Seconds a run goes on with no reader before it is cancelled. None: to its end."""
    retain: Seconds = 300.0
    """Seconds a finished run stays readable."""
    window: Bytes = 2**20
    """Bytes a run may be ahead of its slowest reader, and about what it holds."""
    send_timeout: Interval = 30.0
    """Seconds a reader may take nothing before it is disconnected."""

    def but(self, changes: Mapping[str, Any]) -> "Policy":
        """This policy with `changes`. Raises TypeError naming an unknown or impossible one."""
        try:
            return msgspec.convert({**msgspec.structs.asdict(self), **changes}, Policy)
        except msgspec.ValidationError as error:
            raise TypeError(f"policy: {error}") from None


class Source:
    """A source function with its parameters and policy; `@source` makes one.

    Calling it calls the function. Raises TypeError when made of something that is not a
    generator function or an async function, or whose parameters cannot be published.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        shared: bool = False,
        aclose: Callable[[], Awaitable[None]] | None = None,
        **policy: Any,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name or function.__name__
        self.shared = shared
        self.aclose = aclose
        self.policy = policy
        self.description = (inspect.getdoc(function) or "").partition("\n")[0]
        if not re.fullmatch(r"[\w.~-]+", self.name, re.ASCII):
            raise TypeError(f"source name {self.name!r} does not fit into a URL: use letters")
        if not (
            inspect.isasyncgenfunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
        ):
            raise TypeError(
                f"source {self.name!r} has to be an async generator function, a generator "
                f"function, or an async function that returns an async iterator"
            )
        Policy().but(policy)
        self._request_parameter: str | None = None
        self._needs_request = False
        self.restartable = False
        self.defaults: dict[str, Any] = {}
        self._types: dict[str, Any] = {}
        self._required: list[str] = []
        self._inspect_signature()

    def _inspect_signature(self) -> None:
        hints = get_type_hints(self.function, include_extras=True)
        fields: list[Any] = []
        for parameter in inspect.signature(self.function).parameters.values():
            name, type_ = parameter.name, hints.get(parameter.name)
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise TypeError(f"source {self.name!r}: *{name} cannot be published, name each")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(f"source {self.name!r}: {name!r} must not be positional-only")
            if name in EVENT_ID_PARAMETERS:
                raise TypeError(f"source {self.name!r}: the name {name!r} is taken")
            if any(
                inspect.isclass(t) and issubclass(t, Request) for t in (type_, *get_args(type_))
            ):
                self._request_parameter = name
                self._needs_request = type(None) not in get_args(type_)
            elif name == "after" and parameter.kind is parameter.KEYWORD_ONLY:
                self.restartable = True
            elif type_ is None:
                raise TypeError(f"source {self.name!r}: {name!r} needs a type annotation")
            else:
                self._types[name] = type_
                if parameter.default is parameter.empty:
                    self._required.append(name)
                    fields.append((name, type_))
                else:
                    self.defaults[name] = parameter.default
                    fields.append((name, type_, parameter.default))
        struct = msgspec.defstruct(self.name, fields, kw_only=True, forbid_unknown_fields=True)
        _, defs = msgspec.json.schema_components((struct,), ref_template="#/$defs/{name}")
        self.schema: dict[str, Any] = defs.pop(self.name)
        if defs:
            self.schema["$defs"] = defs

    @property
    def movable(self) -> bool:
        """Whether another worker can go on with a run of it: nothing but arguments is needed."""
        return self.restartable and not self._needs_request

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Source {self.name}>"

    def from_query(self, query: QueryParams) -> dict[str, Any]:
        """The arguments in a query string, texts read as the declared types.

        Raises InvalidParameters with all faults.
        """
        given: dict[str, Any] = {}
        for name in query:
            if name not in EVENT_ID_PARAMETERS:
                values = query.getlist(name)
                given[name] = values if len(values) > 1 or self._is_list(name) else values[0]
        return self._arguments(given, lambda value, type_: _convert(value, type_, strict=False))

    def _is_list(self, name: str) -> bool:
        type_: Any = self._types.get(name)
        origin = get_origin(type_.__origin__ if get_origin(type_) is Annotated else type_)
        return inspect.isclass(origin) and issubclass(origin, list | set | frozenset | tuple)

    def from_json(self, body: bytes) -> dict[str, Any]:
        """The arguments in a JSON object.

        Raises InvalidBody for what is no object, InvalidParameters with all faults.
        """
        try:
            given = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidBody(f"the body has to be a JSON object: {error}") from None
        return self._arguments(given, _convert)

    def _arguments(
        self, given: Mapping[str, Any], convert: Callable[[Any, Any], Any]
    ) -> dict[str, Any]:
        arguments = {}
        faults = {name: "is required" for name in self._required if name not in given}
        for name, value in given.items():
            if name not in self._types:
                known = ", ".join(self._types) or "none"
                faults[name] = f"is no parameter of this source, which has: {known}"
                continue
            try:
                arguments[name] = convert(value, self._types[name])
            except msgspec.ValidationError as error:
                faults[name] = f"{str(error)[0].lower()}{str(error)[1:]}, given {shown(value)}"
        if faults:
            raise InvalidParameters(
                "; ".join(f"{shown(name)[1:-1]}: {fault}" for name, fault in faults.items()),
                errors=[{"name": name, "detail": fault} for name, fault in faults.items()],
            )
        return arguments

    async def open(
        self, arguments: Mapping[str, Any], request: Request | None, after: int = 0
    ) -> AsyncIterator[Any]:
        """What the source yields behind its first `after` events.

        Awaits a source that is an async function: what that raises comes from here. `request` is
        None where another worker goes on with a run, which a source that wants one cannot have.
        """
        extra: dict[str, Any] = {}
        if self._request_parameter is not None:
            extra[self._request_parameter] = request
        if self.restartable:
            extra["after"] = after
        produced = self.function(**arguments, **extra)
        if inspect.iscoroutine(produced):
            produced = await produced
        return iterate(produced)


@overload
def source(function: Callable[..., Any], /) -> Source: ...
@overload
def source(
    *,
    name: str | None = None,
    shared: bool = False,
    aclose: Callable[[], Awaitable[None]] | None = None,
    **policy: Any,
) -> Callable[[Callable[..., Any]], Source]: ...
def source(
    function: Callable[..., Any] | None = None, /, **options: Any
) -> Source | Callable[[Callable[..., Any]], Source]:
    """Makes a source of an async generator function, of an async function that returns an async
    iterator (awaited before the response starts, so that what it raises is a real HTTP status),
    or of a generator function (run in a worker thread).

    With `shared`, one run serves all viewers that give the same parameters. `aclose` is awaited
    when an app that serves it closes: it closes what the runs share. Other keywords are
    this source's exceptions from the policy: see Policy.
    """
    if function is None:
        return lambda function: Source(function, **options)
    return Source(function, **options)


def iterate(produced: Any) -> AsyncIterator[Any]:
    """An async iterator over what a source produced; a plain iterable runs in worker threads.

    Raises TypeError for what cannot be iterated.
    """
    if isinstance(produced, AsyncIterable):
        return aiter(produced)
    if isinstance(produced, Iterable):
        return _in_thread(iter(produced))
    raise TypeError(f"a source gives an async iterator, not a {type(produced).__name__}")


async def _in_thread(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    done = object()
    try:
        while (value := await to_thread.run_sync(next, iterator, done)) is not done:
            yield value
    finally:
        if (close := getattr(iterator, "close", None)) is not None:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(close)


def _convert(value: Any, type_: Any, *, strict: bool = True) -> Any:
    return msgspec.convert(value, type_, strict=strict)
