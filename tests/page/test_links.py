"""The address of the playground, and the runs that it remembers."""

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.support.playground import (
    TRANSPORTS,
    Open,
    click,
    code,
    expect_state,
    fill,
    numbers,
    numbers_up_to,
    run_of,
    start,
)

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
    expect(page.locator("#run a")).to_have_text(runs[0])
    expect(page.locator("#field-count")).to_have_value("2")
    expect(page.locator("#events")).to_have_text("4")
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
    page.route(
        "**/runs/*",
        lambda route: route.fulfill(
            status=404, content_type="application/problem+json", body='{"detail": "It is gone."}'
        ),
    )
    page.reload()
    expect_state(page, "refused")
    expect(page.locator("#problem")).to_have_text("404: It is gone.")
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
