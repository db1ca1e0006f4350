"""Some seconds of chaos with a fixed seed. `make chaos` runs a minute of it, with any seed."""

import pytest

from tests.log.shared import chaos


@pytest.mark.timeout(300)
@pytest.mark.parametrize("store", chaos.STORES)
def test_in_chaos_every_viewer_gets_each_number_once_and_in_order(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--seconds", "6", "--viewers", "40", "--workers", "3"]
    chaos.main(["--log", store, "--seed", "148", *size])
    report = capsys.readouterr().out
    for what in (*chaos.FAULTS, "stop", "completed", "cancelled"):
        assert f"'{what}': " in report
