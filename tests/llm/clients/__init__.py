"""Clients that others wrote, and what each can do with a model.

A client has a name, a version, and a method for each thing that it can do:

- `whole`, `stream`: ask QUESTION, and get the answer whole or in pieces
- `tools`: run the tool `weather` as often as the model calls it
- `schema`, `schema_of_tool`, `schema_stream`: get a Forecast by a JSON Schema, as the arguments of
  a tool, or growing
- `reasoning`: get the model's reasoning, too
- `resume`: drop a stream, and read its rest
- `stop`: stop an answer

Each takes the server's URL and the model's name, returns what was `Said`, and raises what the
client raises.
"""

import json
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from typing import Any, Literal

from pydantic import BaseModel, Field

QUESTION = "Will it rain in Rome?"


class Forecast(BaseModel):
    """The forecast for a day."""

    city: str
    degrees: int = Field(ge=-50, le=60)
    sky: Literal["rain", "clouds", "sun"]


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
"""The parameters of the tool `weather`."""


def weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"{21 + days} degrees in {city}"


@dataclass
class Said:
    """What a client has read."""

    text: str = ""
    pieces: int = 0
    """Parts of the text, if it came in parts."""
    usage: list[int] = field(default_factory=list)
    """The tokens of the prompt and of the answer."""
    reasoning: str = ""
    called: list[dict[str, Any]] = field(default_factory=list)
    """The arguments of the tool `weather`, for each call."""
    value: Any = None
    """The object that the client made of the answer."""
    numbers: list[int] = field(default_factory=list)
    """The numbers of the events of a response, over two connections."""
    status: str = ""
    """What became of a response that was stopped."""

    def weather(self, city: str, days: int) -> str:
        """The weather of a city."""
        self.called.append({"city": city, "days": days})
        return weather(city, days)

    def answer_calls(self, response: Any) -> list[dict[str, str]]:
        """The items that answer the calls in a response of /v1/responses."""
        calls = [item for item in response.output if item.type == "function_call"]
        return [
            {
                "type": "function_call_output",
                "call_id": call.call_id,
                "output": self.weather(**json.loads(call.arguments)),
            }
            for call in calls
        ]


class ClientError(Exception):
    """What a client in another process has raised."""


class PythonClient:
    """A client of a Python package."""

    package = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = version_of(self.package)
