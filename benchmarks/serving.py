"""Throughput and latency of the served app, as ratios to a peer and to itself, measured in one run.

    python benchmarks/serving.py [--synthetic] [--rounds 5] [--seconds 5] [--clients 1 8 32] [--json FILE]

The peer (``peer_server.py``) is FastAPI + sentence-transformers float32 + a flat FAISS index in one uvicorn process,
with the same weights, items and vectors on the same cores. The sides of a row are up at the same time and take turns
in rounds; a ratio is taken within a round, and what is shown is the median of the rounds, smallest and largest.
No side caches anything: every text is new. The load is closed-loop (``http_load.py``): its clients wait for answers.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from statistics import mean
from typing import Any

import httpx
from contests import Contest, Outcome, Plan, Side, table, take_turns
from figures import busy_share, command_line, machine, warn_if_busy
from http_load import Asks, LoadProcess, load_process
from processes import child, end_on_sigterm, script
from rich.console import Console
from texts import QUERY_WORDS, texts, vocabulary
from worlds import Prepared, films, prepare, synthetic

from raysys.encoder.models import minilm_folder
from raysys.errors import RaysysError
from raysys.serving.local_head import free_ports
from raysys.serving.session import local_service

N_FILMS = 9_066
RAMP_S = 1.0
START_TIMEOUT_S = 120.0
AGREEMENT_QUERIES = 50
# Sizes are fixed, so that no replica starts in the middle of a measurement.
TIERS: dict[str, Any] = {"encoder_tier": {"min_replicas": 1, "max_replicas": 1, "threads": 2}}
CORES = os.cpu_count() or 1
# How the app is spread over processes: a tier each, all in one, or all in one as often as there are cores.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiered": {"topology": "tiered", **TIERS},
    "fused": {"topology": "fused", **TIERS},
    "fused-per-core": {
        "topology": "fused",
        "gateway": {"min_replicas": CORES, "max_replicas": CORES},
        "encoder_tier": {"threads": 1},
    },
}
MANY = 32  # clients
PEER_MODES = ("thread-pool", "event-loop")
QUIET = {"TQDM_DISABLE": "1"}
NOT_DEGRADED = '"degraded":[]'

console = Console(width=150, highlight=False)


def text_contests(name: str, ours: int, peers: dict[str, int], clients: Sequence[int]) -> list[Contest]:
    """Of a lone client how long it waits counts, of many how many answers there are."""
    sides = (*_texts(peers), Side("raysys", ours, "/v1/recommendations", "text", NOT_DEGRADED))
    return [
        Contest(f"{name}, alone", sides, n, "p50_ms", "<= 1.1")
        if n == 1
        else Contest(name, sides, n, "requests_per_s", ">= 5, p99 < 1" if n >= MANY else "")
        for n in clients
    ]


def history_contests(ours: int, peers: dict[str, int], plan: Plan) -> list[Contest]:
    sides = (*_texts(peers), _history("raysys", ours))
    return [
        _over_no_op("user history over no-op", ours),
        Contest("user history over the peers' texts", sides, plan.clients[-1], "requests_per_s", ">= 12"),
    ]


def per_core_contests(per_core: int, peers: dict[str, int], plan: Plan) -> list[Contest]:
    sides, many = (*_texts(peers), _history("raysys", per_core)), plan.clients[-1]
    return [
        *text_contests("text query, fused, one a core", per_core, peers, [many]),
        Contest("user history over the peers' texts, one a core", sides, many, "requests_per_s", ">= 12"),
        _over_no_op("user history over no-op, one a core", per_core),
    ]


def _over_no_op(name: str, ours: int) -> Contest:
    return Contest(
        name, (Side("no-op route", ours, "/livez", "nothing"), _history("raysys", ours)), 1, "p50_ms", "<= 8"
    )


def _texts(peers: dict[str, int]) -> tuple[Side, ...]:
    return tuple(Side(f"peer, {mode}", port, "/search", "text", '"item_id"') for mode, port in peers.items())


def _history(name: str, port: int) -> Side:
    return Side(name, port, "/v1/recommendations", "user", NOT_DEGRADED)


def fused_contests(tiered: int, fused: int) -> list[Contest]:
    def contest(what: str, asks: Asks, goal: str) -> Contest:
        path = "/v1/recommendations"
        sides = (Side("tiered", tiered, path, asks, NOT_DEGRADED), Side("fused", fused, path, asks, NOT_DEGRADED))
        return Contest(f"{what}, fused over tiered", sides, 1, "p50_ms", goal)

    return [contest("user history", "user", "<= 0.5"), contest("text query", "text", "")]


def run(world: Prepared, plan: Plan) -> tuple[list[Outcome], dict[str, float]]:
    """All rows, and how far both sides agree. Everything started here has ended when this returns or raises."""
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        load = stack.enter_context(load_process())
        tiered = start_ours(stack, world, "tiered")
        with ExitStack() as peer_stack:
            peers = {mode: start_peer(peer_stack, world, mode) for mode in PEER_MODES}
            agreement = agree(tiered, peers[PEER_MODES[0]])
            outcomes += measure(text_contests("text query", tiered, peers, plan.clients), plan, load, world)
            outcomes += measure(history_contests(tiered, peers, plan), plan, load, world)
            with ExitStack() as per_core_stack:
                per_core = start_ours(per_core_stack, world, "fused-per-core")
                outcomes += measure(per_core_contests(per_core, peers, plan), plan, load, world)
        fused = start_ours(stack, world, "fused")
        outcomes += measure(fused_contests(tiered, fused), plan, load, world)
    return outcomes, agreement


def measure(contests: Sequence[Contest], plan: Plan, load: LoadProcess, world: Prepared) -> Iterator[Outcome]:
    for contest in contests:
        console.print(f"[dim]{contest.name}, {contest.clients} client(s) ...[/]")
        yield take_turns(contest, plan, load, world.users)


def start_ours(stack: ExitStack, world: Prepared, layout: str, more: dict[str, Any] | None = None) -> int:
    """A head of its own with the app on it, in one of the ``LAYOUTS``. more: settings. Returns the port."""
    (port,) = free_ports(1)
    console.print(f"[dim]starting raysys, {layout} ...[/]")
    service = stack.enter_context(local_service())
    args = {"index_root": str(world.index_root), "state": str(world.state), "cached_queries": 0}
    service.serve(args | LAYOUTS[layout] | (more or {}), port)
    stack.callback(service.stop_serving)
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5), layout)
    return port


def start_peer(stack: ExitStack, world: Prepared, mode: str) -> int:
    """The peer as a process of its own. Returns the port."""
    (port,) = free_ports(1)
    console.print(f"[dim]starting the peer, {mode} ...[/]")
    stack.enter_context(child(script("peer_server.py", world.peer, minilm_folder(), str(port), mode), QUIET))
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/livez", timeout=5), "the peer")
    return port


def wait_until(ask: Callable[[], httpx.Response], who: str) -> None:
    """Raises RuntimeError when the answer is not a success in time."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    last = "no answer"
    while time.monotonic() < deadline_s:
        try:
            answer = ask()
        except httpx.HTTPError as error:
            last = str(error)
        else:
            if answer.is_success:
                return
            last = answer.text
        time.sleep(0.25)
    raise RuntimeError(f"{who} is not ready after {START_TIMEOUT_S:.0f} s: {last}")


def agree(ours: int, peer: int) -> dict[str, float]:
    """The share of the ten nearest items that both sides name: a check that they do the same work."""
    queries = texts(vocabulary(), QUERY_WORDS, "agreement")
    shares = []
    with httpx.Client(timeout=30) as client:
        for _, query in zip(range(AGREEMENT_QUERIES), queries, strict=False):
            body = {"query": query, "limit": 10}
            found = [_ids(client, f"http://127.0.0.1:{ours}/v1/search", body)]
            found.append(_ids(client, f"http://127.0.0.1:{peer}/search", body))
            shares.append(len(found[0] & found[1]) / max(len(found[1]), 1))
    return {"queries": len(shares), "mean_overlap_at_10": round(mean(shares), 4), "min_overlap_at_10": min(shares)}


def _ids(client: httpx.Client, url: str, body: dict[str, Any]) -> set[str]:
    return {item["item_id"] for item in client.post(url, json=body).raise_for_status().json()["items"]}


def report(
    world: Prepared, plan: Plan, outcomes: Sequence[Outcome], agreement: dict[str, float], busy: float
) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "benchmark": "serving",
        "machine": machine(busy),
        "parameters": parameters(world, plan),
        "agreement": agreement,
        "rows": [outcome.as_dict() for outcome in outcomes],
    }


def parameters(world: Prepared, plan: Plan) -> dict[str, Any]:
    """What a reader must know to run it again."""
    return {
        "catalogue": world.name,
        "items": world.manifest.n_items,
        "shards": len(world.manifest.shards),
        "users": len(world.users),
        "rounds": plan.rounds,
        "seconds_a_round": plan.seconds,
        "ramp_s": plan.ramp_s,
        "query_words": QUERY_WORDS,
        "limit": 10,
        "load": "closed loop, one connection a client, in a process of its own on the same cores",
        "caches": "off",
        "layouts": LAYOUTS,
        "model": world.manifest.identity,
    }


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--synthetic", action="store_true", help="a made-up catalogue instead of the films")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each side in each round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, MANY], help="the last one is the many")
    return parser.parse_args()


def prepared(given: argparse.Namespace) -> Prepared:
    home = given.home
    if not given.synthetic:
        return prepare("films", home / "films", films(home / "films"))
    folder = home / f"synthetic-{N_FILMS}"
    return prepare("synthetic", folder, synthetic(folder, N_FILMS))


def main() -> int:
    given = arguments()
    end_on_sigterm()
    plan = Plan(given.rounds, given.seconds, RAMP_S, tuple(given.clients))
    busy = busy_share()
    warn_if_busy(busy)
    try:
        console.print("[dim]building the catalogue ...[/]")
        world = prepared(given)
        outcomes, agreement = run(world, plan)
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(table(outcomes, *captions(world, plan, agreement)))
    if given.json is not None:
        found = report(world, plan, outcomes, agreement, busy)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def captions(world: Prepared, plan: Plan, agreement: dict[str, float]) -> tuple[str, str]:
    """Title and caption of the table."""
    return (
        f"{world.name}: {world.manifest.n_items:,} items, {plan.rounds} round(s) of {plan.seconds:g} s",
        "median (smallest-largest) of the rounds; ratio: the last side over this one, within a round; peer and "
        f"raysys name the same items in {agreement['mean_overlap_at_10']:.1%} of the first ten places",
    )


if __name__ == "__main__":
    sys.exit(main())
