"""What a newcomer sees of the playground: its layout, the two panes, its links and its code."""

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.support.browser import INJECTION, LONG_NUMBER, serious_violations
from tests.support.playground import (
    JSON,
    TRANSPORTS,
    Open,
    choose,
    click,
    code,
    expect_events,
    expect_state,
    fill,
    numbers,
    numbers_up_to,
    problem,
    rows,
    run_of,
    start,
)
from tests.support.servers import ROOT, free_port, server_process

SIZES = {"laptop": (1280, 800), "low": (1366, 650), "phone": (390, 844)}
BUTTONS = ["start", "stop", "drop", "reconnect"]
PARTS = 30
NODE_MODULES = ROOT / ".venv/node_modules"


def boxes(page: Page, ids: list[str]) -> list[dict[str, float]]:
    """Where elements are in the window, which is not scrolled for it."""
    found: list[dict[str, float]] = page.evaluate(
        "ids => ids.map((id) => document.getElementById(id).getBoundingClientRect().toJSON())", ids
    )
    return found


def is_in_sight(page: Page, box: dict[str, float]) -> bool:
    assert page.viewport_size is not None
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    return (
        box["width"] > 0
        and box["left"] >= 0
        and box["right"] <= width
        and box["top"] >= 0
        and box["bottom"] <= height
    )


def start_stalled(page: Page, **parameters: Any) -> None:
    """Starts an answer that stops after PARTS pieces, so that it cannot end too early."""
    start(page, "tokens", stall_after=PARTS, tokens_per_second=500, first_token=0, **parameters)


# ---- the layout


@pytest.mark.parametrize("size", SIZES)
def test_the_buttons_are_always_in_sight_and_do_not_move(page: Page, size: str) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    before = boxes(page, BUTTONS)
    assert all(is_in_sight(page, box) for box in before)
    page.route("**/streams/counter", lambda route: problem(route, 504))
    start(page, "counter", count=5)
    expect_state(page, "refused")
    expect(page.locator("#problem")).to_have_text("504: it is 504")
    assert boxes(page, BUTTONS) == before
    start_stalled(page, prompt=50 * "Why? ")
    expect(page.locator("#note")).to_have_text(f"{PARTS} pieces")
    assert boxes(page, BUTTONS) == before
    click(page, "Drop")
    expect_state(page, "dropped")
    assert boxes(page, BUTTONS) == before


@pytest.mark.parametrize("size", SIZES)
def test_nothing_moves_when_the_state_is_a_long_text(page: Page, size: str) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    start_stalled(page)
    expect(page.locator("#note")).to_have_text(f"{PARTS} pieces")
    placed = [*BUTTONS, "events", "value", "chart"]
    before = boxes(page, placed)
    page.evaluate(
        "performance.now = ((now) => () => now() + 100_000)(performance.now.bind(performance))"
    )
    expect(page.locator("#silence")).to_contain_text("without a heartbeat for")
    click(page, "Drop")
    expect(page.locator("#state")).to_have_text("connection dropped by you; the run continues")
    after = boxes(page, placed)
    assert after == before


def test_on_a_phone_the_answers_are_what_one_sees_after_start(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    start_stalled(page)
    expect(page.locator("#note")).to_have_text(f"{PARTS} pieces")
    bar = boxes(page, ["start"])[0]["top"]
    seen = boxes(page, ["plain-note", "plain-value", "note", "value", "speed"])
    assert all(is_in_sight(page, box) and box["bottom"] <= bar for box in seen)
    assert seen[1]["bottom"] <= seen[2]["top"], "the panes are one below the other"


@pytest.mark.parametrize("size", SIZES)
def test_a_number_is_on_one_line(page: Page, size: str) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    start(page, "long_number")
    expect_state(page, "completed")
    expect(page.locator("#value output")).to_have_text(LONG_NUMBER)
    lines = """(element) => {
        const range = document.createRange();
        range.selectNodeContents(element);
        return range.getClientRects().length;
    }"""
    assert page.locator("#value output").evaluate(lines) == 1
    assert page.locator("#rows .number", has_text=LONG_NUMBER).evaluate(lines) == 1
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_an_app_without_sources_says_what_to_do(open_page: Open, context: BrowserContext) -> None:
    port = free_port()
    with server_process(port, "--no-access-log", app="tests.support.browser:empty"):
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#description")).to_contain_text("decorate it with @source")
        expect_state(page, "no sources")
        expect(page.locator("#start")).to_have_attribute("aria-disabled", "true")
        page.keyboard.press("Tab")
        click(page, "Start")
        expect_state(page, "no sources")
        assert serious_violations(page) == []


def test_parameters_may_have_the_names_of_what_a_form_has(page: Page) -> None:
    names = ["elements", "submit", "action", "name", "length", "transport", "source"]
    names += ["__proto__", "requestSubmit"]
    given = {name: "7" if name == "length" else f"my {name}" for name in names}
    start(page, "clash", **given)
    expect_state(page, "completed")
    sent = [7 if name == "length" else f"my {name}" for name in names]
    assert json.loads(rows(page)[1][3]) == sent
    page.reload()
    expect_state(page, "completed")
    for name in names:
        expect(page.locator(f"#field-{name}")).to_have_value(given[name])
    shown = code(page, "event-stream.js")
    body = re.search(r"body: (\{.*\}),\n", shown)
    assert body
    assert page.evaluate(f"JSON.stringify({body[1]})") == json.dumps(
        dict(zip(names, sent, strict=True)), separators=(",", ":")
    )


# ---- the two panes


def test_the_page_begins_with_an_answer_that_is_long_enough_to_drop(page: Page) -> None:
    expect(page.locator("#source")).to_have_value("tokens")
    expect(page.get_by_label("prompt")).not_to_have_value("")
    rate = float(page.get_by_label("tokens per second").input_value())
    pieces = 60  # of the mock's reply, at least
    assert pieces / rate > 6, "seconds"


def test_a_drop_loses_the_plain_answer_and_the_run_goes_on(page: Page) -> None:
    start_stalled(page)
    note, plain = page.locator("#note"), page.locator("#plain-note")
    expect(note).to_have_text(f"{PARTS} pieces")
    expect(plain).to_have_text(f"{PARTS} pieces")
    answer = page.locator("#value").inner_text()
    assert page.locator("#plain-value").inner_text() == answer
    click(page, "Drop")
    expect(note).to_have_text(f"dropped after {PARTS} pieces; the run continues")
    expect(plain).to_contain_text(f"lost after {PARTS} pieces")
    click(page, "Reconnect")
    expect(note).to_have_text(f"went on after piece {PARTS}: nothing lost, nothing twice")
    expect(plain).to_have_text(f"started again from the beginning: {PARTS} pieces")
    ids = [row[0] for row in rows(page)]
    assert ids == [str(n) for n in range(PARTS + 1)]
    assert page.locator("#value").inner_text() == answer
    click(page, "Stop")
    expect_state(page, "cancelled")
    expect(plain).to_have_text(f"stopped after {PARTS} pieces")


def test_a_plain_answer_that_was_started_again_is_made_twice(page: Page) -> None:
    fast = {"tokens_per_second": 10_000, "first_token": 0, "reply": "One two three."}
    page.route(
        "**/plain/tokens",
        lambda route: route.fulfill(
            content_type="text/event-stream", body='data: {"message":{"content":"One"}}\n\n'
        ),
        times=1,
    )
    start(page, "tokens", stall_after=2, **fast)
    expect(page.locator("#plain-note")).to_contain_text("lost after 1 pieces")
    click(page, "Drop")
    page.route(
        "**/plain/tokens", lambda route: route.continue_(post_data=json.dumps(fast)), times=1
    )
    click(page, "Reconnect")
    expect(page.locator("#plain-note")).to_have_text("complete: 4 pieces, and 1 were made twice")
    expect(page.locator("#plain-value")).to_have_text("One two three.")


def test_a_refusal_is_shown_with_its_status(page: Page) -> None:
    start(page, "tokens", status=418)
    expect(page.locator("#state")).to_have_text("refused with status 418; the form shows the error")
    expect(page.locator("#plain-note")).to_have_text("refused with status 418")
    expect(page.locator("#problem")).to_have_text(
        "418: the mock refuses with status 418, as requested"
    )
    expect(page.locator("#response")).to_contain_text("content-type: application/problem+json")


def test_only_the_mock_has_a_plain_answer_beside_it(page: Page) -> None:
    start(page, "counter", count=2, interval=0)
    expect_state(page, "completed")
    expect(page.locator("#plain")).to_be_hidden()
    expect(page.locator("#note")).to_be_hidden()


# ---- links


def test_the_form_is_in_the_address(page: Page, open_page: Open) -> None:
    fill(page, "counter", "EventSource", count=5, interval=0)
    page.locator("#field-interval").blur()
    other = open_page(page.url)
    expect(other.locator("#source")).to_have_value("counter")
    expect(other.locator("#field-count")).to_have_value("5")
    expect(other.get_by_role("radio", name="EventSource").first).to_be_checked()
    assert "count=5" in code(other, "curl")
    expect_state(other, "idle")
    click(other, "Start")
    expect_state(other, "completed")
    assert numbers(other) == numbers_up_to(5)


def test_back_and_forward_go_from_run_to_run(page: Page) -> None:
    runs = []
    for count in (2, 3):
        start(page, "counter", count=count, interval=0)
        expect(page.locator("#events")).to_have_text(str(count + 2))
        expect_state(page, "completed")
        runs.append(run_of(page))
    page.go_back()
    page.go_back()
    expect(page.locator("#run a")).to_have_text(runs[0])
    expect(page.locator("#field-count")).to_have_value("2")
    expect(page.locator("#events")).to_have_text("4")
    page.go_forward()
    page.go_forward()
    expect(page.locator("#run a")).to_have_text(runs[1])
    expect(page.locator("#field-count")).to_have_value("3")


def test_the_link_of_a_run_shows_its_parameters_and_code(
    page: Page, context: BrowserContext
) -> None:
    start(page, "counter", count=4, interval=0)
    expect_state(page, "completed")
    fill(page, "counter", count=9)
    with context.expect_page() as opened:
        page.locator("#run a").click()
    other = opened.value
    expect_state(other, "completed")
    expect(other.locator("#field-count")).to_have_value("4")
    assert "/streams/counter?count=4&interval=0'" in code(other, "curl")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_code_of_a_run_with_unknown_parameters_reads_the_run(
    open_page: Open, server: str, transport: str
) -> None:
    body = {"count": 3, "interval": 0}
    started = httpx.post(f"{server}streams/counter", json=body).headers["content-location"]
    run = started.rpartition("/")[2]
    page = open_page(f"{server}?transport={transport}#{run}")
    expect_state(page, "completed")
    expect(page.locator("#source")).to_have_value("counter")
    assert code(page, "curl") == f"curl -N '{server}runs/{run}'"
    page.locator("#field-count").fill("7")
    assert "/streams/counter?count=7'" in code(page, "curl")


def test_a_source_that_there_is_not_is_said(open_page: Open, server: str) -> None:
    page = open_page(f"{server}?source=nothing")
    expect(page.locator("#problem")).to_have_text("This app has no source nothing.")


# ---- runs to open again


def test_the_runs_of_this_browser_can_be_opened_again(page: Page, server: str) -> None:
    start(page, "counter", count=4, interval=0)
    expect_state(page, "completed")
    run = run_of(page)
    start(page, "hostile")
    expect_state(page, "failed")
    page.goto(server)
    expect(page.locator("#own-runs a")).to_have_text(["hostile", "counter"])
    page.locator("#own-runs a").nth(1).click()
    expect(page.locator("#run a")).to_have_text(run)
    expect_state(page, "completed")
    assert numbers(page) == numbers_up_to(4)
    expect(page.locator("#field-count")).to_have_value("4")


def test_a_run_that_is_gone_leaves_the_list(page: Page, server: str) -> None:
    start(page, "counter", count=4, interval=0)
    expect_state(page, "completed")
    page.route("**/runs/*", lambda route: problem(route, 404))
    page.reload()
    expect_state(page, "refused")
    expect(page.locator("#problem")).to_have_text("404: it is 404")
    expect(page.locator("#own-runs")).to_have_text("None yet.")


def test_this_browser_remembers_the_newest_20_runs(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
            const { remember, remembered } = await import("./page/history.js");
            for (let n = 0; n < 21; n++) remember(`run ${n}`, "?source=counter");
            return remembered().map(({ run }) => run);
        }"""
    )
    assert kept == [f"run {n}" for n in range(20, 0, -1)]


@pytest.mark.parametrize(
    "stored", ["{", "5", '[{"run":"x","link":"javascript:alert(1)","time":5},null,{"run":5}]']
)
def test_a_list_that_somebody_else_has_written_is_ignored(page: Page, stored: str) -> None:
    page.evaluate("stored => localStorage.setItem('streams.runs /', stored)", stored)
    page.reload()
    expect(page.locator("#own-runs")).to_have_text("None yet.")
    start(page, "counter", count=1)
    expect(page.locator("#own-runs a")).to_have_text(["counter"])


def test_shared_sources_and_topics_are_listed(page: Page) -> None:
    expect(page.locator("#shared a")).to_have_text(["clock", "news"])
    page.locator("#shared a", has_text="news").click()
    expect(page.locator("#source")).to_have_value("news")
    page.locator("#field-place").fill("Oslo")
    click(page, "Start")
    expect_state(page, "open")


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
            for (let n = 0; n < 5_000; n++) parts.add([[n % 2 ? "text" : "reasoning", "x".repeat(100)]]);
            const newest = parts.take();
            parts.add([["text", "y"], ["text", "z"]]);
            return [newest.length, newest.map(([, text]) => text.length).reduce((a, b) => a + b), parts.take(), parts.isEmpty];
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
            return state.error ? String(state.error) : state.events.map(({{ data }}) => data.number);
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


# ---- the picture in the README


def test_the_picture_shows_a_reconnect_of_both_panes(page: Page, tmp_path: Path) -> None:
    def stall(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        route.continue_(post_data=json.dumps({**body, "stall_after": 45}))

    # A stalled run is still running at the click on Drop, however slow the machine is.
    page.route("**/*/tokens", stall)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_label("tokens per second").fill("15")
    click(page, "Start")
    expect_events(page, 25)
    click(page, "Drop")
    expect_state(page, "dropped")
    click(page, "Reconnect")
    expect_events(page, 46)
    expect(page.locator("#plain-note")).to_have_text(re.compile("again from the beginning: [1-9]"))
    folder = ROOT / "docs" if os.environ.get("UPDATE_SCREENSHOT") else tmp_path
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / "playground.png")
    assert (folder / "playground.png").stat().st_size > 10_000


def test_the_plain_answer_obeys_the_form(page: Page, server: str) -> None:
    """It has the same arguments as the run, and the same source."""
    with (
        page.expect_request("**/plain/tokens") as plain,
        page.expect_request("**/streams/tokens") as run,
    ):
        start(page, "tokens", prompt="Why?", tokens_per_second=500)
    assert plain.value.post_data_json == run.value.post_data_json
    choose(page, "EventSource")
    assert httpx.get(f"{server}page/about.json", headers=JSON).json() == {"plain": ["tokens"]}
