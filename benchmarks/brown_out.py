"""What each level of the brown-out saves: CPU time of a request, by kind of request and level.

    python benchmarks/brown_out.py [--rounds 5] [--requests 40] [--json FILE] [--quick]

The gateway without Ray runs in this process, over a catalogue with a student, and is called without a network, so the
figures leave HTTP parsing and sockets out. In each round every kind is asked at every level in turn, by the same users
and with queries that no cache knows; a ratio is that to level 0 in the same round. CPU time is that of all threads.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from figures import Spread, busy_share, command_line, machine, warn_if_busy
from processes import Neighbours
from rich.console import Console
from rich.table import Table
from texts import QUERY_WORDS, texts, vocabulary
from worlds import Prepared, copy_state, films, prepare, synthetic

from raysys.config import ServeSettings, StudentSettings
from raysys.errors import RaysysError
from raysys.index.store import SnapshotStore
from raysys.serving import admission, front
from raysys.serving.alone import Alone

LEVELS = (0, 1, 2, 3)
Body = dict[str, Any]

console = Console(width=120, highlight=False)


class Level(admission.Admission):
    """Lets everybody in, at the level that it is told."""

    now_at = 0

    def enter(self) -> int:
        super().enter()
        return Level.now_at


def kinds(world: Prepared, users: list[str], words: Iterator[str]) -> dict[str, list[tuple[str, Body]]]:
    """Of each kind, one request a user."""
    route = "/v1/recommendations"
    return {
        "list": [(route, {"user_id": user}) for user in users],
        "list, explained": [(route, {"user_id": user, "explain": True, "explore": True}) for user in users],
        "list, explained in full": [(route, {"user_id": user, "explain": "full"}) for user in users],
        "list with a query": [(route, {"user_id": user, "query": next(words)}) for user in users],
        "search": [("/v1/search", {"query": next(words)}) for _ in users],
    }


async def measure(world: Prepared, state: Path, rounds: int, n: int) -> dict[str, dict[int, list[float]]]:
    """By kind and level, the CPU milliseconds of a request in each round."""
    store = SnapshotStore(world.index_root)
    settings = ServeSettings(index_root=str(world.index_root), state=str(state), impressions={"folder": None})
    front.Admission = Level  # type: ignore[misc]  # the one thing that is not as it is served
    gateway = Alone(settings, store.manifest(store.current_id()).encoder)
    await gateway.follow("current")
    users, words = random.Random(1).sample(world.users, n), texts(vocabulary(), QUERY_WORDS, "brown-out")
    took: dict[str, dict[int, list[float]]] = {}
    transport = httpx.ASGITransport(gateway.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
        for number in range(rounds + 1):  # the first fills caches and is not counted
            for level in LEVELS if number % 2 else LEVELS[::-1]:
                for kind, requests in kinds(world, users, words).items():
                    cpu_ms = await _cpu_ms(client, requests, level)
                    if number:
                        took.setdefault(kind, {}).setdefault(level, []).append(cpu_ms)
    await gateway.close()
    return took


async def _cpu_ms(client: httpx.AsyncClient, requests: list[tuple[str, Body]], level: int) -> float:
    Level.now_at = level
    start_s = time.process_time()
    for path, body in requests:
        answer = await client.post(path, json=body | {"limit": 10})
        answer.raise_for_status()
    return (time.process_time() - start_s) / len(requests) * 1e3


def rows(took: dict[str, dict[int, list[float]]]) -> list[dict[str, Any]]:
    found = []
    for kind, by_level in took.items():
        for level, cpu_ms in by_level.items():
            ratio = Spread.of([one / whole for one, whole in zip(cpu_ms, by_level[0], strict=True)])
            figures = {"cpu_ms": Spread.of(cpu_ms).as_dict(), "over_level_0": ratio.as_dict()}
            found.append({"kind": kind, "level": level, **figures})
    return sorted(found, key=lambda row: (list(took).index(row["kind"]), row["level"]))


def table(found: list[dict[str, Any]], neighbours: float) -> Table:
    drawn = Table(title="CPU of a request", caption=f"others used {neighbours:.0%} of the machine")
    for column in ("kind", "level", "CPU ms", "over level 0"):
        drawn.add_column(column, justify="left" if column == "kind" else "right")
    for row in found:
        drawn.add_row(
            row["kind"],
            str(row["level"]),
            Spread(**row["cpu_ms"]).text(2),
            Spread(**row["over_level_0"]).text(2),
        )
    return drawn


def prepared(given: argparse.Namespace) -> Prepared:
    folder = given.home / ("synthetic-500-student" if given.quick else "films-student")
    settings = synthetic(folder, 500) if given.quick else films(folder)
    student = StudentSettings(queries=500, dim=32) if given.quick else StudentSettings()
    return prepare(folder.name, folder, settings.model_copy(update={"student": student}))


def main() -> int:
    parser = command_line(__doc__, "small catalogue, one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40, help="of each kind at each level in each round")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.requests = 1, 5
    busy = busy_share()
    warn_if_busy(busy)
    try:
        world = prepared(given)
        with tempfile.TemporaryDirectory() as folder:
            neighbours = Neighbours()
            state = Path(folder) / "state.sqlite3"
            copy_state(world.state, state)
            found = rows(asyncio.run(measure(world, state, given.rounds, given.requests)))
            share = neighbours.share()
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(table(found, share))
    if given.json is not None:
        about = {"benchmark": "brown-out", "machine": machine(busy), "catalogue": world.name, "neighbours": share}
        given.json.write_text(json.dumps(about | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
