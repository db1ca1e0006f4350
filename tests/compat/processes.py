"""Runs other programs for a test and kills them afterwards, with their child processes."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import anyio

from tests.support.servers import ROOT, exit_of

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


class Process:
    """A program in its own process group; `log` has its output."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def log(self) -> str:
        return self._output.read_text(errors="replace")

    def terminate(self) -> None:
        """Sends SIGTERM to the first process, as a supervisor does."""
        self.process.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Sends SIGINT to the whole group, as a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    async def exits(self, seconds: float) -> None:
        """Waits for the first process to end. Raises TimeoutError after `seconds`."""
        await exit_of(self.process, seconds)


@asynccontextmanager
async def running(
    *command: str | Path, ready: Callable[[], bool], **environ: str
) -> AsyncIterator[Process]:
    """Runs a program in the block, which begins when `ready()` is true.

    Raises AssertionError with its output if it ends before, or is not ready within 30 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        started = start(command, output, environ)
        process = Process(started, output)
        try:
            with anyio.move_on_after(30):
                while started.poll() is None and not ready():
                    await asyncio.sleep(0.02)
            assert started.poll() is None, process.log
            assert ready(), process.log
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait(10)


def start(
    command: Iterable[str | Path], output: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def listening(port: int) -> Callable[[], bool]:
    """Returns a function for `ready` that says whether a server listens on the port.

    It asks the kernel, because a connection of its own could disturb the server.
    """
    end = f":{port:04X}"

    def ready() -> bool:
        lines = [
            line.split()
            for table in ("tcp", "tcp6")
            for line in Path("/proc/net", table).read_text().splitlines()[1:]
        ]
        return any(address.endswith(end) and state == "0A" for _, address, _, state, *_ in lines)

    return ready


def program(name: str) -> str:
    """The path of a program. Raises AssertionError if it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    assert path, f"{name} is not installed; run `make programs`"
    return path


def versions(*packages: str) -> str:
    """The versions of Python packages, as the tables show them."""
    return ", ".join(version(package) for package in packages)


def first_number(command: str, *arguments: str) -> str:
    """The first version number that a program prints."""
    ran = subprocess.run(
        [program(command), *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    found = re.search(r"\d+(\.\d+)+\w*", ran.stdout + ran.stderr)
    assert found, f"{command} prints no version: {ran.stdout}{ran.stderr}"
    return found[0]
