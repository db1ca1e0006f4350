"""The npm clients: OpenAI's, and those of Vercel's AI SDK."""

import json
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from tests.llm.clients import ClientError, Said
from tests.support.browser import NODE

HERE = Path(__file__).parent.parent


def npm(package: str) -> str:
    """The installed version of a package."""
    file = HERE / "node_modules" / package / "package.json"
    return str(json.loads(file.read_text())["version"])


async def run(client: str, what: str, url: str, model: str) -> Said:
    command = [str(NODE), str(HERE / "clients.js"), client, what, url, model]
    with anyio.fail_after(40):
        result = await anyio.run_process(command, stderr=None)
    said = json.loads(result.stdout)
    if "raised" in said:
        raise ClientError(said["raised"])
    return Said(**said)


class Npm:
    def __init__(self, client: str, doing: list[str]) -> None:
        package, _, rest = client.partition(",")
        self.name = f"{package} (JavaScript),{rest}" if package == "openai" else client
        self.version = npm(package)
        self._doing: dict[str, Callable[[str, str], Awaitable[Said]]] = {
            what: partial(run, client, what) for what in doing
        }

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_doing"][name]
        except KeyError:
            raise AttributeError(name) from None


listed = subprocess.check_output(
    [str(NODE), str(HERE / "clients.js"), "", "list", "", ""], timeout=40
)
CLIENTS = [Npm(client, doing) for client, doing in json.loads(listed).items()]
