"""A command that serves ends in good order, however it is told to."""

import signal
import subprocess
import sys
import time

import pytest

WAITS = "from raysys.cli import wait_for_signal; print('waits', flush=True); wait_for_signal(); print('cleaned up')"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignores_ctrl_c", [False, True], ids=["in front", "in the background"])
def test_both_signals_end_it_and_what_follows_still_runs(number: signal.Signals, ignores_ctrl_c: bool) -> None:
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " if ignores_ctrl_c else ""
    with subprocess.Popen([sys.executable, "-c", before + WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        deadline_s = time.monotonic() + 20
        while not catches_sigterm(process.pid):
            assert time.monotonic() < deadline_s
        process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"got {number.name}, stopping" in rest
    assert "cleaned up" in rest


def catches_sigterm(pid: int) -> bool:
    """Whether the process has its handlers in place."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)
