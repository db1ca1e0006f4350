"""OpenAI's API, over any source of text."""

from streams.wires.openai.routes import Completions

__all__ = ["Completions"]
