"""An app with the mock model, and what requests to it have in common."""

from typing import Any

from streams import Streams
from streams.sources import tokens

QUICK: dict[str, Any] = {"tokens_per_second": 10_000, "first_token": 0}
HELLO: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "Hello?"}]}
PATH = "/v1/chat/completions"


def mock(**options: Any) -> Streams:
    """An app whose only model, `mock`, is the source `tokens`."""
    return Streams(models={"mock": tokens}, **options)
