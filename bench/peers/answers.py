"""This project with the mock LLM and the event log that STREAMS_LOG names, for pace.py."""

import os

from streams import Streams
from streams.sources import tokens

app = Streams([tokens], log=os.environ.get("STREAMS_LOG") or None)
