"""A topic: a run without a producer. Any task, thread or worker may publish to it.

Invariants:

1. The arguments name a topic: publishers and viewers that give the same ones share one run.
2. A topic waits for nobody: at `window` bytes its oldest events are dropped, read or not.
"""

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from starlette.requests import Request

from streams.guard import Guard
from streams.policy import PolicyOptions
from streams.source import Source, check_source

P = ParamSpec("P")
T = TypeVar("T")


class Topic(Source[P, T]):
    """A function whose parameters name a topic, and its policy. `@topic` makes one.

    Raises TypeError for parameters that cannot be published, and for an invalid option.
    """

    is_topic = True

    def __init__(
        self,
        function: Callable[P, T],
        *,
        name: str | None = None,
        replay: int = 1,
        guard: Guard | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(function, name=name, shared=True, guard=guard, **policy)
        self.replay = replay
        if not isinstance(replay, int) or replay < 0:
            raise TypeError(
                f"topic {self.name!r}: replay={replay!r} is no number of events, 0 or more"
            )
        if "linger" in policy:
            raise TypeError(
                f"topic {self.name!r}: linger has no effect, because a topic has no source that "
                "could be stopped; `retain` says how long it is kept without viewers"
            )
        if self.restartable:
            raise TypeError(f"topic {self.name!r}: the parameter name 'after' is reserved")

    def check_function(self, code: Callable[..., Any]) -> None:
        """Any function will do: it is not called."""

    def published(self, url: str) -> dict[str, Any]:
        return {**super().published(url), "topic": True}

    async def open(
        self, arguments: Mapping[str, Any], request: Request | None, after: int = 0
    ) -> None:
        """Raises InvalidParameters if required ones are missing: a client that gives none wanted to
        resume a topic that is lost.
        """
        if not arguments:
            self.from_values({})

    def __repr__(self) -> str:
        return f"<Topic {self.name}>"


@overload
def topic(function: Callable[P, T], /) -> Topic[P, T]: ...
@overload
def topic(
    *,
    name: str | None = None,
    replay: int = 1,
    guard: Guard | None = None,
    **policy: Unpack[PolicyOptions],
) -> Callable[[Callable[P, T]], Topic[P, T]]: ...
def topic(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Makes a topic of a function, which is never called: its parameters name the topic.

    `name` (default: the function's) is the topic's name in URLs and for `publish`. A viewer who
    joins gets the newest `replay` events and what follows. `guard(request)` or
    `guard(request, arguments)`, sync or async, is called for everyone who joins or resumes it; what
    it raises is the answer, and `arguments` are those that name the topic. Other keywords are this
    topic's exceptions from the policy: see Policy. It holds `window` bytes of events. Without
    viewers, it is forgotten `retain` seconds after it was last published to.
    """
    if function is None:
        return lambda function: Topic(function, **options)
    return Topic(function, **options)


def check_model(source: Any) -> None:
    """Raises TypeError if this is not a source, or is a topic: a topic cannot be a model."""
    check_source(source)
    if isinstance(source, Topic):
        raise TypeError(f"{source!r} cannot be a model: it answers nothing; give a source")
