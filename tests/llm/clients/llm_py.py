"""Simon Willison's `llm`, with a model that its user has added in extra-openai-models.yaml."""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import llm

from tests.llm.clients import QUESTION, ClientError, Forecast, PythonClient, Said

FOLDER = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = FOLDER.name

MODEL = """
- model_id: {model}
  model_name: {model}
  api_base: {url}/v1
  responses: {responses}
  supports_tools: true
  supports_schema: true
  reasoning: true
"""


class Llm(PythonClient):
    package = "llm"

    def __init__(self, name: str, responses: bool) -> None:
        super().__init__(name)
        self._responses = responses

    def _add(self, url: str, model: str) -> None:
        text = MODEL.format(url=url, model=model, responses=str(self._responses).lower())
        (Path(FOLDER.name) / "extra-openai-models.yaml").write_text(text)

    def _model(self, url: str, model: str) -> Any:
        self._add(url, model)
        return llm.get_async_model(model)

    async def whole(self, url: str, model: str) -> Said:
        """Uses the command."""
        self._add(url, model)
        asked = ["-m", model, "--no-stream", "--usage", "--no-log", QUESTION]
        with anyio.fail_after(40):
            result = await anyio.run_process([sys.executable, "-m", "llm", *asked], check=False)
        said = result.stderr.decode()
        if result.returncode:
            raise ClientError(said)
        usage = [int(number) for number in re.findall(r"([\d,]+) (?:in|out)put", said)]
        return Said(text=result.stdout.decode().strip(), usage=usage)

    async def stream(self, url: str, model: str) -> Said:
        said, response = Said(), self._model(url, model).prompt(QUESTION)
        async for text in response:
            said.text += text
            said.pieces += 1
        usage = await response.usage()
        said.usage = [usage.input, usage.output]
        return said

    async def tools(self, url: str, model: str) -> Said:
        said = Said()
        tool = llm.Tool.function(said.weather, name="weather")
        said.text = await self._model(url, model).chain(QUESTION, tools=[tool]).text()
        return said

    async def schema(self, url: str, model: str) -> Said:
        response = self._model(url, model).prompt(QUESTION, schema=Forecast)
        return Said(value=Forecast.model_validate_json(await response.text()))


CLIENTS = [Llm("llm, chat completions", False), Llm("llm, responses", True)]
