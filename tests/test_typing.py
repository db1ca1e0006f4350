"""The types of the public API, as mypy and pyright see them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.browser import NODE
from tests.support.servers import ROOT

RIGHT, WRONG = (Path("tests/typing") / name for name in ("right.py", "wrong.py"))
PYRIGHT = ROOT / ".venv/node_modules/pyright/index.js"
CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"],
    "pyright": [str(NODE), str(PYRIGHT), "--pythonpath", sys.executable],
}


def lines_with_errors(checker: str, path: Path) -> set[int]:
    """The numbers of the lines of a file in which a type checker reports errors."""
    command = [*CHECKERS[checker], str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(rf"{path.name}:(\d+):.* error:? ", ran.stdout)
    assert bool(found) == (ran.returncode == 1), ran.stdout
    return set(map(int, found))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_accept_right_uses(checker: str) -> None:
    assert lines_with_errors(checker, RIGHT) == set()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_refuse_each_wrong_use(checker: str) -> None:
    lines = (ROOT / WRONG).read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert lines_with_errors(checker, WRONG) == wrong
