"""Publishing to topics: from a task, and from a thread."""

from collections.abc import Mapping
from typing import Any

from streams.errors import LogClosed, TopicEnded, UnknownSource
from streams.event import COMPLETED
from streams.lifetime import Lifetime
from streams.log import EventLog
from streams.policy import Policy
from streams.run import Runs, limits_of
from streams.source import Job, Source
from streams.topic import Topic


class Publisher:
    """The part of Streams that publishes."""

    sources: dict[str, Source[..., Any]]
    runs: Runs
    log: EventLog
    _policies: dict[Source[..., Any], Policy]
    _lifetime: Lifetime

    async def publish(self, topic: str, data: Any, /, **parameters: Any) -> str:
        """Publishes an event to a topic. Returns the event's id once the log has it.

        `data` is anything that a source may yield, an Event included. The keywords are the
        topic's parameters. Raises UnknownSource, InvalidParameters, UnencodableValue, TopicEnded,
        StoreFull, and RuntimeError if the log is in the memory of a process that serves nobody.
        """
        job = self._topic_job(topic, parameters)
        await self._lifetime.publish()
        event = self.runs.encoder.first_payload(data, topic)
        try:
            published = await self.log.publish(self.runs.info_of(job), limits_of(job.policy), event)
        except LogClosed:
            raise TopicEnded(
                f"this topic {topic!r} has ended; it can be published to again when it is "
                f"forgotten, {job.policy.retain:g} s after its end"
            ) from None
        return str(published)

    def publish_from_thread(self, topic: str, data: Any, /, **parameters: Any) -> str:
        """Does what `publish` does, in a thread without an event loop, and waits for it.

        The event loop in which this Streams is used runs in another thread, such as the one that
        has called `asyncio.to_thread`. Raises RuntimeError if there is none.
        """
        return self._lifetime.run_from_thread(lambda: self.publish(topic, data, **parameters))

    async def end(self, topic: str, /, **parameters: Any) -> None:
        """Ends a topic as `completed`. Does nothing if it has ended.

        Who joins within `retain` seconds gets the newest events and the end. Raises what `publish`
        raises.
        """
        job = self._topic_job(topic, parameters)
        await self._lifetime.publish()
        await self.log.end_topic(self.runs.info_of(job), limits_of(job.policy), COMPLETED)

    def _topic_job(self, name: str, parameters: Mapping[str, Any]) -> Job:
        topic = self.topic_named(name)
        return topic.job(topic.from_values(parameters), None, policy=self._policies[topic])

    def topic_named(self, name: str) -> Topic[..., Any]:
        """Raises UnknownSource."""
        found = self.sources.get(name)
        if isinstance(found, Topic):
            return found
        if found is not None:
            raise UnknownSource(f"{name!r} is a source, and only its run has events for it")
        known = ", ".join(n for n, source in self.sources.items() if isinstance(source, Topic))
        raise UnknownSource(f"there is no topic {name!r}; there are: {known or 'none'}")
