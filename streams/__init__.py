"""Write an async generator; get an HTTP endpoint that streams it, correctly, to anything."""

from streams.admission import client_address
from streams.asgi import Streams
from streams.errors import StreamError
from streams.event import Event
from streams.log import EventLog
from streams.log.memory import MemoryLog
from streams.pace import join_text, joined
from streams.policy import Policy
from streams.run import current_run
from streams.source import Source, source
from streams.topic import Topic, topic
from streams.version import __version__ as __version__
from streams.wires import Wire

__all__ = [
    "Event",
    "EventLog",
    "MemoryLog",
    "Policy",
    "Source",
    "StreamError",
    "Streams",
    "Topic",
    "Wire",
    "client_address",
    "current_run",
    "join_text",
    "joined",
    "source",
    "topic",
]
