"""The built-in sources. Each file is an example to copy."""

from streams.sources.clock import clock
from streams.sources.counter import counter
from streams.sources.tokens import tokens

__all__ = ["clock", "counter", "tokens"]
