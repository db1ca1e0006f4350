"""`app`, for any ASGI server: what `make run` serves, from the settings in the environment."""

import os

from streams.settings import from_environ

app = from_environ(os.environ)
