"""The built-in sources, each a file to copy from."""

from streams.sources.clock import clock
from streams.sources.counter import counter
from streams.sources.tokens import tokens

__all__ = ["clock", "counter", "tokens"]
