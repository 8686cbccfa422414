"""A command that serves ends in good order, however it is told to."""

import signal
import subprocess
import sys

import pytest

WAITS = """from raysys.cli import catch_signals
wait = catch_signals()
print('waits', flush=True)
wait()
print('cleaned up')"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignores_ctrl_c", [False, True], ids=["in front", "in the background"])
def test_both_signals_end_it_and_what_follows_still_runs(number: signal.Signals, ignores_ctrl_c: bool) -> None:
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " if ignores_ctrl_c else ""
    with subprocess.Popen([sys.executable, "-c", before + WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"got {number.name}, stopping" in rest
    assert "cleaned up" in rest
