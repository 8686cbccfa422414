"""A hundred new snapshots and rollbacks while people ask: does anybody notice?

    python benchmarks/swaps.py [--swaps 100] [--per-s 50] [--topology tiered] [--canary 0.3] [--json FILE] [--quick]

Two snapshots of one catalogue whose lists differ are built, and while nobody else asks it is written down what each
answers to the same questions: recommendations for known users, searches by text, similar items. Then these questions
come at a fixed pace (open loop; a latency counts from when its request was due), with a tenth of batches of events
between them, while the pointer moves to the one snapshot and back. Every answer must name a snapshot and be what that
one said: another list under its name is a mixed one. Calm stretches before and after are what latencies are compared
with. The load shares the machine with what it loads.

With ``--canary`` a third snapshot is the canary of this share of the people beside each that is published: every move
of the pointer ends it, and then it starts anew. Whoever gets its lists and is not of its people is on a wrong side.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from figures import busy_share, command_line, machine, warn_if_busy
from http_load import Connection, on_the_wire, percentile
from open_loop import Outcome, at_pace, send_all
from processes import end_on_sigterm
from rich.console import Console
from rich.table import Table
from serving import TIERS, wait_until
from texts import QUERY_WORDS, texts, vocabulary
from worlds import Prepared, films, prepare, synthetic

from raysys.config import BuildSettings
from raysys.errors import RaysysError
from raysys.index.canary import Canary
from raysys.index.store import SnapshotStore
from raysys.serving.deploy import replica_pids
from raysys.serving.local_head import free_ports
from raysys.serving.session import local_service
from raysys.training.local import build_here
from raysys.types import user_key

CONNECTIONS, N_QUESTIONS = 64, 80
CALM_S, RAMP_S, PAUSE_S, CANARY_S = 30.0, 3.0, 0.2, 1.0
FLIP_DEADLINE_S = 60.0
EVENTS_SHARE = 0.1
HALF_LIFE_DAYS, CANARY_HALF_LIFE_DAYS = 30, 3  # of the other snapshots' popularity: their lists differ

console = Console(width=120, highlight=False)

Lists = dict[str, list[str]]  # snapshot id -> the item ids of its answer


@dataclass(eq=False)
class Question:
    """A request as bytes, and what each snapshot answers to it; nothing for events, which are only taken.

    user: the key of who asks, None = nobody who is named.
    """

    wire: bytes
    user: str | None = None
    wanted: Lists = field(default_factory=dict)


@dataclass
class Stretch:
    """What came of the requests of some time."""

    latencies_ms: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    mixed: int = 0

    def add(self, latency_ms: float, complaint: str | None) -> None:
        if complaint is None:
            self.latencies_ms.append(latency_ms)
        elif complaint == "mixed":
            self.mixed += 1
        else:
            self.failed[complaint] += 1

    def as_dict(self) -> dict[str, Any]:
        ordered = sorted(self.latencies_ms)
        p50_ms, p99_ms, max_ms = (percentile(ordered, share) for share in (0.5, 0.99, 1.0))
        figures = {"answers": len(ordered), "failed": dict(self.failed), "mixed": self.mixed}
        return figures | {"p50_ms": p50_ms, "p99_ms": p99_ms, "max_ms": max_ms}


class Traffic:
    """The load: goes on until it is stopped, and puts what comes of it into ``stretch``."""

    def __init__(
        self, port: int, per_s: float, questions: Sequence[Question], events: Iterator[bytes], canary: Canary | None
    ) -> None:
        """canary: whose lists only its people may get, whenever it runs."""
        self._port, self._per_s, self._questions, self._events = port, per_s, questions, events
        self._canary = canary
        self.stretch = Stretch()
        self.named = Counter[str]()  # the snapshots of the answers

    async def run(self) -> None:
        requests = at_pace(self._requests(), self._per_s, time.perf_counter())
        await send_all(self._port, CONNECTIONS, requests, lambda question: question.wire, self._take, asyncio.Event())

    def _requests(self) -> Iterator[Question]:
        chance = random.Random(7)
        while True:
            is_event = chance.random() < EVENTS_SHARE
            yield Question(next(self._events)) if is_event else chance.choice(self._questions)

    def _take(self, question: Question, outcome: Outcome) -> None:
        failed = outcome.error or self._complaint(question, outcome.status, outcome.body)
        self.stretch.add(outcome.latency_ms, failed)

    def _complaint(self, question: Question, status: int, body: bytes) -> str | None:
        if status != 200:
            return f"status {status}"
        answer = json.loads(body)
        if "items" not in answer:
            return None if not answer["rejected"] else "events rejected"
        self.named[answer["snapshot_id"]] += 1
        if answer["degraded"]:
            return f"degraded: {', '.join(answer['degraded'])}"
        if self._is_astray(question, answer["snapshot_id"]):
            return "of the wrong side"
        return None if ids(answer) == question.wanted.get(answer["snapshot_id"]) else "mixed"

    def _is_astray(self, question: Question, snapshot_id: str) -> bool:
        """Whether this is a list of the canary for somebody who is not of its people."""
        if self._canary is None or snapshot_id != self._canary.snapshot_id:
            return False
        return question.user is None or not self._canary.has(question.user)


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def questions_of(world: Prepared, n: int) -> list[tuple[str, dict[str, object]]]:
    """The routes and bodies: half for known users, a quarter by text, a quarter similar items."""
    users = random.Random(3).sample(world.users, min(n // 2, len(world.users)))
    titles = json.loads((world.peer / "items.json").read_text(encoding="utf-8"))
    asked: list[tuple[str, dict[str, object]]] = [("/v1/recommendations", {"user_id": user}) for user in users]
    words = texts(vocabulary(), QUERY_WORDS, "swaps")
    asked += [("/v1/search", {"query": next(words)}) for _ in range(n // 4)]
    items = random.Random(4).sample(titles, min(n // 4, len(titles)))
    return asked + [("/v1/similar", {"item_id": item["item_id"]}) for item in items]


def made_up_events() -> Iterator[bytes]:
    """Batches about an item that is not there: they are kept and change no list."""
    for batch in itertools.count():
        event = {"type": "view", "user_id": f"somebody-{batch % 50}", "item_id": "not-in-this-catalogue"}
        events = [event | {"event_id": f"swaps-{time.time_ns()}-{batch}-{n}"} for n in range(5)]
        yield on_the_wire("POST", "/v1/events", {"events": events})


async def written_down(
    port: int, asked: Sequence[tuple[str, dict[str, object]]], store: SnapshotStore, others: Sequence[str]
) -> list[Question]:
    """What the published snapshot and each of the others answer, while nobody else asks. It is published again then.

    Questions whose answer is not the same twice are left out.
    """
    questions = [Question(on_the_wire("POST", route, body | {"limit": 10}), _user_of(body)) for route, body in asked]
    unsteady: set[Question] = set()
    there_and_back = [move for other in others for move in (partial(store.publish, other), store.rollback)]
    for move in (lambda: None, *there_and_back):
        await asyncio.to_thread(move)
        await _served(port, questions[0], store.current_id())
        for question in questions:
            answer = await _alone(port, question)
            if question.wanted.setdefault(answer["snapshot_id"], ids(answer)) != ids(answer):
                unsteady.add(question)
    return [question for question in questions if question not in unsteady]


def _user_of(body: dict[str, object]) -> str | None:
    return user_key(str(body["user_id"]), None) if "user_id" in body else None


async def _alone(port: int, question: Question) -> dict[str, Any]:
    """The answer, over a connection of its own: just after a start the proxy lets go of those that are open."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    status, body = await connection.ask(question.wire)
    connection.close()
    if status != 200:
        raise RuntimeError(f"status {status}: {body!r}")
    return dict(json.loads(body))


async def _served(port: int, question: Question, snapshot_id: str) -> None:
    """Wait until an answer is of this snapshot. Raises TimeoutError."""

    async def is_named() -> bool:
        return bool((await _alone(port, question))["snapshot_id"] == snapshot_id)

    await _until(is_named)


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(FLIP_DEADLINE_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def swap(store: SnapshotStore, other: str, traffic: Traffic) -> float:
    """Move the pointer to the other snapshot, or back from it. Returns the seconds until an answer named it."""
    back = store.current_id() == other
    return await _moved(store.rollback if back else partial(store.publish, other), traffic, store.current_id)


async def start(store: SnapshotStore, canary: Canary, traffic: Traffic) -> float:
    """Start the canary beside what is published. Returns the seconds until an answer named it."""
    begin = partial(store.set_canary, canary.snapshot_id, canary.share, store.current_id())
    return await _moved(begin, traffic, lambda: canary.snapshot_id)


async def _moved(move: Callable[[], object], traffic: Traffic, wanted: Callable[[], str]) -> float:
    """Do it. Returns the seconds until an answer named the snapshot that is wanted then."""
    start_s = time.perf_counter()
    traffic.named.clear()
    await asyncio.to_thread(move)
    snapshot_id = wanted()

    async def is_seen() -> bool:
        return traffic.named[snapshot_id] > 0

    await _until(is_seen)
    return time.perf_counter() - start_s


async def measure(
    port: int, given: argparse.Namespace, world: Prepared, other: str, canary: Canary | None
) -> dict[str, Any]:
    """The figures of the two calm stretches together, and of the one with swaps."""
    store = SnapshotStore(world.index_root)
    others = [other, *(() if canary is None else [canary.snapshot_id])]
    questions = await written_down(port, questions_of(world, N_QUESTIONS), store, others)
    console.print(f"[dim]{len(questions)} questions; {share_of_others(questions):.0%} of them have several lists[/]")
    traffic = Traffic(port, given.per_s, questions, made_up_events(), canary)
    under_way = asyncio.create_task(traffic.run())
    calm_s = 3.0 if given.quick else CALM_S
    await asyncio.sleep(RAMP_S)
    traffic.stretch = calm = Stretch()
    await asyncio.sleep(calm_s)
    traffic.stretch = swapped = Stretch()
    took_s, starts_s, n_of_canary = [], [], 0
    for n in range(given.swaps):
        if canary is not None:
            starts_s.append(await start(store, canary, traffic))
            await asyncio.sleep(CANARY_S)
            n_of_canary += traffic.named[canary.snapshot_id]
        took_s.append(await swap(store, other, traffic))
        console.print(f"[dim]swap {n + 1}: {took_s[-1]:.1f} s[/]", end="\r")
        await asyncio.sleep(PAUSE_S)
    traffic.stretch = calm
    await asyncio.sleep(calm_s)
    under_way.cancel()
    with suppress(asyncio.CancelledError):
        await under_way
    flips = {"n_swaps": len(took_s), "flip_p50_s": round(median(took_s), 2), "flip_max_s": round(max(took_s), 2)}
    if canary is not None:
        flips |= {"canary_p50_s": round(median(starts_s), 2), "canary_answers": n_of_canary}
    rows = {"calm": calm.as_dict(), "swaps": swapped.as_dict()}
    return flips | rows | {"p99_ratio": round(rows["swaps"]["p99_ms"] / rows["calm"]["p99_ms"], 2)}


def share_of_others(questions: Sequence[Question]) -> float:
    """Of the questions, how many have another list in another snapshot: without those nothing mixed would be seen."""
    return sum(len({tuple(one) for one in question.wanted.values()}) > 1 for question in questions) / len(questions)


def run(given: argparse.Namespace, world: Prepared, other: str, canary: Canary | None) -> dict[str, Any]:
    """The figures of one application. What is started here has ended when this returns or raises."""
    with ExitStack() as stack:
        service = stack.enter_context(local_service())
        (port,) = free_ports(1)
        args = {"index_root": str(world.index_root), "state": str(world.state), "topology": given.topology, **TIERS}
        service.serve(args, port)
        stack.callback(service.stop_serving)
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5), "the application")
        pids = replica_pids(service.head.dashboard_url, service.token)
        found = asyncio.run(measure(port, given, world, other, canary))
        return found | {"same_processes": replica_pids(service.head.dashboard_url, service.token) == pids}


def two_snapshots(given: argparse.Namespace) -> tuple[Prepared, str]:
    """The published one, and the id of another that is not."""
    folder, settings = _catalogue(given)
    world = prepare(folder.name, folder, settings)
    return world, build_here(_otherwise(settings, HALF_LIFE_DAYS)).snapshot_id


def canary_of(given: argparse.Namespace, share: float) -> Canary:
    """Another one again, as it is the canary of this share of the people; beside which one does not count here."""
    _, settings = _catalogue(given)
    snapshot_id = build_here(_otherwise(settings, CANARY_HALF_LIFE_DAYS)).snapshot_id
    return Canary(snapshot_id=snapshot_id, share=share, beside="", at="")


def _catalogue(given: argparse.Namespace) -> tuple[Path, BuildSettings]:
    folder = given.home / ("synthetic-500" if given.quick else "films")
    return folder, synthetic(folder, 500) if given.quick else films(folder)


def _otherwise(settings: BuildSettings, half_life_days: float) -> BuildSettings:
    behaviour = settings.behaviour.model_copy(update={"popularity_half_life_days": half_life_days})
    index = settings.index.model_copy(update={"publish": False})
    return settings.model_copy(update={"behaviour": behaviour, "index": index})


def table(found: dict[str, Any], given: argparse.Namespace) -> Table:
    title = f"{found['n_swaps']} swaps and rollbacks at {given.per_s:g} requests/s, {given.topology}"
    processes = "the same" if found["same_processes"] else "OTHER"
    caption = (
        f"until an answer named the other snapshot: median {found['flip_p50_s']} s, most {found['flip_max_s']} s; "
        f"p99 {found['p99_ratio']} of the calm one (aim: at most 2); {processes} processes"
    )
    if "canary_answers" in found:
        title += f", a canary of {given.canary:.0%} beside"
        caption += f"; {found['canary_answers']:,} answers of the canary, {found['canary_p50_s']} s after its start"
    drawn = Table(title=title, caption=caption)
    for column in ("", "answers", "failed", "mixed", "p50 ms", "p99 ms", "max ms"):
        drawn.add_column(column, justify="right")
    for name in ("calm", "swaps"):
        row = found[name]
        failed = ", ".join(f"{n} x {what}" for what, n in row["failed"].items()) or "0"
        figures = (f"{row[figure]:,.1f}" for figure in ("p50_ms", "p99_ms", "max_ms"))
        drawn.add_row(name, f"{row['answers']:,}", failed, str(row["mixed"]), *figures)
    return drawn


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__, "small catalogue, four swaps")
    parser.add_argument("--swaps", type=int, default=100, help="half of them rollbacks")
    parser.add_argument("--per-s", type=float, default=50.0, help="requests a second")
    parser.add_argument("--topology", choices=("tiered", "fused"), default="tiered")
    parser.add_argument("--canary", type=float, help="the share of the people who get a third snapshot, above 0")
    given = parser.parse_args()
    given.swaps = 4 if given.quick else given.swaps
    return given


def main() -> int:
    given = arguments()
    end_on_sigterm()
    busy = busy_share()
    warn_if_busy(busy)
    try:
        world, other = two_snapshots(given)
        found = run(given, world, other, None if given.canary is None else canary_of(given, given.canary))
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(table(found, given))
    if given.json is not None:
        whole = {
            "benchmark": "swaps",
            "machine": machine(busy),
            "topology": given.topology,
            "per_s": given.per_s,
            "canary": given.canary,
            **found,
        }
        given.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    clean = not any(found[name]["failed"] or found[name]["mixed"] for name in ("calm", "swaps"))
    return 0 if clean and found["same_processes"] else 1


if __name__ == "__main__":
    sys.exit(main())
