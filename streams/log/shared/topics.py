"""SharedTopics: the topics of a SharedLog."""

from streams.errors import StreamError
from streams.event import End, EventId, Payload
from streams.log import Limits, RunInfo, RunLog

RENEWALS_PER_REFRESH = 10


class SharedTopics:
    """The part of a SharedLog that has to do with topics."""

    async def topic(self, info: RunInfo, limits: Limits) -> RunLog:
        raise StreamError("topics need the log in memory so far", status=501)

    async def publish(self, info: RunInfo, limits: Limits, event: Payload) -> EventId:
        raise StreamError("topics need the log in memory so far", status=501)

    async def end_topic(self, info: RunInfo, limits: Limits, end: End) -> None:
        raise StreamError("topics need the log in memory so far", status=501)
