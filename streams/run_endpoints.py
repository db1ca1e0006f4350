"""The endpoints of runs: their list, and for each one its stream, its state and its stop."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from streams.access import Access
from streams.errors import StreamError
from streams.log import RunLog
from streams.request import (
    EVENT_STREAM,
    JSON,
    JSON_LINES,
    negotiated,
    root_path,
    run_url,
    selection_of,
)
from streams.response import head_response, json_response
from streams.runs import Runs

Follow = Callable[[Request, RunLog, str], Awaitable[Response]]
"""The stream of a run in a media type, from where the request says."""


class RunEndpoints:
    """Answers for /runs and /runs/{run}, to those whose runs they are, and for /health."""

    def __init__(self, runs: Runs, access: Access, follow: Follow) -> None:
        self._runs = runs
        self._access = access
        self._follow = follow

    async def health(self, request: Request) -> Response:
        return json_response(self._runs.health())

    async def list(self, request: Request) -> Response:
        selection = selection_of(request, await self._access.owner(request))
        root = root_path(request)
        logs = await self._runs.select(selection)
        sources = {log.info.source for log in logs if log.info.route is None}
        hidden = {source for source in sources if not await self._admits(source, request)}
        return json_response(
            {
                "runs": [
                    {
                        **self._runs.state(log),
                        "key": log.info.key,
                        "url": run_url(root, log.info.run),
                    }
                    for log in logs
                    if log.info.route is not None or log.info.source not in hidden
                ]
            }
        )

    async def _admits(self, source: str, request: Request) -> bool:
        try:
            await self._access.admit(source, request)
        except StreamError:
            return False
        return True

    async def one(self, request: Request) -> Response:
        owner = await self._access.owner(request)
        log = await self._runs.find(request.path_params["run"], owner)
        await self._access.admit_to(log.info, request)
        if request.method == "DELETE":
            if log.info.shared:
                raise StreamError("viewers share this run, so none of them can stop it", status=403)
            await self._runs.cancel(log)
            return Response(status_code=204)
        media_type = negotiated(request, (EVENT_STREAM, JSON, *JSON_LINES))
        if media_type == JSON:
            return json_response(self._runs.state(log), {"Vary": "Accept"})
        if request.method == "HEAD":
            return head_response(media_type, run_url(root_path(request), log.info.run))
        return await self._follow(request, log, media_type)
