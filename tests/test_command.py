"""The command `streams publish`."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from streams import Streams, settings
from streams.__main__ import main
from tests.support.servers import ROOT, connection, serving
from tests.test_topics import ANN, begun, ids, notifications, shows

TOPIC = "tests.test_topics:notifications"
DATA = '{"text":"Done"}'


async def run(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Runs `streams publish` and returns its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streams", "publish", *arguments),
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, printed.decode(), errors.decode()


async def test_it_publishes_to_the_topic_of_an_import_string_and_prints_the_id(
    store_url: str,
) -> None:
    async with serving(Streams([notifications], log=store_url)) as url:
        async with connection(url, ANN) as stream:
            await begun(stream)
            status, printed, errors = await run("--log", store_url, TOPIC, DATA, "user=ann")
            assert (status, errors) == (0, "")
            await shows(stream, "Done")
            assert printed == ids(stream)[1] + "\n"


async def test_it_publishes_to_a_topic_of_the_settings_by_its_name(sqlite_url: str) -> None:
    environ = {"STREAMS_SOURCES": f"streams.sources:counter,{TOPIC}", "STREAMS_LOG": sqlite_url}
    async with serving(settings.from_environ(environ)) as url:
        async with connection(url, ANN) as stream:
            await begun(stream)
            status, printed, _ = await run("notifications", DATA, "user=ann", **environ)
            assert status == 0
            await shows(stream, "Done")
            assert printed == ids(stream)[1] + "\n"


async def test_without_a_log_it_uses_that_of_a_server_with_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"STREAMS_SOURCES": f"streams.sources:counter,{TOPIC}"}
    async with serving(settings.from_environ(environ)) as url, connection(url, ANN) as stream:
        await begun(stream)
        publishing, topic = settings.publisher(environ, "notifications", None)
        assert topic is notifications
        async with publishing:
            await publishing.publish("notifications", {"text": "Done"}, user="ann")
        await shows(stream, "Done")


LOG = ("--log", "sqlite:runs.db")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TOPIC, DATA, "user=ann"], f"has the topic {TOPIC}: --log URL"),
        ([*LOG, "news", DATA], "no topic of STREAMS_SOURCES has the name 'news': set that as for"),
        ([*LOG, "counter", DATA], "counter is a source, and nobody can publish to it"),
        ([*LOG, "streams.sources:counter", DATA], "nobody can publish to it: name a topic"),
        ([*LOG, "nowhere:news", DATA], "TOPIC: 'nowhere:news' cannot be imported"),
        ([*LOG, "tests.test_topics:news", DATA], "module 'tests.test_topics' has no 'news'"),
        ([*LOG, "tests.test_topics:begun", DATA], "decorate it with @source or @topic"),
        ([*LOG, TOPIC, "Done", "user=ann"], "DATA is not JSON: "),
        ([*LOG, TOPIC, "", "user=ann"], "DATA is not JSON: "),
        ([*LOG, TOPIC, "\udc80", "user=ann"], "DATA is not JSON: "),
        ([*LOG, TOPIC, DATA, "ann"], "'ann' is not a parameter: write NAME=VALUE"),
        ([*LOG, TOPIC, DATA], "user: is required"),
        ([*LOG, TOPIC, DATA, "user=ann", "usr=ann"], "usr: is not a parameter of this source"),
        ([*LOG, TOPIC, DATA, "user=ann", "user=bob"], "user: expected `str`, got `array`"),
        (["--log", "memory", TOPIC, DATA, "user=ann"], "which serves nothing, so nobody could see"),
        (["--log", "sqlite:", TOPIC, DATA, "user=ann"], "does not name a database file"),
        (["--log", "sqlite:no/runs.db", TOPIC, DATA, "user=ann"], "cannot be written"),
        ([*LOG, TOPIC], "the following arguments are required: DATA"),
        ([*LOG, "--logs", "x", TOPIC, DATA], "unrecognized arguments: --logs"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMS_LOG")
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(["publish", *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("streams")
    assert message in line


async def test_publishing_to_a_topic_that_has_ended_is_one_line_and_status_2(
    sqlite_url: str,
) -> None:
    async with Streams([notifications], log=sqlite_url) as streams:
        await streams.end("notifications", user="ann")
    status, printed, errors = await run("--log", sqlite_url, TOPIC, DATA, "user=ann")
    assert (status, printed) == (2, "")
    (line,) = errors.splitlines()
    assert "this topic 'notifications' has ended" in line


async def test_it_says_how_it_is_used() -> None:
    status, printed, _ = await run("--help")
    assert status == 0
    assert "usage: streams publish [-h] [--log URL] TOPIC DATA" in printed
