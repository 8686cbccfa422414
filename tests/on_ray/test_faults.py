"""What people notice of faults: errors while they last, how long that is, and that nothing acknowledged is lost.

Each prints a row of the table in docs/operations.md. The long version (``make test-nightly``) has faults that cost more
time, and those that a single replica cannot hide. ``test_kill.py`` has what becomes of writes that are under way.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from fault_load import Row
from faulty import SHARDS, TWO, Faulty, see_nothing_lost, two_snapshots, under_load

from raysys.index.store import SnapshotStore
from raysys.publishing.activate import activate
from raysys.serving.session import LocalService

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEADLINE_S = 2.0  # the default of ``deadline_s``
LATE_S = 1.5  # the rest of a request, and a second at the proxy before it is sent again, on two busy cores
LATEST_S = 10.0  # while processes start, on cores that have eight times the work that they can do
BACK_S = 10.0  # from when Serve has the new replicas to answers that lack nothing
MOST_ERRORS = 0.005
MOST_INCOMPLETE = 0.05  # without a shard that has another replica: where the machine itself is late by half a second
Start = Callable[..., AbstractContextManager[Faulty]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def snapshots(folder: Path) -> tuple[str, str]:
    return two_snapshots(folder)


@pytest.fixture
def start(service: LocalService, port: int, folder: Path, snapshots: tuple[str, str], tmp_path: Path) -> Start:
    """Serves the first snapshot with these settings, and puts it under load; in the end, nothing may be lost."""
    SnapshotStore(folder / "index").publish(snapshots[0])

    @contextmanager
    def start(**settings: object) -> Iterator[Faulty]:
        state = str(tmp_path / "state.sqlite3")
        files = {
            "index_root": str(folder / "index"),
            "state": state,
            "impressions": {"folder": str(tmp_path / "shown")},
        }
        url = service.serve({**files, **settings}, port)
        with under_load(url, tmp_path.name, snapshots[1]) as watched:
            yield Faulty(service, watched.load)
        see_nothing_lost(state, watched.load.acknowledged)

    return start


def see_bar(rows: list[Row], late_s: float = LATEST_S) -> None:
    """Hardly anybody is told that it cannot be done, nobody waits for long, and then all is as before.

    One error is forgiven: of some hundred requests it is more than the share that may be.
    """
    errors, n = sum(row.errors for row in rows), sum(row.n for row in rows)
    assert errors <= max(1, MOST_ERRORS * n), "\n".join(map(str, rows))
    for row in rows:
        see_recovery(row)
        assert row.latest_s <= late_s, row


def see_recovery(row: Row) -> None:
    assert row.later == 0, row
    assert row.mixed == 0, row
    assert row.replaced_s is None or row.recovery_s <= row.replaced_s + BACK_S, row


def swap(faulty: Faulty, folder: Path, snapshot_id: str, *names: str) -> Row:
    """One replica of each of these is killed as soon as another snapshot is published, which is then taken up."""
    victims = set.union(*(faulty.one_of(name) for name in names))
    publish = partial(activate, SnapshotStore(folder / "index"), snapshot_id, force=True)
    return faulty.swap(f"one {' and one '.join(names)} of two killed in mid-swap", publish, victims, snapshot_id, names)


def test_faults_that_nobody_notices(start: Start, folder: Path, snapshots: tuple[str, str]) -> None:
    """With two gateways and two replicas a shard."""
    with start(gateway=TWO, shard_tier=TWO) as faulty:
        rows = [
            faulty.kill("gateway, one of two", faulty.one_of("gateway"), "gateway"),
            faulty.stop_for("shard, one of two stopped", faulty.one_of("shard-01"), 3.0),
            faulty.kill("shard, both", faulty.pids("shard-01"), "shard-01"),
            faulty.kill("encoder, the only one", faulty.pids("encoder"), "encoder"),
            faulty.kill_controller(),
            swap(faulty, folder, snapshots[1], "shard-00"),
        ]
    see_bar(rows)
    assert rows[2].lowest_coverage < 1
    assert all(row.n_incomplete <= MOST_INCOMPLETE * row.n for i, row in enumerate(rows) if i != 2)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_faults_that_nobody_notices_again_and_again(start: Start) -> None:
    with start(gateway=TWO, shard_tier=TWO) as faulty:
        for _ in range(3):
            see_bar([faulty.kill("gateway, one of two", faulty.one_of("gateway"), "gateway") for _ in range(3)])
            see_bar([faulty.kill("shard, one of two", faulty.one_of("shard-00"), "shard-00") for _ in range(3)])
        see_bar([faulty.kill("ranker, the only one", faulty.pids("ranker"), "ranker")])


@pytest.mark.nightly
def test_faults_in_mid_swap(start: Start, folder: Path, snapshots: tuple[str, str]) -> None:
    with start(gateway=TWO, shard_tier=TWO) as faulty:
        see_bar([swap(faulty, folder, snapshots[1], "gateway")])
        see_bar([swap(faulty, folder, snapshots[0], "gateway", *SHARDS)])


@pytest.mark.nightly
def test_faults_of_single_replicas(start: Start) -> None:
    with start() as faulty:
        see_bar([faulty.stop_for("shard, the only one stopped", faulty.pids("shard-01"), 6.0)], DEADLINE_S + LATE_S)
        see_bar([faulty.kill("shard, the only one", faulty.pids("shard-00"), "shard-00")])
        see_bar([faulty.kill("encoder, the only one", faulty.pids("encoder"), "encoder")])
        see_recovery(faulty.kill("gateway, the only one", faulty.pids("gateway"), "gateway"))


@pytest.mark.nightly
def test_without_any_shard_all_are_told_so(start: Start) -> None:
    with start(shard_tier=TWO) as faulty:
        row = faulty.kill("shards, all replicas of both", faulty.pids(*SHARDS), *SHARDS)
        see_recovery(row)
        assert set(row.statuses) <= {429, 503}
        assert row.latest_s <= DEADLINE_S + LATE_S


@pytest.mark.nightly
def test_less_than_the_least_coverage_is_refused(start: Start) -> None:
    with start(min_coverage=1.0) as faulty:
        row = faulty.kill("shard, the only one, with min_coverage 1", faulty.pids("shard-00"), "shard-00")
        see_recovery(row)
        assert set(row.statuses) == {503}
        assert row.n_incomplete == 0
        assert row.latest_s <= DEADLINE_S + LATE_S
