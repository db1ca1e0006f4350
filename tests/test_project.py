"""The layout of the project, its public names, and that the README is true."""

import ast
import asyncio
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

import app
import streams
from tests.support.blocks import blocks, needs_a_host
from tests.support.servers import connection, serving

ROOT = Path(__file__).parent.parent

# The core, from top to bottom: a module imports only modules below it.
CORE = [
    "asgi",
    "health",
    "run_endpoints",
    "responder",
    "publish",
    "wire_host",
    "endpoint",
    "optional",
    "access",
    "credentials",
    "response",
    "request",
    "body",
    "lifetime",
    "worker_count",
    "runs",
    "run_info",
    "producing",
    "run",
    "bursts",
    "observer",
    "log.memory",
    "log.topics",
    "log.memory_run",
    "log.run_table",
    "log.backing",
    "log.opening",
    "log.worker",
    "log.buffer",
    "log",
    "topic",
    "source",
    "job",
    "guard",
    "policy",
    "arguments",
    "declaration",
    "thread",
    "wires",
    "shutdown",
    "site",
    "event",
    "encoding",
    "admission",
    "tracebacks",
    "errors",
    "histogram",
    "version",
]

# What `optional` imports when it is asked for; the rest of the core knows none of it.
OPTIONAL = {
    "streams.log.redis",
    "streams.log.shared",
    "streams.log.sqlite",
    "streams.metrics",
    "streams.openapi",
    "streams.page",
    "streams.tracing",
    "streams.wires.jsonlines",
    "streams.wires.openai",
    "streams.wires.ui_stream",
}

# The modules whose names are public: all that a source, a wire or a log needs.
PUBLIC = {"streams", "streams.errors", "streams.event", "streams.log", "streams.wires"}

PLUGINS: dict[str, set[str]] = {
    "sources": PUBLIC,
    "wires/jsonlines": PUBLIC,
    "wires/answer": PUBLIC,
    "wires/openai": PUBLIC | {"streams.response", "streams.wires.answer"},
    "wires/ui_stream": PUBLIC | {"streams.wires.answer"},
    "openapi": PUBLIC
    | {
        "streams.page.plain",
        "streams.request",
        "streams.source",
        "streams.version",
        "streams.wires.openai.chat",
        "streams.wires.openai.response_input",
        "streams.wires.openai.response_routes",
    },
    "page": PUBLIC,
    "client": set(),
    "metrics": PUBLIC | {"streams.histogram", "streams.observer"},
    "tracing": PUBLIC | {"streams.observer"},
    "pace": PUBLIC,
    "log/store": PUBLIC,
    "log/shared": PUBLIC
    | {
        "streams.log.backing",
        "streams.log.memory",
        "streams.log.memory_run",
        "streams.log.store",
    },
    "log/redis": PUBLIC | {"streams.log.store"},
    "log/sqlite": PUBLIC | {"streams.log.store"},
}


def path_of(module: str) -> Path:
    path = ROOT / "streams" / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """The modules of this package that a file imports."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] == "streams"}


@pytest.mark.parametrize("module", CORE)
def test_a_module_of_the_core_imports_only_modules_below_it(module: str) -> None:
    path = path_of(module)
    below = {f"streams.{name}" for name in CORE[CORE.index(module) + 1 :]}
    at_import, ever = imports(path, inside_functions=False), imports(path)
    assert at_import <= below
    assert ever - at_import == (OPTIONAL if module == "optional" else set())


def files_of(part: str) -> list[Path]:
    path = ROOT / "streams" / part
    return list(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("part", PLUGINS)
def test_an_optional_part_imports_only_public_names_and_its_own(part: str) -> None:
    own = f"streams.{part.replace('/', '.')}"
    for path in files_of(part):
        foreign = {name for name in imports(path) if name != own and not name.startswith(f"{own}.")}
        assert foreign <= PLUGINS[part], path


def test_every_module_is_part_of_the_core_or_optional() -> None:
    core = {path_of(module) for module in CORE}
    optional = {path for part in PLUGINS for path in files_of(part)}
    rest = {path.name for path in set((ROOT / "streams").rglob("*.py")) - core - optional}
    assert rest == {"__init__.py", "__main__.py", "settings.py"}


def test_the_settings_import_only_public_names() -> None:
    assert imports(ROOT / "streams/settings.py") <= PUBLIC
    assert imports(ROOT / "app.py") == {"streams.settings"}
    assert imports(ROOT / "streams/__main__.py") == {"streams", "streams.settings"}


def listed_names() -> dict[str, set[str] | None]:
    """The names in the table of CONTRIBUTING.md, by module; None: all names of the module."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(streams[\w.]*)` \| (.*) \|$", text, re.MULTILINE)
    return {
        module: None if names == "all of them" else set(re.findall(r"`(\w+)`", names))
        for module, names in rows
    }


@pytest.mark.parametrize("module", sorted(PUBLIC | {"streams.log.store", "streams.response"}))
def test_contributing_lists_the_names_that_plugins_import(module: str) -> None:
    listed = listed_names()[module]
    if listed is None:
        return
    assert all(hasattr(import_module(module), name) for name in listed)
    for path in (path for part in PLUGINS for path in files_of(part)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == module:
                assert {alias.name for alias in node.names} <= listed, path


def test_the_log_of_the_tests_imports_only_public_names() -> None:
    assert imports(ROOT / "tests/support/list_log.py") <= PUBLIC


def test_the_package_needs_four_others() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[>\[]", dependency)[0] for dependency in project["dependencies"]}
    assert names == {"anyio", "msgspec", "sse-starlette", "starlette"}


STREAMS_WITHOUT_EXTRAS = """
import asyncio, sys

for name in ("uvicorn", "uvloop", "httptools", "httpx", "httpx_sse", "redis", "fastapi",
             "pydantic", "opentelemetry"):
    sys.modules[name] = None  # Importing it raises ImportError.

from streams import Streams
from streams.sources import counter

async def main():
    body = b""

    async def receive():
        await asyncio.sleep(3600)

    async def send(message):
        nonlocal body
        body += message.get("body", b"")

    path = "/streams/counter"
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
             "query_string": b"count=2&interval=0", "headers": []}
    await Streams([counter])(scope, receive, send)
    print(body.decode())

asyncio.run(asyncio.wait_for(main(), 20))
"""


def test_the_package_streams_without_a_server_and_without_extras() -> None:
    command = [sys.executable, "-c", STREAMS_WITHOUT_EXTRAS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert 'data: {"number":1}' in ran.stdout, ran.stderr
    assert 'data: {"status":"completed"}' in ran.stdout


def test_the_version_is_the_installed_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", streams.__version__)
    assert version("streams") == streams.__version__


def test_no_file_is_longer_than_400_lines() -> None:
    for path in [ROOT / "app.py", *(ROOT / "streams").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_every_file_has_a_docstring() -> None:
    for path in [
        ROOT / "app.py",
        *(ROOT / "streams").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]:
        text = path.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), path


def test_the_public_names() -> None:
    assert streams.__all__ == sorted(streams.__all__)
    assert set(streams.__all__) == {
        "Event",
        "EventLog",
        "MemoryLog",
        "Policy",
        "Source",
        "StreamError",
        "Streams",
        "Topic",
        "Wire",
        "client_address",
        "current_run",
        "join_text",
        "joined",
        "source",
        "topic",
    }
    assert all(getattr(streams, name).__doc__ for name in streams.__all__)


def test_make_alone_prints_its_targets() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test", "check"} <= set(targets)
    assert all(f"make {target} " in printed for target in targets)


PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]

# Their blocks are files that belong together, which these tests write and run.
TESTED_AS_FILES = {"docs/jobs.md": "test_jobs.py", "docs/use-chat.md": "test_use_chat.py"}

BLOCKS = {
    f"{page}, block {number}": block
    for page in PAGES
    if page not in TESTED_AS_FILES
    for number, block in enumerate(blocks(page))
    if not needs_a_host(block)
}


@pytest.mark.parametrize("name", BLOCKS)
async def test_every_python_block_of_the_documentation_runs(
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs each block. One that makes an app has a curl command in a comment, which is tried; -b is
    a cookie. One with a main() is a client of what `make run` serves, and has its output in
    comments. The tests in a block are run."""
    monkeypatch.chdir(tmp_path)  # Some blocks make files.
    block = BLOCKS[name]
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(block, name, "exec"), namespace)
    tries = re.findall(r"^# curl -N 127\.0\.0\.1:8000(\S*)(?: -b (\S+))?", block, re.MULTILINE)
    tests = [value for key, value in namespace.items() if key.startswith("test_")]
    assert tests or bool(tries) == ("app" in namespace)
    for path, cookie in tries:
        headers = f"Cookie: {cookie}\r\n" if cookie else ""
        async with (
            serving(namespace["app"]) as url,
            connection(url, path, headers=headers) as stream,
        ):
            await stream.until(
                lambda stream: stream.body.count(b"\ndata: ") >= 2, "two events have come"
            )
            assert stream.head.startswith("http/1.1 200")
    for test in tests:
        await (test() if iscoroutinefunction(test) else asyncio.to_thread(test))
    if main := namespace.get("main"):
        async with serving(app.app) as url:
            namespace["URL"] = url
            await asyncio.wait_for(main(), 20)
        printed = capsys.readouterr().out.splitlines()
        assert printed == re.findall(r"^# prints: (.*)$", block, re.MULTILINE)


def test_the_readme_is_for_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if ":" in link:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_links_to_every_page() -> None:
    links = re.findall(r"\]\((docs/[\w-]+\.md)", (ROOT / "README.md").read_text())
    assert set(links) == set(PAGES) - {"README.md"}
