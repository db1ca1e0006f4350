"""An app with the sources of docs/browser.md, and the pages that test_pages.py builds from it."""

import os
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from streams import Streams
from streams.sources import tokens
from tests.support.blocks import blocks

example: dict[str, Any] = {"__name__": "example"}
exec(compile(blocks("docs/browser.md")[0], "docs/browser.md", "exec"), example)
streams = Streams([example["news"], tokens])
pages = StaticFiles(directory=os.environ["PAGES"])
app = Starlette(routes=[Mount("/pages", pages), Mount("/", streams)], lifespan=streams.lifespan)
