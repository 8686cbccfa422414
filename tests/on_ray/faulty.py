"""An application under steady load, to which faults happen: processes that are killed or stopped where they are."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from clusters import poll, settings_of, world_settings
from fault_load import MARK, RATE_PER_S, Row, SteadyLoad, row

from raysys.serving.deploy import replica_pids
from raysys.serving.local_head import descendants
from raysys.serving.session import LocalService
from raysys.state.open import open_state
from raysys.training.local import build_here

CALM_S = 1.0  # whole answers for so long say that it is over
AFTER_S = 2.0  # in which nothing may be amiss any more
BOUND_S = 60.0
SHARDS = ("shard-00", "shard-01")
TWO = {"min_replicas": 2, "max_replicas": 2}


def two_snapshots(folder: Path) -> tuple[str, str]:
    """The ids of one that is published and of one that is not, with the same items under other titles. With students,
    which encode while the encoder is away."""
    student = {"student": {"queries": 400, "dim": 64}}
    raw = world_settings(folder, **student)
    first = build_here(settings_of(raw)).snapshot_id
    items = pq.read_table(folder / "items.parquet")
    titles = pa.array([f"{title} {MARK}" for title in items["title"].to_pylist()])
    pq.write_table(items.set_column(items.column_names.index("title"), "title", titles), folder / "items.parquet")
    raw["index"]["publish"] = False
    return first, build_here(settings_of(raw)).snapshot_id


class Watched:
    """One served application under load, which is watched while something happens to it."""

    def __init__(self, load: SteadyLoad) -> None:
        self.load = load

    def answers_from(self, snapshot_id: str) -> bool:
        """Whether all lists of the last second are from this snapshot."""
        lately = [sample for sample in self.load.since(time.monotonic() - CALM_S) if sample.kind != "event"]
        return bool(lately) and {sample.snapshot_id for sample in lately} == {snapshot_id}

    def suffer(
        self, fault: str, happen: Callable[[], object], is_over: Callable[[], bool] | None, bound_s: float = BOUND_S
    ) -> Row:
        """Have it happen, wait until it is over and answers are whole, and see how it was."""
        start_s = time.monotonic()
        happen()
        over_s = None
        if is_over is not None:
            poll(f"{fault}: all is replaced", is_over, bound_s)
            over_s = time.monotonic() - start_s
        poll(f"{fault}: whole answers", lambda: self.is_calm(start_s), bound_s)
        end_s = time.monotonic()
        poll("some more answers", lambda: time.monotonic() > end_s + AFTER_S)
        found = row(fault, self.load.since(start_s), start_s, end_s, over_s)
        print(found)
        return found

    def is_calm(self, start_s: float) -> bool:
        """Whether answers came as they should for the last second, and nobody waits for one."""
        now_s = time.monotonic()
        lately = self.load.since(now_s - CALM_S)
        is_new = now_s - start_s > 2 * CALM_S and self.load.longest_wait_s() < CALM_S
        return is_new and len(lately) > RATE_PER_S * CALM_S / 2 and all(sample.is_whole for sample in lately)


class Faulty(Watched):
    """One on a head of this machine, whose processes are killed or stopped."""

    def __init__(self, service: LocalService, load: SteadyLoad) -> None:
        super().__init__(load)
        self._service = service

    def pids(self, *names: str) -> set[int]:
        """Of the running replicas of these deployments, or of all; none where nobody can say."""
        try:
            by_name = replica_pids(self._service.head.dashboard_url, self._service.token)
        except (httpx.HTTPError, KeyError):
            return set()
        return {pid for name, pids in by_name.items() for pid in pids if name in names or not names}

    def one_of(self, name: str) -> set[int]:
        return {min(poll(f"a replica of {name}", lambda: self.pids(name)))}

    def controllers(self) -> set[int]:
        """The processes of the Serve controller: one, or none while it is started again."""
        return {pid for pid in descendants(self._service.head.pid) if "ServeController" in command_of(pid)}

    def kill_controller(self) -> Row:
        """SIGKILL. It lasts until another one knows of all replicas, which are the same."""
        killed, replicas = self.controllers(), self.pids()

        def replaced() -> bool:
            return bool(self.controllers() - killed) and self.pids() == replicas

        return self.suffer("Serve controller", lambda: send(signal.SIGKILL, killed), replaced)

    def kill(self, fault: str, pids: set[int], *names: str) -> Row:
        """SIGKILL. names: the deployments of the processes, whose replicas are awaited."""
        replaced = self.replacement(pids, names) if names else None
        return self.suffer(fault, lambda: send(signal.SIGKILL, pids), replaced)

    def stop_for(self, fault: str, pids: set[int], seconds: float) -> Row:
        """SIGSTOP, and SIGCONT after so long."""
        end_s = time.monotonic() + seconds

        def go_on() -> bool:
            return time.monotonic() > end_s and send(signal.SIGCONT, pids)

        return self.suffer(fault, lambda: send(signal.SIGSTOP, pids), go_on)

    def swap(
        self, fault: str, publish: Callable[[], object], victims: set[int], snapshot_id: str, names: Sequence[str]
    ) -> Row:
        """SIGKILL as soon as a snapshot is published. It lasts until the victims are replaced and it answers."""
        replaced = self.replacement(victims, names)

        def happen() -> None:
            publish()
            send(signal.SIGKILL, victims)

        return self.suffer(fault, happen, lambda: replaced() and self.answers_from(snapshot_id))

    def replacement(self, pids: set[int], names: Sequence[str]) -> Callable[[], bool]:
        """Whether there are as many replicas of these as there are now, and none is any of those processes."""
        before = self.pids(*names)

        def replaced() -> bool:
            now = self.pids(*names)
            return len(now) == len(before) and not now & pids

        return replaced


def see_nothing_lost(state: str, acknowledged: dict[str, str]) -> None:
    """Every event that was acknowledged is in the store, and once."""
    stored = asyncio.run(event_ids(state))
    assert acknowledged
    assert acknowledged.keys() <= stored.keys()
    assert set(stored.values()) == {1}


async def event_ids(location: str) -> Counter[str]:
    state, after, found = open_state(location), 0, Counter[str]()
    try:
        while page := await state.events_after(after, 1_000):
            found.update(event.event_id for _, event in page)
            after = page[-1][0]
    finally:
        await state.close()
    return found


def send(number: signal.Signals, pids: set[int]) -> bool:
    assert pids
    for pid in pids:
        os.kill(pid, number)
    return True


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@contextmanager
def under_load(url: str, name: str, marked: str) -> Iterator[Watched]:
    """Load on what is served there, which has begun and is answered whole."""
    load = SteadyLoad(url, name)
    try:
        load.marked.add(marked)
        watched, start_s = Watched(load), time.monotonic()
        poll("whole answers before anything happens", lambda: watched.is_calm(start_s))
        yield watched
    finally:
        load.stop()
