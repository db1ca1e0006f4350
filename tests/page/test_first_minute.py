"""What a newcomer sees of the playground: its layout and the two panes."""

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.support.browser import LONG_NUMBER, serious_violations
from tests.support.playground import (
    JSON,
    Open,
    choose,
    click,
    code,
    expect_events,
    expect_state,
    problem,
    rows,
    start,
)
from tests.support.servers import ROOT, free_port, server_process

SIZES = {"laptop": (1280, 800), "low": (1366, 650), "phone": (390, 844)}
BUTTONS = ["start", "stop", "drop", "reconnect"]
PARTS = 30


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
    start(page, "kinds", ratio="0.5", tags='["a"]')
    expect_state(page, "refused")
    assert boxes(page, BUTTONS) == before
    page.route("**/streams/counter", lambda route: problem(route, 504))
    start(page, "counter", count=5)
    expect(page.locator("#state")).to_contain_text("the server cannot be reached (504)")
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
    placed = [*BUTTONS, "events", "plain-value", "value", "chart"]
    before = boxes(page, placed)
    page.evaluate(
        """() => {
            const now = performance.now.bind(performance);
            performance.now = () => now() + 100_000;
        }"""
    )
    expect(page.locator("#silence")).to_contain_text("without a heartbeat for")
    click(page, "Drop")
    expect(page.locator("#state")).to_have_text("connection dropped by you; the run continues")
    assert boxes(page, placed) == before
    click(page, "Reconnect")
    expect(page.locator("#note")).to_contain_text("nothing lost, nothing twice")
    assert boxes(page, placed) == before


@pytest.mark.parametrize("width", [640, 683, 992])
def test_nothing_is_wider_than_the_window_at_a_zoom_of_200_percent(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 400})
    start_stalled(page)
    expect(page.locator("#note")).to_have_text(f"{PARTS} pieces")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert all(is_in_sight(page, box) for box in boxes(page, BUTTONS))
    plain, run = boxes(page, ["plain-value", "value"])
    assert plain["right"] <= run["left"], "the panes are side by side"


def test_on_a_phone_the_answers_are_what_one_sees_after_start(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    click(page, "Start")
    expect(page.locator("#plain-note")).to_contain_text("pieces")
    expect(page.locator("#speed")).to_be_visible()
    bar = boxes(page, ["start"])[0]["top"]
    seen = boxes(page, ["prompt", "plain-note", "plain-value", "note", "value", "speed"])
    assert all(is_in_sight(page, box) and box["bottom"] <= bar for box in seen)
    assert seen[2]["bottom"] <= seen[3]["top"], "the panes are one below the other"


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
        page.locator("#start").dispatch_event("click")
        expect_state(page, "no sources")
        assert serious_violations(page) == []


def test_parameters_may_have_the_names_of_what_a_form_has(page: Page) -> None:
    names = ["elements", "submit", "action", "name", "length", "transport", "source"]
    names += ["__proto__", "requestSubmit"]
    given = {name: "7" if name == "length" else f"my {name}" for name in names}
    page.locator("#source").select_option("clash")
    for name, text in given.items():
        page.locator(f"#field-{name}").fill(text)
    click(page, "Start")
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
    expect(page.locator("#field-prompt")).not_to_have_value("")
    rate = float(page.get_by_label("tokens per second").input_value())
    pieces = 60  # of the mock's reply, at least
    assert pieces / rate > 6, "seconds"


def test_the_two_panes_are_there_before_the_start(page: Page) -> None:
    titles = page.locator(".pane:visible h2")
    expect(titles).to_have_text(["A plain StreamingResponse", "Streams"])
    page.locator("#source").select_option("counter")
    expect(titles).to_have_text(["Latest value"])


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
    expect(note).to_have_text(f"continued after piece {PARTS}: nothing lost, nothing twice")
    expect(plain).to_have_text(f"started again from the beginning: {PARTS} pieces")
    ids = [row[0] for row in rows(page)]
    assert ids == [str(n) for n in range(PARTS + 1)]
    assert page.locator("#value").inner_text() == answer
    click(page, "Stop")
    expect_state(page, "cancelled")
    expect(plain).to_have_text(f"stopped after {PARTS} pieces")


def test_a_plain_answer_that_was_started_again_is_made_twice(page: Page) -> None:
    fast: dict[str, Any] = {
        "tokens_per_second": 10_000,
        "first_token": 0,
        "reply": "One two three.",
    }
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
    for note in ["#plain-note", "#note"]:
        expect(page.locator(note)).to_contain_text("refused with status 418")
    expect(page.locator("#problem")).to_have_text(
        "418: the mock refuses with status 418, as requested"
    )
    expect(page.locator("#response")).to_contain_text("content-type: application/problem+json")


def test_the_note_of_a_run_that_waits_to_start_says_why(page: Page) -> None:
    page.route("**/streams/tokens", lambda route: problem(route, 429))
    start(page, "tokens")
    expect(page.locator("#note")).to_contain_text("the server is busy (429)")


def test_only_the_mock_has_a_plain_answer_beside_it(page: Page) -> None:
    start(page, "counter", count=2, interval=0)
    expect_state(page, "completed")
    expect(page.locator("#plain")).to_be_hidden()
    expect(page.locator("#note")).to_be_hidden()


# ---- the picture in the README


def test_the_picture_shows_a_reconnect_of_both_panes(page: Page, tmp_path: Path) -> None:
    def stall(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        route.continue_(post_data=json.dumps({**body, "stall_after": 60}))

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
    expect(page.locator("#note")).to_contain_text("nothing lost, nothing twice")
    expect(page.locator("#plain-note")).to_have_text(re.compile(r"from the beginning: \d\d"))
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
