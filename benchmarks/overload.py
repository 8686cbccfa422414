"""Twice as many requests as can be answered, for a minute: what comes of those that are let in?

    python benchmarks/overload.py [--topology tiered fused ...] [--keys] [--seconds 60] [--times 2] [--json FILE]

First the peak: the most answers a second that a closed loop of many clients gets for requests of known users. Then an
open loop sends ``--times`` the peak, whether or not earlier requests were answered; a latency counts from when its
request was due. A list that went without something under pressure is an answer, and counted apart; told to come back
(status 429) is none, and any other error is a failure. Memory is the proportional set size of all processes that were
started, before and after. The load shares the machine with what it loads: at twice the peak it takes more of it than
at the peak, which counts against the answers. ``--keys``: callers must show an API key.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from figures import busy_share, command_line, machine, warn_if_busy
from http_load import KEY_VARIABLE, Load, LoadProcess, Measured, load_process
from paced_load import Paced, paced_load
from processes import end_on_sigterm, pss_kib
from rich.console import Console
from rich.table import Table
from serving import LAYOUTS, NOT_DEGRADED, prepared, start_ours
from worlds import Prepared

from raysys.access import KeyFile, make_key
from raysys.config import ServeSettings
from raysys.errors import RaysysError
from raysys.serving.local_head import descendants

CLIENTS = 64
CONNECTIONS = 1_024
RAMP_S = 3.0
TURNED_AWAY = "status 429"
GOODPUT, DEADLINE_MS = 0.9, ServeSettings().deadline_s * 1e3

console = Console(width=120, highlight=False)


class Peak(NamedTuple):
    """How long it is looked for; the median of the rounds counts."""

    rounds: int = 3
    seconds: float = 4.0
    clients: int = CLIENTS


def run(world: Prepared, layout: str, more: dict[str, Any], times: float, seconds: float) -> dict[str, Any]:
    """The figures. What is started here has ended when this returns or raises."""
    with ExitStack() as stack:
        load = stack.enter_context(load_process())
        port = start_ours(stack, world, layout, more)
        return {"topology": layout, **overloaded(load, port, world, times, seconds, Peak())}


def overloaded(
    load: LoadProcess, port: int, world: Prepared, times: float, seconds: float, peak: Peak
) -> dict[str, Any]:
    """What becomes of so many times the peak."""
    console.print("[dim]looking for the peak ...[/]")
    peak_per_s = median(_peak(load, port, world, peak, number) for number in range(peak.rounds))
    console.print(f"[dim]{times * peak_per_s:,.0f} requests/s for {seconds:.0f} s ...[/]")
    before_mib = _memory_mib()
    measured = _overload(port, times * peak_per_s, seconds, world)
    after_mib = _memory_mib()
    failed = {what: n for what, n in measured.errors.items() if what != TURNED_AWAY}
    return {
        "peak_per_s": round(peak_per_s, 1),
        "offered_per_s": round(times * peak_per_s, 1),
        "seconds": seconds,
        "answers_per_s": measured.requests_per_s,
        "browned_out": measured.browned_out,
        "goodput": round(measured.requests_per_s / peak_per_s, 3),
        "turned_away": measured.errors.get(TURNED_AWAY, 0),
        "failed": failed,
        "n_failed": sum(failed.values()),
        "memory_mib": [round(before_mib), round(after_mib)],
        "memory_over_before": round(after_mib / before_mib, 3),
        "measured": asdict(measured),
    }


def new_key(folder: Path) -> Path:
    """A file with one key, which is sent along from now on."""
    key, text = make_key("benchmark", {"read"}, None, datetime.now(UTC))
    file = KeyFile(folder / "keys.json")
    file.add(key)
    os.environ[KEY_VARIABLE] = text
    return file.path


def _peak(load: LoadProcess, port: int, world: Prepared, peak: Peak, number: int) -> float:
    """Raises RuntimeError where there is no answer that has everything: nothing can be said of twice that."""
    path, seed = "/v1/recommendations", f"peak-{number}"
    asked = Load(port, path, "user", peak.clients, peak.seconds, 1.0, seed, world.users, NOT_DEGRADED)
    measured = load.measure(asked)
    if not measured.requests:
        raise RuntimeError(f"no list with everything in it at the peak: {measured.errors}")
    return measured.requests_per_s


def _overload(port: int, per_s: float, seconds: float, world: Prepared) -> Measured:
    load = Paced(port, CONNECTIONS, per_s, 0, 1, RAMP_S, f"overload-{time.time():.0f}", world.users, ())
    with paced_load(load) as under_way:
        time.sleep(seconds)
        return under_way.finish()["recommendations"]


def _memory_mib() -> float:
    return sum(pss_kib(pid) for pid in descendants(os.getpid())) / 1024


def table(runs: Sequence[dict[str, Any]], world: Prepared) -> Table:
    title = f"{world.name}: {world.manifest.n_items:,} items"
    drawn = Table(
        title=title, caption=f"aims: answers at {GOODPUT:.0%} of the peak, their p99 below {DEADLINE_MS:,.0f} ms"
    )
    for column in (
        "",
        "peak/s",
        "sent/s",
        "answered/s",
        "of peak",
        "browned out",
        "429",
        "failed",
        "p50 ms",
        "p99 ms",
        "MiB",
    ):
        drawn.add_column(column, justify="right")
    for one in runs:
        cells = [f"{one[name]:,.0f}" for name in ("peak_per_s", "offered_per_s", "answers_per_s")]
        cells += [f"{one['goodput']:.2f}", f"{one['browned_out']:,}", f"{one['turned_away']:,}"]
        cells.append(", ".join(f"{n} x {what}" for what, n in one["failed"].items()) or "0")
        cells += [f"{one['measured'][name]:,.0f}" for name in ("p50_ms", "p99_ms")]
        drawn.add_row(one["topology"], *cells, " -> ".join(f"{mib:,}" for mib in one["memory_mib"]))
    return drawn


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--topology", nargs="+", choices=LAYOUTS, default=["tiered"])
    parser.add_argument("--keys", action="store_true", help="callers must show an API key")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=2.0, help="of the peak")
    parser.add_argument("--synthetic", action="store_true", help="a made-up catalogue instead of the films")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    end_on_sigterm()
    busy = busy_share()
    warn_if_busy(busy)
    try:
        world = prepared(given)
        with TemporaryDirectory() as folder:
            more = {"api_keys": str(new_key(Path(folder)))} if given.keys else {}
            runs = [run(world, layout, more, given.times, given.seconds) for layout in given.topology]
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(table(runs, world))
    if given.json is not None:
        found = {
            "benchmark": "overload",
            "machine": machine(busy),
            "catalogue": world.name,
            "keys": given.keys,
            "rows": runs,
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
