"""All benchmarks of speed one after the other, compared with what is stored: `make bench`, or `make bench QUICK=1`.

    python benchmarks/suite.py [--quick] [--only NAME ...] [--out DIR] [--index-cache DIR] [--store]

Each writes its JSON into ``--out``. Of every ratio with a spread in it the table shows what is stored in
``benchmarks/results``, what was measured now, and whether the two spreads still meet; machine and load of both runs
are named, as figures of two machines are not one series. The last table has what is asked for (``bars.py``), by this
run or, where a step was not run, by what is stored. ``suite.html`` has both, with charts. ``--store`` makes this run
the stored one. Absolute figures are in the tables of the benchmarks themselves.

A graph of hnswlib over 1,000,000 vectors takes up to an hour to build, so that size is measured where
``--index-cache`` has it (``index.py --n 1000000 --cache DIR`` leaves it there), and 100,000 where it has not.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bars import BARS, Judged, judged, members
from figures import HOME, Spread
from processes import child, end_on_sigterm, script
from rich.console import Console
from rich.table import Table

from raysys.evaluation.charts import Axes, Point, scatter

RESULTS = Path(__file__).parent / "results"
OTHER_ROWS = ("popularity", "behaviour alone", "text alone", "not learned")
OUR_INDEXES = ("--kinds", "ivf_sq8", "ivf_rabitq", "--linked-up-to", "0")
# The shortest runs whose spread says something.
WHOLE = {
    "serving": ["serving.py", "--rounds", "3", "--seconds", "2", "--clients", "1", "32"],
    "encoder": ["encoder.py", "--n", "100", "--rounds", "3"],
    "embedding": ["embedding.py", "--n", "50000", "--words", "3", "8", "--rounds", "1", "--int8"],
    "overload": ["overload.py", "--keys", "--seconds", "20"],
    "student": ["student.py", "--sets", "films", "--teachers", "transformers", "--work", str(HOME / "student")],
    "accuracy-films": ["accuracy.py", "--set", "films", "--without", *OTHER_ROWS],
}
QUICK = {
    "smoke": ["smoke.py"],
    "encoder": ["encoder.py", "--quick"],
    "index": ["index.py", "--n", "2000", "--rounds", "1", *OUR_INDEXES],
    "embedding": ["embedding.py", "--quick"],
}
MANY_VECTORS, FEWER_VECTORS = 1_000_000, 100_000
NOT_STORED = {"overload", "student", "accuracy-films"}  # what is stored of them has more rows than these runs
ON_REQUEST = {"accuracy-films"}  # four snapshots are fitted for it, which takes minutes: with --only
RATIOS = ("over_", "ratio", "goodput")  # a figure is one where its name has any of these; rows are called by words

console = Console(width=150, highlight=False)


@dataclass(frozen=True)
class Compared:
    """A ratio, as it is stored and as it was measured; None = it is not there."""

    name: str
    stored: Spread | None
    measured: Spread

    @property
    def verdict(self) -> str:
        if self.stored is None:
            return "new"
        if self.measured.min > self.stored.max:
            return "higher"
        return "lower" if self.measured.max < self.stored.min else "as before"


def ratios_in(found: Any, path: str = "") -> Iterator[tuple[str, Spread]]:
    """Every ratio with a spread, by the names on the way to it."""
    if isinstance(found, Mapping) and {"median", "min", "max"} <= found.keys():
        if any(word in path for word in RATIOS):
            yield path, Spread(found["median"], found["min"], found["max"])
        return
    for name, value in members(found):
        yield from ratios_in(value, f"{path} / {name}" if path else name)


def compare(stored: Any, measured: Any) -> list[Compared]:
    """The ratios of a run, beside the stored ones of the same names."""
    before = dict(ratios_in(stored))
    return [Compared(name, before.get(name), spread) for name, spread in ratios_in(measured)]


def steps(quick: bool, cache: Path) -> dict[str, list[str]]:
    """What is run, by the name of its file."""
    if quick:
        return QUICK
    n = MANY_VECTORS if (cache / f"hnswlib-{MANY_VECTORS}.json").is_file() else FEWER_VECTORS
    return WHOLE | {"index": ["index.py", "--n", str(n), "--rounds", "3", *OUR_INDEXES, "--cache", str(cache)]}


def run(name: str, command: Sequence[str], out: Path) -> bool:
    """Run one benchmark; whether it went well. What it prints is on the console."""
    console.rule(" ".join(command))
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)  # index.py adds to what is there
    to = ["--report", str(out)] if name.startswith("accuracy") else ["--json", str(path)]
    start_s = time.monotonic()
    with child([*script(command[0], *command[1:]), *to]) as process:
        failed = process.wait() != 0
    console.print(f"[dim]{name}: {time.monotonic() - start_s:.0f} s[/]" + (" [red]failed[/]" if failed else ""))
    return not failed


def report(names: Sequence[str], out: Path) -> dict[str, list[Compared]]:
    """What every benchmark that was run says against what is stored."""
    found = {}
    for name in names:
        stored, measured = (_read(folder / f"{name}.json") for folder in (RESULTS, out))
        compared = compare(stored, measured)
        if compared:
            found[name] = compared
            console.print(table(name, stored, measured, compared))
    return found


def judge(names: Sequence[str], out: Path) -> list[Judged]:
    """Every bar, by the steps that were run or else by what is stored."""
    stored = {bar.step: _read(RESULTS / f"{bar.step}.json") for bar in BARS}
    measured = {name: _read(out / f"{name}.json") for name in names}
    return [judged(bar, stored[bar.step], measured.get(bar.step)) for bar in BARS]


def bars_table(found: Sequence[Judged]) -> Table:
    drawn = Table(title="what is asked for", caption="NDCG that int8 loses: docs/speed.md")
    for column in ("", "asked", "measured", "met", "of"):
        drawn.add_column(column, justify="left" if column == "" else "right")
    for cells in map(bar_cells, found):
        drawn.add_row(*cells)
    return drawn


def bar_cells(one: Judged) -> list[str]:
    if one.measured is None:
        return [one.bar.what, one.asked, "", "not measured", ""]
    return [one.bar.what, one.asked, f"{one.measured:.5g}", "yes" if one.is_met else "NO", one.source]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(name: str, stored: Any, measured: Any, compared: list[Compared]) -> Table:
    drawn = Table(title=name, caption=f"stored: {_machine(stored)}; now: {_machine(measured)}")
    for column in ("ratio", "stored", "now", ""):
        drawn.add_column(column, justify="left" if column == "ratio" else "right")
    for one in compared:
        before = "" if one.stored is None else one.stored.text(2)
        drawn.add_row(one.name, before, one.measured.text(2), one.verdict)
    return drawn


def _machine(found: Any) -> str:
    runs = (found or {}).get("runs")
    about = (found or {}).get("machine") or (runs and list(runs.values())[-1]["machine"])
    if not about:
        return "nothing"
    return f"{about['processor']}, {about['cores']} cores, busy {about['busy_before']:.0%}, {about['measured_at'][:10]}"


def page(found: Mapping[str, list[Compared]], bars: Sequence[Judged]) -> str:
    """The bars, and one chart a benchmark, as a page without anything to fetch."""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in bar_cells(one))}</tr>" for one in bars)
    parts = ["<!doctype html><meta charset='utf-8'><title>Raysys benchmarks</title><h1>Benchmarks</h1>"]
    parts.append(f"<table><tr><th></th><th>asked</th><th>measured</th><th>met</th><th>of</th></tr>{rows}</table>")
    for name, compared in found.items():
        axes = Axes(name, "ratio", "", [str(number) for number in range(len(compared))])
        series = {
            label: [Point(at, s.median, s.min, s.max) for at, s in enumerate(spreads) if s is not None]
            for label, spreads in (
                ("stored", [one.stored for one in compared]),
                ("now", [one.measured for one in compared]),
            )
        }
        legend = "".join(f"<li value='{at}'>{escape(one.name)}</li>" for at, one in enumerate(compared))
        parts += [scatter(axes, series), f"<ol start='0'>{legend}</ol>"]
    return "\n".join(parts)


def store(name: str, out: Path) -> None:
    """Make this run the stored one; runs of other sizes stay."""
    path, measured = RESULTS / f"{name}.json", _read(out / f"{name}.json")
    stored = _read(path) or {}
    if "runs" in measured:
        measured = stored | measured | {"runs": stored.get("runs", {}) | measured["runs"]}
    path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke runs: they show that all of it works, no figures")
    parser.add_argument("--only", nargs="+", choices=sorted({*WHOLE, *QUICK}))
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--index-cache", type=Path, default=HOME / "index", help="where built indexes are kept")
    parser.add_argument("--store", action="store_true", help="put the results of this run into benchmarks/results")
    given = parser.parse_args()
    if given.quick and given.store:
        parser.error("a quick run has no figures to store")
    end_on_sigterm()
    start_s = time.monotonic()
    for folder in (given.out, given.index_cache):
        folder.mkdir(parents=True, exist_ok=True)
    every = steps(given.quick, given.index_cache)
    names = set(every) - ON_REQUEST if given.only is None else set(given.only)
    to_run = {name: command for name, command in every.items() if name in names}
    went_well = [name for name, command in to_run.items() if run(name, command, given.out)]
    bars = judge([] if given.quick else went_well, given.out)
    if not given.quick:
        found = report(went_well, given.out)
        (given.out / "suite.html").write_text(page(found, bars), encoding="utf-8")
        console.print(f"written: {given.out}/suite.html and the JSON of each")
    console.print(bars_table(bars))
    console.print(
        f"[dim]{len(went_well)} of {len(to_run)} steps went well; {time.monotonic() - start_s:.0f} s in all[/]"
    )
    for name in went_well if given.store else ():
        if name not in NOT_STORED:
            store(name, given.out)
    return 0 if len(went_well) == len(to_run) else 1


if __name__ == "__main__":
    sys.exit(main())
