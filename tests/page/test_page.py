"""The playground in a real browser, with a real server."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.page.test_event_stream import CASES
from tests.support.browser import (
    GATE_AT,
    GATED_COUNT,
    INJECTION,
    base64_of,
    serious_violations,
)
from tests.support.playground import (
    JSON,
    TRANSPORTS,
    WAITS,
    Open,
    choose,
    click,
    code,
    expect_events,
    expect_state,
    fill,
    lose_connection,
    numbers,
    numbers_up_to,
    open_gate,
    problem,
    rows,
    run_of,
    start,
    state_of,
)
from tests.support.servers import ROOT, free_port, server_process

# ---- the form


def test_the_form_is_built_from_the_published_schema(page: Page, server: str) -> None:
    sources = httpx.get(f"{server}streams").json()["sources"]
    [counter] = [source for source in sources if source["name"] == "counter"]
    description = counter["parameters"]["properties"]["count"]["description"]
    page.locator("#source").select_option("counter")
    expect(page.locator("#description")).to_have_text(counter["description"])
    count = page.get_by_label("count")
    expect(count).to_have_value("10")
    expect(count).to_have_attribute("min", "0")
    expect(count).to_have_attribute("max", "1000000000")
    expect(count).to_have_accessible_description(f"{description} · 0 to 1,000,000,000")


def test_each_kind_of_parameter_has_a_field(page: Page) -> None:
    page.locator("#source").select_option("kinds")
    expect(page.locator("#field-ratio")).to_be_hidden()
    fill(page, "kinds", word="hello", ratio=0.5, tags='["a", "b"]')
    expect(page.locator("#field-word")).to_have_attribute("required", "")
    page.locator("#field-size").select_option("large")
    page.locator("#field-loud").check()
    click(page, "Start")
    expect_state(page, "completed")
    sent = '{"word":"hello","size":"large","loud":true,"ratio":0.5,"tags":["a","b"]}'
    assert rows(page)[1][3] == sent


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_invalid_parameter_is_shown_at_its_field(page: Page, transport: str) -> None:
    start(page, "counter", transport, count=-5, interval=100)
    expect(page.locator("#error-count")).to_contain_text("expected `int` >= 0")
    expect(page.locator("#error-interval")).to_contain_text("<= 60")
    expect(page.locator("#error-start")).to_be_empty()
    expect(page.locator("#field-count")).to_be_focused()
    expect(page.locator("#field-count")).to_have_attribute("aria-invalid", "true")
    expect_state(page, "refused")
    start(page, "counter", transport, count=3, interval=0)
    expect_state(page, "completed")
    expect(page.locator("#error-count")).to_be_empty()


def test_an_error_at_a_folded_field_unfolds_it(page: Page) -> None:
    start(page, "tokens", status=200)
    expect(page.locator("#error-status")).to_contain_text(">= 400")
    expect(page.locator("#field-status")).to_be_focused()


def test_an_invalid_number_is_an_error_at_its_field(page: Page) -> None:
    page.locator("#source").select_option("counter")
    page.locator("#field-count").focus()
    page.keyboard.type("e")
    page.keyboard.press("Enter")
    expect(page.locator("#error-count")).to_contain_text("expected `int`")


# ---- streams


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_events_of_a_counter_are_shown(page: Page, transport: str) -> None:
    start(page, "counter", transport, count=30, interval=0.01)
    expect_state(page, "completed")
    assert numbers(page) == numbers_up_to(30)
    assert [row[0] for row in rows(page)] == [str(n) for n in range(32)]
    assert [rows(page)[0][1], rows(page)[-1][1]] == ["start", "end"]
    expect(page.locator("#value output")).to_have_text("29")
    expect(page.locator("#events")).to_have_text("32")
    expect(page.locator("#reconnects")).to_have_text("0")
    expect(page.locator("#first")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#http")).to_have_text("1.1")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tokens_are_shown_as_one_growing_text(page: Page, transport: str) -> None:
    reply = "An answer of a few words."
    pace = {"tokens_per_second": 500, "first_token": 0}
    start(page, "tokens", transport, prompt="Why?", reply=reply, **pace)
    expect_state(page, "completed")
    expect(page.locator("#value")).to_have_text(reply)
    expect(page.locator("#prompt")).to_have_text("Why?")
    expect(page.locator("#speed")).to_have_text(
        re.compile(r"^\d+ pieces(, [\d.]+ per second)?, the first after [\d,]+ ms$")
    )


@pytest.mark.parametrize(
    ("reply", "shown"), [("12", "12"), ('"a"', '"a"'), ('["One.", "Two."]', "One.")]
)
def test_a_field_for_a_text_or_a_list_takes_both(page: Page, reply: str, shown: str) -> None:
    start(page, "tokens", reply=reply, tokens_per_second=500, first_token=0)
    expect_state(page, "completed")
    expect(page.locator("#value")).to_have_text(shown)


def test_tokens_can_be_joined(page: Page) -> None:
    reply = "An answer of a few words."
    page.locator("#source").select_option("tokens")
    expect(page.get_by_label("every")).to_have_accessible_description(re.compile("0 to 10$"))
    start(page, "tokens", reply=reply, tokens_per_second=500, first_token=0, every=10)
    expect_state(page, "completed")
    expect(page.locator("#value")).to_have_text(reply)
    expect(page.locator("#events")).to_have_text("4")  # start, the first token, the rest, end


def test_reasoning_tool_calls_and_a_refusal_are_shown_beside_the_text(page: Page) -> None:
    start(page, "thinks")
    expect_state(page, "completed")
    shown = page.locator("#value > div")
    expect(shown).to_have_text(
        ["Where is it?", "I look it up.", 'weather {"city":"Oslo"}', "time {}", INJECTION]
    )
    classes = shown.evaluate_all("parts => parts.map((part) => part.className)")
    assert classes == ["reasoning", "text", "tool", "tool", "refusal"]
    expect(page.locator("#speed")).to_contain_text("8 pieces")
    assert page.evaluate("window.hacked") is None
    assert serious_violations(page) == []


def test_an_answer_keeps_its_newest_100_000_characters(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
            const { append } = await import("./page/answer.js");
            const box = document.createElement("div");
            append(box, [["reasoning", "r".repeat(99_999)], ["text", "t"]]);
            const before = [...box.children].map((part) => part.textContent.length);
            append(box, [["text", "t".repeat(5)]]);
            const after = [...box.children].map((part) => part.textContent.length);
            append(box, [["text", "t".repeat(200_000)]]);
            return [before, after, [...box.children].map((part) => part.textContent.length)];
        }"""
    )
    assert kept == [[99_999, 1], [99_994, 6], [100_000]]


def test_enter_sends_the_prompt_and_shift_enter_inserts_a_line_break(page: Page) -> None:
    page.locator("#source").select_option("tokens")
    prompt = page.locator("#parameters textarea").first
    prompt.fill("one")
    prompt.press("Shift+Enter")
    prompt.press_sequentially("two")
    expect_state(page, "idle")
    prompt.press("Enter")
    expect(page.locator("#prompt")).to_have_text("one\ntwo")
    expect(page.locator("#value")).not_to_be_empty()


def test_a_failed_source_shows_its_error(page: Page) -> None:
    start(page, "hostile")
    expect_state(page, "failed")
    expect(page.locator("#problem")).to_contain_text("StreamError: </td>")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_reconnect_resumes_without_missing_or_repeated_events(
    page: Page, server: str, transport: str
) -> None:
    gate = f"reconnect-{transport}"
    start(page, "gated", transport, gate=gate)
    expect_events(page, 1 + GATE_AT)
    click(page, "Drop")
    expect_state(page, "dropped")
    expect(page.locator("#state")).to_have_text("connection dropped by you; the run continues")
    assert state_of(run_of(page), server) == "running"
    open_gate(gate, server)
    click(page, "Reconnect")
    expect_state(page, "completed")
    assert numbers(page) == numbers_up_to(GATED_COUNT)
    assert [row[1] for row in rows(page)].count("start") == 1
    expect(page.locator("#reconnects")).to_have_text("1")
    expect(page.locator("#chart .reconnects")).to_have_attribute("d", re.compile("^M"))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_continues_when_its_server_is_killed_and_restarted(
    open_page: Open, transport: str, tmp_path: Path
) -> None:
    log = f"sqlite:{tmp_path}/runs.db"
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with server_process(port, "--no-access-log", app="tests.support.browser:app", TEST_LOG=log):
        page = open_page(url)
        start(page, "gated", transport, gate="restart")
        expect_events(page, 1 + GATE_AT)
        run = run_of(page)
    expect_state(page, "waiting")
    reconnecting = re.compile(r"^connection lost, reconnecting( in \d s)?$")
    expect(page.locator("#state")).to_have_text(reconnecting)
    with server_process(port, "--no-access-log", app="tests.support.browser:app", TEST_LOG=log):
        open_gate("restart", url)
        expect_state(page, "completed")
        assert numbers(page) == numbers_up_to(GATED_COUNT)
        assert run_of(page) == run


@pytest.mark.parametrize("status", [429, 503])
def test_the_page_says_why_and_how_long_it_waits_to_start(page: Page, status: int) -> None:
    page.route("**/streams/counter", lambda route: problem(route, status))
    start(page, "counter")
    expect(page.get_by_role("status")).to_have_text(f"trying again in 60 s: {WAITS[status]}")
    page.unroute("**/streams/counter")
    click(page, "Reconnect")
    expect_state(page, "completed")


@pytest.mark.parametrize("status", WAITS)
def test_the_page_says_why_and_how_long_it_waits_to_reconnect(page: Page, status: int) -> None:
    page.route("**/runs/r", lambda route: problem(route, status))
    lose_connection(page, retry=1)
    expect(page.get_by_role("status")).to_have_text(f"reconnecting in 60 s: {WAITS[status]}")
    expect_state(page, "waiting")


def test_the_page_says_when_the_device_is_offline(page: Page, context: BrowserContext) -> None:
    page.route("**/runs/r", lambda route: problem(route, 503))
    lose_connection(page, retry=60_000)
    expect(page.get_by_role("status")).to_have_text("connection lost, reconnecting in 60 s")
    context.set_offline(True)
    expect(page.get_by_role("status")).to_have_text("this device is offline, reconnecting in 60 s")
    context.set_offline(False)
    expect(page.get_by_role("status")).to_contain_text("the server is busy")


def test_a_state_that_stays_the_same_is_announced_once(page: Page) -> None:
    page.evaluate(
        """() => {
            window.announced = [];
            new MutationObserver((changes) => changes.forEach(({ addedNodes: [node] }) =>
                window.announced.push(node.textContent)
            )).observe(document.querySelector("#state"), { childList: true });
        }"""
    )
    start(page, "counter", count=30, interval=0.02)
    expect_state(page, "completed")
    announced = page.evaluate("window.announced")
    assert len(set(announced)) == len(announced)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("state", ["open", "dropped"])
def test_a_stop_that_the_server_refuses_shows_its_error(
    page: Page, transport: str, state: str
) -> None:
    page.route(
        "**/runs/*",
        lambda route: (
            problem(route, 404) if route.request.method == "DELETE" else route.continue_()
        ),
    )
    start(page, "gated", transport, gate="never opened")
    expect_events(page, 3)
    if state == "dropped":
        click(page, "Drop")
    expect_state(page, state)
    click(page, "Stop")
    expect(page.locator("#problem")).to_have_text("404: it is 404")
    expect_state(page, state)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_stop_ends_the_run(page: Page, server: str, transport: str) -> None:
    start(page, "gated", transport, gate="never opened")
    expect_events(page, 3)
    click(page, "Stop")
    expect_state(page, "cancelled")
    assert state_of(run_of(page), server) == "cancelled"


def test_a_run_can_be_stopped_after_a_drop(page: Page, server: str) -> None:
    start(page, "gated", gate="never opened")
    expect_events(page, 3)
    click(page, "Drop")
    click(page, "Stop")
    expect_state(page, "cancelled")
    assert state_of(run_of(page), server) == "cancelled"


def test_another_tab_shows_the_same_run_from_its_start(page: Page, context: BrowserContext) -> None:
    start(page, "gated", gate="never opened")
    expect_events(page, 5)
    with context.expect_page() as opened:
        page.locator("#run a").click()
    other = opened.value
    expect_events(other, 1 + GATE_AT)
    assert numbers(other) == numbers_up_to(GATE_AT)
    assert run_of(other) == run_of(page)
    click(other, "Stop")
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
def test_an_unknown_run_shows_the_servers_error(
    open_page: Open, server: str, transport: str
) -> None:
    run = "a" * 22
    page = open_page(server)
    choose(page, transport)
    page.evaluate("(run) => (location.hash = run)", run)
    expect_state(page, "refused")
    detail = httpx.get(f"{server}runs/{run}", headers=JSON).json()["detail"]
    expect(page.locator("#problem")).to_contain_text(detail)


def test_a_new_run_replaces_the_one_shown(page: Page) -> None:
    start(page, "gated", gate="never opened")
    expect_events(page, 3)
    start(page, "counter", count=5, interval=0)
    expect_state(page, "completed")
    assert numbers(page) == numbers_up_to(5)


# ---- the verdict on buffering

ARRIVALS: dict[str, tuple[Sequence[float], str, str]] = {
    "too few": ([5, 6], "unknown", "Too few"),
    "bursts": (
        [5, *(1000 * n + k / 10 for n in range(1, 6) for k in range(8))],
        "buffered",
        "bursts of about 8",
    ),
    "one by one": ([5, *range(50, 1000, 40)], "unbuffered", "one by one"),
    "small groups": (
        [5, *(20 * n + k / 10 for n in range(1, 40) for k in range(5))],
        "unbuffered",
        "small groups",
    ),
    "all at once": (
        [2000 + k / 10 for k in range(30)],
        "buffered",
        "nothing arrived for 2.0 s, then 30 events",
    ),
    "slow start": ([2000, *range(2050, 3000, 40)], "unbuffered", "one by one"),
}
"""Arrival times in milliseconds, the kind of the verdict, and a part of its text."""


def set_round_trip(page: Page) -> None:
    """Replaces what is measured on a busy machine: a long round trip, and that it is busy."""
    page.evaluate(
        """async () => {
            const { Pace } = await import("./page/pace.js");
            Object.defineProperty(Pace.prototype, "roundTrip", { get: () => 1, set: () => {} });
            Pace.prototype.busy = () => {};
        }"""
    )


def set_arrivals(page: Page, arrivals: Sequence[float]) -> None:
    """Replaces the time at which each event arrives, in milliseconds after the request."""
    page.evaluate(
        """async (arrivals) => {
            const { Pace } = await import("./page/pace.js");
            const { arrived } = Pace.prototype;
            let n = 0;
            Pace.prototype.arrived = function () {
                return arrived.call(this, this.began + arrivals[n++]);
            };
        }""",
        arrivals,
    )


@pytest.mark.parametrize("case", ARRIVALS)
def test_the_page_shows_the_verdict_for_given_arrival_times(page: Page, case: str) -> None:
    arrivals, kind, text = ARRIVALS[case]
    set_round_trip(page)
    set_arrivals(page, arrivals)
    start(page, "counter", count=len(arrivals) - 2, interval=0)  # start and end are events, too
    expect_state(page, "completed")
    expect(page.locator("#events")).to_have_text(str(len(arrivals)))
    expect(page.locator("#verdict")).to_have_attribute("data-kind", kind)
    expect(page.locator("#verdict > p")).to_contain_text(text)
    expect(page.locator("#verdict details")).to_be_visible(visible=kind == "buffered")


def test_a_buffering_proxy_is_detected(page: Page) -> None:
    def buffer(route: Route) -> None:
        route.fulfill(response=route.fetch())  # the whole response, once it is complete

    set_round_trip(page)
    page.route("**/streams/counter", buffer)
    start(page, "counter", count=30, interval=0.05)
    expect_state(page, "completed")
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "buffered")
    page.get_by_text("How to turn off buffering").click()
    expect(page.locator("#verdict")).to_contain_text("proxy_buffering off;")


# ---- the code


def test_copy_copies_the_code_that_is_shown(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    fill(page, "counter", count=3)
    shown = code(page, "curl")
    assert "/streams/counter?count=3'" in shown
    click(page, "Copy")
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == shown


PROMPT = 'it\'s "$HOME" `x` \\ é'


def fill_all_kinds(page: Page) -> None:
    fill(page, "kinds", word=PROMPT, ratio=0.5, tags='["a", "b"]')
    page.locator("#field-loud").check()


def test_the_code_for_curl_and_python_runs(page: Page) -> None:
    fill_all_kinds(page)
    sent = {"word": PROMPT, "size": "small", "loud": True, "ratio": 0.5, "tags": ["a", "b"]}
    for command in (["sh", "-c", code(page, "curl")], [sys.executable, "-c", code(page, "Python")]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert "completed" in done.stdout
        assert json.dumps(sent, ensure_ascii=False, separators=(",", ":")) in done.stdout or (
            str(sent) in done.stdout
        )


def test_the_code_for_browsers_runs(page: Page) -> None:
    fill_all_kinds(page)
    fetch_code = re.sub(
        r"import (.*) from (.*);", r"const \1 = await import(\2);", code(page, "event-stream.js")
    )
    event_source_code = code(page, "EventSource")
    logged, count = page.evaluate(
        f"""async () => {{
            const logged = [];
            const console = {{ log: (...values) => logged.push(JSON.stringify(values)) }};
            {fetch_code}
            const count = logged.length;
            {event_source_code}
            await new Promise((resolve, reject) => {{
                source.addEventListener("end", resolve);
                setTimeout(() => reject(new Error("no end event within 20 s")), 20_000);
            }});
            return [logged, count];
        }}"""
    )
    assert len(logged) == 2 * count
    assert all("$HOME" in "".join(part) for part in (logged[:count], logged[count:]))


# ---- keys


def test_each_start_sends_a_key_of_its_own(page: Page) -> None:
    keys = []
    for _ in range(2):
        with page.expect_request("**/streams/counter") as request:
            start(page, "counter", count=1)
        expect_state(page, "completed")
        keys.append(request.value.headers["idempotency-key"])
    assert len(set(keys)) == 2


def test_a_key_passes_the_strict_cors_of_another_origin(
    context: BrowserContext, server: str
) -> None:
    page = context.new_page()
    page.goto(f"{server}health")  # The playground's own CSP allows no other origin.
    port = free_port()
    with server_process(port, app="tests.support.browser:strict"):
        counted = page.evaluate(
            """async (url) => {
                const { eventStream } = await import("/page/event-stream.js");
                const numbers = [];
                for await (const { data } of eventStream(url, { body: { count: 2, interval: 0 } }))
                    numbers.push(data.number);
                return numbers;
            }""",
            f"http://127.0.0.1:{port}/streams/counter",
        )
    assert counted == [0, 1]


# ---- security, deployment, accessibility, load


def test_html_in_a_stream_is_shown_as_text(page: Page) -> None:
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
def test_the_page_works_under_a_mount(open_page: Open, transport: str) -> None:
    port = free_port()
    with server_process(port, "--no-access-log", app="tests.support.browser:mounted"):
        page = open_page(f"http://127.0.0.1:{port}/live")
        start(page, "counter", transport, count=10_000, interval=0.01)
        expect_events(page, 3)
        click(page, "Stop")
        expect_state(page, "cancelled")


def test_the_page_works_behind_a_proxy_that_strips_a_prefix(open_page: Open) -> None:
    port = free_port()
    app = "tests.support.browser:app"
    with server_process(port, "--no-access-log", "--root-path", "/prefix", app=app):
        page = open_page(f"http://127.0.0.1:{port}/")
        page.route(
            "**/prefix/**",
            lambda route: route.continue_(url=route.request.url.replace("/prefix", "")),
        )
        page.goto(f"http://127.0.0.1:{port}/prefix/")
        start(page, "counter", count=10_000, interval=0.01)
        expect_events(page, 3)
        click(page, "Stop")
        expect_state(page, "cancelled")


def test_the_page_can_be_used_with_the_keyboard(page: Page) -> None:
    def focused() -> str:
        name: str = page.evaluate("document.activeElement.id || document.activeElement.value")
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.matches('[type=radio]')"
            " ? document.activeElement.nextSibling : document.activeElement).outlineStyle"
        )
        assert outline != "none", f"{name} has the focus, but no outline"
        return name

    page.keyboard.press("Tab")
    assert focused() == "source"
    page.keyboard.press("End")
    expect(page.locator("#source")).not_to_have_value("counter")
    page.keyboard.press("Home")
    expect(page.locator("#source")).to_have_value("counter")
    visited: list[str] = []
    while "start" not in visited and len(visited) < 10:
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
    assert serious_violations(page) == []
    start(page, "tokens", prompt=100 * "long", tokens_per_second=2000)
    expect_state(page, "completed")
    assert serious_violations(page) == []
    page.route("**/runs/r", lambda route: problem(route, 504))
    lose_connection(page, retry=1)
    expect(page.get_by_role("status")).to_contain_text("cannot be reached")
    assert serious_violations(page) == []
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(18, 23, 26)") is (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_reduced_motion_turns_animations_off(page: Page) -> None:
    animation = "getComputedStyle(document.querySelector('#state'), '::before').animationName"
    page.emulate_media(reduced_motion="no-preference")
    start(page, "counter", count=10_000, interval=0.1)
    expect_state(page, "open")
    assert page.evaluate(animation) == "pulse"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(animation) == "none"


def test_ten_thousand_events_are_painted_once_per_frame_from_bounded_state(page: Page) -> None:
    page.evaluate(
        """async () => {
            const { Pace } = await import("./page/pace.js");
            const { arrived } = Pace.prototype;
            Pace.prototype.arrived = function (...times) {
                document.body.dataset.arrived = this.events + 1;
                return arrived.apply(this, times);
            };
            const createElement = document.createElement.bind(document);
            window.createdRows = 0;
            document.createElement = (tag) => {
                if (tag === "tr") window.createdRows++;
                return createElement(tag);
            };
            window.heldFrames = [];
            window.requestAnimationFrame = (callback) => window.heldFrames.push(callback);
        }"""
    )
    start(page, "counter", count=10_000, interval=0)
    body = page.locator("body")
    expect(body).to_have_attribute("data-arrived", "10002", timeout=60_000)
    frames = page.evaluate("window.heldFrames.length")
    page.evaluate("window.heldFrames.forEach((paint) => paint(performance.now()))")
    assert (frames, page.evaluate("window.createdRows")) == (1, 200)
    expect(page.locator("#events")).to_have_text("10,002")
    expect(page.locator("#shown")).to_have_text("the newest 200 of 10,002")
    assert [row[0] for row in rows(page)] == [str(n) for n in range(9802, 10_002)]


# ---- the parser in a browser


def test_events_in_a_browser_do_not_depend_on_where_the_bytes_are_split(page: Page) -> None:
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
