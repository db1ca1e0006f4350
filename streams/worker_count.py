"""The workers of a server: the processes that serve one app on one socket.

uvicorn and gunicorn know how many workers they have, and the first worker asks them. The workers of
other servers are not counted.
"""

from multiprocessing import current_process, parent_process
from typing import Any

from streams.shutdown import uvicorn_servers


def workers_of_first() -> int:
    """How many workers serve, if this is the first of them; else 0. So one of them can report it.

    A single process is 0, too. `uvicorn --reload` starts many processes, one after another.
    """
    for server in uvicorn_servers():
        config = server.config
        gunicorn: Any = getattr(config.callback_notify, "__self__", None)
        if hasattr(gunicorn, "cfg"):
            count, is_first = int(gunicorn.cfg.workers), gunicorn.age == 1
        else:
            # `config.workers` may come from WEB_CONCURRENCY, which no server has looked at.
            count, is_first = config.workers, current_process().name == "SpawnProcess-1"
            is_first = is_first and parent_process() is not None and not config.reload
        if count > 1 and is_first:
            return count
    return 0
