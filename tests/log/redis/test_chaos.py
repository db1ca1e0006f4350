"""Some seconds of chaos with a fixed seed. `make chaos` runs a minute of it, with any seed."""

import pytest

from tests.log.redis import chaos


@pytest.mark.timeout(300)
def test_in_chaos_every_viewer_gets_each_number_once_and_in_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chaos.main(["--seed", "148", "--seconds", "6", "--viewers", "40", "--workers", "3"])
    report = capsys.readouterr().out
    for what in (*chaos.FAULTS, "stop", "completed", "cancelled"):
        assert f"'{what}': " in report
