"""Publishing to topics: from a task, from a thread, and over HTTP."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from streams.access import Access
from streams.arguments import decode_value
from streams.body import Bodies
from streams.errors import (
    BodyTooLarge,
    InvalidBody,
    LogClosed,
    TopicEnded,
    UnencodableValue,
    UnknownSource,
    abbreviated,
)
from streams.event import COMPLETED
from streams.job import Job
from streams.lifetime import Lifetime
from streams.log import EventLog
from streams.observer import Observer
from streams.policy import Policy
from streams.request import read_json
from streams.response import json_response
from streams.run_info import info_of, limits_of
from streams.runs import Runs
from streams.source import Source
from streams.topic import Topic


class Publisher:
    """The part of Streams that publishes."""

    sources: dict[str, Source[..., Any]]
    runs: Runs
    log: EventLog
    _policies: dict[Source[..., Any], Policy]
    _lifetime: Lifetime
    _access: Access
    bodies: Bodies

    async def publish(self, topic: str, data: Any, /, **parameters: Any) -> str:
        """Publishes an event to a topic. Returns the event's id once the log has it.

        `data` is anything that a source may yield, an Event included. The keywords are the
        topic's parameters. Raises UnknownSource, InvalidParameters, UnencodableValue, BodyTooLarge
        for more than `max_body` bytes, TopicEnded, Unavailable, and RuntimeError if the log is in
        the memory of a process that serves nobody.
        """
        return await self._publish(await self._topic_job(topic, parameters), data)

    async def _publish(self, job: Job, data: Any) -> str:
        await self._lifetime.publish()
        event = self.runs.encoder.first_payload(data, job.source)
        limit = self.bodies.max_body
        if (size := len(event[1])) > limit:
            raise BodyTooLarge(
                f"the event has {size} bytes, and max_body of Streams is {limit}; publish less, "
                "such as the URL of it"
            )
        await asyncio.sleep(0)  # A task that publishes all the time lets others have their turns.
        try:
            published = await self.log.publish(info_of(job, self.log), limits_of(job.policy), event)
        except LogClosed:
            raise TopicEnded(
                f"this topic {job.source!r} has ended; it can be published to again when it is "
                f"forgotten, {job.policy.retain:g} s after its end"
            ) from None
        self.runs.observers.tell(Observer.published, job.source)
        return str(published)

    def publish_from_thread(self, topic: str, data: Any, /, **parameters: Any) -> str:
        """Does what `publish` does, in a thread without an event loop, and waits for it.

        The event loop in which this Streams is used runs in another thread, such as the one that
        has called `asyncio.to_thread`. Raises RuntimeError if there is none.
        """
        return self._lifetime.run_from_thread(lambda: self.publish(topic, data, **parameters))

    async def end(self, topic: str, /, **parameters: Any) -> None:
        """Ends a topic as `completed`. Does nothing if it has ended.

        A viewer that joins within `retain` seconds gets the newest events and the end. Raises what
        `publish` raises.
        """
        job = await self._topic_job(topic, parameters)
        await self._lifetime.publish()
        await self.log.end_topic(info_of(job, self.log), limits_of(job.policy), COMPLETED)

    async def _post(self, request: Request) -> Response:
        """Publishes the body of a request, with the parameters in its query."""
        access = self._access
        if not access.publish_takes_arguments:  # It comes before anything else.
            await access.admit_publisher(request, {})
        topic = self.topic_named(request.path_params["topic"])
        arguments = topic.from_query(request.query_params)
        if access.publish_takes_arguments:
            await access.admit_publisher(request, topic.complete(arguments))
        data = decode_value(await read_json(request))
        job = await topic.job(arguments, None, policy=self._policies[topic])
        try:
            published = await self._publish(job, data)
        except UnencodableValue as error:
            raise InvalidBody(f"the body must be JSON: {error}") from None
        return json_response({"id": published})

    async def _topic_job(self, name: str, parameters: Mapping[str, Any]) -> Job:
        topic = self.topic_named(name)
        given = topic.from_values(parameters)
        return await topic.job(given, None, policy=self._policies[topic])

    def topic_named(self, name: str) -> Topic[..., Any]:
        """Raises UnknownSource."""
        found = self.sources.get(name)
        if isinstance(found, Topic):
            return found
        if found is not None:
            raise UnknownSource(f"{name!r} is a source, and only its run has events for it")
        known = ", ".join(n for n, source in self.sources.items() if isinstance(source, Topic))
        raise UnknownSource(f"there is no topic {abbreviated(name)}; there are: {known or 'none'}")
