"""A quarter of an hour of everything at once: does memory grow, does anything leak, do answers become slow?

    python benchmarks/soak.py [--minutes 15] [--per-s 25] [--topology alone] [--json FILE] [--quick]

Lists, searches, similar items, ranking, events, items written, patched and deleted, people, and bodies that are wrong
come at a fixed pace (open loop), while every ``--swap-every`` seconds the pointer moves to another snapshot or back.
``alone`` is the gateway without Ray, in one process; ``tiered`` and ``fused`` are the application over Ray Serve.
Every few seconds the memory (RSS and PSS), open files and threads of all that was started are read. Caches and profiles
are filled before the clock runs, and after the warm-up memory has a slope (``slopes.py``). It is flat where the upper
end of the slope's interval makes less than 2 % of the memory in the time that was measured. The load is in the
benchmark's own process, which is not counted. What is written goes into a copy of the state. Told to come back (429) is
no error: it is counted by itself.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from subprocess import PIPE
from typing import Any, NamedTuple

import httpx
import numpy as np
from figures import busy_share, command_line, machine, warn_if_busy
from http_load import Connection, on_the_wire, percentile
from open_loop import Outcome, at_pace, send_all
from processes import Neighbours, child, end_on_sigterm, pss_kib, script
from rich.console import Console
from rich.table import Table
from serving import start_ours, wait_until
from slopes import Slope, slope
from swaps import two_snapshots
from texts import ITEM_WORDS, QUERY_WORDS, texts, vocabulary
from worlds import Prepared, copy_state

from raysys.errors import RaysysError
from raysys.index.store import SnapshotStore
from raysys.serving.local_head import descendants

CONNECTIONS = 64
SAMPLE_EVERY_S = 2.0
BLOCK_S = 60.0  # so long samples are alike
WARM_UP_SHARE = 0.3
FLAT_SHARE = 0.02
MORE_FILES = 8  # open at once, between the warm-up and the end: connections to the store come and go
# So few of each that caches and profiles can be filled before the clock runs.
OWN_ITEMS, OWN_USERS, OWN_QUERIES, READERS = 200, 4, 300, 100
SENT_AWAY = 429
MOST_EVENTS = 1_000  # of one person, in one profile and in one batch

console = Console(width=120, highlight=False)


class Sent(NamedTuple):
    """A request: its kind, its bytes on the wire, and the statuses that are right."""

    kind: str
    wire: bytes
    right: tuple[int, ...] = (200,)


@dataclass(frozen=True)
class Sample:
    """All processes together, so many seconds after the start."""

    at_s: float
    rss_mib: float
    pss_mib: float
    files: int
    threads: int


WRONG: tuple[tuple[str, bytes], ...] = (
    ("/v1/recommendations", b'{"limit": '),
    ("/v1/recommendations", b'{"limit": -1, "user": "x"}'),
    ("/v1/search", b'{"query": "\xff"}'),
    ("/v1/search", b'{"query": "x", "filter": {"must": [{"field": "nothing", "exists": true}]}}'),
    ("/v1/similar", b'{"item_id": "of no catalogue"}'),
    ("/v1/events", b'{"events": [1, 2]}'),
    ("/v1/items", b"[" * 10_000),
    ("/v1/nothing", b"{}"),
)


class Mixture:
    """The requests, without end. Users, queries and item ids come again; texts of items and ids of events do not."""

    def __init__(self, world: Prepared, seed: str) -> None:
        self._chance, self._seed, self._n = random.Random(seed), seed, 0
        titles = json.loads((world.peer / "items.json").read_text(encoding="utf-8"))
        self._items, self._users = [item["item_id"] for item in titles], world.users[:READERS]
        words = vocabulary()
        queries = texts(words, QUERY_WORDS, seed)
        self._queries = [next(queries) for _ in range(OWN_QUERIES)]
        self._texts = texts(words, ITEM_WORDS, seed)

    def __iter__(self) -> Iterator[Sent]:
        makers = [maker for maker, _ in self._shares()]
        shares = [share for _, share in self._shares()]
        while True:
            yield self._chance.choices(makers, shares)[0]()

    def filling(self) -> Iterator[Sent]:
        """Requests after which caches and profiles are as large as they become, and every length of text was seen."""
        for user in range(OWN_USERS):
            yield self._report(MOST_EVENTS, lambda user=user: f"soak-user-{user}")
        for number in range(2 * OWN_ITEMS):
            yield self._write(f"soak-item-{number % OWN_ITEMS}")
        for query in self._queries:
            yield _post("search", "/v1/search", {"query": query, "limit": 10})
        for user in self._users:
            yield _post("recommendations", "/v1/recommendations", {"user_id": user, "limit": 10})

    def _shares(self) -> list[tuple[Callable[[], Sent], int]]:
        """In percent."""
        return [
            (self._list, 35),
            (self._explained, 3),
            (self._search, 15),
            (self._similar, 10),
            (self._rank, 5),
            (self._events, 14),
            (self._upsert, 4),
            (self._patch, 4),
            (self._delete, 2),
            (self._person, 4),
            (self._wrong, 4),
        ]

    def _user(self) -> str:
        return self._chance.choice(self._users)

    def _own(self) -> str:
        return f"soak-item-{self._chance.randrange(OWN_ITEMS)}"

    def _list(self) -> Sent:
        return _post("recommendations", "/v1/recommendations", {"user_id": self._user(), "limit": 10})

    def _explained(self) -> Sent:
        body = {"user_id": self._user(), "limit": 10, "explain": True, "explore": True}
        return _post("explained", "/v1/recommendations", body)

    def _search(self) -> Sent:
        return _post("search", "/v1/search", {"query": self._chance.choice(self._queries), "limit": 10})

    def _similar(self) -> Sent:
        return _post("similar", "/v1/similar", {"item_id": self._chance.choice(self._items), "limit": 10})

    def _rank(self) -> Sent:
        items = [*self._chance.sample(self._items, min(30, len(self._items))), self._own()]
        return _post("rank", "/v1/rank", {"user_id": self._user(), "items": items})

    def _events(self) -> Sent:
        return self._report(5, lambda: f"soak-user-{self._chance.randrange(OWN_USERS)}")

    def _report(self, n_events: int, user: Callable[[], str]) -> Sent:
        self._n += 1
        kinds = ("view", "click", "like")
        events = [
            {
                "event_id": f"{self._seed}-{self._n}-{n}",
                "type": self._chance.choice(kinds),
                "user_id": user(),
                "item_id": self._chance.choice([self._chance.choice(self._items), self._own()]),
            }
            for n in range(n_events)
        ]
        return _post("events", "/v1/events", {"events": events})

    def _upsert(self) -> Sent:
        return self._write(self._own())

    def _write(self, item_id: str) -> Sent:
        items = [{"item_id": item_id, "title": next(self._texts), "price": 1.0}]
        return _post("items", "/v1/items", {"items": items})

    def _patch(self) -> Sent:
        items = [{"item_id": self._own(), "price": self._chance.random()}]
        return _post("items:patch", "/v1/items:patch", {"items": items})

    def _delete(self) -> Sent:
        return _post("items:delete", "/v1/items:delete", {"item_ids": [self._own()]})

    def _person(self) -> Sent:
        return _post("users:get", "/v1/users:get", {"user_id": f"soak-user-{self._chance.randrange(OWN_USERS)}"})

    def _wrong(self) -> Sent:
        path, body = self._chance.choice(WRONG)
        head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        return Sent("wrong", head % (path.encode(), len(body)) + body, (400, 404, 422))


def _post(kind: str, path: str, body: dict[str, object]) -> Sent:
    return Sent(kind, on_the_wire("POST", path, body))


class Ledger:
    """What came of the requests: latencies by minute, errors by kind, and what answers went without."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self.latencies_ms: dict[int, list[float]] = defaultdict(list)
        self.sent: Counter[str] = Counter()
        self.errors: dict[str, Counter[str]] = defaultdict(Counter)
        self.degraded: Counter[str] = Counter()
        self.n_swaps = self.sent_away = 0

    def add(self, sent: Sent, outcome: Outcome) -> None:
        self.sent[sent.kind] += 1
        if outcome.status == SENT_AWAY:
            self.sent_away += 1
            return
        error = outcome.error or (f"status {outcome.status}" if outcome.status not in sent.right else None)
        if error is not None:
            self.errors[sent.kind][error] += 1
            return
        self.latencies_ms[int((outcome.due_s - self._start_s) / 60)].append(outcome.latency_ms)
        if outcome.status == 200 and b'"degraded":[]' not in outcome.body:
            self.degraded.update(json.loads(outcome.body).get("degraded", ()))


def sample(at_s: float) -> Sample:
    """What all processes hold that were started here. One that has just gone counts nothing."""
    pids = descendants(os.getpid())
    status = [_status(pid) for pid in pids]
    return Sample(
        at_s,
        rss_mib=sum(one.get("VmRSS", 0) for one in status) / 1024,
        pss_mib=sum(map(pss_kib, pids)) / 1024,
        files=sum(map(_files, pids)),
        threads=sum(one.get("Threads", 0) for one in status),
    )


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    parts = (line.split() for line in lines if line.startswith(("VmRSS:", "Threads:")))
    return {name.rstrip(":"): int(value) for name, value, *_ in parts}


def _files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


async def soak(port: int, given: argparse.Namespace, world: Prepared, other: str) -> dict[str, Any]:
    """The figures. Raises RaysysError where a snapshot cannot be published."""
    mixture = Mixture(world, f"soak-{time.time():.0f}")
    await fill(port, mixture)
    start_s, stop = time.perf_counter(), asyncio.Event()
    ledger, neighbours = Ledger(start_s), Neighbours()
    requests = at_pace(iter(mixture), given.per_s, start_s)
    sending = asyncio.create_task(send_all(port, CONNECTIONS, requests, lambda sent: sent.wire, ledger.add, stop))
    swapping = asyncio.create_task(_swap(SnapshotStore(world.index_root), other, given.swap_every, ledger))
    samples: list[Sample] = []
    while (now_s := time.perf_counter() - start_s) < given.minutes * 60 and not sending.done() and not swapping.done():
        samples.append(await asyncio.to_thread(sample, now_s))
        _show(samples[-1], ledger)
        await asyncio.sleep(SAMPLE_EVERY_S)
    stop.set()
    swapping.cancel()
    with suppress(asyncio.CancelledError):
        await swapping
    await sending
    return report(samples, ledger, neighbours.share(), given)


async def fill(port: int, mixture: Mixture) -> None:
    """One request after the other, before the clock runs. Raises RuntimeError where one fails."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    for sent in mixture.filling():
        status, body = await connection.ask(sent.wire)
        if status not in sent.right:
            raise RuntimeError(f"{sent.kind}: status {status}: {body[:300]!r}")
    connection.close()


async def _swap(store: SnapshotStore, other: str, every_s: float, ledger: Ledger) -> None:
    """Until it is cancelled."""
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(store.rollback if store.current_id() == other else lambda: store.publish(other))
        ledger.n_swaps += 1


def _show(now: Sample, ledger: Ledger) -> None:
    errors = sum(sum(kinds.values()) for kinds in ledger.errors.values())
    line = f"{now.at_s:4.0f} s: {now.pss_mib:,.1f} MiB, {now.files} files, {now.threads} threads"
    console.print(f"[dim]{line}, {sum(ledger.sent.values()):,} sent, {errors} errors[/]", end="\r")


def report(samples: Sequence[Sample], ledger: Ledger, neighbours: float, given: argparse.Namespace) -> dict[str, Any]:
    """Everything as plain values."""
    warm_s = given.minutes * 60 * WARM_UP_SHARE
    warm, later = ([s for s in samples if (s.at_s < warm_s) is before] for before in (True, False))
    hours = (later[-1].at_s - later[0].at_s) / 3600
    memory = {name: growth(later, name, hours) for name in ("pss_mib", "rss_mib")}
    counted = {name: _counted(warm, later, name) for name in ("files", "threads")}
    errors = {kind: dict(found) for kind, found in ledger.errors.items()}
    return {
        "topology": given.topology,
        "minutes": given.minutes,
        "per_s": given.per_s,
        "warm_up_s": round(warm_s),
        "flat_below_share": FLAT_SHARE,
        "flat": all(one["flat"] for one in (*memory.values(), *counted.values())),
        "memory": memory,
        **counted,
        "swaps": ledger.n_swaps,
        "sent": dict(ledger.sent),
        "errors": errors,
        "sent_away": ledger.sent_away,
        "degraded": dict(ledger.degraded),
        "neighbours": neighbours,
        "by_minute": [_minute(number, samples, ledger) for number in sorted(ledger.latencies_ms)],
    }


def growth(samples: Sequence[Sample], name: str, hours: float) -> dict[str, Any]:
    """MiB an hour, and whether that makes less of the memory in this time than counts as growth."""
    at_s, mib = (np.array([getattr(one, field) for one in samples]) for field in ("at_s", name))
    block = max(round(BLOCK_S / SAMPLE_EVERY_S), 1)
    per_hour: Slope = slope(at_s, mib, min(block, len(mib)), np.random.default_rng(0)).times(3600)
    held = float(np.median(mib))
    share = per_hour.high * hours / held
    figures = {"median_mib": round(held, 1), "mib_per_hour": per_hour.as_dict(), "most_share_gained": round(share, 4)}
    return figures | {"flat": share < FLAT_SHARE}


def _counted(warm: Sequence[Sample], later: Sequence[Sample], name: str) -> dict[str, Any]:
    """Of files and threads: the most at once, before and after the warm-up."""
    most = [max(getattr(one, name) for one in some) for some in (warm, later)]
    return {"most_in_warm_up": most[0], "most_later": most[1], "flat": most[1] <= most[0] + MORE_FILES}


def _minute(number: int, samples: Sequence[Sample], ledger: Ledger) -> dict[str, Any]:
    ordered = sorted(ledger.latencies_ms[number])
    here = [one for one in samples if int(one.at_s / 60) == number] or [samples[-1]]
    held = {name: round(median(getattr(one, name) for one in here), 1) for name in ("pss_mib", "rss_mib")}
    counted = {name: max(getattr(one, name) for one in here) for name in ("files", "threads")}
    p50_ms, p99_ms = (percentile(ordered, share) for share in (0.5, 0.99))
    return {"minute": number, "answers": len(ordered), "p50_ms": p50_ms, "p99_ms": p99_ms, **held, **counted}


def start(stack: ExitStack, world: Prepared, topology: str, folder: Path) -> int:
    """The application, on a copy of the state, until the stack ends. Returns the port."""
    state = folder / "state.sqlite3"
    copy_state(world.state, state)
    if topology != "alone":
        return start_ours(stack, replace(world, state=state), topology)
    settings = {"index_root": str(world.index_root), "state": str(state)}
    settings |= {"impressions": {"folder": str(folder / "impressions")}}
    path = folder / "settings.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    log = stack.enter_context((folder / "log").open("w"))
    process = stack.enter_context(child(script("alone_server.py", path), stdout=PIPE, stderr=log))
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the gateway did not start:\n{(folder / 'log').read_text()}")
    port = int(line)
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5), topology)
    return port


def table(found: dict[str, Any]) -> Table:
    errors = ", ".join(f"{n} x {kind}: {what}" for kind, of in found["errors"].items() for what, n in of.items())
    pss = found["memory"]["pss_mib"]
    per_hour = pss["mib_per_hour"]
    caption = (
        f"PSS {pss['median_mib']} MiB, {per_hour['slope']} MiB/h ({per_hour['low']} to {per_hour['high']}): "
        f"{'flat' if found['flat'] else 'NOT FLAT'}; {found['swaps']} swaps; errors: {errors or 'none'}; "
        f"{found['sent_away']} sent away; others used {found['neighbours']:.0%} of the machine"
    )
    drawn = Table(title=f"{found['minutes']:g} minutes at {found['per_s']:g}/s, {found['topology']}", caption=caption)
    columns = ("minute", "answers", "p50_ms", "p99_ms", "pss_mib", "rss_mib", "files", "threads")
    for column in columns:
        drawn.add_column(column, justify="right")
    for row in found["by_minute"]:
        drawn.add_row(*(f"{row[column]:,}" for column in columns))
    return drawn


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__, "small catalogue, half a minute")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--per-s", type=float, default=25.0, help="requests a second")
    parser.add_argument("--swap-every", type=float, default=30.0, help="seconds between a swap and the rollback")
    parser.add_argument("--topology", choices=("alone", "tiered", "fused"), default="alone")
    given = parser.parse_args()
    if given.quick:
        given.minutes, given.swap_every = 0.5, 5.0
    return given


def main() -> int:
    given = arguments()
    end_on_sigterm()
    busy = busy_share()
    warn_if_busy(busy)
    try:
        with ExitStack() as stack:
            world, other = two_snapshots(given)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
            found = asyncio.run(soak(start(stack, world, given.topology, folder), given, world, other))
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(table(found))
    if given.json is not None:
        whole = {"benchmark": "soak", "machine": machine(busy), "catalogue": world.name, **found}
        given.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 0 if found["flat"] and not found["errors"] else 1


if __name__ == "__main__":
    sys.exit(main())
