"""Apps in other frameworks: with a route /hello and Streams mounted, or with an endpoint /ask."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import clear_url_caches, path
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from hypercorn.middleware import DispatcherMiddleware
from litestar import Litestar, asgi, get
from litestar import Request as LitestarRequest
from litestar.types import Receive as LitestarReceive
from litestar.types import Scope as LitestarScope
from litestar.types import Send as LitestarSend
from quart import Quart
from quart import request as quart_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.compat.processes import versions

Mounts = Mapping[str, ASGIApp]
Answer = Callable[[Any], Any]


class Host(NamedTuple):
    """A framework, and how to mount apps in it by prefix. Each prefix starts with `under`.

    `endpoint` makes an app whose endpoint /ask returns what a function makes of the request.
    """

    name: str
    version: str
    app: Callable[[Mounts], Any]
    under: str = ""
    endpoint: Callable[[Answer], Any] | None = None


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


def starlette(mounts: Mounts) -> ASGIApp:
    return Starlette(
        routes=[Route("/hello", hello), *(Mount(prefix, app) for prefix, app in mounts.items())]
    )


def starlette_two_deep(mounts: Mounts) -> ASGIApp:
    inner = [Mount(prefix.removeprefix("/inner"), app) for prefix, app in mounts.items()]
    return Starlette(routes=[Route("/hello", hello), Mount("/inner", routes=inner)])


def fastapi(mounts: Mounts) -> ASGIApp:
    host = FastAPI()
    host.get("/hello")(lambda: "hello")
    for prefix, app in mounts.items():
        host.mount(prefix, app)
    return host


def fastapi_two_deep(mounts: Mounts) -> ASGIApp:
    host = FastAPI()
    host.get("/hello")(lambda: "hello")
    inner = {prefix.removeprefix("/inner"): app for prefix, app in mounts.items()}
    host.mount("/inner", fastapi(inner))
    return host


def litestar(mounts: Mounts) -> Any:
    @get("/hello", sync_to_thread=False)
    def hello() -> str:
        return "hello"

    return Litestar([hello, *(litestar_mount(prefix, app) for prefix, app in mounts.items())])


def litestar_mount(prefix: str, app: Any) -> Any:
    @asgi(prefix, is_mount=True, copy_scope=True)
    async def mount(scope: LitestarScope, receive: LitestarReceive, send: LitestarSend) -> None:
        await app(scope, receive, send)

    return mount


urlpatterns = [path("hello", lambda request: HttpResponse("hello"))]


def configure_django() -> None:
    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests")


def in_django(mounts: Mounts) -> ASGIApp:
    configure_django()
    return bare(mounts, get_asgi_application())


def quart(mounts: Mounts) -> Any:
    host = Quart(__name__)

    @host.get("/hello")
    async def hello() -> str:
        return "hello"

    apps: dict[str, Any] = {**mounts, "": host}
    return DispatcherMiddleware(apps)


def bare(mounts: Mounts, otherwise: ASGIApp | None = None) -> ASGIApp:
    """An ASGI function without a framework, which passes each request on by its prefix."""

    async def host(scope: Scope, receive: Receive, send: Send) -> None:
        app = otherwise or PlainTextResponse("hello", 200 if scope["path"] == "/hello" else 404)
        for prefix, mounted in mounts.items():
            if f"{scope['path']}/".startswith(f"{prefix}/"):
                scope = {**scope, "root_path": scope.get("root_path", "") + prefix}
                app = mounted
                break
        await app(scope, receive, send)

    return host


def starlette_endpoint(answer: Answer) -> ASGIApp:
    async def ask(request: Request) -> Any:
        return answer(request)

    return Starlette(routes=[Route("/ask", ask)])


def fastapi_endpoint(answer: Answer) -> ASGIApp:
    app = FastAPI()

    @app.get("/ask")
    async def ask(request: FastAPIRequest) -> Any:
        return answer(request)

    return app


def litestar_endpoint(answer: Answer) -> Any:
    @get("/ask")
    async def ask(request: LitestarRequest[Any, Any, Any]) -> Response:
        response: Response = answer(request)
        return response

    return Litestar([ask])


def django_endpoint(answer: Answer) -> Any:
    async def ask(request: Any) -> Any:
        return answer(request)

    configure_django()
    urlpatterns[1:] = [path("ask", ask)]
    clear_url_caches()
    return get_asgi_application()


def quart_endpoint(answer: Answer) -> Any:
    app = Quart(__name__)

    @app.get("/ask")
    async def ask() -> Any:
        return answer(quart_request)

    return app


HOSTS = [
    Host("Starlette, Mount", versions("starlette"), starlette, endpoint=starlette_endpoint),
    Host("Starlette, Mount in a Mount", versions("starlette"), starlette_two_deep, "/inner"),
    Host("FastAPI, mount", versions("fastapi"), fastapi, endpoint=fastapi_endpoint),
    Host("FastAPI, mount in a mounted app", versions("fastapi"), fastapi_two_deep, "/inner"),
    Host(
        "Litestar, @asgi(is_mount=True)",
        versions("litestar"),
        litestar,
        endpoint=litestar_endpoint,
    ),
    Host("Django, ASGI", django.__version__, in_django, endpoint=django_endpoint),
    Host(
        "Quart, hypercorn's DispatcherMiddleware",
        versions("quart"),
        quart,
        endpoint=quart_endpoint,
    ),
    Host("an ASGI function", "3.0", bare),
]
