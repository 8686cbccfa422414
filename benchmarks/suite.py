"""All benchmarks of speed one after the other, compared with what is stored: `make bench`, or `make bench QUICK=1`.

    python benchmarks/suite.py [--quick] [--only NAME ...] [--out DIR] [--store]

Each writes its JSON into ``--out``. Of every ratio with a spread in it the table shows what is stored in
``benchmarks/results``, what was measured now, and whether the two spreads still meet; machine and load of both runs
are named, as figures of two machines are not one series. ``suite.html`` has the same as a chart. ``--store`` makes this
run the stored one. Absolute figures are in the tables of the benchmarks themselves.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from figures import Spread
from processes import child, end_on_sigterm, script
from rich.console import Console
from rich.table import Table

from raysys.evaluation.charts import Axes, Point, scatter

RESULTS = Path(__file__).parent / "results"
# name -> (the command for a whole run, that for a quick one). The shortest runs whose spread says something.
STEPS: dict[str, tuple[list[str], list[str]]] = {
    "serving": (["serving.py", "--rounds", "3", "--seconds", "2"], ["serving.py", "--quick"]),
    "encoder": (["encoder.py", "--n", "400"], ["encoder.py", "--quick"]),
    "index": (["index.py", "--n", "100000"], ["index.py", "--quick"]),
    "embedding": (["embedding.py", "--rounds", "1"], ["embedding.py", "--quick"]),
    "overload": (["overload.py", "--seconds", "20"], ["overload.py", "--quick"]),
}
RATIOS = ("over", "ratio", "goodput")  # a figure is one where its name has any of these
NAMES = ("row", "name", "kind", "topology", "what")  # what the members of a list are called by, in this order

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
    if isinstance(found, Mapping):
        if {"median", "min", "max"} <= found.keys():
            if any(word in path for word in RATIOS):
                yield path, Spread(found["median"], found["min"], found["max"])
            return
        for key, value in found.items():
            yield from ratios_in(value, f"{path} / {key}" if path else key)
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from ratios_in(value, f"{path} / {_called(value, number)}")


def _called(value: Any, number: int) -> str:
    named = [str(value[name]) for name in (*NAMES, "clients") if isinstance(value, Mapping) and name in value]
    return " ".join(named) or str(number)


def compare(stored: Any, measured: Any) -> list[Compared]:
    """The ratios of a run, beside the stored ones of the same names."""
    before = dict(ratios_in(stored))
    return [Compared(name, before.get(name), spread) for name, spread in ratios_in(measured)]


def run(name: str, quick: bool, out: Path) -> bool:
    """Run one benchmark; whether it went well. What it prints is on the console."""
    command = STEPS[name][quick]
    console.rule(" ".join(command))
    start_s = time.monotonic()
    with child([*script(command[0], *command[1:]), "--json", str(out / f"{name}.json")]) as process:
        failed = process.wait() != 0
    console.print(f"[dim]{name}: {time.monotonic() - start_s:.0f} s[/]" + (" [red]failed[/]" if failed else ""))
    return not failed


def report(names: list[str], out: Path) -> dict[str, list[Compared]]:
    """What every benchmark that was run says against what is stored."""
    found = {}
    for name in names:
        stored, measured = (_read(folder / f"{name}.json") for folder in (RESULTS, out))
        if measured is not None:
            found[name] = compare(stored, measured)
            console.print(table(name, stored, measured, found[name]))
    return found


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
    about = (found or {}).get("machine")
    if about is None:
        return "nothing"
    return f"{about['processor']}, {about['cores']} cores, busy {about['busy_before']:.0%}, {about['measured_at'][:10]}"


def page(found: Mapping[str, list[Compared]]) -> str:
    """One chart a benchmark, as a page without anything to fetch."""
    parts = ["<!doctype html><meta charset='utf-8'><title>Raysys benchmarks</title><h1>Benchmarks</h1>"]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke runs: they show that all of it works, no figures")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--store", action="store_true", help="put the results of this run into benchmarks/results")
    given = parser.parse_args()
    end_on_sigterm()
    given.out.mkdir(parents=True, exist_ok=True)
    went_well = [name for name in given.only if run(name, given.quick, given.out)]
    found = report(went_well, given.out)
    (given.out / "suite.html").write_text(page(found), encoding="utf-8")
    console.print(f"written: {given.out}/suite.html and the JSON of each")
    if given.store:
        for name in went_well:
            shutil.copy(given.out / f"{name}.json", RESULTS)
    return 0 if len(went_well) == len(given.only) else 1


if __name__ == "__main__":
    sys.exit(main())
