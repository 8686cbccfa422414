"""What the soak test says of a series of samples, and how it counts what came of its requests."""

import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from open_loop import Outcome
from processes import child
from slopes import slope, theil_sen
from soak import FLAT_SHARE, SAMPLE_EVERY_S, Ledger, Sample, Sent, _counted, growth, sample

HOURS = 0.2
AT_S = np.arange(0, HOURS * 3600, SAMPLE_EVERY_S)


def samples(mib: np.ndarray) -> list[Sample]:
    return [Sample(float(at_s), float(one), float(one), 10, 5) for at_s, one in zip(AT_S, mib, strict=True)]


def noise(seed: int, size: float = 2.0) -> np.ndarray:
    """Samples near each other are alike."""
    drawn = np.random.default_rng(seed).normal(0, size, len(AT_S))
    return np.convolve(drawn, np.ones(10) / np.sqrt(10), "same")


def test_the_slope_of_a_line_is_its_own_and_sure() -> None:
    found = slope(AT_S, 3 * AT_S + 1, 30, np.random.default_rng(0))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_a_few_odd_samples_do_not_move_it() -> None:
    odd = 3 * AT_S
    odd[::20] += 1e6
    assert theil_sen(AT_S, odd) == pytest.approx(3, rel=0.02)


def test_the_interval_nearly_always_holds_the_true_slope() -> None:
    few = AT_S[::6]
    holds = []
    for seed in range(20):
        found = slope(few, 0.01 * few + noise(seed)[::6], 10, np.random.default_rng(seed))
        holds.append(found.low <= 0.01 <= found.high)
    assert np.mean(holds) >= 0.7  # blocks know less of the noise than there is


@pytest.mark.parametrize(("share", "is_flat"), [(0.0, True), (0.01, True), (0.03, False), (0.2, False), (-0.2, True)])
def test_memory_is_flat_where_it_surely_gains_less_than_the_share(share: float, is_flat: bool) -> None:
    mib = 500 + 500 * share * AT_S / AT_S[-1] + noise(1, size=0.3)
    found = growth(samples(mib), "pss_mib", HOURS)
    assert found["flat"] is is_flat
    assert found["mib_per_hour"]["slope"] == pytest.approx(500 * share / HOURS, abs=15)
    assert (found["most_share_gained"] < FLAT_SHARE) is is_flat


def test_files_that_pile_up_are_no_plateau() -> None:
    warm, later = samples(AT_S)[:20], samples(AT_S)[20:]
    assert _counted(warm, later, "files")["flat"]
    grown = [*later, Sample(1e4, 1.0, 1.0, 200, 5)]
    assert not _counted(warm, grown, "files")["flat"]


def test_every_answer_is_counted_once_by_what_came_of_it() -> None:
    ledger = Ledger(start_s=100.0)
    for status, error in ((200, None), (429, None), (503, None), (0, "TimeoutError")):
        ledger.add(Sent("list", b""), Outcome(170.0, 5.0, status, b'{"degraded":["live"]}', error))
    ledger.add(Sent("wrong", b"", (400, 422)), Outcome(170.0, 5.0, 422, b""))
    ledger.add(Sent("wrong", b"", (400, 422)), Outcome(170.0, 5.0, 200, b'{"degraded":[]}'))
    assert ledger.sent == {"list": 4, "wrong": 2}
    assert ledger.sent_away == 1
    assert ledger.errors == {"list": {"status 503": 1, "TimeoutError": 1}, "wrong": {"status 200": 1}}
    assert dict(ledger.latencies_ms) == {1: [5.0, 5.0]}
    assert ledger.degraded == {"live": 1}


def test_what_was_started_is_looked_at() -> None:
    before = sample(1.0)
    with child([sys.executable, "-c", "print('here', flush=True); input()"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        during = sample(2.0)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
    assert during.threads == before.threads + 1
    assert during.files > before.files
    assert during.pss_mib > before.pss_mib
