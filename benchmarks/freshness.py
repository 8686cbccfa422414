"""How soon something that is written counts: measured from outside, over HTTP, while others use the service.

    python benchmarks/freshness.py [--state both] [--topology tiered] [--seconds 30] [--json FILE] [--quick]

A load in a process of its own (``paced_load.py``) sends recommendations and batches of events at a fixed pace. Beside
it this process writes things nobody else writes, one after the other, and asks until each is seen:

- an event: a like by a new user, then recommendations of that user. Changed means: of a profile version not before
  the acknowledged one, without the liked film, and no cold start. An answer that is not changed is stale: there
  must be none.
- a text: a sentence by a new user, until the source ``said`` puts an item forward for them.
- an item: until a search for its text finds it first.
- a deletion: of those items; then, for a while, searches and recommendations near them that must not show them.

Times are those of a caller: they hold the HTTP calls, and the time from a write to its effect also the asking.
The figures say something only where the load had no errors.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from figures import busy_share, command_line, machine, warn_if_busy
from http_load import Measured, percentile
from paced_load import Paced, paced_load
from processes import Neighbours, end_on_sigterm, redis_binary, redis_server
from rich.console import Console
from rich.table import Table
from serving import wait_until
from texts import QUERY_WORDS, texts, vocabulary
from worlds import Prepared, films, prepare, synthetic

from raysys.config import BuildSettings
from raysys.errors import RaysysError
from raysys.profile.imports import import_into
from raysys.serving.local_head import free_ports
from raysys.serving.session import local_service
from raysys.types import SOURCES

CONNECTIONS = 32
EVENTS_PER_BATCH = 10
RAMP_S = 3.0
# In one round; a deletion is watched for a while, so the other probes are made more often.
EVENTS, TEXTS, ITEMS = 10, 5, 5
TEXT_POLL_S, ITEM_POLL_S = 0.010, 0.020
TIMEOUT_S = 10.0  # what has not taken effect by then is counted as late, and has no time
WATCH_S = 1.5
OTHERS_MUST_KNOW_S = 1.0  # with several gateways, a deletion counts everywhere from then on
TIERS: dict[str, Any] = {"encoder_tier": {"min_replicas": 1, "max_replicas": 1, "threads": 2}}
LETTERS = "bcdfghjklmnprstvwz"

ROWS = {
    "event": ("event: acknowledged", ""),
    "event_seen": ("event: in the next answer", "p99 < 100 ms"),
    "text_seen": ("text: counts", "p99 < 1,000 ms"),
    "item_seen": ("item: found first", "p99 < 1,000 ms"),
    "delete": ("delete: acknowledged", "0 seen after"),
}

console = Console(width=150, highlight=False)


@dataclass
class Found:
    """What the probes saw. ms: milliseconds by the names in ``ROWS``.

    stale: answers that an acknowledged event had not changed. failed: what had no effect in time, or was answered by an
    error. watched: answers to requests that went out after a deletion was acknowledged. sightings_ms: how long after
    it those went out that still showed a deleted item.
    """

    ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ROWS})
    stale: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    watched: int = 0
    sightings_ms: list[float] = field(default_factory=list)

    def as_dict(self, gateways: int) -> dict[str, Any]:
        rows = {name: summary(values) for name, values in self.ms.items() if values}
        return {
            "ms": rows,
            "stale_answers": self.stale,
            "failed": dict(self.failed),
            "answers_after_deletes": self.watched,
            "sightings": len(self.sightings_ms),
            "latest_sighting_ms": max(self.sightings_ms, default=None),
            "sightings_that_must_not_be": len(self.forbidden(gateways)),
        }

    def forbidden(self, gateways: int) -> list[float]:
        """The sightings that break the promise: with one gateway all of them."""
        allowed_ms = OTHERS_MUST_KNOW_S * 1e3 if gateways > 1 else 0.0
        return [ms for ms in self.sightings_ms if ms >= allowed_ms]


def summary(values_ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values_ms)
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"n": len(ordered)} | {name: percentile(ordered, share) for name, share in shares.items()}


class Probes:
    """The probes over one service; ``found`` is what they saw."""

    def __init__(self, client: httpx.Client, items: Sequence[str], words: Sequence[str]) -> None:
        """client: its base is the service. items: ids of the catalogue. words: for sentences and titles."""
        self.found = Found()
        self._client, self._items = client, items
        self._chance = random.Random()
        self._sentences = texts(list(words), QUERY_WORDS, uuid.uuid4().hex)

    def round(self) -> None:
        """Every probe, in turn."""
        for _ in range(EVENTS):
            self._probe("event", self._event)
        if "said" in SOURCES:
            for _ in range(TEXTS):
                self._probe("text", self._text)
        live: dict[str, str] = {}
        for _ in range(ITEMS):
            self._probe("item", lambda: self._item(live))
        if live:
            self._probe("delete", lambda: self._delete(live))

    def _probe(self, what: str, run: Callable[[], None]) -> None:
        try:
            run()
        except httpx.HTTPStatusError as error:
            self.found.failed[f"{what}: status {error.response.status_code}"] += 1
        except (httpx.HTTPError, TimeoutError) as error:
            self.found.failed[f"{what}: {type(error).__name__}"] += 1

    def _event(self) -> None:
        user, film = f"canary-{uuid.uuid4().hex}", self._chance.choice(self._items)
        start_s = time.perf_counter()
        version = self._send(user, {"type": "like", "item_id": film})
        self._note("event", start_s)
        answer = self._post("/v1/recommendations", user_id=user)
        self._note("event_seen", start_s)
        unchanged = answer["profile_version"] < version or "cold_start" in answer["reasons"]
        self.found.stale += unchanged or film in _ids(answer)

    def _text(self) -> None:
        user, start_s = f"canary-{uuid.uuid4().hex}", time.perf_counter()
        self._send(user, {"type": "chat", "text": next(self._sentences)})
        for _ in _polls(start_s, TEXT_POLL_S):
            answer = self._post("/v1/recommendations", user_id=user)
            if any("said" in item["sources"] for item in answer["items"]):
                self._note("text_seen", start_s)
                return

    def _item(self, live: dict[str, str]) -> None:
        """Put one on sale; once it is found it is in ``live``, id -> title."""
        item_id = f"canary-{uuid.uuid4().hex}"
        title, start_s = f"{self._made_up()} {self._made_up()} {next(self._sentences)}", time.perf_counter()
        self._post("/v1/items", items=[{"item_id": item_id, "title": title}])
        live[item_id] = title
        for _ in _polls(start_s, ITEM_POLL_S):
            if _ids(self._post("/v1/search", query=title))[:1] == [item_id]:
                self._note("item_seen", start_s)
                return

    def _delete(self, live: dict[str, str]) -> None:
        near = [i for title in live.values() for i in _ids(self._post("/v1/search", query=title)) if i not in live]
        start_s = time.perf_counter()
        self._post("/v1/items:delete", item_ids=list(live))
        self._note("delete", start_s)
        deleted_s, near = time.perf_counter(), list(dict.fromkeys(near))
        while time.perf_counter() < deleted_s + WATCH_S:
            for title in live.values():
                self._watch(live, deleted_s, "/v1/search", query=title)
                positive = self._chance.sample(near, min(3, len(near)))
                self._watch(live, deleted_s, "/v1/recommendations", positive=positive, query=title)

    def _watch(self, deleted: dict[str, str], deleted_s: float, path: str, **body: Any) -> None:
        sent_s = time.perf_counter()
        seen = not deleted.keys().isdisjoint(_ids(self._post(path, **body)))
        self.found.watched += 1
        if seen:
            self.found.sightings_ms.append(round((sent_s - deleted_s) * 1e3, 3))

    def _send(self, user: str, event: dict[str, Any]) -> int:
        """One event of a user. Returns the version of their profile that was acknowledged."""
        answer = self._post("/v1/events", events=[{"event_id": uuid.uuid4().hex, "user_id": user, **event}])
        version: int = answer["profile_versions"][user]
        return version

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.post(path, json=body).raise_for_status().json()
        return answer

    def _note(self, name: str, start_s: float) -> None:
        self.found.ms[name].append((time.perf_counter() - start_s) * 1e3)

    def _made_up(self) -> str:
        return "".join(self._chance.choices(LETTERS, k=9))


def _ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def _polls(start_s: float, every_s: float) -> Iterator[None]:
    """Ask, wait, ask again. Raises TimeoutError when it was in vain for too long."""
    while time.perf_counter() < start_s + TIMEOUT_S:
        yield
        time.sleep(every_s)
    raise TimeoutError


@dataclass(frozen=True)
class Plan:
    """What to run for how long."""

    states: tuple[str, ...]
    topologies: tuple[str, ...]
    gateways: int
    seconds: float
    requests_per_s: float
    events_per_s: float


@dataclass(frozen=True)
class Run:
    """What came of one state store under one topology. neighbours: the share of all CPU time that others used in it."""

    state: str
    topology: str
    found: Found
    load: dict[str, Measured]
    neighbours: float

    @property
    def load_errors(self) -> int:
        return sum(n for measured in self.load.values() for n in measured.errors.values())

    def as_dict(self, gateways: int) -> dict[str, Any]:
        load = {kind: {**vars(measured)} for kind, measured in self.load.items()}
        run = {"state": self.state, "topology": self.topology, "valid": self.load_errors == 0}
        return run | {"probes": self.found.as_dict(gateways), "load": load, "neighbours": self.neighbours}


def run(world: Prepared, settings: BuildSettings, state: str, topology: str, plan: Plan) -> Run:
    """One state store from empty to the last figure. Nothing of it is left when this returns or raises."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raysys-freshness-")))
        location = str(folder / "state.sqlite3")
        if state == "redis":
            location = stack.enter_context(redis_server(folder / "redis"))
        console.print(f"[dim]{state}, {topology}: importing the profiles ...[/]")
        assert settings.events is not None  # both worlds have them
        import_into(location, settings.events, say=lambda _: None)
        port = stack.enter_context(serving(world, location, folder, topology, plan.gateways))
        items = tuple(item["item_id"] for item in json.loads((world.peer / "items.json").read_text(encoding="utf-8")))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S))
        console.print(f"[dim]{state}, {topology}: measuring for {plan.seconds:g} s ...[/]")
        return measure(
            Probes(client, items, vocabulary()), paced(plan, port, world.users, items), state, topology, plan
        )


@contextmanager
def serving(world: Prepared, state: str, folder: Path, topology: str, gateways: int) -> Iterator[int]:
    """The application over this state, on a head of its own. Yields its port."""
    (port,) = free_ports(1)
    args = {
        "index_root": str(world.index_root),
        "state": state,
        "topology": topology,
        "impressions": {"folder": str(folder / "impressions")},
        "gateway": {"min_replicas": gateways, "max_replicas": gateways},
        "cached_queries": 0,
        **TIERS,
    }
    with local_service() as service:
        service.serve(args, port)
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5), topology)
        yield port
        service.stop_serving()


def paced(plan: Plan, port: int, users: tuple[str, ...], items: tuple[str, ...]) -> Paced:
    pace = (CONNECTIONS, plan.requests_per_s, plan.events_per_s, EVENTS_PER_BATCH, RAMP_S)
    return Paced(port, *pace, seed=uuid.uuid4().hex, users=users, items=items)


def measure(probes: Probes, load: Paced, state: str, topology: str, plan: Plan) -> Run:
    """Probe until the time is over, at least one round, all of it under load."""
    with paced_load(load) as others:
        end_s, neighbours = time.monotonic() + plan.seconds, Neighbours()
        probes.round()
        while time.monotonic() < end_s:
            probes.round()
        share = neighbours.share()
        return Run(state, topology, probes.found, others.finish(), share)


def table(runs: Sequence[Run], world: Prepared, plan: Plan) -> Table:
    drawn = Table(title=f"freshness over {world.manifest.n_items:,} items, {plan.gateways} gateway(s)")
    for column in ("state", "topology", "probe", "n", "p50 ms", "p95 ms", "p99 ms", "max ms", "goal"):
        drawn.add_column(column, justify="right" if column == "n" or column.endswith("ms") else "left")
    for one in runs:
        for name, (label, goal) in ROWS.items():
            values = one.found.ms[name]
            cells = [f"{value:,.1f}" for key, value in summary(values).items() if key != "n"] if values else ["-"] * 4
            drawn.add_row(one.state, one.topology, label, str(len(values)), *cells, goal)
        drawn.add_section()
    return drawn


def remarks(one: Run, gateways: int) -> Iterator[str]:
    """What stands below the table about one run."""
    found = one.found
    yield f"{one.state}, {one.topology}: {found.stale} stale answers of {len(found.ms['event_seen'])}, which must be 0"
    seen = f"{len(found.sightings_ms)} of {found.watched} answers after deletions still showed one"
    latest = f", the latest {max(found.sightings_ms):,.0f} ms after it" if found.sightings_ms else ""
    yield f"  {seen}{latest}; {len(found.forbidden(gateways))} of them must not be"
    if found.failed:
        yield f"  failed: {', '.join(f'{n} x {what}' for what, n in found.failed.items())}"
    for kind, load in one.load.items():
        errors = ", ".join(f"{n} x {what}" for what, n in load.errors.items()) or "none"
        latencies = f"p50 {load.p50_ms:,.1f} ms, p99 {load.p99_ms:,.1f} ms, max {load.max_ms:,.1f} ms"
        yield f"  load, {kind}: {load.requests_per_s:,.1f} requests/s, {latencies}, errors: {errors}"
    yield f"  somebody else used {one.neighbours:.0%} of the machine meanwhile"
    if one.load_errors:
        yield "  NOT VALID: the load had errors, so nobody knows what the probes ran beside"


def report(world: Prepared, plan: Plan, runs: Sequence[Run], busy: float) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "benchmark": "freshness",
        "machine": machine(busy),
        "parameters": {
            "catalogue": world.name,
            "items": world.manifest.n_items,
            "shards": len(world.manifest.shards),
            "users": len(world.users),
            "gateways": plan.gateways,
            "seconds": plan.seconds,
            "requests_per_s": plan.requests_per_s,
            "events_per_s": plan.events_per_s,
            "events_per_batch": EVENTS_PER_BATCH,
            "connections": CONNECTIONS,
            "load": "open loop, in a process of its own on the same cores; latencies count from when a request was due",
            "tiers": TIERS,
            "model": world.manifest.identity,
        },
        "runs": [one.as_dict(plan.gateways) for one in runs],
    }


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__, "small made-up catalogue, 3 s, fused")
    parser.add_argument("--state", choices=("sqlite", "redis", "both"), default="both")
    parser.add_argument("--topology", choices=("tiered", "fused", "both"), default="tiered")
    parser.add_argument("--gateways", type=int, default=1, help="replicas of the gateway")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each state and topology")
    parser.add_argument("--requests-per-s", type=float, default=40.0, help="recommendations of the load")
    parser.add_argument("--events-per-s", type=float, default=200.0, help=f"in batches of {EVENTS_PER_BATCH}")
    return parser.parse_args()


def plan_of(given: argparse.Namespace) -> Plan:
    states = ("sqlite", "redis") if given.state == "both" else (given.state,)
    topologies = ("tiered", "fused") if given.topology == "both" else (given.topology,)
    if given.quick:
        return Plan(states, ("fused",), given.gateways, 3.0, given.requests_per_s, given.events_per_s)
    return Plan(states, topologies, given.gateways, given.seconds, given.requests_per_s, given.events_per_s)


def prepared(given: argparse.Namespace) -> tuple[Prepared, BuildSettings]:
    name = "synthetic-500" if given.quick else "films"
    folder = given.home / name
    settings = synthetic(folder, 500) if given.quick else films(folder)
    return prepare(name, folder, settings), settings


def main() -> int:
    given = arguments()
    end_on_sigterm()
    plan, busy = plan_of(given), busy_share()
    warn_if_busy(busy)
    if "said" not in SOURCES:
        console.print("texts are not probed: there is no source 'said' in this version")
    try:
        if "redis" in plan.states:
            redis_binary()  # better known now than after the other runs
        console.print("[dim]building the catalogue ...[/]")
        world, settings = prepared(given)
        runs = [run(world, settings, state, topology, plan) for state in plan.states for topology in plan.topologies]
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(table(runs, world, plan))
    for line in (line for one in runs for line in remarks(one, plan.gateways)):
        console.print(line)
    if given.json is not None:
        found = report(world, plan, runs, busy)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
