"""A real model, at any server that implements OpenAI's chat completions. Needs the extra `llm`.

Invariants:

1. If the model's server refuses a request, this source refuses it with the same status, before the
   stream starts.
2. If an answer is incomplete, the run fails, with the reason that the model's server gives.
3. The API key is in one request header, and never in a log or an error.
4. What the server and its operator set in a request, no client can change.
5. The events have the same form as those of the mock, tokens.py.
"""

try:
    import httpx  # noqa: F401
except ImportError as error:
    raise ImportError(
        "streams.sources.chat needs httpx: pip install 'streams[llm]'", name="streams[llm]"
    ) from error

from streams.sources.chat.source import chat_with

__all__ = ["chat_with"]
