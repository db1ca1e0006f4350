"""The command `streams`: `streams run` serves sources, `streams publish` publishes to a topic.

The settings are those of the environment (see settings.py); an option replaces one. Whatever is
wrong ends the command with status 2 and a line that says what to do.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import QueryParams

from streams import StreamError, Streams, Topic, __version__, settings
from streams.settings import InvalidSetting

SHUTDOWN_SECONDS = 5
"""How long an open response may take to end when the server shuts down."""

MAX_CONNECTIONS = 10_000
SPARE_FILES = 100
"""Files that a worker needs besides its connections: the log, libraries, the event loop."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Raises SystemExit with status 2 if it fails."""
    parser = _Parser(
        "streams", description="Serve async generators as HTTP streams, and publish to topics."
    )
    parser.add_argument("--version", action="version", version=f"streams {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_publish(commands)
    given = parser.parse_args(arguments)
    sys.path.insert(0, os.getcwd())  # As for `python -m`.
    try:
        given.command(given)
    except (InvalidSetting, StreamError, RuntimeError) as error:
        given.parser.exit(2, f"{given.parser.prog}: {_as_typed(str(error), given)}\n")


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="serve sources",
        description="Serves sources at /streams/NAME, and the playground at /.",
        epilog="streams run mine:countdown other:feed --port 9000 --workers 4 --log memory",
    )
    run.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a source or a topic, as package.module:name (default: STREAMS_SOURCES, or else the "
        "built-in ones)",
    )
    run.add_argument("--host", default="127.0.0.1", help="the address (default: %(default)s)")
    run.add_argument("--port", type=_port, default=8000, help="the port (default: %(default)s)")
    run.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="processes (default: %(default)s)"
    )
    run.add_argument(
        "--log",
        metavar="URL",
        help="where runs are kept: memory, sqlite:runs.db or redis://… (default: STREAMS_LOG, or "
        "else the file streams.db in this folder)",
    )
    run.add_argument("--reload", action="store_true", help="restart when a Python file changes")
    run.set_defaults(command=_run, parser=run)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number below 65536")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes: give 1 or more")
    return int(text)


def _run(given: argparse.Namespace) -> None:
    try:
        import uvicorn
    except ImportError:
        raise InvalidSetting("this needs uvicorn: pip install 'streams[server]'") from None
    if given.sources:
        os.environ["STREAMS_SOURCES"] = ",".join(given.sources)
    if given.log is not None:
        os.environ["STREAMS_LOG"] = given.log
    _check_address(given.host, given.port)
    # Each process makes its own Streams then. Making one here as well reports an invalid setting
    # once; a server would start a worker that fails again and again.
    several = given.workers > 1 or given.reload
    logging.disable(logging.CRITICAL if several else logging.NOTSET)
    streams = settings.configured(os.environ)
    logging.disable(logging.NOTSET)
    sys.stderr.write(_welcome(streams, given.host, given.port) + warning(os.environ, given.host))
    uvicorn.run(
        "streams.settings:app" if several else streams,
        factory=several,
        host=given.host,
        port=given.port,
        workers=given.workers,
        reload=given.reload,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        limit_concurrency=max_connections(),
    )


def _as_typed(message: str, given: argparse.Namespace) -> str:
    """An error's message without the name of a variable whose value was an argument."""
    if given.command is _run and given.sources:
        message = message.removeprefix("STREAMS_SOURCES: ")
    if given.log is not None and message.startswith("STREAMS_LOG: "):
        message = f"--log: {message.removeprefix('STREAMS_LOG: ')}"
    return message


def _check_address(host: str, port: int) -> None:
    """Raises InvalidSetting if no server can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InvalidSetting(
            f"cannot listen on {host} port {port}: {error.strerror}; give another --port or --host"
        ) from None


def max_connections() -> int:
    """How many connections a worker accepts; more get a 503 from uvicorn.

    A process without files left accepts nobody, and answers nobody.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return MAX_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(MAX_CONNECTIONS, files - SPARE_FILES), 1)


def _welcome(streams: Streams, host: str, port: int) -> str:
    """Where to open it, what it serves, and where its runs are."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{shown}:{port}" if port else "the address below"
    lines = [f"streams {__version__}: open {url}", f"  sources: {', '.join(streams.sources)}"]
    if streams.models:
        lines.append(f"  models:  {', '.join(streams.models)}, at {url}/v1")
    lines.append(f"  log:     {place(streams.log.shared)}")
    return "".join(f"{line}\n" for line in lines)


def warning(environ: Mapping[str, str], host: str) -> str:
    """A line if strangers can ask a model that somebody pays for, else nothing."""
    pays = environ.get("LLM_API_KEY") and environ.get("LLM_MODEL")
    is_private = host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
    if not pays or environ.get("STREAMS_API_KEYS") or is_private:
        return ""
    return (
        f"  warning: everybody who reaches {host} can ask {environ['LLM_MODEL']}, and LLM_API_KEY "
        "pays; set STREAMS_API_KEYS to keys of your clients, or --host 127.0.0.1\n"
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def place(is_shared: bool) -> str:
    """The URL of the log, without a password."""
    if not is_shared:
        return "in memory; runs end with this process"
    url = os.environ.get("STREAMS_LOG") or "sqlite:streams.db"
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _add_publish(commands: Any) -> None:
    publish = commands.add_parser(
        "publish",
        help="publish an event to a topic, and print the event's id",
        description="Publishes an event to a topic, and prints the event's id when the log has it.",
        epilog="""streams publish --log sqlite:/srv/runs.db app.live:notifications
        '{"text":"Done"}' user=ann""",
    )
    publish.add_argument(
        "--log", metavar="URL", help="the log of the server (default: STREAMS_LOG, as `make run`)"
    )
    publish.add_argument(
        "topic",
        metavar="TOPIC",
        help="where the topic is declared, as package.module:name; or the name of one of "
        "STREAMS_SOURCES",
    )
    publish.add_argument("data", metavar="DATA", help="the event's data, as JSON")
    publish.add_argument(
        "parameters", nargs="*", default=[], metavar="NAME=VALUE", help="its parameters"
    )
    publish.set_defaults(command=_publish, parser=publish)


def _publish(given: argparse.Namespace) -> None:
    logging.getLogger("streams").addHandler(logging.NullHandler())  # One line is enough.
    streams, topic = settings.publisher(os.environ, given.topic, given.log)
    data, values = _data(given.data), _parameters(topic, given.parameters)
    published = asyncio.run(_published(streams, topic, data, values))
    sys.stdout.write(f"{published}\n")


def _data(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidSetting(
            f"""DATA is not JSON: {error}; write for example '{{"text":"Done"}}'"""
        ) from None


def _parameters(topic: Topic[..., Any], given: Sequence[str]) -> dict[str, Any]:
    pairs = [parameter.partition("=") for parameter in given]
    for name, equals, _ in pairs:
        if not equals:
            raise InvalidSetting(f"{name!r} is not a parameter: write NAME=VALUE")
    return topic.from_query(QueryParams([(name, value) for name, _, value in pairs]))


async def _published(
    streams: Streams, topic: Topic[..., Any], data: Any, parameters: dict[str, Any]
) -> str:
    async with streams:
        return await streams.publish(topic.name, data, **parameters)


if __name__ == "__main__":
    main()
