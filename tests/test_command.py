"""The command `streams`: `streams publish` and `streams run`."""

import asyncio
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from streams import Streams, __version__, settings
from streams.__main__ import main, max_connections, place, warning
from tests.support.servers import ROOT, connection, free_port, process_group, served, serving, until
from tests.test_topics import ANN, begun, ids, notifications, shows

TOPIC = "tests.test_topics:notifications"
DATA = '{"text":"Done"}'


async def run(
    *arguments: str, command: str = "publish", **environ: str
) -> tuple[int | None, str, str]:
    """Runs `streams` and returns its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streams", command, *arguments),
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
        (["--log", "mem", TOPIC, DATA, "user=ann"], "publish: --log: a log is memory, sqlite:FILE"),
        ([*LOG, TOPIC, "\udc80", "user=ann"], "DATA is not JSON: "),
        ([*LOG, TOPIC, DATA, "ann"], "'ann' is not a parameter: write NAME=VALUE"),
        ([*LOG, TOPIC, DATA], "user: is required"),
        ([*LOG, TOPIC, DATA, "user=ann", "usr=ann"], "usr: is not a parameter of this source"),
        ([*LOG, TOPIC, DATA, "user=ann", "user=bob"], "user: expected `str`, got `array`"),
        (["--log", "memory", TOPIC, DATA, "user=ann"], "which serves nothing, so nobody could see"),
        (["--log", "sqlite:", TOPIC, DATA, "user=ann"], "does not name a database file"),
        (["--log", "sqlite:no/runs.db", TOPIC, DATA, "user=ann"], "cannot be written"),
        ([*LOG, TOPIC], "the following arguments are required: DATA; see"),
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


# streams run


@pytest.fixture
def port() -> int:
    return free_port()


async def test_run_serves_the_named_sources_and_says_where(port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "log"
    command = [sys.executable, "-m", "streams", "run", "streams.sources:counter", TOPIC]
    command += ["--port", str(port), "--log", "sqlite:runs.db?prefix=mine"]
    with process_group(command, log, tmp_path, PYTHONPATH=str(ROOT)) as process:
        await served(process, log, port)
        async with httpx.AsyncClient(base_url=url) as client:
            sources = (await client.get("/streams")).json()["sources"]
            assert [each["name"] for each in sources] == ["counter", "notifications"]
            assert '{"number":1}' in (await client.get("/streams/counter?count=2")).text
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert log.read_text().startswith(
        f"streams {__version__}: open {url}\n"
        "  sources: counter, notifications\n"
        "  log:     sqlite:runs.db\n"
    )
    assert (tmp_path / "runs.db").exists()


async def test_run_starts_workers_with_the_same_sources(port: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "streams", "run", "streams.sources:clock", "--workers", "2"]
    command += ["--port", str(port)]
    with process_group(command, log, tmp_path, PYTHONPATH=str(ROOT), STREAMS_LOG=None) as process:
        await served(process, log, port, 2)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            (source,) = (await client.get("/streams")).json()["sources"]
    assert source["name"] == "clock"


async def test_run_with_reload_serves_the_changed_source(port: int, tmp_path: Path) -> None:
    log, module = tmp_path / "log", tmp_path / "mine.py"
    code = "from streams import source\n\n@source\nasync def words():\n    yield '{}'\n"
    module.write_text(code.format("before"))
    command = [sys.executable, "-m", "streams", "run", "mine:words", "--reload"]
    command += ["--port", str(port), "--log", "memory"]
    url = f"http://127.0.0.1:{port}/streams/words"
    with process_group(command, log, tmp_path, PYTHONPATH=str(ROOT)) as process:
        await served(process, log, port)
        async with httpx.AsyncClient() as client:
            assert '"before"' in (await client.get(url)).text
            module.write_text(code.format("after it has changed"))
            await until(lambda: log.read_text().count("startup complete") == 2, "restarted", 30)
            assert '"after it has changed"' in (await client.get(url)).text


FORMS = "a log is memory, sqlite:FILE, redis://HOST, rediss://HOST or redis+unix://SOCKET"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:words"], "run: 'nowhere:words' cannot be imported"),
        (["streams.sources:count"], "has no 'count'; its sources: clock, counter"),
        (["streams.sources"], "'streams.sources' must have the form package.module:name"),
        (["streams.sources:counter", "streams.sources:counter"], "run: two sources have the name"),
        (["--port", "65536"], "'65536' is not a port: give a number below 65536"),
        (["--port", "http"], "'http' is not a port"),
        (["--workers", "0"], "'0' is not a number of processes: give 1 or more"),
        (["--log", "file:x"], f"run: --log: {FORMS}, not 'file'"),
        (["--log", "mem"], f"run: --log: {FORMS}, not 'mem'"),
        (["--log", "redis:hush"], f"run: --log: {FORMS}, not 'redis'"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port "),
        (["--ports", "1"], "unrecognized arguments: --ports"),
    ],
)
def test_what_is_wrong_with_run_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    port: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("STREAMS_LOG", "STREAMS_SOURCES"):  # `run` sets them, and here they are restored.
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("STREAMS_SOURCES")
    with pytest.raises(SystemExit) as ended:
        main(["run", "--port", str(port), *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("streams")
    assert message in line


def test_a_port_that_is_taken_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["run", "--port", str(port)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"streams run: cannot listen on 127.0.0.1 port {port}: Address already in use; give "
        "another --port or --host"
    )


PAID = {"LLM_MODEL": "gpt", "LLM_BASE_URL": "https://llm.example/v1", "LLM_API_KEY": "sk-paid"}


async def test_run_warns_once_that_strangers_can_spend_the_money_of_a_model(
    port: int, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "streams", "run", "--host", "0.0.0.0", "--workers", "2"]
    command += ["--port", str(port)]
    with process_group(
        command, log, tmp_path, PYTHONPATH=str(ROOT), STREAMS_LOG=None, **PAID
    ) as process:
        await served(process, log, port, 2)
    (line,) = [line for line in log.read_text().splitlines() if "warning" in line]
    assert line == (
        "  warning: everybody who reaches 0.0.0.0 can ask gpt, and LLM_API_KEY pays; set "
        "STREAMS_API_KEYS to keys of your clients, or --host 127.0.0.1"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "streams.example"])
def test_it_warns_for_each_address_that_others_reach(host: str) -> None:
    assert warning(PAID, host).count("\n") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_it_does_not_warn_where_only_this_machine_reaches_it(host: str) -> None:
    assert warning(PAID, host) == ""


def test_it_does_not_warn_with_keys_or_without_a_paid_model() -> None:
    assert warning({**PAID, "STREAMS_API_KEYS": "k" * 16}, "0.0.0.0") == ""
    assert warning({**PAID, "LLM_API_KEY": ""}, "0.0.0.0") == ""
    assert warning({}, "0.0.0.0") == ""


def test_without_uvicorn_run_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main(["run"])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line == "streams run: this needs uvicorn: pip install 'streams[server]'\n"


def test_the_log_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMS_LOG", "redis://user:secret@127.0.0.1:6379/1?prefix=x")
    assert place(is_shared=True) == "redis://127.0.0.1:6379/1"


def test_a_worker_accepts_no_more_connections_than_it_may_have_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {}
    try:
        for files in (256, 50_000):
            if files <= hard:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
                limits[files] = max_connections()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits[256] == 156
    assert limits.get(50_000, 10_000) == 10_000


async def test_the_command_says_its_version_and_its_commands() -> None:
    assert await run(command="--version") == (0, f"streams {__version__}\n", "")
    status, printed, _ = await run(command="--help")
    assert status == 0
    assert "serve sources" in printed
    assert "publish an event to a topic" in printed
