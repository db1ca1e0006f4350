"""A real model, at any server that implements OpenAI's chat completions. Needs the extra `llm`.

Invariants:

1. If the model's server refuses a request, this source refuses it with the same status, before the
   stream starts.
2. If the model's server breaks off an answer, the run fails.
3. The API key is in one request header, and never in a log or an event.
4. The events have the same form as those of the mock, tokens.py.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import msgspec
from httpx_sse import EventSource, SSEError
from msgspec import Meta

from streams import Source, StreamError, join_text, joined, source

Text = Annotated[str, Meta(max_length=10**6)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
AtLeastOne = Annotated[int, Meta(ge=1, le=10**6)]


def chat_with(
    base_url: str, model: str, *, api_key: str = "", timeout: float = 60
) -> Source[..., Any]:
    """A source named `chat` that streams the answers of `model` at `base_url` (".../v1").

    A run fails if the server sends nothing for `timeout` seconds. All runs share one connection
    pool, which closes with the app. Raises ValueError for an invalid URL or key.
    """
    upstream = _Upstream(base_url, api_key, timeout)

    @source(aclose=upstream.aclose)
    async def chat(
        prompt: Annotated[Text, Meta(description="What to ask the model")] = "",
        messages: Annotated[
            list[dict[str, Any]] | None, Meta(description="A conversation, instead of a prompt")
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
    ) -> AsyncIterator[dict[str, Any]]:
        """A real model that answers a prompt token by token."""
        if not messages and not prompt:
            raise StreamError("prompt and messages are empty: give one of them", status=422)
        body = {
            "model": model,
            "messages": messages or [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        response = await upstream.ask({k: v for k, v in body.items() if v is not None})
        events = upstream.answer(response)
        return joined(events, every, merge=join_text) if every else events

    return chat


class _Upstream:
    """The model's server and the connections to it."""

    def __init__(self, base_url: str, api_key: str, timeout: float) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{base_url!r} is not the URL of a server; example: https://host/v1")
        if url.userinfo:
            raise ValueError("the URL contains a password, and URLs are logged: pass an API key")
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that are not printable ASCII")
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")
        self._key = api_key
        self._silence = f"the model's server sent nothing for {timeout:g} s"
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 10))
        self._client: httpx.AsyncClient | None = None

    async def ask(self, body: dict[str, Any]) -> httpx.Response:
        """Sends a request; returns the response before its body has arrived.

        Raises StreamError if the server refuses, does not answer or does not stream.
        """
        if self._client is None:
            limits = httpx.Limits(max_connections=None)
            self._client = httpx.AsyncClient(timeout=self._timeout, limits=limits)
        headers = {"Accept": "text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = self._client.build_request("POST", self._url, json=body, headers=headers)
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    await response.aread()
                    raise self._refusal(response)
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    raise StreamError("the model's server did not send an event stream", status=502)
            except BaseException:
                await response.aclose()
                raise
        except httpx.TimeoutException:
            raise StreamError("the model's server did not answer in time", status=504) from None
        except httpx.TransportError as error:
            detail = f"the model's server cannot be reached: {type(error).__name__}"
            raise StreamError(detail, status=502) from None
        return response

    def _refusal(self, response: httpx.Response) -> StreamError:
        status = response.status_code
        wait = response.headers.get("retry-after", "")
        detail = f"the model's server refuses with status {status}"
        if status not in (401, 403) and (message := _message(response.content)):
            detail += f": {self._without_key(message)}"
        return StreamError(
            detail,
            status=status if 400 <= status <= 599 else 502,
            retry_after=int(wait) if wait.isdecimal() else None,
        )

    def _without_key(self, text: str) -> str:
        return (text.replace(self._key, "…") if self._key else text)[:500]

    async def answer(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        """The pieces of the answer, then how it ended. Raises StreamError if it is incomplete."""
        reason, count = None, 0
        usage: dict[str, Any] = {}
        try:
            async for event in EventSource(response).aiter_sse():
                if event.data == "[DONE]":
                    continue  # The connection can be used again only once the body has been read.
                chunk = msgspec.json.decode(event.data, type=dict[str, Any])
                if chunk.get("error"):
                    message = self._without_key(_message(event.data.encode()))
                    raise StreamError(f"the model's server failed: {message}")
                usage = chunk.get("usage") or usage
                for choice in (chunk.get("choices") or ())[:1]:
                    reason = choice.get("finish_reason") or reason
                    if content := choice["delta"].get("content"):
                        count += 1
                        yield {"message": {"role": "assistant", "content": content}, "done": False}
        except httpx.TimeoutException:
            raise StreamError(self._silence) from None
        except (httpx.TransportError, SSEError) as error:
            detail = f"the connection to the model's server broke: {type(error).__name__}"
            raise StreamError(detail) from None
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise StreamError("the model's server sent an invalid chunk") from error
        finally:
            await response.aclose()
        if reason is None:
            raise StreamError("the model's server ended its answer without a finish_reason")
        yield {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": reason,
            "prompt_eval_count": usage.get("prompt_tokens"),
            "eval_count": usage.get("completion_tokens", count),
        }

    async def aclose(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


def _message(body: bytes) -> str:
    """The message in an error object, in any of the forms that servers send."""
    try:
        decoded = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    error = decoded.get("error") or decoded
    text = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return text if isinstance(text, str) else ""
