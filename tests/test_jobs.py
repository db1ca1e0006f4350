"""docs/jobs.md is true: its files are written to a folder, and its commands run there."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.browser import chromium
from tests.support.servers import (
    ROOT,
    Connection,
    connection,
    exit_of,
    free_port,
    process_group,
    served,
    serving,
)

DOCUMENT = (ROOT / "docs/jobs.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCUMENT, re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the document's files, which is the working directory."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("STREAMS_LOG")
    return tmp_path


@asynccontextmanager
async def server_of_jobs(folder: Path) -> AsyncIterator[str]:
    """Runs server.py with two workers, and yields its URL."""
    port = free_port()
    assert "uvicorn server:app --workers 2\n" in DOCUMENT
    command = ["uvicorn", "server:app", "--workers", "2", "--port", str(port)]
    log = folder / "server.log"
    with process_group([sys.executable, "-m", *command], log, folder) as process:
        await served(process, log, port, 2)
        yield f"http://127.0.0.1:{port}"


def percents(stream: Connection) -> list[int]:
    return [int(n) for n in re.findall(rb'data: \{"percent":(\d+)\}', stream.body)]


async def run_job(folder: Path, job: int) -> None:
    assert "python worker.py 1" in DOCUMENT
    with process_group([sys.executable, "worker.py", str(job)], folder / "job.log", folder) as ran:
        assert await exit_of(ran, 30) == 0, (folder / "job.log").read_text()


async def test_several_viewers_see_the_progress_of_a_job_in_another_process(folder: Path) -> None:
    path = "/live/streams/progress?job=1"
    async with server_of_jobs(folder) as url:
        async with connection(url, path) as one, connection(url, path) as other:
            for stream in (one, other):
                await stream.until(lambda stream: b"event: start" in stream.body, "it has begun")
            await run_job(folder, 1)
            for stream in (one, other):
                await stream.until(lambda stream: stream.terminated, "the stream has ended")
                assert percents(stream) == list(range(0, 101, 5))
                assert stream.body.endswith(b'event: end\ndata: {"status":"completed"}\n\n')
        async with connection(url, path) as late:
            await late.until(lambda stream: stream.terminated, "the stream has ended")
            assert percents(late) == [100]


async def test_the_page_shows_the_progress_of_both_jobs_in_every_window(folder: Path) -> None:
    async with server_of_jobs(folder) as url:
        jobs = [asyncio.create_task(run_job(folder, job)) for job in (1, 2)]
        await asyncio.to_thread(watch, url)
        await asyncio.gather(*jobs)


def watch(url: str) -> None:
    with chromium() as browser:
        pages = [browser.new_context().new_page() for _ in range(2)]
        for page in pages:
            page.goto(url)
        for page in pages:
            bars = "[...document.querySelectorAll('progress')]"
            page.wait_for_function(f"{bars}.every((bar) => bar.value === 100)", timeout=30_000)
            assert page.evaluate(f"{bars}.length") == 2


def executed(name: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(FILES[name], name, "exec"), namespace)
    return namespace


async def test_the_command_publishes_a_notification_that_only_its_user_sees(folder: Path) -> None:
    command = re.search(r"^streams (publish .*)$", DOCUMENT, re.MULTILINE)
    assert command
    path = "/streams/notifications?user=ann"
    async with serving(executed("live.py")["streams"]) as url:
        async with connection(url, path, headers="Cookie: session=s-1\r\n") as stream:
            await stream.until(lambda stream: b"event: start" in stream.body, "it has begun")
            process = await asyncio.create_subprocess_shell(
                f"{sys.executable} -m streams {command[1]}"
            )
            assert await asyncio.wait_for(process.wait(), 30) == 0
            await stream.until(lambda stream: b'{"text":"Done"}' in stream.body, "it has come")
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get(path)).status_code == 403


async def test_a_post_with_the_secret_publishes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBLISH_SECRET", "s3cret")
    request = re.search(r"curl '127.0.0.1:8000(\S+)'.*?-d '(.*?)'", DOCUMENT, re.DOTALL)
    assert request
    path, body = request.groups()
    async with serving(executed("live_http.py")["app"]) as url:
        async with connection(url, "/streams/notifications?user=ann") as stream:
            await stream.until(lambda stream: b"event: start" in stream.body, "it has begun")
            async with httpx.AsyncClient(base_url=url) as client:
                headers = {"Content-Type": "application/json"}
                assert (await client.post(path, content=body, headers=headers)).status_code == 401
                headers["Authorization"] = "Bearer s3cret"
                answer = await client.post(path, content=body, headers=headers)
            assert list(answer.json()) == ["id"]
            await stream.until(lambda stream: body.encode() in stream.body, "it has come")
