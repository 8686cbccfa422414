"""Run by test_cluster.py: one of three nodes is lost under load; prints what was seen as one JSON line."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from clusters import poll
from faulty import SHARDS, TWO, Watched, see_nothing_lost, two_snapshots, under_load
from ray import serve
from ray.cluster_utils import Cluster
from three_nodes import nodes_of, three_nodes

from raysys.config import ServeSettings, parse
from raysys.serving.app import build as build_app

SPREAD = {**TWO, "max_replicas_per_node": 1}
BOUND_S = 90.0


def serve_settings(folder: Path) -> ServeSettings:
    raw = {
        "index_root": str(folder / "index"),
        "state": str(folder / "state.sqlite3"),
        "impressions": {"folder": str(folder / "impressions")},
        "gateway": SPREAD,
        "shard_tier": {**SPREAD, "resources": {"shard_node": 0.1}},
    }
    return parse(ServeSettings, raw, "test")


def lose(cluster: Cluster, watched: Watched) -> tuple[dict[str, Any], dict[str, Any]]:
    """SIGKILL to the raylet of a node with replicas of both shards, and of a gateway where there is one; later a new
    node comes. What was seen of both."""
    with_gateway = sorted(cluster.worker_nodes, key=lambda node: node.node_id in nodes_of("gateway"))
    victim = with_gateway[-1]
    held = [name for name in ("gateway", "encoder", "ranker", *SHARDS) if victim.node_id in nodes_of(name)]
    lost = watched.suffer(
        f"raylet with {', '.join(held)}",
        lambda: cluster.remove_node(victim, allow_graceful=False),
        lambda: len(nodes_of("gateway")) == 2 and all(len(nodes_of(name)) == 1 for name in SHARDS),
        BOUND_S,
    )
    start_s = time.monotonic()
    again = watched.suffer(
        "a new node",
        lambda: cluster.add_node(num_cpus=2, resources={"shard_node": 1}),
        lambda: all(len(nodes_of(name)) == 2 for name in ("gateway", *SHARDS)),
        BOUND_S,
    )
    return {**asdict(lost), "held": held}, {**asdict(again), "took_s": time.monotonic() - start_s}


def main(cluster: Cluster, folder: Path, port: int) -> dict[str, Any]:
    snapshots = two_snapshots(folder)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(serve_settings(folder)), name="raysys")
    poll("two replicas", lambda: all(len(nodes_of(name)) == 2 for name in ("gateway", *SHARDS)), BOUND_S)
    with under_load(f"http://127.0.0.1:{port}", "node", snapshots[1]) as watched:
        lost, again = lose(cluster, watched)
    see_nothing_lost(str(folder / "state.sqlite3"), watched.load.acknowledged)
    return {"lost": lost, "again": again}


if __name__ == "__main__":
    cluster = three_nodes()
    try:
        seen = main(cluster, Path(sys.argv[1]), int(sys.argv[2]))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(seen))
