"""The playground in a real browser, over a real server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.page.test_event_stream import CASES
from tests.support.browser import INJECTION, base64_of, chromium, serious_faults
from tests.support.servers import ROOT, free_port, server_process

TRANSPORTS = ["fetch", "EventSource"]

expect.set_options(timeout=10_000)

Open = Callable[..., Page]


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
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    yield context
    context.close()


@pytest.fixture
def open_page(context: BrowserContext, server: str) -> Iterator[Open]:
    """Opens the page; in the end, nothing must have been wrong on its console."""
    wrong: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))

    def opened(url: str = server) -> Page:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#source option").first).to_be_attached()
        return page

    context.on("page", watch)
    yield opened
    # The browser itself notes each refused request; that is what some tests are about.
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()


def fill(page: Page, source: str, transport: str = "fetch", **parameters: Any) -> None:
    page.locator("#source").select_option(source)
    choose(page, transport)
    for name, value in parameters.items():
        field = page.locator(f"#field-{name}")
        if not field.is_visible():
            page.get_by_text("More", exact=True).click()
        field.fill(str(value))


def choose(page: Page, transport: str) -> None:
    page.locator("#form").get_by_role("radio", name=transport, exact=True).check()


def start(page: Page, source: str, transport: str = "fetch", **parameters: Any) -> None:
    fill(page, source, transport, **parameters)
    page.get_by_role("button", name="Start").click()


def expect_state(page: Page, state: str) -> None:
    expect(page.locator("#state")).to_have_attribute("data-state", state, timeout=20_000)


def expect_events(page: Page, least: int) -> None:
    expect(page.locator("#rows tr").nth(least - 1)).to_be_attached()


def rows(page: Page) -> list[list[str]]:
    """The list of events: id, type, milliseconds, data."""
    cells = "rows => [...rows.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    listed: list[list[str]] = page.locator("#rows").evaluate(cells)
    return listed


def numbers(page: Page) -> list[str]:
    return [data for _, type_, _, data in rows(page) if type_ == "message"]


def counted(count: int) -> list[str]:
    return [f'{{"number":{number}}}' for number in range(count)]


def run_of(page: Page) -> str:
    return page.locator("#run a").inner_text()


# ---- the form


def test_the_form_is_made_of_the_published_schema(page: Page) -> None:
    page.locator("#source").select_option("counter")
    expect(page.locator("#description")).to_have_text("Counts, with a pause between two numbers.")
    count = page.get_by_label("count")
    expect(count).to_have_value("10")
    expect(count).to_have_attribute("min", "0")
    expect(count).to_have_attribute("max", "1000000000")
    expect(count).to_have_accessible_description("How many numbers · 0 to 1,000,000,000")


def test_every_kind_of_parameter_has_its_field(page: Page) -> None:
    page.locator("#source").select_option("kinds")
    expect(page.locator("#field-ratio")).to_be_hidden()
    fill(page, "kinds", word="hello", ratio=0.5, tags='["a", "b"]')
    expect(page.locator("#field-word")).to_have_attribute("required", "")
    page.locator("#field-size").select_option("large")
    page.locator("#field-loud").check()
    page.get_by_role("button", name="Start").click()
    expect_state(page, "completed")
    sent = '{"word":"hello","size":"large","loud":true,"ratio":0.5,"tags":["a","b"]}'
    assert rows(page)[1][3] == sent


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_refused_parameter_is_shown_at_its_field(page: Page, transport: str) -> None:
    start(page, "counter", transport, count=-5, interval=100)
    expect(page.locator("#fault-count")).to_contain_text("expected `int` >= 0")
    expect(page.locator("#fault-interval")).to_contain_text("<= 60")
    expect(page.locator("#fault-start")).to_be_empty()
    expect(page.locator("#field-count")).to_be_focused()
    expect(page.locator("#field-count")).to_have_attribute("aria-invalid", "true")
    expect_state(page, "refused")
    start(page, "counter", transport, count=3, interval=0)
    expect_state(page, "completed")
    expect(page.locator("#fault-count")).to_be_empty()


def test_a_fault_in_a_folded_field_unfolds_it(page: Page) -> None:
    start(page, "tokens", status=200)
    expect(page.locator("#fault-status")).to_contain_text(">= 400")
    expect(page.locator("#field-status")).to_be_focused()


def test_what_is_no_number_is_a_fault_of_its_field(page: Page) -> None:
    page.locator("#source").select_option("counter")
    page.locator("#field-count").focus()
    page.keyboard.type("e")
    page.keyboard.press("Enter")
    expect(page.locator("#fault-count")).to_contain_text("expected `int`")


# ---- streams


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_counter_is_shown_whole(page: Page, transport: str) -> None:
    start(page, "counter", transport, count=30, interval=0.01)
    expect_state(page, "completed")
    assert numbers(page) == counted(30)
    assert [row[0] for row in rows(page)] == [str(n) for n in range(32)]
    assert [rows(page)[0][1], rows(page)[-1][1]] == ["start", "end"]
    expect(page.locator("#value output")).to_have_text("29")
    expect(page.locator("#events")).to_have_text("32")
    expect(page.locator("#reconnects")).to_have_text("0")
    expect(page.locator("#first")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#http")).to_have_text("1.1")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tokens_grow_into_a_text(page: Page, transport: str) -> None:
    start(page, "tokens", transport, prompt="Why?", tokens_per_second=500, first_token=0)
    expect_state(page, "completed")
    text = page.locator("#value").inner_text()
    assert text.startswith("You asked: Why? Here is what a language model would do")
    assert text.endswith("goes on where it was.")
    expect(page.get_by_role("heading", name="Answer")).to_be_visible()
    expect(page.locator("#asked")).to_have_text("Why?")
    expect(page.locator("#speed")).to_have_text(
        re.compile(r"^\d+ tokens, [\d.]+ per second, the first after [\d,]+ ms$")
    )


def test_enter_sends_the_prompt_and_shift_makes_a_new_line_of_it(page: Page) -> None:
    page.locator("#source").select_option("tokens")
    prompt = page.locator("#parameters textarea").first
    prompt.fill("one")
    prompt.press("Shift+Enter")
    prompt.press_sequentially("two")
    expect_state(page, "idle")
    prompt.press("Enter")
    expect(page.locator("#asked")).to_have_text("one\ntwo")
    expect(page.locator("#value")).to_contain_text("You asked")


def test_a_failed_source_says_why(page: Page) -> None:
    start(page, "hostile")
    expect_state(page, "failed")
    expect(page.locator("#problem")).to_contain_text("StreamError: </td>")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_dropped_connection_resumes_without_hole_or_repeat(page: Page, transport: str) -> None:
    start(page, "counter", transport, count=100, interval=0.02)
    expect_events(page, 10)
    page.get_by_role("button", name="Drop").click()
    expect_state(page, "dropped")
    shown = len(numbers(page))
    state = httpx.get(page.url.split("#")[0] + f"runs/{run_of(page)}", headers=JSON).json()
    assert (state["status"], shown < 100) == ("running", True)
    page.get_by_role("button", name="Reconnect").click()
    expect_state(page, "completed")
    assert numbers(page) == counted(100)
    assert [row[1] for row in rows(page)].count("start") == 1
    expect(page.locator("#reconnects")).to_have_text("1")
    expect(page.locator("#chart .marks")).to_have_attribute("d", re.compile("^M"))


JSON = {"Accept": "application/json"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_killed_and_restarted_costs_not_one_number(
    open_page: Open, transport: str
) -> None:
    port = free_port()
    with server_process(port, "--no-access-log", app="tests.support.browser:app"):
        page = open_page(f"http://127.0.0.1:{port}/")
        start(page, "counter", transport, count=100, interval=0.02)
        expect_events(page, 10)
        run = run_of(page)
    expect_state(page, "waiting")
    with server_process(port, "--no-access-log", app="tests.support.browser:app"):
        expect_state(page, "completed")
        assert numbers(page) == counted(100)
        assert run_of(page) == run


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_stop_ends_the_run_itself(page: Page, server: str, transport: str) -> None:
    start(page, "counter", transport, count=10_000, interval=0.02)
    expect_events(page, 3)
    page.get_by_role("button", name="Stop").click()
    expect_state(page, "cancelled")
    state = httpx.get(f"{server}runs/{run_of(page)}", headers=JSON).json()
    assert state["status"] == "cancelled"


def test_a_run_can_be_stopped_behind_a_dropped_connection(page: Page, server: str) -> None:
    start(page, "counter", count=10_000, interval=0.02)
    expect_events(page, 3)
    page.get_by_role("button", name="Drop").click()
    page.get_by_role("button", name="Stop").click()
    expect_state(page, "cancelled")
    state = httpx.get(f"{server}runs/{run_of(page)}", headers=JSON).json()
    assert state["status"] == "cancelled"


def test_another_tab_watches_the_same_run_from_its_start(
    page: Page, context: BrowserContext
) -> None:
    start(page, "counter", count=10_000, interval=0.02)
    expect_events(page, 5)
    with context.expect_page() as opened:
        page.locator("#run a").click()
    other = opened.value
    expect_events(other, 10)
    assert numbers(other)[:3] == counted(3)
    assert run_of(other) == run_of(page)
    other.get_by_role("button", name="Stop").click()
    expect_state(other, "cancelled")
    expect_state(page, "cancelled")


def test_a_reload_shows_the_run_from_its_start(page: Page) -> None:
    start(page, "counter", "EventSource", count=20, interval=0)
    expect_state(page, "completed")
    before = [[id_, type_, data] for id_, type_, _, data in rows(page)]
    page.reload()
    expect_state(page, "completed")
    assert [[id_, type_, data] for id_, type_, _, data in rows(page)] == before
    expect(page.locator("#field-count")).to_have_value("20")
    expect(page.get_by_role("radio", name="EventSource").first).to_be_checked()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_that_is_gone_says_so(open_page: Open, server: str, transport: str) -> None:
    page = open_page(server)
    choose(page, transport)
    page.evaluate("location.hash = 'a'.repeat(22)")
    expect_state(page, "refused")
    expect(page.locator("#problem")).to_contain_text("there is no run")


def test_starting_again_leaves_the_run_before_behind(page: Page) -> None:
    start(page, "counter", count=10_000, interval=0.01)
    expect_events(page, 3)
    start(page, "counter", count=5, interval=0)
    expect_state(page, "completed")
    assert numbers(page) == counted(5)


# ---- what it says of the connection


def test_events_that_come_one_by_one_are_said_to(page: Page) -> None:
    start(page, "counter", count=20, interval=0.03)
    expect_state(page, "completed")
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "free")
    expect(page.locator("#verdict")).to_contain_text("One by one")
    expect(page.locator("#verdict details")).to_be_hidden()


def test_a_proxy_that_holds_events_back_is_found_out(page: Page) -> None:
    def hold_back(route: Route) -> None:
        route.fulfill(response=route.fetch())  # all of it, when all of it is there

    page.route("**/streams/counter", hold_back)
    start(page, "counter", count=30, interval=0.05)
    expect_state(page, "completed")
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "held")
    page.get_by_text("What to do about it").click()
    expect(page.locator("#verdict")).to_contain_text("proxy_buffering off;")


ARRIVALS = [
    ([5], "early", "Too few"),
    ([5, *(1000 * n + k / 10 for n in range(1, 6) for k in range(8))], "held", "bursts of about 8"),
    ([5, *range(50, 1000, 40)], "free", "One by one"),
    ([5, *(20 * n + k / 10 for n in range(1, 40) for k in range(5))], "free", "small groups"),
    ([2000 + k / 10 for k in range(30)], "held", "nothing came for 2.0 s, then 30"),
    ([2000, *range(2050, 3000, 40)], "free", "One by one"),
]


def test_the_verdict_on_buffering(page: Page) -> None:
    for arrivals, kind, text in ARRIVALS:
        verdict = page.evaluate(
            """async (arrivals) => {
                const { Pace } = await import("./page/pace.js");
                const pace = new Pace(0, 1);
                arrivals.forEach((at) => pace.arrived(at));
                return pace.verdict();
            }""",
            arrivals,
        )
        assert (verdict["kind"], text in verdict["text"]) == (kind, True), verdict


# ---- the code


def code(page: Page, language: str) -> str:
    page.get_by_role("radio", name=language, exact=True).last.check()
    return page.locator("#code").inner_text()


def test_the_code_shown_is_the_code_copied(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    fill(page, "counter", count=3)
    shown = code(page, "curl")
    assert "/streams/counter?count=3'" in shown
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == shown


PROMPT = 'it\'s "$HOME" `x` \\ é'


def fill_with_all_kinds(page: Page) -> None:
    fill(page, "kinds", word=PROMPT, ratio=0.5, tags='["a", "b"]')
    page.locator("#field-loud").check()


def test_the_curl_and_the_python_code_run(page: Page) -> None:
    fill_with_all_kinds(page)
    sent = {"word": PROMPT, "size": "small", "loud": True, "ratio": 0.5, "tags": ["a", "b"]}
    for command in (["sh", "-c", code(page, "curl")], [sys.executable, "-c", code(page, "Python")]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert "completed" in done.stdout
        assert json.dumps(sent, ensure_ascii=False, separators=(",", ":")) in done.stdout or (
            str(sent) in done.stdout
        )


def test_the_code_for_browsers_runs(page: Page) -> None:
    fill_with_all_kinds(page)
    fetching = re.sub(
        r"import (.*) from (.*);", r"const \1 = await import(\2);", code(page, "event-stream.js")
    )
    listening = code(page, "EventSource")
    everything, count = page.evaluate(
        f"""async () => {{
            const logged = [];
            const console = {{ log: (...values) => logged.push(JSON.stringify(values)) }};
            {fetching}
            const count = logged.length;
            {listening}
            await new Promise((resolve) => source.addEventListener("end", resolve));
            return [logged, count];
        }}"""
    )
    assert len(everything) == 2 * count
    assert all("$HOME" in "".join(part) for part in (everything[:count], everything[count:]))


# ---- safe, at home anywhere, for everybody


def test_what_a_stream_says_is_only_ever_text(page: Page) -> None:
    start(page, "hostile")
    expect_state(page, "failed")
    assert rows(page)[1][3] == INJECTION
    assert rows(page)[2][1] == INJECTION
    expect(page.locator("#value")).to_have_text(INJECTION)
    start(page, "tokens", prompt=INJECTION, tokens_per_second=2000, first_token=0)
    expect_state(page, "completed")
    expect(page.locator("#value")).to_contain_text(INJECTION)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0


def test_the_page_runs_under_a_strict_content_security_policy(server: str) -> None:
    policy = httpx.get(server).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_works_under_a_mount(open_page: Open, transport: str) -> None:
    port = free_port()
    with server_process(port, "--no-access-log", app="tests.support.browser:mounted"):
        page = open_page(f"http://127.0.0.1:{port}/live")
        start(page, "counter", transport, count=10_000, interval=0.01)
        expect_events(page, 3)
        page.get_by_role("button", name="Stop").click()
        expect_state(page, "cancelled")


def test_it_works_behind_a_proxy_that_takes_a_prefix_away(open_page: Open) -> None:
    port = free_port()
    app = "tests.support.browser:app"
    with server_process(port, "--no-access-log", "--root-path", "/behind", app=app):
        page = open_page(f"http://127.0.0.1:{port}/")
        page.route(
            "**/behind/**",
            lambda route: route.continue_(url=route.request.url.replace("/behind", "")),
        )
        page.goto(f"http://127.0.0.1:{port}/behind/")
        start(page, "counter", count=10_000, interval=0.01)
        expect_events(page, 3)
        page.get_by_role("button", name="Stop").click()
        expect_state(page, "cancelled")


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    def focused() -> str:
        name: str = page.evaluate("document.activeElement.id || document.activeElement.value")
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.matches('[type=radio]')"
            " ? document.activeElement.nextSibling : document.activeElement).outlineStyle"
        )
        assert outline != "none", f"nothing shows that {name} has the focus"
        return name

    page.keyboard.press("Tab")
    assert focused() == "source"
    page.keyboard.type("counter")
    visited = []
    while "start" not in visited:
        page.keyboard.press("Tab")
        visited.append(focused())
        if visited[-1] == "field-count":
            page.keyboard.type("9999")
        if visited[-1] == "fetch":
            page.keyboard.press("ArrowRight")
    assert visited == ["field-start", "field-count", "field-interval", "fetch", "start"]
    page.keyboard.press("Enter")
    expect_events(page, 3)
    page.keyboard.press("Tab")
    assert focused() == "stop"
    page.keyboard.press("Space")
    expect_state(page, "cancelled")
    assert focused() == "stop"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_both_themes_are_accessible_at_both_widths(page: Page, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 844})
    start(page, "counter", count=-1)
    expect_state(page, "refused")
    assert serious_faults(page) == []
    start(page, "tokens", prompt=100 * "long", tokens_per_second=2000)
    expect_state(page, "completed")
    assert serious_faults(page) == []
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(18, 23, 26)") is (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_who_wants_less_motion_gets_none(page: Page) -> None:
    animation = "getComputedStyle(document.querySelector('#state'), '::before').animationName"
    start(page, "counter", count=10_000, interval=0.1)
    expect_state(page, "open")
    assert page.evaluate(animation) == "breathe"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(animation) == "none"


def test_ten_thousand_events_do_not_slow_it(page: Page) -> None:
    page.evaluate(
        """() => {
            window.longest = 0;
            const observe = (list) => {
                for (const { duration } of list.getEntries())
                    window.longest = Math.max(window.longest, duration);
            };
            new PerformanceObserver(observe).observe({ type: "longtask" });
        }"""
    )
    start(page, "counter", count=10_000, interval=0)
    expect_state(page, "completed")
    expect(page.locator("#events")).to_have_text("10,002")
    expect(page.locator("#held")).to_have_text("the newest 200 of 10,002")
    assert [row[0] for row in rows(page)] == [str(n) for n in range(9802, 10_002)]
    assert page.evaluate("window.longest") < 1000


# ---- the parser, where it will run


def test_the_parser_wherever_the_bytes_are_cut(page: Page) -> None:
    cuts = (ROOT / "tests/page/js/cuts.js").read_text().replace("export ", "")
    for case, (stream, events) in CASES.items():
        outcomes = page.evaluate(
            f"""async (stream) => {{
                {cuts}
                const {{ EventParser }} = await import("./page/event-stream.js");
                const bytes = Uint8Array.from(atob(stream), (byte) => byte.charCodeAt(0));
                return everyOutcome(EventParser, bytes);
            }}""",
            base64_of(stream),
        )
        assert outcomes == [{"events": events, "retry": None}], case


# ---- the README's picture


def test_the_picture_shows_a_stream_on_its_way(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 1020})
    start(page, "tokens", prompt="Why stream?", tokens_per_second=15)
    expect_events(page, 15)
    page.get_by_role("button", name="Drop").click()
    expect_state(page, "dropped")
    page.get_by_role("button", name="Reconnect").click()
    expect_events(page, 40)
    folder = ROOT / "docs" if os.environ.get("UPDATE_SCREENSHOT") else tmp_path
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / "playground.png")
    assert (folder / "playground.png").stat().st_size > 10_000
