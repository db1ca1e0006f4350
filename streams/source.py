"""A source: a function that yields events, and its parameters.

Invariants:

1. A source's signature is its contract: arguments are checked before the function is called, and
   all faults are reported at once.
2. A query string and a JSON body are checked by the same types, which are published as JSON Schema.
"""

import functools
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    ParamSpec,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    overload,
)

from starlette.datastructures import QueryParams
from starlette.requests import Request

from streams.arguments import converted, decode_object, items_of
from streams.declaration import (
    events_schema_of,
    inner_function,
    name_of,
    parameters_of,
    schema_of,
)
from streams.encoding import encode_json, encode_sorted, give_turn
from streams.errors import InvalidParameters, as_stream_error, for_clients
from streams.guard import Guard, takes_arguments
from streams.job import Job
from streams.policy import Policy, PolicyOptions

logger = logging.getLogger("streams")

P = ParamSpec("P")
T = TypeVar("T")

# An EventSource cannot set a header on its first request, so these query parameters do it.
EVENT_ID_PARAMETERS = ("last_event_id", "lastEventId")
KEY_PARAMETER = "idempotency_key"
SIGNATURE_PARAMETER = "signature"
RESERVED_PARAMETERS = (*EVENT_ID_PARAMETERS, KEY_PARAMETER, SIGNATURE_PARAMETER)

Restartable = Callable[[Mapping[str, Any]], bool]


class Source(Generic[P, T]):
    """A source function with its parameters and its policy. `@source` makes one.

    Calling it calls the function. Raises TypeError for a function that is neither a generator
    function nor an async function, and for parameters that cannot be published.
    """

    is_topic = False
    replay = 1

    def __init__(
        self,
        function: Callable[P, T],
        *,
        name: str | None = None,
        shared: bool = False,
        restartable: Restartable | None = None,
        guard: Guard | None = None,
        aclose: Callable[[], Awaitable[None]] | None = None,
        version: str = "",
        **policy: Unpack[PolicyOptions],
    ) -> None:
        code = inner_function(function)
        # The attributes of a function must not replace those of the source.
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.name = name or name_of(function)
        self.shared = shared
        self.guard = guard
        self.aclose = aclose
        self.policy = policy
        self.description = (inspect.getdoc(code) or "").partition("\n")[0]
        check_name(self.name)
        what = f"guard= of source {self.name!r}"
        self.guard_takes_arguments = guard is not None and takes_arguments(guard, what)
        self.check_function(code)
        Policy().replace(policy, f"source {self.name!r}", type(self).__init__.__kwdefaults__ or ())
        self._request_parameter: str | None = None
        self._needs_request = False
        self.restartable = False
        self.defaults: dict[str, Any] = {}
        self._types: dict[str, Any] = {}
        self._required: list[str] = []
        self._inspect_signature()
        if restartable is not None and not self.restartable:
            raise TypeError(
                f"source {self.name!r}: restartable= says when it can start again, which needs a "
                "keyword-only parameter `after`"
            )
        self._restartable_with = restartable
        program = (code.__module__, code.__qualname__, self.schema, self.movable, version)
        self.fingerprint = hash_of(program)

    def check_function(self, code: Callable[..., Any]) -> None:
        """Raises TypeError for a function that cannot be the source's."""
        if not (
            inspect.isasyncgenfunction(code)
            or inspect.isgeneratorfunction(code)
            or inspect.iscoroutinefunction(code)
        ):
            raise TypeError(
                f"source {self.name!r} must be an async generator function, a generator function, "
                f"or an async function that returns an async iterator; a function whose parameters "
                f"only name a topic is a @topic"
            )

    def _inspect_signature(self) -> None:
        for parameter, type_ in parameters_of(self.name, self.function):
            name = parameter.name
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise TypeError(
                    f"source {self.name!r}: *{name} cannot be published; name each parameter"
                )
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(f"source {self.name!r}: {name!r} must not be positional-only")
            if name in RESERVED_PARAMETERS:
                raise TypeError(f"source {self.name!r}: the parameter name {name!r} is reserved")
            if any(
                inspect.isclass(t) and issubclass(t, Request) for t in (type_, *get_args(type_))
            ):
                self._request_parameter = name
                self._needs_request = type(None) not in get_args(type_)
                if self.shared:
                    raise TypeError(
                        f"source {self.name!r}: viewers share a run, so it cannot depend on the "
                        f"request of one of them; remove {name!r}, or shared=True"
                    )
            elif name == "after" and parameter.kind is parameter.KEYWORD_ONLY:
                self.restartable = True
            elif type_ is None:
                raise TypeError(f"source {self.name!r}: {name!r} needs a type annotation")
            else:
                self._types[name] = type_
                if parameter.default is parameter.empty:
                    self._required.append(name)
                else:
                    self.defaults[name] = parameter.default
        self.schema = schema_of(self.name, self._types, self.defaults)

    @property
    def movable(self) -> bool:
        """Whether another worker can continue a run: it needs the arguments, but no request."""
        return self.restartable and not self._needs_request

    @functools.cached_property
    def events_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the data of its events; None if its function does not declare it."""
        return events_schema_of(self.function)

    def published(self, url: str) -> dict[str, Any]:
        """What clients may know about it."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": self.schema,
            "events": self.events_schema,
            "shared": self.shared,
            "restartable": self.restartable,
            "url": url,
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Source {self.name}>"

    def from_query(self, query: QueryParams, *, resumes: bool = False) -> dict[str, Any]:
        """The arguments in a query string, converted from text to the declared types.

        A client that resumes a run may give none. Raises InvalidParameters with all faults.
        """
        values: dict[str, list[str]] = {}
        for name, value in items_of(query):
            if name not in RESERVED_PARAMETERS:
                values.setdefault(name, []).append(value)
        given = {
            name: texts if len(texts) > 1 or _is_list(self._types.get(name)) else texts[0]
            for name, texts in values.items()
        }
        return {} if resumes and not given else self._arguments(given, strict=False)

    def from_json(self, body: bytes) -> dict[str, Any]:
        """The arguments in a JSON object.

        Raises InvalidBody if it is not an object, InvalidParameters with all faults.
        """
        return self.from_values(decode_object(body))

    def check_query_of_post(self, query: QueryParams) -> None:
        """Raises InvalidParameters for a parameter in the query: a guard might take it for the one
        in the body.
        """
        if given := [name for name, _ in items_of(query) if name in self._types]:
            errors = [{"name": n, "detail": "is in the query; give it in the body"} for n in given]
            raise InvalidParameters(
                f"{', '.join(given)}: a POST has its parameters in the body, not in the query",
                errors=errors,
            )

    def from_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments in Python values. Raises InvalidParameters with all faults."""
        return self._arguments(values, strict=True)

    def _arguments(self, given: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
        return converted(given, self._types, self._required, strict=strict)

    async def job(
        self,
        arguments: Mapping[str, Any],
        request: Request | None,
        *,
        policy: Policy,
        owner: str | None = None,
        key: str | None = None,
    ) -> Job:
        """A job with these arguments. A shared source's job has no owner and no key."""
        complete = self.complete(arguments)
        movable = self.movable and self._is_restartable(complete)
        encoded = encode_sorted(complete)
        await give_turn(len(encoded))
        arguments_hash = hash_of_json(encoded)
        await give_turn(len(encoded))
        return Job(
            source=self.name,
            policy=policy,
            open=functools.partial(self.open, arguments, request),
            owner=None if self.shared else owner,
            arguments=encode_json(arguments).decode() if movable else None,
            arguments_hash=arguments_hash,
            argument_bytes=len(encoded),
            guard_arguments=self.for_guard(arguments),
            gives_arguments=bool(arguments),
            fingerprint=self.fingerprint if movable else None,
            key=None if self.shared else key,
            shared=self.shared,
            replay=self.replay,
            topic=self.is_topic,
        )

    def complete(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with the defaults of those that are not given."""
        return {**self.defaults, **arguments}

    def for_guard(self, arguments: Mapping[str, Any]) -> str | None:
        """What a log keeps of the arguments for the guard, if that takes them."""
        if not self.guard_takes_arguments:
            return None
        return encode_json(self.complete(arguments)).decode()

    def _is_restartable(self, complete: Mapping[str, Any]) -> bool:
        try:
            return self._restartable_with is None or self._restartable_with(complete)
        except Exception as error:
            if for_clients(error) is None:
                logger.exception("the restartable= function of source %s failed", self.name)
            raise as_stream_error(error) from None

    async def open(
        self, arguments: Mapping[str, Any], request: Request | None, after: int = 0
    ) -> Any:
        """Calls the function, and returns its iterator, which leaves out the first `after` events.

        A source that is an async function is awaited, and may raise anything. `request` is None
        if another worker continues a run. Raises InvalidParameters if required ones are missing: a
        client may leave them out to resume a run, and it is lost.
        """
        if not arguments:
            self._arguments({}, strict=False)
        extra: dict[str, Any] = {}
        if self._request_parameter is not None:
            extra[self._request_parameter] = request
        elif request is not None:
            _forget_body(request)
        if self.restartable:
            extra["after"] = after
        produced: Any = self.function(**arguments, **extra)  # type: ignore[call-arg]
        if inspect.iscoroutine(produced):
            produced = await produced
        return produced


def _forget_body(request: Request) -> None:
    """Drops what Starlette keeps of a body: the request lives as long as its response."""
    for cached in ("_body", "_json"):
        request.__dict__.pop(cached, None)


def _is_list(type_: Any) -> bool:
    """Whether values of a type are lists in a query, even if there is only one."""
    origin = get_origin(type_)
    if origin is Annotated:
        return _is_list(type_.__origin__)
    if origin in (Union, UnionType):
        return all(_is_list(each) for each in get_args(type_) if each is not NoneType)
    kind = origin or type_
    return inspect.isclass(kind) and issubclass(kind, list | set | frozenset | tuple)


def hash_of(arguments: Any) -> str:
    """A hash of what may be a megabyte of arguments: a retained run keeps only this."""
    return hash_of_json(encode_sorted(arguments))


def hash_of_json(*parts: bytes) -> str:
    hashed = blake2b(digest_size=32)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def check_source(source: Any) -> None:
    """Raises TypeError for what is not a source."""
    if isinstance(source, str):
        raise TypeError(
            f"{source!r} is not a source; import it and give the source itself (only "
            "STREAMS_SOURCES takes names)"
        )
    if not isinstance(source, Source):
        raise TypeError(f"{source!r} is not a source; decorate it with @source")


def check_name(name: str) -> None:
    """Raises TypeError for a source name that would have to be quoted in a URL, or changes it."""
    if not re.fullmatch(r"[\w.~-]+", name, re.ASCII) or name in (".", ".."):
        raise TypeError(
            f"source name {name!r} does not fit into a URL; use ASCII letters, digits and _ . ~ -"
        )


@overload
def source(function: Callable[P, T], /) -> Source[P, T]: ...
@overload
def source(
    *,
    name: str | None = None,
    shared: bool = False,
    restartable: Restartable | None = None,
    guard: Guard | None = None,
    aclose: Callable[[], Awaitable[None]] | None = None,
    version: str = "",
    **policy: Unpack[PolicyOptions],
) -> Callable[[Callable[P, T]], Source[P, T]]: ...
def source(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Makes a source of a function.

    The function is an async generator function; or an async function that returns an async
    iterator, which is awaited before the response starts, so that an error in it is an HTTP
    status; or a generator function, which runs in a thread of its own. A partial, a bound method
    and a callable object of such a function are sources, too.

    `name` (default: the function's) is the source's name in URLs. With `shared`, all viewers that
    give the same parameters share one run. A source with a parameter `after` is restartable; if it
    is not with all arguments, `restartable` is a function of them, defaults included, that says
    whether it is. `guard(request)` or `guard(request, arguments)`, sync or async, is called for
    everyone who starts, joins, resumes or stops a run or reads its state; what it raises is the
    answer, and `arguments` are those of the run, with the defaults. `aclose` is awaited
    when an app that serves the source closes. Change `version` when the source would yield other
    events than before after the same number of them: a run that a server with the old code has
    begun is not continued then, but fails with ProducerLost. Other keywords are this source's
    exceptions from the policy: see Policy.
    """
    if function is None:
        return lambda function: Source(function, **options)
    return Source(function, **options)
