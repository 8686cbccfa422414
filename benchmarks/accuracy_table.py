"""An accuracy report as tables on a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

METRICS = ("hr@10", "ndcg@10", "recall@10", "mrr@10", "hr@20", "ndcg@20", "novelty@10", "similarity@10",
           "miscalibration@10")  # fmt: skip
SLICES = ("unseen", "tail", "middle", "head")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    if "captions" in report:
        yield _captions(report)
        return
    for part, about in report["parts"].items():
        yield _part(report, part, about)
        yield _paired(report["paired"][part], part)
    if "curve" in report:
        yield _curve(report["curve"])
    if "cold" in report:
        yield _cold(report["cold"])


def figure(estimate: Mapping[str, float] | None) -> str:
    """``.1132 (.1091-.1175)``, or a dash where nothing was measured."""
    if estimate is None:
        return "-"
    return f"{estimate['mean']:.4f} ({estimate['low']:.4f}-{estimate['high']:.4f})"


def _part(report: Mapping[str, Any], part: str, about: Mapping[str, Any]) -> Table:
    names = [metric for metric in METRICS if metric in next(iter(report["rows"].values()))["parts"][part]["metrics"]]
    drawn = Table("", *(name.upper() for name in names[:2]), *names[2:], "coverage", "gini", *SLICES, "users/s")
    drawn.title = f"{report['dataset']}, {part}: {about['lists']:,} lists, fitted on {about['fitted_on']}"
    drawn.caption = "95 % intervals; unseen, tail, middle, head: HR@10 by the popularity of what is relevant, in train"
    for name, row in report["rows"].items():
        found = row["parts"][part]
        cells = [figure(found["metrics"][metric]) for metric in names[:2]]
        cells += [_mean(found["metrics"][metric]) for metric in names[2:]]
        cells += [f"{found['coverage@10']:.3f}", "-" if found["gini@10"] is None else f"{found['gini@10']:.3f}"]
        cells += [_mean(found["slices"][name]["metrics"]["hr@10"]) for name in SLICES]
        drawn.add_row(name, *cells, f"{row['users_per_s']:.0f}")
    return drawn


def _paired(tests: Mapping[str, Any], part: str) -> Table:
    drawn = Table("the default less ...", "NDCG@10", "p", "p (Holm)", "users")
    drawn.title = f"{part}: paired by user, sign-flip permutation"
    for name, test in tests.items():
        drawn.add_row(name, figure(test["difference"]), f"{test['p']:.4f}", f"{test['p_holm']:.4f}", str(test["users"]))
    return drawn


def _curve(curves: Mapping[str, Any]) -> Table:
    lengths = list(next(iter(curves.values())))
    drawn = Table("NDCG@10 by events known", *lengths)
    for name, points in curves.items():
        drawn.add_row(name, *(_mean(points[n]) for n in lengths))
    return drawn


def _cold(report: Mapping[str, Any]) -> Table:
    drawn = Table("NDCG@10", "new items", "other items", "other items before", "all")
    drawn.title = f"{report['items']:,} items held out as new"
    for name, row in report["rows"].items():
        slices = (figure(row[part]["metrics"]["ndcg@10"]) for part in ("cold", "warm", "warm_before"))
        drawn.add_row(name, *slices, figure(row["total"]))
    return drawn


def _captions(report: Mapping[str, Any]) -> Table:
    drawn = Table("encoder", "same category in the first 10", "of 10 drawn at random", "captions asked")
    drawn.title = f"{report['dataset']}: similar captions"
    for name, row in report["captions"].items():
        drawn.add_row(name, figure(row["same_category@10"]), f"{row['by_chance']:.4f}", str(row["asked"]))
    return drawn


def _mean(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['mean']:.4f}"
