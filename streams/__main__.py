"""The command `streams`. `streams publish` publishes one event to a topic.

The settings are those of the server (see settings.py). Whatever is wrong ends the command with
status 2 and a line that says what to do.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
from starlette.datastructures import QueryParams

from streams import StreamError, Streams, Topic
from streams.settings import InvalidSetting, publisher


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Raises SystemExit with status 2 if it fails."""
    parser = _Parser("streams", description="Publish to the topics of a server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    publish.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="its parameters")
    given = parser.parse_args(arguments)
    sys.path.insert(0, os.getcwd())  # As for `python -m`.
    logging.getLogger("streams").addHandler(logging.NullHandler())  # One line is enough.
    try:
        streams, topic = publisher(os.environ, given.topic, given.log)
        data, values = _data(given.data), _parameters(topic, given.parameters)
        published = asyncio.run(_publish(streams, topic, data, values))
    except (InvalidSetting, StreamError, RuntimeError) as error:
        publish.exit(2, f"{publish.prog}: {error}\n")
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


async def _publish(
    streams: Streams, topic: Topic[..., Any], data: Any, parameters: dict[str, Any]
) -> str:
    async with streams:
        return await streams.publish(topic.name, data, **parameters)


if __name__ == "__main__":
    main()
