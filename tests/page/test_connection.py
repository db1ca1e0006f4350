"""What the playground says of its connection, and the code that it shows for React and htmx."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.support.browser import INJECTION
from tests.support.playground import (
    click,
    code,
    expect_events,
    expect_state,
    fill,
    run_of,
    start,
)
from tests.support.servers import ROOT

NODE_MODULES = ROOT / ".venv/node_modules"

# ---- what the connection is like


def test_the_response_is_shown(page: Page) -> None:
    start(page, "counter", count=2, interval=0)
    expect_state(page, "completed")
    shown = page.locator("#response")
    expect(shown).to_contain_text("200 OK")
    expect(shown).to_contain_text("content-type: text/event-stream")
    expect(shown).to_contain_text(f"content-location: /runs/{run_of(page)}")


@pytest.mark.parametrize(
    ("transport", "text"),
    [("fetch", "s, heartbeats come"), ("EventSource", "s; EventSource does not show heartbeats")],
)
def test_a_silence_is_said_and_whether_heartbeats_come(
    page: Page, transport: str, text: str
) -> None:
    start(page, "quiet", transport)
    expect_events(page, 2)
    expect(page.locator("#silence")).to_have_text(re.compile(rf"^silent for \d+ {text}$"))
    click(page, "Stop")
    expect_state(page, "cancelled")
    expect(page.locator("#silence")).to_be_empty()


BURSTS = [5, *(1000 * n + k / 10 for n in range(1, 6) for k in range(8))]
AT_ONCE = [2000 + k / 10 for k in range(30)]


@pytest.mark.parametrize("arrivals", [BURSTS, AT_ONCE], ids=["bursts", "at once"])
@pytest.mark.parametrize(("busy", "kind"), [(0.6, "unknown"), (0.4, "buffered")])
def test_a_busy_browser_is_not_called_a_proxy(
    page: Page, arrivals: list[float], busy: float, kind: str
) -> None:
    verdict = page.evaluate(
        """async ([arrivals, busy]) => {
            const { Pace } = await import("./page/pace.js");
            const pace = new Pace(0, 1);
            let previous = 0;
            for (const time of arrivals) {
                const pause = time - previous;
                if (pause > 100) pace.busy(time - busy * pause, time);
                pace.arrived(time);
                previous = time;
            }
            return pace.verdict();
        }""",
        [arrivals, busy],
    )
    assert verdict["kind"] == kind
    assert ("This browser" in verdict["text"]) is (kind == "unknown")


def test_the_page_notices_that_it_is_busy(page: Page) -> None:
    block = """(() => {
        const until = performance.now() + 400;
        while (performance.now() < until);
    })()"""
    start(page, "gated", gate="never opened")
    expect_events(page, 3)
    page.evaluate(
        """async () => {
            const { Pace } = await import("./page/pace.js");
            window.busyFor = 0;
            Pace.prototype.busy = (from, to) => (window.busyFor = Math.max(busyFor, to - from));
        }"""
    )
    page.evaluate(block)
    page.wait_for_function("window.busyFor >= 400")


def test_what_a_hidden_tab_keeps_is_bounded(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
            const { Parts } = await import("./page/answer.js");
            const parts = new Parts();
            for (let n = 0; n < 5_000; n++)
                parts.add([[n % 2 ? "text" : "reasoning", "x".repeat(100)]]);
            const newest = parts.take();
            const length = newest.map(([, text]) => text).join("").length;
            parts.add([["text", "y"], ["text", "z"]]);
            return [newest.length, length, parts.take(), parts.isEmpty];
        }"""
    )
    assert kept == [1000, 100_000, [["text", "yz"]], True]


# ---- the code


def test_the_code_for_react_runs(page: Page) -> None:
    fill(page, "counter", count=2, interval=0)
    sample = code(page, "React").replace("export ", "")
    sample = re.sub(r"import (.*) from (.*); //.*", r"const \1 = await import(\2);", sample)
    sample = re.sub(r"import (.*) from \"react\";", r"const \1 = react;", sample)
    events = page.evaluate(
        f"""async () => {{
            let state, effect;
            const over = Promise.withResolvers();
            const react = {{
                useState: (initial) => [state ??= initial, (next) => {{
                    state = typeof next === "function" ? next(state) : next;
                    if (state.error || state.events.length === 2) over.resolve();
                }}],
                useEffect: (run) => (effect = run),
            }};
            {sample}
            useThisStream();
            const close = effect();
            await over.promise;
            close();
            if (state.error) throw state.error;
            return state.events.map(({{ data }}) => data.number);
        }}"""
    )
    assert events == [0, 1]


def test_the_code_for_htmx_starts_one_run_and_shows_data_as_text(
    page: Page, context: BrowserContext, server: str
) -> None:
    files = {
        "htmx.org@2": NODE_MODULES / "htmx.org/dist/htmx.min.js",
        "htmx-ext-sse@2": NODE_MODULES / "htmx-ext-sse/dist/sse.min.js",
    }
    fill(page, "kinds", word=INJECTION[:40], ratio=0.5)
    sample = code(page, "HTMX")
    other = context.new_page()
    requests: list[str] = []
    other.on("request", lambda request: requests.append(request.url))

    def library(route: Route) -> None:
        route.fulfill(path=files[route.request.url.rpartition("/")[2]])

    other.route("https://unpkg.com/*", library)
    other.route(f"{server}sample", lambda r: r.fulfill(body=sample, content_type="text/html"))
    other.goto(f"{server}sample")
    expect(other.locator("div")).to_contain_text('"ratio":0.5')
    other.wait_for_function(
        "document.querySelector('div')['htmx-internal-data'].sseEventSource.readyState === 2"
    )
    assert sum("/streams/kinds" in url for url in requests) == 1
    assert other.locator("img").count() == 0
    attributes = other.locator("div").evaluate("div => div.getAttribute('sse-close')")
    assert attributes == "end"
