"""A process that publishes to a topic until it is killed, and prints the ids that it got.

python -m tests.log.shared.publisher URL NAME
"""

import asyncio
import sys

from streams import Streams, topic


@topic(window=100 * 2**20)
def chatter(room: str) -> None:
    """What several processes publish to at once."""


async def main(url: str, name: str) -> None:
    async with Streams([chatter], log=url) as streams:
        number = 0
        while True:
            event = await streams.publish("chatter", {name: number}, room="test")
            number += 1
            sys.stdout.write(f"{event}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
