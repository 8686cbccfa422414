"""How many replicas, machines and dollars N items and Q requests a second take: a model of measured costs.

    python benchmarks/capacity.py --measure [--seconds 8] [--costs benchmarks/results/capacity.json]
    python benchmarks/capacity.py --check 100_000 [--seconds 8] [--costs benchmarks/results/capacity.json]
    python benchmarks/capacity.py --items 100_000_000 --requests-per-s 10_000 [--costs benchmarks/results/capacity.json]

``--measure`` loads the tiered application with 32 clients over made-up catalogues and takes the CPU time of each tier a
request. What is fitted on three sizes: a gateway's time grows with the shards that it asks, a shard's with its items.
Two more points, of which one is the films, are predicted and then measured: the error is printed and kept.
``--check`` does the same with catalogues of other sizes in one shard, for instance of one beyond ``FLAT_ITEMS``.

The plan keeps every tier below ``UTILISATION`` of its cores. It counts requests without text; a text costs one encode.
A shard beyond ``FLAT_ITEMS`` is searched by an approximate index, whose costs are those of
``benchmarks/results/index.json``, beside what the largest shard that was measured takes; the price of ``MACHINE`` is
that of ``raysys/training/prices.py``.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from figures import HOME, busy_share, machine, warn_if_busy
from http_load import Load, Measured, load_process
from processes import cpu_s, end_on_sigterm, pss_kib
from rich.console import Console
from rich.table import Table
from serving import NOT_DEGRADED, TIERS, wait_until
from worlds import Prepared, films, prepare, synthetic

from raysys.errors import RaysysError
from raysys.serving.deploy import replica_pids
from raysys.serving.local_head import descendants, free_ports
from raysys.serving.session import local_service
from raysys.training.prices import MACHINES

CLIENTS, RAMP_S = 32, 2.0
FITTED = ((5_000, 2), (20_000, 2), (5_000, 4))  # items, shards
CHECKED = (20_000, 4)  # and the films
MACHINE, MACHINE_GIB, HOURS_A_MONTH = "r6i.2xlarge", 64, 730
UTILISATION, MOST_OF_MEMORY = 0.5, 0.7
FLAT_ITEMS = 50_000
MOST_MEASURED = max(items // shards for items, shards in FITTED)  # items a shard
VECTORS = 2  # of a request: a person has some two interests
VECTOR_BYTES = 4 * 384
APPROXIMATE = "ivf_rabitq"
RESULTS = Path(__file__).parent / "results"

console = Console(width=130, highlight=False)


@dataclass(frozen=True)
class Point:
    """CPU milliseconds a request at many clients, of each tier; of one shard, the mean.

    rest: of Ray, the proxy and the load generator. mib: memory of one replica of each tier.
    """

    items: int
    shards: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    gateway_ms: float
    shard_ms: float
    ranker_ms: float
    encoder_ms: float
    rest_ms: float
    mib: dict[str, float]

    @property
    def request_ms(self) -> float:
        """Of a request without text; what the encoder uses then is its being there."""
        return self.gateway_ms + self.shards * self.shard_ms + self.ranker_ms + self.rest_ms


@dataclass(frozen=True)
class Costs:
    """gateway, rest: a fixed part and one for each shard. shard: a fixed part and one for each item."""

    gateway_ms: tuple[float, float]
    shard_ms: tuple[float, float]
    rest_ms: tuple[float, float]
    ranker_ms: float
    encoder_ms: float
    mib: dict[str, float]
    shard_bytes_per_item: float

    @classmethod
    def of(cls, points: Sequence[Point], with_text: Point) -> "Costs":
        """The least squares of what was measured."""
        shards = [point.shards for point in points]
        per_shard = [point.items / point.shards for point in points]
        memory = _line(per_shard, [point.mib["shard"] * 2**20 for point in points])
        return cls(
            gateway_ms=_line(shards, [point.gateway_ms for point in points]),
            shard_ms=_line(per_shard, [point.shard_ms for point in points]),
            rest_ms=_line(shards, [point.rest_ms for point in points]),
            ranker_ms=float(np.mean([point.ranker_ms for point in points])),
            encoder_ms=with_text.encoder_ms,
            mib={tier: max(point.mib[tier] for point in (*points, with_text)) for tier in points[0].mib},
            shard_bytes_per_item=max(memory[1], 0.0),
        )

    def requests_per_s(self, items: int, shards: int, cores: int, index: "Index") -> float:
        """The most that one machine of so many cores answers with one replica of each tier, the load on it included."""
        slowest_ms = max(self.gateway(shards), self.shard(items / shards, index))
        return min(cores / self.request_ms(items, shards, index), 1 / slowest_ms) * 1e3

    def request_ms(self, items: int, shards: int, index: "Index") -> float:
        """CPU time of a request without text, in all processes together, the load included."""
        of_shards = shards * self.shard(items / shards, index)
        return self.gateway(shards) + of_shards + self.ranker_ms + _at(self.rest_ms, shards)

    def gateway(self, shards: int) -> float:
        return _at(self.gateway_ms, shards)

    def shard(self, items: float, index: "Index") -> float:
        """Behind an approximate index nothing else of a shard grows with its items (``shard.py``)."""
        if items <= FLAT_ITEMS:
            return _at(self.shard_ms, items)
        return _at(self.shard_ms, MOST_MEASURED) + VECTORS * index.search_ms(items)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    slope, start = np.polyfit(x, y, 1)
    return float(start), float(slope)


def _at(line: tuple[float, float], x: float) -> float:
    return line[0] + line[1] * x


def measure(world: Prepared, asks: str, seconds: float) -> Point:
    """One point; everything that is started for it has ended when this returns."""
    shards = len(world.manifest.shards)
    with ExitStack() as stack:
        load = stack.enter_context(load_process())
        service = stack.enter_context(local_service())
        (port,) = free_ports(1)
        args = {"index_root": str(world.index_root), "state": str(world.state), "topology": "tiered", **TIERS}
        service.serve(args, port)
        stack.callback(service.stop_serving)
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5), "the application")

        def ask(seed: str, for_s: float) -> Measured:
            users = world.users if asks == "user" else ()
            return load.measure(
                Load(port, "/v1/recommendations", asks, CLIENTS, for_s, RAMP_S, seed, users, NOT_DEGRADED)  # type: ignore[arg-type]
            )

        ask("warm up", seconds)
        pids = replica_pids(service.head.dashboard_url, service.token)
        before, before_all = _tiers_cpu_s(pids), _all_cpu_s()
        measured = ask("measured", seconds)
        n = measured.requests_per_s * (seconds + RAMP_S)
        tiers = {tier: (used - before[tier]) / n * 1e3 for tier, used in _tiers_cpu_s(pids).items()}
        everything = (_all_cpu_s() - before_all) / n * 1e3
        return Point(
            items=world.manifest.n_items,
            shards=shards,
            requests_per_s=measured.requests_per_s,
            p50_ms=measured.p50_ms,
            p99_ms=measured.p99_ms,
            gateway_ms=tiers["gateway"],
            shard_ms=tiers["shard"] / shards,
            ranker_ms=tiers["ranker"],
            encoder_ms=tiers["encoder"],
            rest_ms=everything - sum(tiers.values()),
            mib={tier: max(pss_kib(pid) for pid in of_tier) / 1024 for tier, of_tier in _by_tier(pids).items()},
        )


def _by_tier(pids: dict[str, list[int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, of_deployment in pids.items():
        found.setdefault("shard" if name.startswith("shard") else name, []).extend(of_deployment)
    return found


def _tiers_cpu_s(pids: dict[str, list[int]]) -> dict[str, float]:
    return {tier: sum(map(cpu_s, of_tier)) for tier, of_tier in _by_tier(pids).items()}


def _all_cpu_s() -> float:
    return sum(map(cpu_s, (os.getpid(), *descendants(os.getpid()))))


def calibrate(home: Path, index: "Index", seconds: float) -> dict[str, Any]:
    """Measure, fit, and see how far the fit is from points that it was not made of."""
    points = [_point(home, items, shards, seconds) for items, shards in FITTED]
    world = prepare("films", home / "films", films(home / "films"))
    with_text = _say(measure(world, "text", seconds))
    costs = Costs.of(points, with_text)
    checks = [_point(home, *CHECKED, seconds), _say(measure(world, "user", seconds))]
    return {
        "costs": asdict(costs),
        "fitted_on": [asdict(point) for point in (*points, with_text)],
        "checked_on": [checked(costs, index, point) for point in checks],
    }


def checked(costs: Costs, index: "Index", point: Point) -> dict[str, Any]:
    """The point, and by what share the prediction is above it: in requests a second, and in CPU time a request."""
    per_s = costs.requests_per_s(point.items, point.shards, os.cpu_count() or 1, index)
    ms = costs.request_ms(point.items, point.shards, index)
    error, cpu_error = per_s / point.requests_per_s - 1, ms / point.request_ms - 1
    console.print(
        f"predicted: {per_s:,.0f} requests/s ({error:+.0%}), {ms:.2f} ms of CPU time a request ({cpu_error:+.0%}), "
        f"{costs.shard(point.items / point.shards, index):.2f} of it in a shard"
    )
    return {**asdict(point), "error": round(error, 3), "cpu_error": round(cpu_error, 3)}


def check(home: Path, costs: Costs, index: "Index", items: int, seconds: float) -> dict[str, Any]:
    """A catalogue of this size in one shard, of the index that a plan takes for it."""
    folder = home / f"capacity-{items}-1"
    settings = synthetic(folder, items, 1)
    kind = "flat" if items <= FLAT_ITEMS else index.kind
    chosen = {"index": settings.index.model_copy(update={"kind": kind})}
    world = prepare("synthetic", folder, settings.model_copy(update=chosen))
    return checked(costs, index, _say(measure(world, "user", seconds)))


def _point(home: Path, items: int, shards: int, seconds: float) -> Point:
    folder = home / f"capacity-{items}-{shards}"
    return _say(measure(prepare("synthetic", folder, synthetic(folder, items, shards)), "user", seconds))


def _say(point: Point) -> Point:
    console.print(
        f"{point.items:,} items in {point.shards} shards: {point.requests_per_s:,.0f} requests/s; ms a request: "
        f"gateway {point.gateway_ms:.2f}, a shard {point.shard_ms:.2f}, ranker {point.ranker_ms:.2f}, "
        f"encoder {point.encoder_ms:.2f}, rest {point.rest_ms:.2f}"
    )
    return point


@dataclass(frozen=True)
class Index:
    """How a shard is searched. A search takes ``ms`` at ``items``, and grows with their ``growth``-th power."""

    kind: str
    items: int
    ms: float
    growth: float
    bytes_per_item: float

    @classmethod
    def measured(cls, path: Path) -> "Index":
        """From what ``index.py`` has written."""
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        sizes = sorted((int(n) for n in runs), reverse=True)[:2]
        of_size = [next(row for row in runs[str(n)]["rows"] if row["name"] == APPROXIMATE) for n in sizes]
        large, small = (1e3 / row["queries_per_s"]["median"] for row in of_size)
        growth = math.log(large / small) / math.log(sizes[0] / sizes[1])
        return cls(APPROXIMATE, sizes[0], large, growth, of_size[0]["bytes"] / sizes[0])

    def search_ms(self, items: float) -> float:
        return self.ms * (items / self.items) ** self.growth


@dataclass(frozen=True)
class Plan:
    """What it takes. text_share: of the requests. cores, gib: of all replicas of a tier. shard_gib: of one shard on one
    machine. alone_ms: CPU time of one request on its longest way."""

    items: int
    requests_per_s: float
    text_share: float
    shards: int
    index: str
    replicas: dict[str, int]
    cores: dict[str, float]
    gib: dict[str, float]
    shard_gib: float
    alone_ms: float
    machines: int
    usd_per_month: int
    first_to_break: str


def plan(costs: Costs, index: Index, items: int, requests_per_s: float, text_share: float) -> Plan:
    """The cheapest number of shards of those that are powers of two, one of which fits a machine."""
    tried = [_with_shards(costs, index, items, requests_per_s, text_share, 2**power) for power in range(11)]
    fitting = [one for one in tried if one.shard_gib <= MACHINE_GIB * MOST_OF_MEMORY]
    return min(fitting, key=lambda one: (one.machines, one.alone_ms))


def _with_shards(costs: Costs, index: Index, items: int, requests_per_s: float, text_share: float, shards: int) -> Plan:
    per_shard = items / shards
    is_flat = per_shard <= FLAT_ITEMS
    shard_ms = costs.shard(per_shard, index)
    ms = {"gateway": costs.gateway(shards), "shard": shard_ms, "ranker": costs.ranker_ms, "encoder": costs.encoder_ms}
    asked = {"gateway": 1.0, "shard": 1.0, "ranker": 1.0, "encoder": text_share}
    replicas = {
        tier: max(2, math.ceil(requests_per_s * share * ms[tier] / 1e3 / UTILISATION)) for tier, share in asked.items()
    }
    replicas["shard"] *= shards
    # Beside its index a shard keeps what it looks up for each item at hand; the vectors are mapped and may be evicted.
    of_items = costs.shard_bytes_per_item - (0 if is_flat else VECTOR_BYTES - index.bytes_per_item)
    busy = {tier: requests_per_s * share * ms[tier] / 1e3 for tier, share in asked.items()}
    busy["shard"] *= shards
    gib = {tier: replicas[tier] * costs.mib[tier] / 1024 for tier in replicas}
    shard_gib = per_shard * of_items / 2**30
    gib["shard"] += shards * _copies(replicas["shard"] / shards) * shard_gib
    needed = {
        "cores": sum(busy.values()) / UTILISATION / MACHINES[MACHINE].cores,
        "memory": sum(gib.values()) / MACHINE_GIB / MOST_OF_MEMORY,
    }
    machines = max(2, math.ceil(max(needed.values())))
    return Plan(
        items=items,
        requests_per_s=requests_per_s,
        text_share=text_share,
        shards=shards,
        index="flat" if is_flat else index.kind,
        replicas=replicas,
        cores={tier: round(used, 1) for tier, used in busy.items()},
        gib={tier: round(held, 1) for tier, held in gib.items()},
        shard_gib=round(shard_gib, 2),
        alone_ms=round(ms["gateway"] + shard_ms + costs.ranker_ms, 1),
        machines=machines,
        usd_per_month=round(machines * MACHINES[MACHINE].usd_per_hour * HOURS_A_MONTH),
        first_to_break=_first_to_break(needed, busy, gib),
    )


def _copies(replicas: float) -> int:
    """On how many machines one shard is. What it keeps for each item is mapped from files, which replicas share."""
    return max(2, math.ceil(replicas / MACHINES[MACHINE].cores))


def _first_to_break(needed: dict[str, float], busy: dict[str, float], gib: dict[str, float]) -> str:
    what = max(needed, key=lambda name: needed[name])
    of_tier = busy if what == "cores" else gib
    return f"{what}: {max(of_tier, key=lambda tier: of_tier[tier])}"


def table(plans: Sequence[Plan]) -> Table:
    drawn = Table(
        title=f"on {MACHINE} at {MACHINES[MACHINE].usd_per_hour} USD an hour, {UTILISATION:.0%} of the cores busy"
    )
    columns = ("items", "requests/s", "shards", "index", "gateways", "shard replicas", "rankers", "encoders", "cores")
    for column in (*columns, "GiB", "machines", "USD a month", "breaks first"):
        drawn.add_column(column, justify="right")
    for one in plans:
        replicas = [str(one.replicas[tier]) for tier in ("gateway", "shard", "ranker", "encoder")]
        totals = [f"{sum(of_tiers.values()):,.0f}" for of_tiers in (one.cores, one.gib)]
        sizes = [f"{one.items:,}", f"{one.requests_per_s:,.0f}", str(one.shards), one.index]
        drawn.add_row(*sizes, *replicas, *totals, str(one.machines), f"{one.usd_per_month:,}", one.first_to_break)
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the costs here and write them to --costs")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--home", type=Path, default=HOME, help="where catalogues are kept")
    parser.add_argument("--costs", type=Path, default=RESULTS / "capacity.json")
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--requests-per-s", type=float, nargs="+", default=[100.0, 1_000.0, 10_000.0])
    parser.add_argument("--text-share", type=float, default=0.1, help="of the requests that hold a text")
    parser.add_argument("--check", type=int, nargs="+", metavar="ITEMS", help="measure these sizes, and compare")
    given = parser.parse_args()
    end_on_sigterm()
    index, home = Index.measured(RESULTS / "index.json"), given.home
    if not given.measure and not given.costs.is_file():
        print(f"error: there are no costs in {given.costs}; measure them first with --measure", file=sys.stderr)
        return 1
    found = json.loads(given.costs.read_text(encoding="utf-8")) if given.costs.is_file() else {}
    busy = busy_share() if given.measure or given.check else 0.0
    warn_if_busy(busy)
    try:
        if given.measure:
            found = {"machine": machine(busy), **calibrate(home, index, given.seconds)}
        costs = Costs(**found["costs"])
        found["checked_on"] += [
            {**check(home, costs, index, items, given.seconds), "busy_before": busy} for items in given.check or ()
        ]
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if given.measure or given.check:
        given.costs.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    asked = [(items, per_s) for items in given.items for per_s in given.requests_per_s]
    console.print(table([plan(costs, index, items, per_s, given.text_share) for items, per_s in asked]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
