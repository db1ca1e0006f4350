"""The endpoints of runs: their list, and for each one its stream, its state and its stop."""

from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from streams.access import Access
from streams.errors import StreamError
from streams.log import RunInfo, RunLog
from streams.request import (
    EVENT_STREAM,
    JSON,
    JSON_LINES,
    negotiated,
    root_path,
    run_url,
    selection_of,
)
from streams.response import json_response
from streams.runs import Runs

Follow = Callable[[Request, RunLog, str], Awaitable[Response]]
"""The stream of a run in a media type, from where the request says; its headers for HEAD."""


class RunEndpoints:
    """Answers for /runs and /runs/{run}, to those whose runs they are."""

    def __init__(self, runs: Runs, access: Access, follow: Follow) -> None:
        self._runs = runs
        self._access = access
        self._follow = follow

    async def list(self, request: Request) -> Response:
        selection = selection_of(request, await self._access.owner(request))
        root = root_path(request)
        # One more says whether there is a next page.
        more = msgspec.structs.replace(selection, limit=selection.limit + 1)
        found = await self._runs.select(more)
        logs = found[: selection.limit]
        admitted = await self._access.admitted([log.info for log in logs], request)
        return json_response(
            {
                "runs": [
                    {
                        **self._runs.state(log),
                        "key": log.info.key,
                        "url": run_url(root, log.info.run),
                    }
                    for log, may_read in zip(logs, admitted, strict=True)
                    if may_read
                ],
                "next": _next_page(request, logs[-1].info) if len(found) > len(logs) else None,
            }
        )

    async def one(self, request: Request) -> Response:
        owner = await self._access.owner(request)
        log = await self._runs.find(request.path_params["run"], owner)
        await self._access.admit_to(log.info, request)
        self._access.check_query(log.info, request)
        if request.method == "DELETE":
            if log.info.shared:
                raise StreamError("viewers share this run, so none of them can stop it", status=403)
            await self._runs.cancel(log)
            return Response(status_code=204)
        media_type = negotiated(request, (EVENT_STREAM, JSON, *JSON_LINES))
        if media_type == JSON:
            return json_response(self._runs.state(log), {"Vary": "Accept"})
        return await self._follow(request, log, media_type)


def _next_page(request: Request, last: RunInfo) -> str:
    """The URL, as a path, of the runs after the last one of a page."""
    query = {**request.query_params, "after": "{}.{}".format(*last.place)}
    return f"{quote(root_path(request))}/runs?{urlencode(query)}"
