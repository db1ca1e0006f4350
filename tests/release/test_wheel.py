"""The built wheel in an empty environment, outside the checkout: the README from its first line on.

`make dist` builds the wheel and runs this. pip needs its registry.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from streams import __version__
from tests.support.blocks import blocks
from tests.support.servers import ROOT, free_port, process_group, served

DIST = ROOT / "dist"
WHEEL = DIST / f"streams-{__version__}-py3-none-any.whl"
SDIST = DIST / f"streams-{__version__}.tar.gz"

pytestmark = pytest.mark.timeout(1200)


class Environment:
    """An empty virtual environment in a folder of its own, with only its programs in front."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True, timeout=600)
        self.variables: dict[str, str | None] = {
            **{name: None for name in os.environ if name.startswith(("STREAMS_", "LLM_"))},
            "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": None,
            "VIRTUAL_ENV": None,
        }

    def run(self, command: str) -> tuple[int, str, str]:
        """Runs a line of a shell: its exit code, and what it printed on stdout and stderr."""
        variables = {**os.environ, **self.variables}
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=600,
        )
        return ran.returncode, ran.stdout, ran.stderr

    def prints(self, command: str) -> str:
        """What a command prints, which must succeed."""
        status, printed, errors = self.run(command)
        assert status == 0, f"{command}: {printed}{errors}"
        return printed


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Where the first line of the README has been run, for the wheel instead of a clone."""
    environment = Environment(tmp_path_factory.mktemp("readme"))
    environment.prints(blocks("README.md", "sh")[0].replace("path/to/streams", str(WHEEL)))
    (environment.folder / "mine.py").write_text(blocks("README.md")[0])
    return environment


async def test_the_first_lines_of_the_readme_stream(readme: Environment) -> None:
    run, curl = blocks("README.md", "sh")[1].splitlines()
    port, log = free_port(), readme.folder / "log"
    command = ["bash", "-c", f"exec {run} --port {port}"]
    with process_group(command, log, readme.folder, **readme.variables) as process:
        await served(process, log, port, seconds=120)
        printed = readme.prints(curl.replace("8000", str(port)))
    data = re.findall(r"^data: (.*)$", printed, re.MULTILINE)
    assert data[1:] == ['{"left":3}', '{"left":2}', '{"left":1}', '{"status":"completed"}']
    assert (readme.folder / "streams.db").exists()


async def test_the_built_in_sources_and_the_page_are_served(readme: Environment) -> None:
    port, log = free_port(), readme.folder / "log-of-all"
    command = ["bash", "-c", f"exec streams run --port {port} --workers 2"]
    with process_group(command, log, readme.folder, **readme.variables) as process:
        await served(process, log, port, 2, 120)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            page = await client.get("/")
            assert "<title>" in page.text
            for file in (
                *re.findall(r'(?:src|href)="(page/[^"]+)"', page.text),
                "page/event-stream.js",
                "page/event-stream.d.ts",
            ):
                assert (await client.get(f"/{file}")).status_code == 200, file
            answer = (await client.get("/streams/tokens?prompt=Hi&tokens_per_second=10000")).text
            assert 'data: {"status":"completed"}' in answer


def test_it_is_the_wheel_that_is_used(readme: Environment) -> None:
    place = readme.prints("python -c 'import streams; print(streams.__file__)'")
    assert place.startswith(f"{readme.folder}/.venv/")
    readme.prints("pip check")


@pytest.mark.parametrize("command", ["streams", "python -m streams"])
def test_the_command_says_its_version_and_how_it_is_used(readme: Environment, command: str) -> None:
    assert readme.prints(f"{command} --version") == f"streams {__version__}\n"
    assert "usage: streams" in readme.prints(f"{command} --help")


NEEDS = {
    "server": "streams run --port 0",
    "llm": "LLM_BASE_URL=http://127.0.0.1:1/v1 LLM_MODEL=m streams run --port 0",
    "redis": "streams run --port 0 --log redis://127.0.0.1:1",
    "client": "streams run --port 0 relay:relay",
}

USES = {
    "server": "import uvicorn, uvloop, httptools",
    "llm": "import streams.sources.chat",
    "redis": "import streams.log.redis",
    "client": "import relay",
}

RELAY = """
from streams import source
from streams.client import stream

@source
async def relay():
    async for event in stream("http://127.0.0.1:1/streams/counter"):
        yield event.data
"""


def test_each_missing_extra_says_the_line_to_type_and_the_line_works(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    (tmp_path / "relay.py").write_text(RELAY)
    environment.prints(f"pip install '{WHEEL}'")
    for extra, command in NEEDS.items():
        status, printed, errors = environment.run(command)
        line = re.fullmatch(rf"streams run: .*: (pip install 'streams\[{extra}\]')\n", errors)
        assert line, errors
        assert (status, printed) == (2, "")
        environment.prints(f"{line[1]} && python -c {USES[extra]!r}")
    environment.prints("pip check")


def test_the_sdist_becomes_the_same_wheel(readme: Environment) -> None:
    readme.prints(f"pip wheel --no-deps '{SDIST}'")
    with ZipFile(readme.folder / WHEEL.name) as made, ZipFile(WHEEL) as built:
        assert {each.filename: each.CRC for each in made.infolist()} == {
            each.filename: each.CRC for each in built.infolist()
        }


def test_the_page_on_deployment_leads_from_a_clone_to_a_wheel(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.prints(blocks("docs/deploy.md", "sh")[0].replace("path/to/streams", str(ROOT)))
    assert environment.prints("streams --version") == f"streams {__version__}\n"
