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


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_accept_right_uses_and_refuse_each_wrong_one(checker: str) -> None:
    command = [*CHECKERS[checker], str(RIGHT), str(WRONG)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = re.findall(r"(\w+\.py):(\d+):.* error:? ", ran.stdout)
    lines = (ROOT / WRONG).read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {(name, int(number)) for name, number in found} == {(WRONG.name, n) for n in wrong}
