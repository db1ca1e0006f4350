"""The source `chat`: its parameters, and the request that they become."""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from msgspec import Meta

from streams import Source, StreamError, join_text, joined, source
from streams.errors import InvalidParameters
from streams.sources.chat.upstream import Upstream

MAX_LINE = 2**20
"""Longest line of a stream, and longest answer that is not streamed, in bytes."""

OWN_FIELDS = frozenset({"messages", "model", "n", "stream"})
"""Fields of a request that only this source sets."""

LIMITS = frozenset({"max_completion_tokens", "max_tokens"})
"""The two names of one field."""

Text = Annotated[str, Meta(max_length=10**6)]
Name = Annotated[str, Meta(max_length=1000)]
Object = dict[str, Any]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
AtLeastOne = Annotated[int, Meta(ge=1, le=10**6)]


def chat_with(
    base_url: str,
    model: str,
    *,
    api_key: str = "",
    timeout: float = 60,
    extra_body: Mapping[str, Any] | None = None,
    extra_headers: Mapping[str, str] | None = None,
    max_line: int = MAX_LINE,
) -> Source[..., Any]:
    """A source named `chat` that streams the answers of `model` at `base_url` (".../v1").

    A run fails if the server sends nothing for `timeout` seconds, or a line of more than `max_line`
    bytes. `extra_body` has further fields of each request, which clients cannot set then; a field
    that is None is never sent. `extra_headers` has further headers, for instance with a key. All
    runs share one connection pool, which closes with the app. Raises ValueError for an invalid URL,
    key, field, header or limit.
    """
    fixed = dict(extra_body or {})
    if own := sorted(OWN_FIELDS.intersection(fixed)):
        raise ValueError(f"extra_body cannot set {', '.join(own)}: the source does")
    upstream = Upstream(
        base_url,
        api_key=api_key,
        headers=dict(extra_headers or {}),
        timeout=timeout,
        max_line=max_line,
    )

    @source(aclose=upstream.aclose)
    async def chat(
        prompt: Annotated[Text, Meta(description="What to ask the model")] = "",
        messages: Annotated[
            list[Object] | None, Meta(description="A conversation, instead of a prompt")
        ] = None,
        temperature: Annotated[
            Temperature | None, Meta(description="Randomness of the answer")
        ] = None,
        max_tokens: Annotated[
            AtLeastOne | None, Meta(description="Longest answer, in tokens")
        ] = None,
        seed: Annotated[
            int | None, Meta(description="The same seed, probably the same answer")
        ] = None,
        every: Annotated[
            float,
            Meta(ge=0, le=10, description="Join tokens that come within these seconds; 0: none"),
        ] = 0.0,
        tools: Annotated[
            list[Object] | None, Meta(description="Functions that the model may call")
        ] = None,
        tool_choice: Annotated[
            Name | Object | None, Meta(description="Whether and which of them it has to call")
        ] = None,
        response_format: Annotated[
            Object | None, Meta(description="The form of the answer, such as a JSON Schema")
        ] = None,
        top_p: Annotated[
            Share | None, Meta(description="Choose among the likeliest tokens of this probability")
        ] = None,
        reasoning_effort: Annotated[
            Name | None, Meta(description="How long to think: low, medium, high, …")
        ] = None,
        frequency_penalty: Annotated[
            Penalty | None, Meta(description="Against tokens that are frequent already")
        ] = None,
        presence_penalty: Annotated[
            Penalty | None, Meta(description="Against tokens that are there already")
        ] = None,
        metadata: Annotated[
            Object | None, Meta(description="What the model's server keeps with the answer")
        ] = None,
        user: Annotated[Name | None, Meta(description="Who asks, for the model's server")] = None,
        extra: Annotated[
            Object | None, Meta(description="Further fields of the request to the model's server")
        ] = None,
    ) -> AsyncIterator[Object]:
        """A real model that answers a prompt token by token."""
        if not messages and not prompt:
            raise StreamError("prompt and messages are empty: give one of them", status=422)
        given = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            "tools": tools,
            "tool_choice": tool_choice,
            "response_format": response_format,
            "top_p": top_p,
            "reasoning_effort": reasoning_effort,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "metadata": metadata,
            "user": user,
        }
        further = {
            name: value for name, value in (extra or {}).items() if (name, value) != ("n", 1)
        }
        asked = {name: value for name, value in given.items() if value is not None}
        check_fields(asked, further, fixed, chat.schema["properties"])
        body = {
            "stream_options": {"include_usage": True},
            **asked,
            **further,
            **fixed,
            "model": model,
            "messages": messages or [{"role": "user", "content": prompt}],
            "stream": True,
        }
        events = await upstream.ask({k: v for k, v in body.items() if v is not None})
        return joined(events, every, merge=join_text) if every else events

    return chat


def check_fields(
    asked: Mapping[str, Any],
    further: Mapping[str, Any],
    fixed: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> None:
    """Raises InvalidParameters for fields of a request that its client may not set.

    `asked` are those with a parameter of their own, `further` the others, `fixed` the operator's.
    """
    taken = set(fixed) | (LIMITS if LIMITS.intersection(fixed) else set())
    faults = {}
    for name in {**asked, **further}:
        if name in taken or name in OWN_FIELDS or name == "stream_options":
            faults[name] = "is set by this server; leave it out"
        elif name in further and name in parameters:
            faults[name] = "is a parameter of its own; give it beside `extra`"
    if faults:
        raise InvalidParameters(
            "; ".join(f"{name} {fault}" for name, fault in faults.items()),
            errors=[{"name": name, "detail": fault} for name, fault in faults.items()],
        )
