"""Some seconds of chaos, the same ones each time; `make chaos` has a minute, and any seed."""

import pytest

from tests.log.redis import chaos


@pytest.mark.timeout(180)
def test_through_chaos_every_viewer_sees_each_number_once_and_in_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chaos.main(["--seed", "148", "--seconds", "6", "--viewers", "40", "--workers", "3"])
    report = capsys.readouterr().out
    for what in ("kill", "pause", "pause valkey", "restart valkey", "completed", "cancelled"):
        assert f"'{what}': " in report
