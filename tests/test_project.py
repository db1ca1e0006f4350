"""What the project promises about itself: its layout, its names, and that its README is true."""

import ast
import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import app
import streams
from tests.support.servers import connection, serving

ROOT = Path(__file__).parent.parent

# Imports run one way: a file imports what stands to its right.
ORDER = [
    "asgi",
    "wires.openai.routes",
    "response",
    "request",
    "run",
    "log.redis",
    "log.redis.run",
    "log.redis.connection",
    "log.redis.scripts",
    "wires.openai.chat",
    "log.memory",
    "log.memory_run",
    "log",
    "source",
    "shutdown",
    "event",
    "errors",
]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    path = ROOT / "streams" / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    ours = {name for name in imported(path) if name.startswith("streams")}
    assert ours <= {f"streams.{name}" for name in ORDER[ORDER.index(module) + 1 :]}


def test_a_source_imports_only_what_a_plugins_author_has_too() -> None:
    for path in [*(ROOT / "streams/sources").glob("*.py"), ROOT / "app.py"]:
        ours = {name for name in imported(path) if name.startswith("streams")}
        assert ours <= {"streams", "streams.sources.cut"} or path.name == "__init__.py"


def test_no_file_is_longer_than_400_lines() -> None:
    for path in [ROOT / "app.py", *(ROOT / "streams").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_every_file_says_what_lives_in_it() -> None:
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
        "source",
    }
    assert all(getattr(streams, name).__doc__ for name in streams.__all__)


def test_make_alone_prints_its_targets() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test", "check"} <= set(targets)
    assert all(f"make {target} " in printed for target in targets)


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_every_python_block_of_the_readme_runs(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block that makes an app has a comment with the curl command to try it, which is tried; a
    block with a main() is a client of what `make run` serves, and has its output in comments."""
    block = BLOCKS[number]
    namespace: dict[str, Any] = {"__name__": f"readme_{number}"}
    exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    tries = re.findall(r"^# curl -N 127\.0\.0\.1:8000(\S*)", block, re.MULTILINE)
    assert bool(tries) == ("app" in namespace)
    for path in tries:
        async with serving(namespace["app"]) as url, connection(url, path) as stream:
            await stream.until(lambda stream: stream.body.count(b"\ndata: ") >= 2)
            assert stream.head.startswith("http/1.1 200")
    if main := namespace.get("main"):
        async with serving(app.app) as url:
            namespace["URL"] = url
            await asyncio.wait_for(main(), 20)
        printed = capsys.readouterr().out.splitlines()
        assert printed == re.findall(r"^# prints: (.*)$", block, re.MULTILINE)
