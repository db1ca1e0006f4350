"""The playground in a real browser, with a real server."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect

from tests.support.browser import chromium
from tests.support.playground import Open
from tests.support.servers import free_port, server_process

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    with server_process(port, "--no-access-log", app="tests.support.browser:app"):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A window in which nothing is animated, because each frame takes time."""
    window: ViewportSize = {"width": 1280, "height": 900}
    context = browser.new_context(viewport=window, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def open_page(context: BrowserContext, server: str) -> Iterator[Open]:
    """Opens the page. Fails after the test if the page had an error or wrote to the console."""
    messages: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("console", lambda message: messages.append(message.text))

    def opened(url: str = server) -> Page:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#source option").first).to_be_attached()
        return page

    context.on("page", watch)
    yield opened
    # The browser logs each refused request, which some tests cause on purpose.
    assert [text for text in messages if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()
