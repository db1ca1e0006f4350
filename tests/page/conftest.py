"""The playground in a real browser, with a real server.

Opening a page takes longer than most tests do. So tests share a window: `reset` makes it like a new
one after each test. Only the browser's cache of the server's files remains.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    ViewportSize,
    WebError,
    expect,
)

from tests.support.browser import chromium
from tests.support.playground import Open
from tests.support.servers import free_port, server_process

expect.set_options(timeout=20_000)

WINDOW: ViewportSize = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    port = free_port()
    with server_process(port, "--no-access-log", app="tests.support.browser:app"):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def idle(browser: Browser) -> list[BrowserContext]:
    """The window that the next test can use, if there is one. It closes with the browser."""
    return []


@pytest.fixture
def context(browser: Browser, idle: list[BrowserContext], server: str) -> Iterator[BrowserContext]:
    """A window with one page, in which nothing is animated, because each frame takes time."""
    if idle:
        context = idle.pop()
    else:
        context = browser.new_context(viewport=WINDOW, reduced_motion="reduce")
        context.set_default_timeout(20_000)
        context.new_page()
    yield context
    reset(context, server)
    idle.append(context)


def reset(context: BrowserContext, server: str) -> None:
    """Makes a window like a new one. Raises an error if it cannot: no other test uses it then."""
    page, *others = context.pages
    for other in others:
        other.close()
    page.unroute_all()
    context.unroute_all()
    context.set_offline(False)
    context.clear_permissions()
    context.clear_cookies()
    page.emulate_media(color_scheme="null", reduced_motion="reduce")
    page.set_viewport_size(WINDOW)
    page.mouse.move(0, 0)
    page.goto(f"{server}health")  # the same origin, and no script
    page.evaluate("localStorage.clear(), sessionStorage.clear()")


@pytest.fixture
def open_page(context: BrowserContext, server: str) -> Iterator[Open]:
    """Opens the page. Fails after the test if the page had an error or wrote to the console."""
    messages: list[str] = []
    unused = context.pages

    def failed(error: WebError) -> None:
        messages.append(str(error.error))

    def wrote(message: ConsoleMessage) -> None:
        messages.append(message.text)

    def opened(url: str = server) -> Page:
        page = unused.pop() if unused else context.new_page()
        page.goto(url)
        expect(page.locator("#source option").first).to_be_attached()
        return page

    context.on("weberror", failed)
    context.on("console", wrote)
    yield opened
    context.remove_listener("weberror", failed)
    context.remove_listener("console", wrote)
    # The browser logs each refused request, which some tests cause on purpose.
    assert [text for text in messages if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()
