"""What the tests of the playground do with it: fill in, click, and read what it shows."""

import json
from collections.abc import Callable
from typing import Any

import httpx
from playwright.sync_api import Page, Route, expect

TRANSPORTS = ["fetch", "EventSource"]
JSON = {"Accept": "application/json"}

WAITS = {
    429: "the server is busy (429)",
    503: "the server is busy (503)",
    504: "the server cannot be reached (504)",
    500: "the server failed (500)",
}

Open = Callable[..., Page]


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
    click(page, "Start")


def click(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def expect_state(page: Page, state: str) -> None:
    expect(page.locator("#state")).to_have_attribute("data-state", state)


def expect_events(page: Page, least: int) -> None:
    expect(page.locator("#rows tr").nth(least - 1)).to_be_attached()


def rows(page: Page) -> list[list[str]]:
    """The rows of the event list: id, type, milliseconds, data."""
    cells = "rows => [...rows.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    listed: list[list[str]] = page.locator("#rows").evaluate(cells)
    return listed


def numbers(page: Page) -> list[str]:
    return [data for _, type_, _, data in rows(page) if type_ == "message"]


def numbers_up_to(count: int) -> list[str]:
    return [f'{{"number":{number}}}' for number in range(count)]


def run_of(page: Page) -> str:
    return page.locator("#run a").inner_text()


def state_of(run: str, server: str) -> str:
    """The run's state, from the server."""
    status: str = httpx.get(f"{server}runs/{run}", headers=JSON).json()["status"]
    return status


def open_gate(gate: str, server: str) -> None:
    """Lets the runs of the source `gated` with this gate continue."""
    httpx.get(f"{server}streams/open_gate", params={"gate": gate}).raise_for_status()


def problem(route: Route, status: int) -> None:
    headers = {"Retry-After": "60", "Content-Type": "application/problem+json"}
    route.fulfill(status=status, headers=headers, body=json.dumps({"detail": f"it is {status}"}))


def lose_connection(page: Page, retry: int) -> None:
    """Starts a run whose first response has two events and no end."""
    headers = {"Content-Type": "text/event-stream", "Content-Location": "/runs/r"}
    start_event = 'id: r.0\nevent: start\ndata: {"run":"r","source":"counter"}\n\n'
    body = f"retry: {retry}\n{start_event}id: r.1\ndata: 1\n\n"
    page.route("**/streams/counter", lambda route: route.fulfill(headers=headers, body=body))
    start(page, "counter")


def code(page: Page, language: str) -> str:
    page.get_by_role("radio", name=language, exact=True).last.check()
    return page.locator("#code").inner_text()
