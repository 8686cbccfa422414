"""Two policies side by side: who sees which, what they were shown, and a test that may be looked at any time.

A person's arm is a hash of the experiment and their key: the same in every process, nothing is stored, and arms of
different experiments have nothing to do with each other. What counts is one number a person, made of what they did in
a fixed time after they were first exposed; it no longer changes when it enters the test.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from raysys.data.arrow_values import TIME
from raysys.errors import InvalidInput
from raysys.evaluation.off_policy import effective_size
from raysys.evaluation.shown import check_columns, exposures, read_pieces
from raysys.keys import point_of

Floats = NDArray[np.float64]
Verdict = Literal["too few", "undecided", "better", "worse"]

EXPOSURE_SCHEMA = pa.schema(
    [
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("user", pa.string(), nullable=False),  # ``types.user_key``
        pa.field("timestamp", TIME, nullable=False),
        pa.field("recommendation_id", pa.string(), nullable=False),
    ]
)
MISMATCH_CONCENTRATION = 1_000.0  # two equal arms that are off by about 1.6 points are found soonest
LEAST_TELLING = 25.0  # people that the spread rests on; with fewer, early verdicts were wrong too often
FIRST_SCHEMA = pa.schema([("user", pa.string()), ("first", TIME), ("arm", pa.string()), ("last_arm", pa.string())])


@dataclass(frozen=True)
class Experiment:
    """Arms and their weights, at least two, above 0; only their ratios matter.

    Another name shuffles everybody anew; so does a change of weights or of the order of arms for some. Raises
    InvalidInput for an empty name, a single arm, or a weight that is not a number above 0.
    """

    name: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidInput("experiment.name", "is empty")
        if len(self.weights) < 2:
            raise InvalidInput("experiment.weights", f"{len(self.weights)} arm; an experiment compares two or more")
        for arm, weight in self.weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise InvalidInput(f"experiment.weights.{arm}", f"{weight} is not a number above 0; leave the arm out")

    @cached_property
    def shares(self) -> Floats:
        """[n_arms] float64: the share of people in each arm, in the order of ``weights``."""
        weights = np.array([*self.weights.values()], dtype=np.float64)
        return np.asarray(weights / weights.sum())

    def arm_of(self, user: str) -> str:
        """The arm of this ``types.user_key``."""
        return self._arms[int(np.searchsorted(self._ends, point_of(self.name, user), side="right"))]

    @cached_property
    def _arms(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @cached_property
    def _ends(self) -> Floats:
        """Where each arm but the last ends in [0, 1): [n_arms - 1] float64."""
        return np.asarray(np.cumsum(self.shares)[:-1])


def exposure_rows(
    experiments: Sequence[Experiment], user: str, recommendation_id: str, timestamp_s: float
) -> pa.RecordBatch:
    """That this person was shown this list in these experiments, one row of ``EXPOSURE_SCHEMA`` each.

    Log it where the arm makes a difference to the list, and for every arm: people whose list would have been the same
    in any arm only add noise, and a rule that holds for one arm alone makes the arms unlike.
    """
    n = len(experiments)
    columns = {
        "experiment": [experiment.name for experiment in experiments],
        "arm": [experiment.arm_of(user) for experiment in experiments],
        "user": [user] * n,
        "timestamp": [round(timestamp_s * 1e6)] * n,
        "recommendation_id": [recommendation_id] * n,
    }
    return pa.RecordBatch.from_pydict(columns, schema=EXPOSURE_SCHEMA)


def read_exposures(folder: str | Path, keep: pads.Expression | None = None) -> Iterator[pa.RecordBatch]:
    """Who was shown a list in which experiments, of the impression log: batches of ``EXPOSURE_SCHEMA``.

    keep: which rows, as for ``evaluation.shown.read_shown``. A list without items is not in the log, and no exposure.
    Raises Unavailable when a file cannot be read now.
    """
    one_a_list = pads.field("experiments").is_valid() & (pads.field("position") == 1)
    wanted = one_a_list if keep is None else one_a_list & keep
    for rows in read_pieces(folder, ["experiments", "user", "timestamp", "recommendation_id"], wanted):
        at, experiments, arms = exposures(rows)
        shared = [rows[name].combine_chunks().take(pa.array(at)) for name in ("user", "timestamp", "recommendation_id")]
        yield pa.RecordBatch.from_arrays([experiments, arms, *shared], schema=EXPOSURE_SCHEMA)


def first_exposures(exposures: Iterable[pa.RecordBatch], experiment: Experiment) -> pa.Table:
    """When each person was first in this experiment: ``user``, ``first``, ``arm``, ``last_arm``, one row a person.

    exposures: batches of ``EXPOSURE_SCHEMA``, in any order; in memory is one of them, and a row a person. arm and
    last_arm: the first and the last by name of the arms they were shown, different where they were in several.
    Raises InvalidInput for an arm that the experiment does not have, or a column that is not there.
    """
    found = FIRST_SCHEMA.empty_table()
    for batch in exposures:
        check_columns(batch, ("experiment", "user", "timestamp", "arm"))
        rows = pa.Table.from_batches([batch]).filter(pads.field("experiment") == experiment.name)
        for arm in rows["arm"].unique().to_pylist():
            if arm not in experiment.weights:
                raise InvalidInput(
                    "exposures.arm", f"{arm!r} is not in {experiment.name}: {', '.join(experiment.weights)}"
                )
        columns = [rows["user"], rows["timestamp"], rows["arm"], rows["arm"]]
        found = _per_user(pa.concat_tables([found, pa.table(columns, FIRST_SCHEMA.names)]))
    return found


def _per_user(rows: pa.Table) -> pa.Table:
    grouped = rows.group_by("user").aggregate([("first", "min"), ("arm", "min"), ("last_arm", "max")])
    return grouped.select(["user", "first_min", "arm_min", "last_arm_max"]).rename_columns(FIRST_SCHEMA.names)


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """One number a person. values: arm -> [n] float64, in the order of first exposure, every arm of the experiment.

    n_open: people whose time is not over, left out until it is. n_mixed: people who were shown several arms, left out.
    """

    values: Mapping[str, Floats]
    n_open: int
    n_mixed: int


def outcomes(
    first: pa.Table,
    events: Iterable[pa.RecordBatch],
    worth: Mapping[str, float],
    experiment: Experiment,
    window_s: float,
    now_s: float,
) -> Outcomes:
    """What people did in the ``window_s`` from their first exposure on, for those whose window is over at ``now_s``.

    first: of ``first_exposures``. events: batches with the columns ``user``, ``kind`` and ``timestamp``, each event
    once, whatever list it came from, or none: so what one list takes from another is seen too. worth: event kind ->
    reward, added up a person. Raises InvalidInput for a column that is not there.
    """
    of_one_arm = pads.field("arm") == pads.field("last_arm")
    closed = pads.field("first") <= pa.scalar(round((now_s - window_s) * 1e6), TIME)
    single = first.filter(of_one_arm)
    people = single.filter(closed).sort_by([("first", "ascending"), ("user", "ascending")])
    earned = np.zeros(len(people))
    for batch in events:
        at, values = _earned(batch, people, worth, window_s)
        np.add.at(earned, at, values)
    arms = people["arm"].to_numpy()
    by_arm = {arm: earned[arms == arm] for arm in experiment.weights}
    return Outcomes(by_arm, n_open=len(single) - len(people), n_mixed=len(first) - len(single))


def _earned(
    batch: pa.RecordBatch, people: pa.Table, worth: Mapping[str, float], window_s: float
) -> tuple[NDArray[np.int64], Floats]:
    """For each event that counts: the row of its person, and its reward."""
    check_columns(batch, ("user", "kind", "timestamp"))
    kinds = pa.array(list(worth), pa.string())
    rows = pa.table({name: batch[name] for name in ("user", "kind", "timestamp")})
    rows = rows.filter(pads.field("kind").isin(kinds) & pads.field("user").isin(people["user"].combine_chunks()))
    at = pc.index_in(rows["user"], people["user"].combine_chunks()).to_numpy().astype(np.int64)
    rewards = np.array([*worth.values(), 0.0])[pc.index_in(rows["kind"], kinds).to_numpy().astype(np.int64)]
    after_s = (_microseconds(rows["timestamp"]) - _microseconds(people["first"])[at]) / 1e6
    inside = (after_s >= 0) & (after_s < window_s)
    return at[inside], rewards[inside]


def _microseconds(times: pa.ChunkedArray) -> NDArray[np.int64]:
    microseconds: NDArray[np.int64] = times.cast(TIME).cast(pa.int64()).to_numpy()
    return microseconds


@dataclass(frozen=True, slots=True)
class SequentialPlan:
    """What is settled before the first look; changed after it, the error rate no longer holds.

    effect: the size of difference that is worth finding, in units of the outcome (the standard deviation of the
    mixture). It decides which differences are found soonest, not the error rate. alpha: the chance of a verdict where
    there is no difference, however often one looks; divide it by the number of arms that are compared with control.
    min_per_arm: people without which there is no verdict, as the theory is for many.
    """

    effect: float
    alpha: float = 0.05
    min_per_arm: int = 200

    def __post_init__(self) -> None:
        if not (self.effect > 0 and math.isfinite(self.effect)):
            raise InvalidInput("effect", f"{self.effect} is not a number above 0")
        if not 0 < self.alpha < 1:
            raise InvalidInput("alpha", f"{self.alpha} is not between 0 and 1")
        if self.min_per_arm < 2:
            raise InvalidInput("min_per_arm", f"{self.min_per_arm} is below 2")


@dataclass(frozen=True, slots=True)
class Look:
    """What is known now. difference: mean of treatment minus mean of control.

    low, high: an interval that holds the true difference at all looks together with the chance 1 - alpha. p_value: at
    or below alpha at any look with the chance alpha where there is no difference. n: people in control and treatment.
    n_telling: how many people the spread rests on; of rare outcomes about as many as had one.
    """

    verdict: Verdict
    difference: float
    low: float
    high: float
    p_value: float
    n: tuple[int, int]
    n_telling: float


def look(control: Floats, treatment: Floats, plan: SequentialPlan) -> Look:
    """Compare the arms with what there is now; look as often as you like, and stop at a verdict or never.

    control, treatment: the outcomes of people so far, [n] float64. The mixture sequential probability ratio test with
    a normal mixture and the variance of the data (Johari, Koomen, Pekelis and Walsh, "Always Valid Inference:
    Continuous Monitoring of A/B Tests", Operations Research 2022), valid as the number of people grows
    (Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence sequences", 2024). Verdict
    "too few": below ``min_per_arm`` or ``LEAST_TELLING``; there is no difference, NaN, then. Raises InvalidInput for
    an outcome that is not finite.
    """
    n = (len(control), len(treatment))
    for name, values in (("control", control), ("treatment", treatment)):
        if not np.isfinite(values).all():
            raise InvalidInput(name, "holds an outcome that is not a finite number")
    if min(n) < plan.min_per_arm:
        return Look("too few", math.nan, -math.inf, math.inf, 1.0, n, 0.0)
    variance, n_telling = _spread(control, treatment)
    if n_telling < LEAST_TELLING:
        return Look("too few", math.nan, -math.inf, math.inf, 1.0, n, n_telling)
    difference = float(treatment.mean() - control.mean())
    p_value = math.exp(-max(0.0, float(log_likelihood_ratio(difference, variance, plan.effect))))
    radius = float(confidence_radius(variance, plan.effect, plan.alpha))
    verdict: Verdict = "undecided" if abs(difference) <= radius else "better" if difference > 0 else "worse"
    return Look(verdict, difference, difference - radius, difference + radius, p_value, n, n_telling)


def _spread(control: Floats, treatment: Floats) -> tuple[float, float]:
    """The variance of the difference of means, and how many people it rests on: n over kurtosis, of both arms.

    The larger of the variances with and without a common one: where outcomes are rare, a small arm may not have met
    any yet, and its own variance then says that it is certain.
    """
    squares = [np.square(values - values.mean()) for values in (control, treatment)]
    n = [len(values) for values in squares]
    apart = sum(float(values.sum()) / (len(values) - 1) / len(values) for values in squares)
    common = sum(float(values.sum()) for values in squares) / (sum(n) - 2) * (1 / n[0] + 1 / n[1])
    return max(apart, common), effective_size(np.concatenate(squares))


def log_likelihood_ratio(difference: Floats | float, variance: Floats | float, effect: float) -> Floats:
    """ln of the mixture likelihood ratio of "some difference, normal around 0 with the deviation ``effect``" to "none".

    variance: of the difference. Any shape, element by element.
    """
    whole = np.asarray(variance) + effect**2
    return np.asarray(0.5 * np.log(variance / whole) + effect**2 * np.square(difference) / (2 * variance * whole))


def confidence_radius(variance: Floats | float, effect: float, alpha: float) -> Floats:
    """Half the width of the confidence sequence: where ``log_likelihood_ratio`` reaches ln(1 / alpha)."""
    whole = np.asarray(variance) + effect**2
    return np.sqrt(variance * whole / effect**2 * (2 * math.log(1 / alpha) + np.log(whole / variance)))


def e_value_of_counts(counts: Sequence[int], shares: Sequence[float] | Floats, concentration: float) -> float:
    """How much counts speak against their expected shares; valid at any look, exactly: P(ever >= 1 / alpha) <= alpha.

    The likelihood of the counts under shares around the expected ones (Dirichlet with this concentration: a share p
    strays by sqrt(p (1 - p) / concentration)) over that under the expected ones. 1 / the e-value is a p-value.
    Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data", NeurIPS 2022.
    """
    prior = [concentration * float(share) for share in shares]
    log_e = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, a, share in zip(counts, prior, shares, strict=True):
        log_e += math.lgamma(a + count) - math.lgamma(a) - count * math.log(share)
    return math.exp(min(log_e, 700.0))


def mismatch_p_value(experiment: Experiment, counts: Mapping[str, int]) -> float:
    """An always-valid p-value of "people fell into the arms as the weights say"; arms without a count have none.

    Below 0.001 or so something loses people of one arm, and no other figure of the experiment can be trusted
    (Fabijan et al., "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments", KDD 2019). Raises
    InvalidInput for an arm that the experiment does not have.
    """
    for arm in counts:
        if arm not in experiment.weights:
            raise InvalidInput("counts", f"{arm!r} is not in {experiment.name}: {', '.join(experiment.weights)}")
    in_order = [counts.get(arm, 0) for arm in experiment.weights]
    return min(1.0, 1 / e_value_of_counts(in_order, experiment.shares, MISMATCH_CONCENTRATION))
