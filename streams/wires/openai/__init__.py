"""OpenAI's API, over any source of text."""

from streams.wires.openai.common import refusal
from streams.wires.openai.routes import Endpoints

__all__ = ["Endpoints", "refusal"]
