"""Run by test_cluster.py: a head and two more raylets on this machine; prints what it saw as one JSON line."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import ray
from clusters import poll, settings_of, world_settings
from ray import serve
from ray.cluster_utils import Cluster

from raysys.config import ServeSettings, parse
from raysys.serving.app import build as build_app
from raysys.training.distributed.build import build

CLIENTS = 16
QUICK = {"upscale_delay_s": 1, "downscale_delay_s": 3, "look_back_period_s": 3}


def three_nodes() -> Cluster:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(wait=False, num_cpus=2, resources={"shard_node": 1})
    cluster.wait_for_nodes(timeout=60)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    return cluster


def serve_settings(folder: Path) -> ServeSettings:
    raw = {
        "index_root": str(folder / "index"),
        "state": str(folder / "state.sqlite3"),
        "shard_tier": {"resources": {"shard_node": 1}},
        "encoder_tier": {"max_replicas": 2, "target_ongoing_requests": 1, **QUICK},
    }
    return parse(ServeSettings, raw, "test")


def nodes_of(name: str) -> list[str]:
    """The node of each running replica of one deployment."""
    actors = ray._private.state.actors().values()
    return [
        actor["Address"]["NodeID"]
        for actor in actors
        if actor["State"] == "ALIVE" and f"#{name}#" in (actor["Name"] or "")
    ]


async def load(url: str, until: asyncio.Event) -> int:
    """Clients that ask for ever-new texts until told to stop. Returns how many requests failed."""

    async def client(number: int, http: httpx.AsyncClient) -> int:
        failed = asked = 0
        while not until.is_set():
            asked += 1
            answer = await http.post("/v1/recommendations", json={"query": f"words of client {number} and {asked}"})
            failed += answer.status_code != 200
        return failed

    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        return sum(await asyncio.gather(*(client(number, http) for number in range(CLIENTS))))


async def under_load(url: str) -> tuple[int, int]:
    """Encoder replicas after some seconds of load, and failed requests."""
    until = asyncio.Event()
    loading = asyncio.create_task(load(url, until))
    try:
        await asyncio.to_thread(poll, "a second encoder", lambda: len(nodes_of("encoder")) == 2, 90)
        grown = len(nodes_of("encoder"))
    finally:
        until.set()
    return grown, await loading


def main(folder: Path, port: int) -> dict[str, Any]:
    manifest, _ = build(
        settings_of(world_settings(folder, encoder={"model": "minilm"}, workers={"encoders": 1})), say=lambda _: None
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(serve_settings(folder)), name="raysys")
    url = f"http://127.0.0.1:{port}"
    answer = httpx.post(f"{url}/v1/recommendations", json={"limit": 5}, timeout=30).json()
    shard_nodes = {name: nodes_of(name)[0] for name in ("shard-00", "shard-01")}
    before = len(nodes_of("encoder"))
    grown, failed = asyncio.run(under_load(url))
    poll("one encoder again", lambda: len(nodes_of("encoder")) == 1, 90)
    return {
        "items": manifest.n_items,
        "degraded": answer["degraded"],
        "shard_nodes": shard_nodes,
        "encoders": {"before": before, "under_load": grown, "after": len(nodes_of("encoder"))},
        "failed_requests": failed,
    }


if __name__ == "__main__":
    cluster = three_nodes()
    try:
        seen = main(Path(sys.argv[1]), int(sys.argv[2]))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(seen))
