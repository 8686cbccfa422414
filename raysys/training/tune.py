"""Settings of the fits, chosen for one catalogue and its people.

What is learned from a fit (``training.learn``) belongs to each build. How the fits are made is settings, and no values
of them are best everywhere. They are tried one at a time: the behaviour models are fitted without what is held out, a
ranking is learned over them, and each person is judged by what was learned from others, as the build does it. All
trials ask the same people about the same held-out events, so two of them are compared person by person.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings, RankingSettings
from raysys.encoder.protocol import EncoderIdentity
from raysys.errors import ConfigError
from raysys.training import asked, behaviour, learn, local, log
from raysys.training.held_out import HeldOut
from raysys.training.plan import BuildPlan, planned
from raysys.training.report import Report
from raysys.types import FACTORS, SEQUENCE, SOURCES

Floats = NDArray[np.float64]
Values = Mapping[str, float]
Grid = Mapping[str, tuple[float, ...]]
Say = Callable[[str], None]

# Settings of ``behaviour``, those that are tried first first, and their values, ascending.
OF_RIDGE: Grid = {
    "ridge_words": (0.5, 1.0, 2.0, 3.0, 5.0),
    "ridge_penalty": (30.0, 100.0, 300.0),
    "ridge_decay": (0.6, 0.7, 0.8, 0.9),
}
OF_FACTORS: Grid = {
    "factors_unobserved": (0.003, 0.01, 0.03, 0.1),
    "factors_penalty": (0.003, 0.01, 0.03, 0.1),
    "factors_dim": (32, 64, 128),
}
OF_PAIRS: Grid = {
    "shrink": (10.0, 30.0, 100.0, 300.0, 1_000.0),
    "reverse": (0.0, 0.1, 0.25, 0.5, 1.0),
    "window": (5, 10, 20, 50, 100),
}
OF_TIMES: Grid = {"popularity_half_life_days": (30.0, 90.0, 365.0, 1_000.0)}
GRID: Grid = {**OF_RIDGE, **OF_FACTORS, **OF_PAIRS, **OF_TIMES}

# What takes long to fit, by its place in ``BuildPlan.fitted``, and the settings above that it depends on.
RIDGE_FIT, FACTORS_FIT, SEQUENCE_FIT = "ridge", f"spaces/{SOURCES[FACTORS]}", f"spaces/{SOURCES[SEQUENCE]}"
MADE_BY: Mapping[str, tuple[str, ...]] = {
    RIDGE_FIT: (*OF_RIDGE, "reverse"),
    FACTORS_FIT: tuple(OF_FACTORS),
    SEQUENCE_FIT: (),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One change of the best values so far, and what came of it.

    ndcg: the mean over all people. gain: what that is more than before the change; standard_error: of the gain, paired
    by person. taken: whether it is among the best values from here on.
    """

    name: str
    before: float
    value: float
    ndcg: float
    gain: float
    standard_error: float
    taken: bool

    def __str__(self) -> str:
        taken = "taken" if self.taken else "not taken"
        return f"NDCG@10 {self.ndcg:.5f}, {self.gain:+.5f} (standard error {self.standard_error:.5f}): {taken}"


class Search:
    """A coordinate search: a setting goes to the next value of the grid, up, then down, on while that is better; then
    the next setting; until a whole round takes nothing. No values are tried twice.

    best: the values so far. judged: [n] float64, what each person gets by them. trials: so far.
    """

    def __init__(self, start: Values, judged: Floats, grid: Grid) -> None:
        self.best, self.judged, self.trials = dict(start), judged, list[Trial]()
        self._grid, self._tried = grid, [dict(start)]

    def proposals(self) -> Iterator[tuple[str, float]]:
        """Each setting and value to try, one after the other; ``tell`` what came of it before the next."""
        n_before = -1
        while n_before != (n_before := self._n_taken()):
            for name in self._grid:
                for values in self._ways(name):
                    yield from self._follow(name, values)

    def tell(self, name: str, value: float, judged: Floats) -> Trial:
        """Judged: [n] float64, what each person gets by the best values with this change."""
        gain, error = paired(judged, self.judged)
        trial = Trial(name, self.best[name], value, float(judged.mean()), gain, error, taken=gain > error)
        self._tried.append(self.best | {name: value})
        self.trials.append(trial)
        if trial.taken:
            self.best, self.judged = self._tried[-1], judged
        return trial

    def _n_taken(self) -> int:
        return sum(trial.taken for trial in self.trials)

    def _ways(self, name: str) -> Iterator[list[float]]:
        """The values above the present one, then those below it, the nearest first."""
        yield [value for value in self._grid[name] if value > self.best[name]]
        yield [value for value in reversed(self._grid[name]) if value < self.best[name]]

    def _follow(self, name: str, values: list[float]) -> Iterator[tuple[str, float]]:
        """These values, up to the first that is not better."""
        for value in values:
            if self.best | {name: value} in self._tried:
                return
            yield name, value
            if not self.trials[-1].taken:
                return


def paired(after: Floats, before: Floats) -> tuple[float, float]:
    """The mean of the differences, person by person, and its standard error."""
    gains = after - before
    return float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found.

    people: how many were asked. changes: the settings of ``behaviour`` that should have other values, and those.
    ndcg_before, ndcg_after: NDCG@10, mean over the people. gain, standard_error: of all changes together, as in
    ``Trial``. is_complete: whether the search came to its end before its time did.
    """

    people: int
    changes: dict[str, float]
    ndcg_before: float
    ndcg_after: float
    gain: float
    standard_error: float
    is_complete: bool
    trials: tuple[Trial, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def tune(settings: BuildSettings, minutes: float, say: Say = print, clock: Clock | None = None) -> Tuned:
    """Search for so long, in this process. Nothing is published.

    The minutes begin when the inputs are read and their texts encoded, and the first fit, by the settings as they are,
    is among them. A trial that would take longer than what is left, by the slowest before it, is not begun.
    Raises ConfigError where the events say too little, and what ``planned`` raises.
    """
    clock = SystemClock() if clock is None else clock
    if settings.events is None:
        raise ConfigError("the settings have no `events`: values are judged by what people did next")
    with planned(settings, clock.now_s()) as plan:
        report = Report(clock)
        identity, latest_s = local.stage(plan, report)
        held_out = log.hold_out(plan, latest_s)
        if held_out is None:
            raise ConfigError(_too_few(settings.learning.people))
        return _search(_Fits(plan, held_out, identity, report), minutes * 60, say, clock)


def _too_few(people: int) -> str:
    if people < log.LEAST_PEOPLE:
        return f"learning.people is {people}, but values cannot be judged by fewer than {log.LEAST_PEOPLE} people"
    return f"too few people to judge by: fewer than {log.LEAST_PEOPLE} did something in the newest part of the events"


def _search(fits: "_Fits", budget_s: float, say: Say, clock: Clock) -> Tuned:
    start_s = clock.monotonic_s()
    say("fitting with the settings as they are ...")
    judged = fits.judge({})
    slowest_s = clock.monotonic_s() - start_s
    say(f"NDCG@10 {judged.mean():.5f} over {len(judged):,} people, in {slowest_s:.0f} s")
    search, is_complete = Search(fits.start(), judged, fits.grid()), True
    for name, value in search.proposals():
        began_s = clock.monotonic_s()
        if began_s - start_s + slowest_s > budget_s:
            is_complete = False
            break
        say(f"{(began_s - start_s) / 60:.1f} min: {name} {value:g} instead of {search.best[name]:g} ...")
        trial = search.tell(name, value, fits.judge(search.best | {name: value}))
        slowest_s = max(slowest_s, clock.monotonic_s() - began_s)
        say(f"  {trial}, in {clock.monotonic_s() - began_s:.0f} s")
    changes = {name: value for name, value in search.best.items() if value != fits.start()[name]}
    means = float(judged.mean()), float(search.judged.mean())
    return Tuned(len(judged), changes, *means, *paired(search.judged, judged), is_complete, tuple(search.trials))


class _Fits:
    """Fits without what is held out, each judged by the same people. What a change does not touch is fitted once."""

    def __init__(self, plan: BuildPlan, held_out: HeldOut, identity: EncoderIdentity, report: Report) -> None:
        self._plan, self._held_out, self._identity, self._report = plan, held_out, identity, report
        self._n_judged = 0
        self._made: dict[tuple[str, Any], Path] = {}  # a fit and the values that made it -> where it is
        self._asked: list[asked.Question] = []
        self._step_decay = 0.0

    def start(self) -> dict[str, float]:
        """The values of the settings as they are, of all that may be tried."""
        given = self._plan.settings.behaviour
        return {name: getattr(given, name) for name in GRID}

    def grid(self) -> Grid:
        """What may change something here: settings of models that are fitted, and of ages where there are times."""
        made = {name for (name, _), folder in self._made.items() if folder.is_dir()}
        grid: dict[str, tuple[float, ...]] = {}
        for settings, applies in (
            (OF_RIDGE, RIDGE_FIT in made),
            (OF_FACTORS, FACTORS_FIT in made),
            (OF_PAIRS, True),
            (OF_TIMES, self._held_out.since_s is not None),
        ):
            grid |= settings if applies else {}
        return grid

    def judge(self, values: Values) -> Floats:
        """[n] float64: NDCG@10 of each person, by the best ranking that is learned from others over these fits."""
        plan = self._fitted(values)
        if not self._asked:
            self._asked = asked.questions(plan)
            self._step_decay = learn.best_decay(plan, self._asked)
        lists = asked.lists_of(plan, self._asked, self._step_decay)
        shutil.rmtree(plan.snapshot)
        judged = learn.judge(lists, RankingSettings())
        if not judged:
            raise ConfigError(
                f"too few people to judge by: what they went on to like was found for {len(lists.found()):,} of "
                f"{len(lists):,}, and {learn.LEAST_LISTS} are needed"
            )
        return max(judged.values(), key=lambda of_people: float(of_people.mean()))

    def _fitted(self, values: Values) -> BuildPlan:
        """The plan of a finished snapshot."""
        given = self._plan.settings
        settings = given.model_copy(update={"behaviour": given.behaviour.model_copy(update=dict(values))})
        self._n_judged += 1
        plan = replace(self._plan.without(self._held_out, f"trial-{self._n_judged:03d}"), settings=settings)
        local.count(plan, self._held_out.now_s)
        for fit in MADE_BY:
            self._make(plan, fit)
        local.complete(plan, self._identity, self._report)
        return plan

    def _make(self, plan: BuildPlan, fit: str) -> None:
        folder = plan.fitted() / fit
        key = (fit, tuple(getattr(plan.settings.behaviour, name) for name in MADE_BY[fit]))
        if key not in self._made:
            self._fit(plan, fit)
            self._made[key] = folder
        elif self._made[key].is_dir():
            shutil.copytree(self._made[key], folder)

    def _fit(self, plan: BuildPlan, fit: str) -> None:
        if fit == RIDGE_FIT:
            behaviour.fit_ridge(plan)
        elif fit == FACTORS_FIT:
            local.fit_factors(plan)
        else:
            local.fit_sequence(plan, self._identity)


def beside(settings: Path, suffix: str) -> Path:
    """A file beside the settings. Raises ConfigError where none can be written: before the search, not after it."""
    path = settings.expanduser().with_suffix(suffix)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write {path}: put a copy of the settings where files may be written")
    return path


def with_changes(settings: Path, changes: Values) -> str:
    """The YAML of this file with these settings of ``behaviour``; its other values stay, comments do not."""
    raw = yaml.safe_load(settings.expanduser().read_text(encoding="utf-8"))
    raw["behaviour"] = {**raw.get("behaviour", {}), **changes}
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
