"""The bulk embedding job from start to end, against a plain loop over the same texts with the same weights.

    python benchmarks/embedding.py [--n 50000] [--words 8 90] [--rounds 5] [--int8] [--json FILE] [--quick]
    python benchmarks/embedding.py --steady [--texts 50000] [--words 8 90] [--hash] [--rounds 5] [--json FILE] [--quick]

Ours is ``raysys build``: start Ray, read and clean the catalogue, encode its texts in a pool of actors, build the FAISS
shards, publish a snapshot. The peer (``plain_loop.py``) is ``SentenceTransformer.encode`` in float32 and ``faiss.add``.
Both run as processes of their own on the same cores and take turns; ratios are taken within a round.

Start-up is told apart by a second catalogue of a few texts: what a run takes beyond it is the time of the other texts.
So both have the pool with --n, where a few texts alone would be encoded without Ray; the films need none.
Then 1 % of the texts are changed and ours runs again over the same index folder. --int8: ours once more with an encoder
in int8, a model of its own. Without --n the texts are the
9,066 films; with it, random texts of so many words.

--steady asks another question: what Ray costs while the encoders are at work (``steady.py``).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from figures import Spread, busy_share, machine, ratios, warn_if_busy
from processes import end_on_sigterm, run, script
from rich.console import Console
from rich.table import Table
from steady import steady_lines, steady_rounds
from texts import ITEM_WORDS, texts, vocabulary

from raysys.data.films import write_films
from raysys.encoder.models import minilm_folder
from raysys.errors import RaysysError
from raysys.index.shard_files import ShardFiles
from raysys.index.store import SnapshotStore
from raysys.types import Vectors

FEW_TEXTS = 64
SHARDS = 1  # as by default
CHANGED_SHARE = 0.01
QUICK_STEADY_TEXTS = 3_000

console = Console(width=150, highlight=False)


@dataclass(frozen=True)
class Run:
    """One run of one side. stages_s: what it said of itself."""

    wall_s: float
    peak_mib: float
    stages_s: dict[str, float]


@dataclass(frozen=True)
class Round:
    """Everything that is run in one round; few: over FEW_TEXTS, changed: after CHANGED_SHARE of the texts changed.

    int8: with an encoder of that type; None where it was not asked for.
    """

    peer_few: Run
    ours_few: Run
    peer: Run
    ours: Run
    changed: Run
    min_cosine: float
    int8: Run | None = None


def film_texts(folder: Path) -> list[str]:
    """Title and genres of each film that has a title."""
    table = pq.read_table(write_films(folder).catalog)
    return [f"{row['title']}. {', '.join(row['genres'])}" for row in table.to_pylist() if row["title"] is not None]


def made_up_texts(n: int, n_words: tuple[int, int] = ITEM_WORDS) -> list[str]:
    return list(islice(texts(vocabulary(), n_words, "items"), n))


def changed_texts(given: Sequence[str]) -> list[str]:
    """The same texts, but every hundredth has another word at its end."""
    step = round(1 / CHANGED_SHARE)
    return [text + " again" if number % step == 0 else text for number, text in enumerate(given)]


def write_catalogue(path: Path, given: Sequence[str]) -> Path:
    """item_id and title, one row a text."""
    pq.write_table(pa.table({"item_id": [str(n) for n in range(len(given))], "title": list(given)}), path)
    return path


def run_ours(catalogue: Path, root: Path, encoders: int | None, dtype: str = "auto") -> Run:
    """`raysys build` over the catalogue, into the index folder ``root``. encoders: of the pool that it has to use."""
    settings = root.parent / f"{root.name}.yaml"
    given = {
        "catalog": {"path": str(catalogue), "template": "{title}"},
        "encoder": {"model": "minilm", "device": "cpu", "dtype": dtype},
        "index": {"root": str(root), "shards": SHARDS},
        "workers": {"encoders": encoders},
    }
    settings.write_text(yaml.safe_dump(given))
    command = [str(Path(sys.executable).with_name("raysys")), "build", str(settings)]
    start_s = time.perf_counter()
    _, peak_mib = run(command)
    wall_s = time.perf_counter() - start_s
    store = SnapshotStore(root)
    report = json.loads((store.folder(store.current_id()) / "report.json").read_text(encoding="utf-8"))
    return Run(wall_s, peak_mib, report["stages_s"])


def run_peer(catalogue: Path, folder: Path) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    start_s = time.perf_counter()
    output, peak_mib = run(script("plain_loop.py", catalogue, minilm_folder(), folder))
    return Run(time.perf_counter() - start_s, peak_mib, json.loads(output.splitlines()[-1]))


def one_round(given: Sequence[str], folder: Path, encoders: int | None, with_int8: bool = False) -> Round:
    """Peer, ours, peer, ours, and ours after a change. All vectors are new in each round.

    Where there are no more than FEW_TEXTS, the run over them is the one over all.
    """
    few = write_catalogue(folder / "few.parquet", given[:FEW_TEXTS])
    every = write_catalogue(folder / "every.parquet", given)
    changed = write_catalogue(folder / "changed.parquet", changed_texts(given))
    first = run_peer(few, folder / "peer-few"), run_ours(few, folder / "ours-few", encoders)
    if len(given) <= FEW_TEXTS:
        peer, ours, folders = *first, (folder / "peer-few", folder / "ours-few")
    else:
        folders = folder / "peer", folder / "ours"
        peer, ours = run_peer(every, folders[0]), run_ours(every, folders[1], encoders)
    cosine, again = min_cosine(*folders), run_ours(changed, folders[1], None)
    int8 = run_ours(every, folder / "int8", encoders, "int8") if with_int8 else None
    return Round(*first, peer, ours, again, cosine, int8)


def min_cosine(peer: Path, ours: Path) -> float:
    """The smallest cosine between the two vectors of an item."""
    rows, vectors = our_vectors(ours)
    theirs = np.load(peer / "vectors.npy", allow_pickle=False)[rows]
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(vectors, axis=1)
    return float(np.min((theirs * vectors).sum(axis=1) / norms))


def our_vectors(root: Path) -> tuple[list[int], Vectors]:
    """The row of the catalogue, and the vector [n, dim], of each item of the published snapshot."""
    store = SnapshotStore(root)
    snapshot_id = store.current_id()
    manifest, folder = store.manifest(snapshot_id), store.folder(snapshot_id)
    shards = [ShardFiles.of(folder, shard, manifest.metric) for shard in manifest.shards]
    rows = [int(item_id) for shard in shards for item_id in shard.items["item_id"].to_pylist()]
    return rows, np.concatenate([shard.vectors for shard in shards])


@dataclass(frozen=True)
class Row:
    """A line of the report. left: plain loop, or first run; right: ours, or second run."""

    name: str
    left: Spread
    right: Spread
    ratio: Spread | None
    goal: str
    digits: int


def figures(rounds: Sequence[Round], n: int) -> list[Row]:
    """The lines of the report. A ratio above 1 is good for speeds; of memory it says how much more we take."""
    peer, ours = [one.peer.wall_s for one in rounds], [one.ours.wall_s for one in rounds]
    again = [one.changed.wall_s for one in rounds]
    memory = [[one.peer.peak_mib for one in rounds], [one.ours.peak_mib for one in rounds]]
    return [
        Row("end to end, texts/s", _speed(n, peer), _speed(n, ours), ratios(peer, ours), ">= 1.8", 0),
        *without_start_up(rounds, n),
        Row("second run after 1 % changed, s", Spread.of(ours), Spread.of(again), ratios(ours, again), ">= 20", 1),
        Row("peak memory, MiB", Spread.of(memory[0]), Spread.of(memory[1]), ratios(memory[1], memory[0]), "", 0),
    ]


def without_start_up(rounds: Sequence[Round], n: int) -> list[Row]:
    """Start-up, and the speed beyond it; that is left out where a run is too short to tell the two apart."""
    peer_few, ours_few = [one.peer_few.wall_s for one in rounds], [one.ours_few.wall_s for one in rounds]
    rows = [Row(f"start-up and {FEW_TEXTS} texts, s", Spread.of(peer_few), Spread.of(ours_few), None, "", 1)]
    peer = _less([one.peer.wall_s for one in rounds], peer_few)
    int8 = [one.int8.wall_s for one in rounds if one.int8 is not None]
    sides = {"": ([one.ours.wall_s for one in rounds], ">= 1.8"), "int8, ": (int8, ">= 2.3")}
    for name, (walls, goal) in sides.items():
        ours = _less(walls, ours_few) if walls else []
        if ours and min(*peer, *ours) > 0:
            speeds = _speed(n - FEW_TEXTS, peer), _speed(n - FEW_TEXTS, ours)
            rows.append(Row(f"{name}without start-up, texts/s", *speeds, ratios(peer, ours), goal, 0))
    return rows


def _less(seconds: Sequence[float], few: Sequence[float]) -> list[float]:
    """What a run took beyond one over FEW_TEXTS: the time of the other texts, start-up left out."""
    return [a - b for a, b in zip(seconds, few, strict=True)]


def _speed(n: int, seconds: Sequence[float]) -> Spread:
    return Spread.of([n / s for s in seconds])


def table(rows: Sequence[Row], title: str, caption: str) -> Table:
    drawn = Table("", "plain loop (first run)", "raysys (second run)", "ratio", "goal", title=title, caption=caption)
    for row in rows:
        ratio = "" if row.ratio is None else row.ratio.text(2)
        drawn.add_row(row.name, row.left.text(row.digits), row.right.text(row.digits), ratio, row.goal)
    return drawn


def report(rounds: Sequence[Round], rows: Sequence[Row], parameters: dict[str, Any], busy: float) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "benchmark": "embedding",
        "machine": machine(busy),
        "parameters": parameters,
        "min_cosine": min(one.min_cosine for one in rounds),
        "rows": [asdict(row) for row in rows],
        "rounds": [asdict(one) for one in rounds],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, help="this many random texts instead of the films")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--quick", action="store_true", help=f"a smoke run: {FEW_TEXTS} random texts, one round")
    parser.add_argument("--int8", action="store_true", help="ours with an encoder in int8 as well")
    parser.add_argument("--steady", action="store_true", help="the encode stage against loops without Ray")
    parser.add_argument("--texts", type=int, default=10_000, help="random texts of --steady")
    parser.add_argument("--words", type=int, nargs=2, default=ITEM_WORDS, help="fewest and most words of a text")
    parser.add_argument("--hash", action="store_true", help="--steady with hashed words: more files a second")
    return parser.parse_args()


def measured(n_rounds: int, n: int | None, n_words: tuple[int, int], with_int8: bool) -> tuple[list[str], list[Round]]:
    """The texts, and every round over them. Leaves no file behind."""
    with tempfile.TemporaryDirectory(prefix="raysys-embedding-") as folder:
        items = film_texts(Path(folder)) if n is None else made_up_texts(n, n_words)
        encoders = None if n is None else len(os.sched_getaffinity(0))
        rounds = []
        for number in range(n_rounds):
            console.print(f"[dim]round {number + 1} of {n_rounds} ...[/]")
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                rounds.append(one_round(items, Path(fresh), encoders, with_int8))
    return items, rounds


def steady(given: argparse.Namespace) -> int:
    n_rounds, n = (1, QUICK_STEADY_TEXTS) if given.quick else (given.rounds, given.texts)
    busy = busy_share()
    warn_if_busy(busy)
    try:
        rounds = steady_rounds(made_up_texts(n, given.words), n_rounds, "hash" if given.hash else "minilm")
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in steady_lines(rounds):
        console.print(line)
    if given.json is not None:
        figures_of = {"texts": n, "words": given.words, "hash": given.hash, "rounds": [asdict(one) for one in rounds]}
        written = {"benchmark": "embedding steady", "machine": machine(busy), **figures_of}
        given.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


def main() -> int:
    given = arguments()
    end_on_sigterm()
    if given.steady:
        return steady(given)
    n_rounds, n = (1, FEW_TEXTS) if given.quick else (given.rounds, given.n)
    if given.n is not None and given.n <= FEW_TEXTS:
        sys.exit(
            f"error: --n must be above {FEW_TEXTS}, the size of the run that start-up is told from; given: {given.n}"
        )
    busy = busy_share()
    warn_if_busy(busy)
    try:
        items, rounds = measured(n_rounds, n, tuple(given.words), given.int8)
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = figures(rounds, len(items))
    words = sum(len(item.split()) for item in items) / len(items)
    cosine = min(one.min_cosine for one in rounds)
    title = f"{len(items):,} {'films' if n is None else 'random texts'} of {words:.1f} words, {n_rounds} round(s)"
    caption = f"median (smallest-largest) of the rounds; smallest cosine between the two sides' vectors: {cosine:.5f}"
    console.print(table(rows, title, caption))
    if given.json is not None:
        parameters = {"texts": len(items), "films": n is None, "mean_words": round(words, 2), "rounds": n_rounds}
        given.json.write_text(json.dumps(report(rounds, rows, parameters, busy), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
