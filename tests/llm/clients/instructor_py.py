"""instructor, in an environment of its own: it needs older packages than other clients do."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio

from tests.llm.clients import ClientError, Forecast, Said

HERE = Path(__file__).parent.parent
PYTHON = Path(sys.prefix) / "instructor/bin/python"
VERSION = "from importlib.metadata import version; print(version('instructor'))"


async def run(mode: str, what: str, url: str, model: str) -> Said:
    command = [str(PYTHON), str(HERE / "use_instructor.py"), mode, what, url, model]
    with anyio.fail_after(40):
        result = await anyio.run_process(command, stderr=None)
    said = json.loads(result.stdout)
    if "raised" in said:
        raise ClientError(said["raised"])
    value = Forecast.model_validate(said["value"])
    return Said(value=value, pieces=said.get("pieces", 0))


class Instructor:
    def __init__(self, name: str, mode: str) -> None:
        self.name = name
        self.version = subprocess.check_output([PYTHON, "-c", VERSION], text=True).strip()
        setattr(
            self,
            "schema" if mode == "JSON_SCHEMA" else "schema_of_tool",
            partial(run, mode, "create"),
        )
        self.schema_stream = partial(run, mode, "partial")


CLIENTS = [
    Instructor("instructor, `JSON_SCHEMA`", "JSON_SCHEMA"),
    Instructor("instructor, `TOOLS`", "TOOLS"),
    Instructor("instructor, `RESPONSES_TOOLS`", "RESPONSES_TOOLS"),
]
