"""What `make run` serves: `app`, a Streams from the settings in the environment."""

import os

from streams.settings import from_environ

app = from_environ(os.environ)
