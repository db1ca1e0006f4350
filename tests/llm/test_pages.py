"""docs/browser.md: its React hook, its Vue component and its HTMX work in a real browser."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.blocks import blocks
from tests.support.browser import CLIENT, NODE, chromium
from tests.support.servers import free_port, server_process

HERE = Path(__file__).parent
DOCUMENT = "docs/browser.md"
ASKED = '{ prompt: "Hi" }'
REPLY = "Well, yes and no."

REACT = """
import { createRoot } from "react-dom/client";
import { useStream } from "./hook.jsx";

function App() {
  USE
  const text = events.map(({ message }) => message.content).join("");
  return <><p>{text}</p><output>{status} {error?.message}</output></>;
}

createRoot(document.body).render(<App />);
"""

VUE = """
import { createApp } from "vue";
import App from "./App.js";

createApp(App).mount(document.body);
"""


def asking(block: str, **parameters: Any) -> str:
    """A block that asks the mock for REPLY."""
    body = {"prompt": "Hi", "reply": REPLY, "first_token": 0, **parameters}
    assert block.count(ASKED) == 1
    return block.replace(ASKED, json.dumps(body))


def bundle(folder: Path, *names: str) -> None:
    options: dict[str, Any] = {
        "entryPoints": [str(folder / name) for name in names],
        "outdir": str(folder / "out"),
        "nodePaths": [str(HERE / "node_modules")],
        "define": {"process.env.NODE_ENV": '"production"'},
        "bundle": True,
        "format": "esm",
        "jsx": "automatic",
    }
    build = f'require("esbuild").buildSync({json.dumps(options)})'
    subprocess.run([str(NODE), "-e", build], cwd=HERE, check=True, timeout=50)
    for name in names:
        script = f'<script type="module" src="out/{Path(name).stem}.js"></script>'
        page = f"<!doctype html><meta charset=utf-8><body></body>{script}"
        (folder / f"{Path(name).stem}.html").write_text(page)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pages")
    shutil.copy(CLIENT, folder)
    hook, use = blocks(DOCUMENT, "jsx")
    (folder / "hook.jsx").write_text(hook)
    (folder / "react.jsx").write_text(REACT.replace("USE", asking(use)))
    (folder / "failing.jsx").write_text(REACT.replace("USE", asking(use, fail_after=1)))
    (component,) = blocks(DOCUMENT, "vue")
    (folder / "App.vue").write_text(asking(component))
    (folder / "vue.js").write_text(VUE)
    subprocess.run([str(NODE), str(HERE / "build-vue.js"), str(folder)], check=True, timeout=50)
    bundle(folder, "react.jsx", "failing.jsx", "vue.js")
    (markup,) = blocks(DOCUMENT, "html")
    for url, file in {
        "https://unpkg.com/htmx.org@2": "htmx.org/dist/htmx.js",
        "https://unpkg.com/htmx-ext-sse@2": "htmx-ext-sse/sse.js",
    }.items():
        shutil.copy(HERE / "node_modules" / file, folder)
        assert url in markup
        markup = markup.replace(url, Path(file).name)
    (folder / "htmx.html").write_text(f"<!doctype html><meta charset=utf-8><body>{markup}</body>")
    return folder


@pytest.fixture
def page(folder: Path) -> Iterator[Page]:
    port = free_port()
    with (
        server_process(port, "--no-access-log", app="tests.llm.pages:app", PAGES=str(folder)),
        chromium() as browser,
    ):
        page = browser.new_context(base_url=f"http://127.0.0.1:{port}/pages/").new_page()
        page.set_default_timeout(20_000)
        yield page


expect.set_options(timeout=20_000)


def test_the_react_hook_shows_an_answer_and_its_end(page: Page) -> None:
    page.goto("react.html")
    expect(page.locator("output")).to_have_text("completed ")
    expect(page.locator("p")).to_have_text(REPLY)


def test_the_react_hook_shows_a_failure_after_what_came_before_it(page: Page) -> None:
    page.goto("failing.html")
    expect(page.locator("output")).to_contain_text("failed the mock failed after 1 token")
    expect(page.locator("p")).to_have_text("Well")


def test_the_vue_component_shows_an_answer(page: Page) -> None:
    page.goto("vue.html")
    expect(page.locator("p")).to_have_text(REPLY)


def test_htmx_shows_each_event_and_closes_its_connection_at_the_end(page: Page) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "news" in request.url else None)
    page.add_init_script("addEventListener('htmx:sseClose', () => (window.isClosed = true))")
    page.goto("htmx.html")
    page.wait_for_function("window.isClosed")
    expect(page.locator("li")).to_have_text(["sports 0", "sports 1", "sports 2"])
    assert len(asked) == 1
