"""settings.py: the options of Streams, read from environment variables."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import app
from streams import Streams, settings
from streams.log.sqlite import database
from tests.support.servers import client_of


def test_without_variables_the_built_in_sources_are_served() -> None:
    assert list(app.app.sources) == ["counter", "tokens", "clock"]
    assert [source.name for source in settings.options({})["sources"]] == [
        "counter",
        "tokens",
        "clock",
    ]


def test_every_option_can_be_set_by_a_variable() -> None:
    options = settings.options(
        {
            "STREAMS_SOURCES": "tests.support.sources:ticks,streams.sources:clock",
            "STREAMS_HEARTBEAT": "5",
            "STREAMS_RETRY": "0.5,2",
            "STREAMS_LINGER": "",
            "STREAMS_RETAIN": "60",
            "STREAMS_WINDOW": "4096",
            "STREAMS_SEND_TIMEOUT": "3",
            "STREAMS_MAX_RUNS": "7",
            "STREAMS_MAX_BYTES": "100000",
            "STREAMS_MAX_THREADS": "20",
            "STREAMS_MAX_PER_CLIENT": "30",
            "STREAMS_MAX_SHARED": "40",
            "STREAMS_MAX_BODY": "500",
            "STREAMS_BODY_TIMEOUT": "20",
            "STREAMS_ORIGINS": "https://a.example, https://b.example",
            "STREAMS_HOSTS": "c.example",
            "STREAMS_API_KEYS": "k" * 16,
            "STREAMS_SECRET": "s" * 32,
            "STREAMS_METRICS": "false",
            "STREAMS_PAGE": "false",
            "STREAMS_LOG": "redis://127.0.0.1",
        }
    )
    assert set(options) == {*settings.OPTIONS, "models"}
    assert options["retry"] == (0.5, 2)
    assert options["linger"] is None
    assert options["origins"] == ["https://a.example", "https://b.example"]
    assert options["metrics"] is False
    assert options["page"] is False
    assert options["max_threads"] == 20
    assert options["max_per_client"] == 30
    assert options["max_shared"] == 40
    streams = Streams(**{**options, "log": None})
    assert list(streams.sources) == ["ticks", "clock"]
    assert (streams.policy.heartbeat, streams.policy.linger) == (5, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HEARTBEAT", "0", "STREAMS_HEARTBEAT='0' is invalid: Expected `float` >= 0.01"),
        ("HEARTBEAT", "", "STREAMS_HEARTBEAT='' is invalid: Expected `float`, got `null`"),
        ("RETRY", "3", "STREAMS_RETRY='3' is invalid: Expected `array` of length 2, got 1"),
        ("MAX_RUNS", "many", "STREAMS_MAX_RUNS='many' is invalid: Expected `int`, got `str`"),
        ("MAX_RUNS", "0", "STREAMS_MAX_RUNS='0' is invalid: Expected `int` >= 1"),
        ("MAX_THREADS", "0", "STREAMS_MAX_THREADS='0' is invalid: Expected `int` >= 1"),
        (
            "SOURCES",
            "nope:x",
            "STREAMS_SOURCES: 'nope:x' cannot be imported: No module",
        ),
        ("SOURCES", "app", "STREAMS_SOURCES: 'app' must have the form package.module:name"),
        ("SOURCES", "app:app", "STREAMS_SOURCES: app:app is not a source"),
    ],
)
def test_an_invalid_value_exits_with_a_message_that_names_it(
    name: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        settings.options({f"STREAMS_{name}": value})
    assert str(exited.value).startswith(message)


def test_an_empty_variable_sets_an_empty_list() -> None:
    assert settings.options({"STREAMS_ORIGINS": ""})["origins"] == []


def test_the_mock_is_a_model_only_if_its_source_is_served() -> None:
    assert list(settings.options({})["models"]) == ["mock"]
    assert settings.options({"STREAMS_SOURCES": "streams.sources:clock"})["models"] == {}


def test_a_configured_model_is_served_next_to_the_built_in_sources() -> None:
    options = settings.options(
        {
            "LLM_BASE_URL": "http://127.0.0.1:8080/v1",
            "LLM_MODEL": "org/model",
            "LLM_API_KEY": "sk-any",
            "LLM_TIMEOUT": "5",
        }
    )
    streams = Streams(**options)
    assert list(streams.sources) == ["counter", "tokens", "clock", "chat"]
    assert streams.models["org/model"] is streams.sources["chat"]
    assert streams.models["mock"] is streams.sources["tokens"]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LLM_MODEL": "m"}, "LLM_BASE_URL and LLM_MODEL: set both, or neither"),
        ({"LLM_BASE_URL": "http://h/v1"}, "LLM_BASE_URL and LLM_MODEL: set both, or neither"),
        ({"LLM_BASE_URL": "h", "LLM_MODEL": "m"}, "LLM_BASE_URL, LLM_API_KEY, LLM_TIMEOUT: 'h' is"),
        (
            {"LLM_BASE_URL": "http://h/v1", "LLM_MODEL": "m", "LLM_TIMEOUT": "long"},
            "LLM_BASE_URL, LLM_API_KEY, LLM_TIMEOUT: Config 'LLM_TIMEOUT' has value 'long'",
        ),
    ],
)
def test_an_invalid_model_setting_exits_with_a_message_that_names_it(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        settings.options(environ)
    assert str(exited.value).startswith(message)


def test_without_the_extra_llm_a_model_exits_with_a_message_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    for module in [name for name in sys.modules if name.startswith("streams.sources.chat")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit) as exited:
        settings.options({"LLM_BASE_URL": "http://h/v1", "LLM_MODEL": "m"})
    assert str(exited.value) == "LLM_BASE_URL needs httpx: pip install 'streams[llm]'"


@pytest.mark.parametrize(
    ("part", "library", "message"),
    [
        ("sources.chat", "httpx", "streams.sources.chat needs httpx: pip install 'streams[llm]'"),
        ("log.redis", "redis.exceptions", "needs redis: pip install 'streams[redis]'"),
        ("client", "httpx_sse", "needs httpx and httpx-sse: pip install 'streams[client]'"),
    ],
)
def test_a_module_of_sources_that_needs_a_missing_extra_exits_with_what_to_install(
    part: str, library: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_an_extra.py").write_text(f"import streams.{part}")
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"streams.{part}", raising=False)
    with pytest.raises(SystemExit) as exited:
        settings.options({"STREAMS_SOURCES": "needs_an_extra:ticks"})
    assert str(exited.value).endswith(message)


def test_without_the_extra_redis_a_log_there_exits_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "redis.exceptions", None)
    monkeypatch.delitem(sys.modules, "streams.log.redis", raising=False)
    with pytest.raises(SystemExit) as exited:
        settings.configured({"STREAMS_LOG": "redis://127.0.0.1:1"})
    assert str(exited.value) == (
        "STREAMS_LOG: a log in Redis needs redis: pip install 'streams[redis]'"
    )


def test_an_error_inside_the_module_of_a_source_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_value.py").write_text("int('abc')")
    (tmp_path / "broken_import.py").write_text("import no_such_module")
    (tmp_path / "broken_from.py").write_text("from os import no_such_name")
    (tmp_path / "broken_name.py").write_text("import os\nos.no_such_name")
    for module, error in (
        ("broken_value", ValueError),
        ("broken_import", ModuleNotFoundError),
        ("broken_from", ImportError),
        ("broken_name", AttributeError),
    ):
        with pytest.raises(error):
            settings.options({"STREAMS_SOURCES": f"{module}:ticks"})


def test_a_source_may_be_in_a_module_whose_name_has_a_hyphen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my-sources.py").write_text("from streams.sources import clock as ticks")
    [ticks] = settings.options({"STREAMS_SOURCES": "my-sources:ticks"})["sources"]
    assert ticks.name == "clock"
    with pytest.raises(SystemExit, match="module 'my-sources' has no 'tick'; its sources: ticks"):
        settings.options({"STREAMS_SOURCES": "my-sources:tick"})


@pytest.mark.parametrize("value", ["", "memory"])
def test_the_log_in_memory_can_be_asked_for(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not settings.from_environ({"STREAMS_LOG": value}).log.shared
    assert list(tmp_path.iterdir()) == []


def default_prefix(sources: str) -> str:
    """The prefix under which apps with these sources keep their runs in streams.db."""
    log: Any = settings.from_environ({"STREAMS_SOURCES": sources}).log
    assert Path(log.store._database.path) == Path("streams.db").resolve()
    return str(log.store._database.prefix)


def test_by_default_the_log_is_a_file_whose_runs_only_the_same_sources_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clock, counter = "streams.sources:clock", "streams.sources:counter"
    assert default_prefix(clock) == default_prefix(clock)
    assert default_prefix(f"{clock},{counter}") == default_prefix(f"{counter},{clock}")
    other = "tests.support.sources:ticks"
    lists = [clock, counter, other, f"{clock},{counter}"]
    assert len({default_prefix(sources) for sources in lists}) == len(lists)


def no_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "streams.db-locks").touch()  # Here, not even root can make the files of the log.


def network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "file_system", lambda folder: "nfs4")


def no_sqlite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streams.log.sqlite", None)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (no_writing, "streams.db cannot be written"),
        (network, "streams.db is on a network file system (nfs4)"),
        (no_sqlite, "streams.log.sqlite"),
    ],
)
def test_where_no_file_can_be_kept_the_default_is_memory_with_one_warning(
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trouble(tmp_path, monkeypatch)
    assert not settings.from_environ({}).log.shared
    (record,) = caplog.records
    assert message in record.getMessage()
    assert "runs are kept in memory" in record.getMessage()
    with pytest.raises(SystemExit) as exited:
        settings.from_environ({"STREAMS_LOG": "sqlite:streams.db"})
    assert exited.value.code == 2
    assert message in (line := capsys.readouterr().err)
    assert line.startswith("STREAMS_LOG: ")
    assert line.count("\n") == 1


def test_a_default_log_that_is_damaged_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several workers, some of them might have been able to use it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "streams.db").write_text("This is no database. " * 1000)
    with pytest.raises(SystemExit, match=r"STREAMS_LOG: .*streams.db is not a database"):
        settings.from_environ({})


@pytest.mark.parametrize(
    "environ",
    [
        {"STREAMS_LINGER": "long"},
        {"STREAMS_LINGR": "1"},
        {"STREAMS_LOG": "nowhere"},
        {"STREAMS_LOG": "", "STREAMS_SOURCES": ",".join(["streams.sources:clock"] * 2)},
        {"STREAMS_SOURCES": "nope:x"},
        {"LLM_MODEL": "m"},
    ],
)
def test_an_invalid_setting_prints_one_line_and_ends_the_process_with_status_2(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        settings.from_environ(environ)
    assert exited.value.code == 2
    assert capsys.readouterr().err == f"{exited.value}\n"
    assert list(environ)[-1].partition("_")[0] in str(exited.value)


@pytest.mark.parametrize(
    ("misspelt", "setting"),
    [
        ("STREAMS_HEARTBEET", "STREAMS_HEARTBEAT"),
        ("STREAMS_SOURCE", "STREAMS_SOURCES"),
        ("STREAMS_MAXRUNS", "STREAMS_MAX_RUNS"),
        ("LLM_BASEURL", "LLM_BASE_URL"),
        ("LLM_KEY", "LLM_API_KEY"),
    ],
)
def test_a_misspelt_variable_exits_with_the_nearest_name(misspelt: str, setting: str) -> None:
    with pytest.raises(SystemExit) as exited:
        settings.options({misspelt: "1"})
    assert str(exited.value) == f"{misspelt} is not a setting; did you mean {setting}?"


def test_variables_of_other_programs_are_ignored() -> None:
    others = ["STREAMS_PORT", "STREAMS_SERVICE_HOST", "STREAMS_PORT_8000_TCP", "LLM_PROVIDER"]
    given = {**dict.fromkeys(others, "x"), "STREAMS_RETAIN": "3", "STREAMS_RETAINED": "4"}
    assert settings.options(given)["retain"] == 3


def test_keys_a_secret_and_names_of_the_host_are_settings() -> None:
    given = settings.options(
        {
            "STREAMS_API_KEYS": f"{'a' * 16}, {'b' * 16}",
            "STREAMS_SECRET": "s" * 32,
            "STREAMS_HOSTS": "a.example,b.example",
        }
    )
    assert given["api_keys"] == ["a" * 16, "b" * 16]
    assert given["secret"] == "s" * 32
    assert given["hosts"] == ["a.example", "b.example"]
    assert settings.options({"STREAMS_SECRET": ""})["secret"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ORIGINS", "https://a.example/"),
        ("HOSTS", "https://a.example"),
        ("API_KEYS", "short"),
        ("SECRET", "short"),
    ],
)
def test_the_line_for_an_invalid_one_names_its_setting(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings.from_environ({f"STREAMS_{name}": value, "STREAMS_LOG": "memory"})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"STREAMS_{name}: ")
    assert "short" not in line


@pytest.mark.parametrize(
    ("hosts", "statuses"), [({}, [421, 421]), ({"STREAMS_HOSTS": "a.example"}, [200, 421])]
)
async def test_the_app_answers_to_no_other_name_than_those_that_are_set(
    hosts: dict[str, str], statuses: list[int]
) -> None:
    async with client_of(settings.from_environ({"STREAMS_LOG": "memory", **hosts})) as client:
        for name, status in zip(["a.example", "b.example"], statuses, strict=True):
            assert (await client.get("/streams", headers={"Host": name})).status_code == status
        for name in ("localhost", "127.0.0.1"):
            assert (await client.get("/streams", headers={"Host": name})).status_code == 200
    everybody = settings.from_environ({"STREAMS_LOG": "memory", "STREAMS_HOSTS": "*"})
    async with client_of(everybody) as client:
        assert (await client.get("/streams", headers={"Host": "b.example"})).status_code == 200
