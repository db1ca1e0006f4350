"""Some seconds of the soak test with a fixed seed. `make soak` runs ten minutes of it."""

import pytest

from tests.soak import __main__ as soak


@pytest.mark.timeout(400)
@pytest.mark.parametrize("log", soak.LOGS)
def test_viewers_who_come_go_stall_and_lie_leave_nothing_behind(
    log: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "KILL_SECONDS", 2.0)
    monkeypatch.setattr(soak, "RETAIN", 6)
    soak.main(["--log", log, "--seed", "16", "--seconds", "5", "--viewers", "30"])
    report = capsys.readouterr().out
    for kind in ("honest", "goes", "stalls", "lies"):
        assert f"'{kind}': " in report
