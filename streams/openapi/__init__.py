"""The OpenAPI 3.2 document of a Streams: what its routes take and what they answer.

Source: https://spec.openapis.org/oas/v3.2.0.html

Invariants:

1. A route is described by the function that has its path in a table here. A source has a path of
   its own, with its parameters and its events.
2. A status that the server may answer with is described. A source and a guard may refuse with any
   status from 400 to 599.
3. The document depends only on the app, and `servers` on the path under which it is mounted.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from starlette.routing import BaseRoute, Route

from streams.openapi import pages, runs, sources
from streams.openapi.writer import Describe, Facts, Writer
from streams.version import __version__

__all__ = ["Facts", "document", "mounted_at", "table"]

DESCRIPTION = (
    "Each source is an endpoint that streams its events: as server-sent events, or as JSON Lines "
    "if `Accept` prefers them. A stream belongs to a run, whose URL is in `Content-Location`. A "
    "client that reconnects with `Last-Event-ID` gets the events after that one. `HEAD` works "
    "wherever `GET` does: it answers with the headers, and starts nothing. An EventSource that "
    "meets a limit gets a 200 with only `retry`, because it gives up at any other status."
)


def document(streams: Any, routes: Iterable[BaseRoute], facts: Facts) -> dict[str, Any]:
    """The document of an app that is not mounted. `routes` are those of `streams`."""
    writer = Writer(streams, facts)
    described = table(streams)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path not in described:
            continue
        for path, operations in described[route.path](writer).items():
            for method, operation in operations.items():
                if method.upper() in (route.methods or ()):
                    name = f"{method}{path.replace('/', '_')}".translate(_WITHOUT_BRACES)
                    paths.setdefault(path, {})[method] = {"operationId": name, **operation}
    return {
        "openapi": "3.2.0",
        "info": {"title": "Streams", "description": DESCRIPTION, "version": __version__},
        **({"security": writer.security} if writer.security else {}),
        "paths": paths,
        "components": writer.components.as_dict(),
    }


_WITHOUT_BRACES = str.maketrans("", "", "{}")


def table(streams: Any) -> dict[str, Describe]:
    """The functions that describe the routes of an app, by the paths of these."""
    described: dict[str, Describe] = {**sources.DESCRIBED, **runs.DESCRIBED, **pages.DESCRIBED}
    if streams.models:
        from streams.openapi import models

        described |= models.DESCRIBED
    return described


def mounted_at(document: dict[str, Any], root: str) -> dict[str, Any]:
    """The document of an app that is mounted at `root`, a path that is not percent-encoded.

    Without `servers`, the paths begin at the root of the server (section 4.1.1).
    """
    return {**document, "servers": [{"url": quote(root, errors="replace")}]} if root else document
