"""Apps in other frameworks, each with its own route /hello and with Streams mounted in it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
from fastapi import FastAPI
from hypercorn.middleware import DispatcherMiddleware
from litestar import Litestar, asgi, get
from litestar.types import Receive as LitestarReceive
from litestar.types import Scope as LitestarScope
from litestar.types import Send as LitestarSend
from quart import Quart
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.compat.processes import versions

Mounts = Mapping[str, ASGIApp]


class Host(NamedTuple):
    """A framework, and how to mount apps in it by prefix. Each prefix starts with `under`."""

    name: str
    version: str
    app: Callable[[Mounts], Any]
    under: str = ""


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


HOSTS = [
    Host("Starlette, Mount", versions("starlette"), starlette),
    Host("Starlette, Mount in a Mount", versions("starlette"), starlette_two_deep, "/inner"),
    Host("FastAPI, mount", versions("fastapi"), fastapi),
    Host("FastAPI, mount in a mounted app", versions("fastapi"), fastapi_two_deep, "/inner"),
    Host("Litestar, @asgi(is_mount=True)", versions("litestar"), litestar),
    Host("Django, ASGI", django.__version__, in_django),
    Host("Quart, hypercorn's DispatcherMiddleware", versions("quart"), quart),
    Host("an ASGI function", "3.0", bare),
]
