"""Pages of other sites, and a page with an API key, in a real browser."""

import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import chromium, serious_violations
from tests.support.servers import free_port, server_process

SITES = "tests.support.sites"
KEY = "key-of-the-tests-" + "k" * 16

# Each attack resolves when the browser has its answer, or has given up.
ATTACKS = """
async ({ attack, url }) => {
    const over = (element, ...events) => new Promise((resolve) => {
        for (const event of events) element.addEventListener(event, resolve);
    });
    const added = (name, properties) => {
        const element = Object.assign(document.createElement(name), properties);
        const loaded = over(element, "load", "error");
        document.body.append(element);
        return loaded;
    };
    const attacks = {
        fetch: () => fetch(url).catch(() => {}),
        "fetch, no-cors": () => fetch(url, { mode: "no-cors", credentials: "include" }),
        "fetch, POST": () => fetch(url, { method: "POST", mode: "no-cors", body: "{}" }),
        EventSource: () => over(new EventSource(url), "error", "open"),
        image: () => added("img", { src: url }),
        script: () => added("script", { src: url }),
        style: () => added("link", { rel: "stylesheet", href: url }),
        video: () => over(document.body.appendChild(
            Object.assign(document.createElement("video"), { src: url })), "error"),
        iframe: () => added("iframe", { src: url }),
        "sandboxed iframe": () => added("iframe", {
            sandbox: "allow-scripts", srcdoc: `<script>new EventSource("${url}")</script>`,
        }),
        object: () => added("object", { data: url }),
        form: () => {
            document.body.innerHTML = `<iframe name="target"></iframe>
                <form method="post" enctype="text/plain" target="target" action="${url}">
                <input name="{" value="}"></form>`;
            const loaded = over(document.querySelector("iframe"), "load");
            document.querySelector("form").submit();
            return loaded;
        },
        beacon: () => navigator.sendBeacon(url, "{}"),
        link: () => void (location.href = url),
    };
    await attacks[attack]();
}
"""
ATTACKED_BY = [
    "fetch",
    "fetch, no-cors",
    "fetch, POST",
    "EventSource",
    "image",
    "script",
    "style",
    "video",
    "iframe",
    "sandboxed iframe",
    "object",
    "form",
    "beacon",
    "link",
]
WITH_AN_ORIGIN = ["fetch", "fetch, POST", "EventSource", "form", "beacon"]
"""The attacks that a browser shows in an Origin header, also where there is no Sec-Fetch-Site."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """In this browser, evil.example and plain.example are this machine, but look like others."""
    rules = "MAP evil.example 127.0.0.1, MAP plain.example 127.0.0.1"
    with chromium(f"--host-resolver-rules={rules}") as browser:
        yield browser


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of somebody else's site."""
    port = free_port()
    with server_process(port, "--no-access-log", app=f"{SITES}:site"):
        yield port


@pytest.fixture(scope="module")
def server(site: int) -> Iterator[int]:
    """The port of the server, which allows the page at trusted.localhost."""
    port = free_port()
    origin = f"http://trusted.localhost:{site}"
    with server_process(port, "--no-access-log", app=f"{SITES}:server", TEST_ORIGIN=origin):
        yield port


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()


def seen_by(server: int) -> Any:
    """The answers and the runs of the server."""
    return httpx.get(f"http://127.0.0.1:{server}/seen").json()


def attack(page: Page, start: str, names: list[str], server: int, ours: str, status: int) -> None:
    """Tries each attack in a page at `start`. The server answers `status`, and starts no run."""
    before = seen_by(server)["runs"]
    for name in names:
        page.goto(start)
        query = f"count={random.randrange(10**6)}"
        url = f"http://{ours}:{server}/streams/counter?{query}"
        page.evaluate(ATTACKS, {"attack": name, "url": url})
        deadline = time.monotonic() + 20
        while not (found := [each for each in seen_by(server)["answers"] if each[0] == query]):
            assert time.monotonic() < deadline, f"the server has had no request by {name}"
        assert [each[1] for each in found] == [status] * len(found), name
    assert seen_by(server)["runs"] == before


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("a.localhost", "127.0.0.1"),
        ("a.localhost", "b.localhost"),
        ("localhost", "localhost"),
        ("evil.example", "localhost"),
    ],
)
def test_a_page_of_another_site_starts_nothing(
    theirs: str, ours: str, page: Page, site: int, server: int
) -> None:
    attack(page, f"http://{theirs}:{site}/", ATTACKED_BY, server, ours, 403)


def test_a_page_starts_nothing_over_http_where_browsers_say_less(
    page: Page, site: int, server: int
) -> None:
    start = f"http://evil.example:{site}/"
    attack(page, start, WITH_AN_ORIGIN, server, "plain.example", 403)


def test_a_page_whose_name_is_rebound_to_the_server_starts_nothing(page: Page, server: int) -> None:
    start = f"http://evil.example:{server}/rebound"
    attack(page, start, ATTACKED_BY, server, "evil.example", 421)


def test_an_element_of_a_page_of_the_same_origin_starts_nothing(page: Page, server: int) -> None:
    elements = ["image", "script", "style", "video", "iframe", "object"]
    attack(page, f"http://localhost:{server}/rebound", elements, server, "localhost", 403)


def test_a_stream_opened_by_its_user_is_shown(page: Page, server: int) -> None:
    before = seen_by(server)["runs"]
    page.goto(f"http://127.0.0.1:{server}/streams")
    page.evaluate("location.href = 'streams/counter?count=1'")
    expect(page.locator("body")).to_contain_text('{"number":0}')
    assert seen_by(server)["runs"] == before + 1


READ = """
async (url) => {
    const read = [];
    const source = new EventSource(url);
    source.onmessage = ({ data }) => read.push(JSON.parse(data).number);
    await new Promise((resolve, reject) => {
        source.addEventListener("end", resolve);
        source.onerror = reject;
    });
    source.close();
    const response = await fetch(url);
    const text = await response.text();
    const run = text.match(/"run":"([^"]+)"/)[1];
    const stopped = await fetch(new URL(`/runs/${run}`, url), { method: "DELETE" });
    return [read, text.includes('"number":1'), stopped.status];
}
"""


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("trusted.localhost:SITE", "127.0.0.1"),
        ("trusted.localhost:SITE", "plain.example"),
        ("localhost:SERVER", "localhost"),
        ("plain.example:SERVER", "plain.example"),
    ],
)
def test_a_page_of_an_allowed_or_the_same_origin_reads_and_stops(
    theirs: str, ours: str, page: Page, site: int, server: int
) -> None:
    theirs = theirs.replace("SITE", str(site)).replace("SERVER", str(server))
    url = f"http://{ours}:{server}/streams/counter?count=2&interval=0"
    page.goto(f"http://{theirs}/")
    assert page.evaluate(READ, url) == [[0, 1], True, 204]


# The playground with an API key


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    """The URL of a server that asks for a key."""
    port = free_port()
    with server_process(port, "--no-access-log", app=f"{SITES}:server", TEST_KEY=KEY):
        yield f"http://127.0.0.1:{port}/"


def give(page: Page, key: str) -> None:
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Continue").click()


def test_the_page_asks_for_the_key_and_sends_it(page: Page, locked: str) -> None:
    page.goto(locked)
    expect(page.get_by_role("dialog")).to_be_visible()
    assert serious_violations(page) == []
    page.keyboard.press("Escape")
    give(page, "not the key")
    expect(page.locator("#key-problem")).to_contain_text("is not one of this server's")
    give(page, f" {KEY} ")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#source option")).to_have_count(2)
    expect(page.get_by_role("radio", name="EventSource").first).to_be_disabled()
    expect(page.locator("#no-event-source")).to_be_visible()
    start_and_stop(page)
    page.reload()
    expect(page.locator("#source option")).to_have_count(2)
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert KEY not in page.content(), "the page shows the key nowhere"
    assert KEY not in str(stored(page, "localStorage"))
    assert list(stored(page, "sessionStorage").values()) == [KEY]


def start_and_stop(page: Page) -> None:
    page.locator("#field-count").fill("100000")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#rows tr").nth(1)).to_be_attached()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_attribute("data-state", "cancelled")


def stored(page: Page, storage: str) -> dict[str, Any]:
    values: dict[str, Any] = page.evaluate(f"Object.fromEntries(Object.entries({storage}))")
    return values


@pytest.mark.parametrize(
    ("language", "part"),
    [
        ("curl", "curl -N -H 'Authorization: Bearer YOUR_KEY' 'http://"),
        ("EventSource", "// It cannot send a key: let the app sign the URL."),
        ("event-stream.js", 'headers: { "Authorization": "Bearer YOUR_KEY" },'),
        ("Python", 'headers={"Authorization": "Bearer YOUR_KEY"})'),
    ],
)
def test_the_samples_have_a_place_for_the_key(
    language: str, part: str, page: Page, locked: str
) -> None:
    page.goto(locked)
    give(page, KEY)
    page.locator("#languages").get_by_role("radio", name=language, exact=True).check()
    expect(page.locator("#code")).to_contain_text(part)
    expect(page.locator("#code")).not_to_contain_text(KEY)
