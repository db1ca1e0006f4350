"""The URL of a SQLite file, and files that cannot be used: each is one clear line."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from streams.errors import StoreDown
from streams.log import Limits
from streams.log.sqlite import SQLiteStore
from streams.log.sqlite.database import NETWORK_FILE_SYSTEMS, Database, file_system
from streams.log.store import Append, Committed
from tests.support.event_logs import info

LIMITS = Limits(2**20, 300)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:", "write sqlite:runs.db or"),
        ("sqlite::memory:", "write sqlite:runs.db or"),
        ("sqlite:///runs.db", "write sqlite:runs.db or"),
        ("sqlite:runs.db?timeout=5", "'timeout' is not a parameter .* prefix, lease, synchronous"),
        ("sqlite:runs.db?lease=soon", "lease='soon' .* not a positive number"),
        ("sqlite:runs.db?lease=0", "lease='0' .* not a positive number"),
        ("sqlite:runs.db?lease=nan", "lease='nan' .* not a positive number"),
        ("sqlite:runs.db?synchronous=off", "synchronous='off' .* synchronous=full"),
        ("sqlite:runs.db?prefix=", "prefix='' .* use letters"),
        ("sqlite:runs.db?prefix=a/b", "prefix='a/b' .* use letters"),
    ],
)
def test_an_invalid_url_is_refused_with_what_to_write(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SQLiteStore(url)


def test_a_store_touches_no_file_before_it_is_opened(tmp_path: Path) -> None:
    SQLiteStore(f"sqlite:{tmp_path}/runs.db?prefix=app&lease=3&synchronous=full")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_in_the_working_directory_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("sqlite:runs.db")
    monkeypatch.chdir("/")
    store.check()
    assert (tmp_path / "runs.db").exists()


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_the_files_of_a_store_are_for_its_user_only(sqlite_url: str, tmp_path: Path) -> None:
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), LIMITS)
    modes = modes_in(tmp_path)
    assert modes.pop("runs.db-locks") == 0o700
    assert modes == {"runs.db": 0o600, "runs.db-wal": 0o600, "runs.db-shm": 0o600}
    await store.aclose()
    assert modes_in(tmp_path).keys() == {"runs.db", "runs.db-locks"}


def test_the_pragmas_that_can_be_set_only_once_are_set(sqlite_url: str) -> None:
    SQLiteStore(sqlite_url).check()
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"))) as db:
        pragmas = ("page_size", "auto_vacuum", "journal_mode", "user_version")
        values = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == [1024, 2, "wal", 3]


async def test_apps_with_different_prefixes_share_a_file_and_see_nothing_of_each_other(
    sqlite_url: str,
) -> None:
    one, other = SQLiteStore(f"{sqlite_url}?prefix=a"), SQLiteStore(f"{sqlite_url}?prefix=b")
    await one.open("one")
    await other.open("other")
    await one.create(info(key="k"), LIMITS)
    assert await other.load(["r"]) == [None]
    assert await other.create(info(key="k"), LIMITS) == "r"
    assert (await other.renew([])).all == {"other"}
    states = [(await store.load(["r"]))[0] for store in (one, other)]
    assert [state and state.producer for state in states] == ["one", "other"]
    await one.aclose()
    await other.aclose()


def text_file(path: Path) -> None:
    path.write_text("This is no database, but long enough to have a header. " * 100)


def newer_schema(path: Path) -> None:
    SQLiteStore(f"sqlite:{path}").check()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE customers (name TEXT)")


def hard_link(path: Path) -> None:
    SQLiteStore(f"sqlite:{path}").check()
    os.link(path, path.with_name("other.db"))


def missing_folder(path: Path) -> None:
    path.parent.rmdir()


def damaged(path: Path) -> None:
    SQLiteStore(f"sqlite:{path}").check()
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_file, "{path} is not a database: name another file"),
        (newer_schema, "{path} was written by a newer version of streams (schema 99"),
        (other_program, "{path} is a database of another program"),
        (hard_link, "{path} has 2 names (hard links)"),
        (missing_folder, "{path} cannot be written"),
        (damaged, "{path} is damaged: restore a backup"),
        (a_folder, "{path} is a folder: name a file in it"),
    ],
)
async def test_a_file_that_cannot_be_used_is_one_clear_line_without_the_path_for_clients(
    make: Callable[[Path], None], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder" / "runs.db"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    store = SQLiteStore(f"sqlite:{path}")
    with pytest.raises(StoreDown) as checked:
        store.check()
    assert message.format(path=path) in str(checked.value)
    assert "\n" not in str(checked.value)
    for attempt in (store.open("one"), store.create(info(), LIMITS)):
        with pytest.raises(StoreDown) as raised:
            await attempt
        assert "runs.db" not in str(raised.value)
    assert [record.getMessage() for record in caplog.records] == [str(checked.value)]
    assert (path.read_bytes() if path.is_file() else b"") == before, "the file is as it was"
    await store.aclose()


async def test_a_second_log_on_the_file_in_one_process_drops_no_lock_of_the_first(
    sqlite_url: str, tmp_path: Path
) -> None:
    store, other = SQLiteStore(sqlite_url), SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), LIMITS)
    other.check()
    await other.open("other")
    await other.aclose()
    # A process that finds no locks on the file deletes the -wal when it closes the database.
    script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('DELETE FROM run')"
    command = [sys.executable, "-c", script + "; db.close()", str(tmp_path / "runs.db")]
    subprocess.run(command, check=True)  # noqa: ASYNC221
    assert (tmp_path / "runs.db-wal").exists()
    assert await store.append([Append("r", 0, [b"0"])]) == [Committed(0, 0)]
    await store.aclose()


async def test_the_event_loop_runs_while_a_file_is_opened_that_others_have_locked(
    sqlite_url: str,
) -> None:
    SQLiteStore(sqlite_url).check()
    store = SQLiteStore(sqlite_url)
    with closing(locked(sqlite_url)):
        opening = asyncio.create_task(store.open("one"))
        await asyncio.sleep(0)
        assert not opening.done()
    await opening
    await store.aclose()


@pytest.mark.parametrize(("synchronous", "level"), [("normal", 1), ("full", 2)])
def test_synchronous_is_that_of_the_url(synchronous: str, level: int, sqlite_url: str) -> None:
    database = Database(f"{sqlite_url}?synchronous={synchronous}")
    for connection in (database.open(), database.connect()):
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        connection.close()


def test_the_log_has_the_version_of_sqlite(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    SQLiteStore(sqlite_url).check()
    assert f"SQLite {sqlite3.sqlite_version}" in caplog.text


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom the kernel refuses what a mode forbids."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_that_cannot_be_written_is_one_clear_line(existing: bool, tmp_path: Path) -> None:
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    if existing:
        SQLiteStore(f"sqlite:{folder}/runs.db").check()
    folder.chmod(0o555)
    with unprivileged(), pytest.raises(StoreDown, match=r"runs\.db cannot be written \(.*denied"):
        SQLiteStore(f"sqlite:{folder}/runs.db").check()


async def test_an_empty_file_and_a_symbolic_link_are_taken(tmp_path: Path) -> None:
    (tmp_path / "real.db").touch()
    (tmp_path / "link.db").symlink_to("real.db")
    one, other = [SQLiteStore(f"sqlite:{tmp_path}/{name}.db") for name in ("real", "link")]
    await one.open("one")
    await other.open("other")
    assert (await other.renew([])).all == {"one", "other"}
    await one.create(info(), LIMITS)
    assert await other.load(["r"]) != [None]
    await one.aclose()
    await other.aclose()


def locked(url: str) -> sqlite3.Connection:
    """A connection that lets nobody else read the file, as one does that repairs it."""
    other = sqlite3.connect(url.removeprefix("sqlite:"), isolation_level=None)
    other.execute("PRAGMA locking_mode = exclusive")
    other.execute("UPDATE generation SET number = number")
    return other


def test_a_file_that_another_process_repairs_after_a_crash_is_waited_for(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    SQLiteStore(sqlite_url).check()
    other = locked(sqlite_url)
    monkeypatch.setattr("streams.log.sqlite.database.time.sleep", lambda seconds: other.close())
    SQLiteStore(sqlite_url).check()


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /mnt/shared nfs4 rw 0 0
/dev/sdb1 /mnt/shared/local xfs rw 0 0
//server/share /mnt/with\\040space cifs rw 0 0
you@host: /home/you/remote fuse.sshfs rw 0 0
systemd-1 /auto autofs rw 0 0
server:/auto /auto nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "is_network"),
    [
        ("/srv", False),
        ("/mnt/shared", True),
        ("/mnt/shared/app", True),
        ("/mnt/sharedapp", False),
        ("/mnt/shared/local/app", False),
        ("/mnt/with space", True),
        ("/home/you/remote/a", True),
        ("/auto/a", True),
    ],
)
def test_a_network_file_system_is_recognised(folder: str, is_network: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    kind = file_system(folder, str(mounts))
    assert kind is not None
    assert bool(NETWORK_FILE_SYSTEMS.fullmatch(kind)) is is_network


def test_a_network_file_system_is_refused(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("streams.log.sqlite.database.file_system", lambda folder: "nfs4")
    with pytest.raises(StoreDown, match=r"network file system \(nfs4\).* use a local disk"):
        SQLiteStore(sqlite_url).check()
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_does_not_list_its_mounts_has_no_known_file_system() -> None:
    assert file_system("/srv", "/does/not/exist") is None
