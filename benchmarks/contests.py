"""Sides that take turns, what came of it, and the table that shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from figures import Spread, ratios
from http_load import Asks, Load, LoadProcess, Measured
from rich.table import Table

Figure = Literal["requests_per_s", "p50_ms"]


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float
    ramp_s: float
    clients: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One of the things that take turns."""

    name: str
    port: int
    path: str
    asks: Asks
    must_contain: str = ""


@dataclass(frozen=True)
class Contest:
    """A row of the report. The ratio is figure(last side) / figure(other side), for each other side."""

    name: str
    sides: tuple[Side, ...]
    clients: int
    figure: Figure
    goal: str


@dataclass(frozen=True)
class Outcome:
    """A contest and what was measured: for each side, one value a round."""

    contest: Contest
    measured: dict[str, list[Measured]]

    def values(self, side: Side, figure: str) -> list[float]:
        return [getattr(one, figure) for one in self.measured[side.name]]

    def ratio(self, side: Side, figure: str) -> Spread | None:
        """The last side over this one; None for the last."""
        last = self.contest.sides[-1]
        return None if side is last else ratios(self.values(last, figure), self.values(side, figure))

    def errors(self, side: Side) -> dict[str, int]:
        total: dict[str, int] = {}
        for one in self.measured[side.name]:
            for what, n in one.errors.items():
                total[what] = total.get(what, 0) + n
        return total

    def as_dict(self) -> dict[str, Any]:
        contest = self.contest
        return {
            "row": contest.name,
            "clients": contest.clients,
            "goal": contest.goal,
            "ratio_of": contest.figure,
            "sides": {side.name: self._side(side) for side in contest.sides},
        }

    def _side(self, side: Side) -> dict[str, Any]:
        figures = ("requests_per_s", "p50_ms", "p99_ms", "client_cpu_s")
        spreads = {figure: Spread.of(self.values(side, figure)).as_dict() for figure in figures}
        ratio, p99 = self.ratio(side, self.contest.figure), self.ratio(side, "p99_ms")
        return spreads | {
            "requests": sum(self.values(side, "requests")),
            "errors": self.errors(side),
            "last_over_this": None if ratio is None else ratio.as_dict(),
            "last_over_this_p99": None if p99 is None else p99.as_dict(),
        }


def take_turns(contest: Contest, plan: Plan, load: LoadProcess, users: tuple[str, ...]) -> Outcome:
    """A B A B ...: every side gets the same requests in a round, and other ones in the next.

    Raises RuntimeError when a side gives no good answer at all: there is nothing to compare then.
    """
    measured: dict[str, list[Measured]] = {side.name: [] for side in contest.sides}
    for number in range(-1, plan.rounds):
        for side in contest.sides:
            seconds = plan.seconds if number >= 0 else plan.ramp_s
            seed = f"{contest.name}-{contest.clients}-{number}"
            one = load.measure(_load(side, contest.clients, seconds, plan.ramp_s, seed, users))
            if number < 0:  # it warms both sides up
                continue
            if not one.requests:
                raise RuntimeError(f"{contest.name}: {side.name} gave no good answer: {one.errors}")
            measured[side.name].append(one)
    return Outcome(contest, measured)


def _load(side: Side, clients: int, seconds: float, ramp_s: float, seed: str, users: tuple[str, ...]) -> Load:
    asked_by = users if side.asks == "user" else ()
    return Load(side.port, side.path, side.asks, clients, seconds, ramp_s, seed, asked_by, side.must_contain)


def table(outcomes: Sequence[Outcome], title: str, caption: str) -> Table:
    drawn = Table(title=title, caption=caption)
    for column in (
        "row",
        "clients",
        "side",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "errors",
        "ratio",
        "ratio of p99",
        "goal",
    ):
        drawn.add_column(column, justify="left" if column in {"row", "side", "goal"} else "right")
    for outcome in outcomes:
        _add_rows(drawn, outcome)
    return drawn


def _add_rows(drawn: Table, outcome: Outcome) -> None:
    contest = outcome.contest
    for number, side in enumerate(contest.sides):
        cells = [contest.name, str(contest.clients)] if number == 0 else ["", ""]
        cells += [side.name, Spread.of(outcome.values(side, "requests_per_s")).text(0)]
        cells += [f"{median(outcome.values(side, figure)):,.1f}" for figure in ("p50_ms", "p99_ms")]
        cells.append(", ".join(f"{n} x {what}" for what, n in outcome.errors(side).items()) or "0")
        compared = [outcome.ratio(side, figure) for figure in (contest.figure, "p99_ms")]
        cells += ["" if spread is None else spread.text(2) for spread in compared]
        last = side is contest.sides[-1]
        drawn.add_row(*cells, "" if last else contest.goal, end_section=last)
