"""What is in the wheel and in the sdist. `make dist` also installs the wheel and uses it."""

import tarfile
import tomllib
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from streams import __version__
from tests.support.servers import ROOT

INFO = f"streams-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    with ZipFile(path) as wheel:
        yield wheel


def package_files() -> set[str]:
    files = [path for path in (ROOT / "streams").rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}


def test_the_wheel_has_the_files_of_the_package_and_no_others(wheel: ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name for name in names if not name.startswith(f"{INFO}/")} == package_files()
    assert {
        "streams/py.typed",
        "streams/page/index.html",
        "streams/page/event-stream.js",
        "streams/page/event-stream.d.ts",
        "streams/log/redis/append.lua",
        "streams/log/sqlite/schema.sql",
        f"{INFO}/licenses/LICENSE",
    } <= names


def test_the_wheel_offers_the_command_and_the_extras(wheel: ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    assert metadata["Version"] == __version__
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    entry_points = wheel.read(f"{INFO}/entry_points.txt").decode()
    assert "streams = streams.__main__:main" in entry_points


def test_the_sdist_has_what_the_wheel_is_made_of_and_the_tests(tmp_path: Path) -> None:
    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/test_wheel.py"}
    assert package_files() | wanted <= names
    assert not [name for name in names if name.startswith((".venv", "dist/"))]
