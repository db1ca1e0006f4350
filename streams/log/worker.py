"""WorkerName: the name of this process in its log."""

import os
import secrets


class WorkerName:
    """A random name, which tells strangers nothing. A fork of the process has another one."""

    def __init__(self) -> None:
        self._pid = -1
        self._name = ""

    def __str__(self) -> str:
        if self._pid != os.getpid():
            self._pid, self._name = os.getpid(), secrets.token_hex(8)
        return self._name
