"""Asks a model with instructor, in an environment of its own, and prints what it read, as JSON.

python use_instructor.py MODE DOING URL MODEL

This file imports nothing of this project, which that environment does not have.
"""

import json
import sys
from typing import Any, Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field


class Forecast(BaseModel):
    """The forecast for a day."""

    city: str
    degrees: int = Field(ge=-50, le=60)
    sky: Literal["rain", "clouds", "sun"]


def ask(mode: str, what: str, url: str, model: str) -> dict[str, Any]:
    raw = OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20)
    client = instructor.from_openai(raw, mode=instructor.Mode[mode])
    asked: Any = {
        "model": model,
        "messages": [{"role": "user", "content": "Will it rain in Rome?"}],
        "response_model": Forecast,
        "max_retries": 1,
    }
    if what == "partial":
        values = [value.model_dump() for value in client.create_partial(**asked)]
        return {"value": values[-1], "pieces": len(values)}
    return {"value": client.create(**asked).model_dump()}


if __name__ == "__main__":
    try:
        said = ask(*sys.argv[1:])
    except Exception as error:
        said = {"raised": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(said))
