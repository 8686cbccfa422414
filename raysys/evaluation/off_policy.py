"""What a new policy would have earned, from the log of the old one.

Each row of the log is an item in its place in a list. ``propensities`` says how likely the policy that served was to
put this item there, ``target`` how likely the new one is; the reward of a row counts ``target / propensity`` times.
The value is the mean reward of an item shown. It is unbiased where the reward of an item depends on the person, the
item and the place alone, not on its neighbours (the item-position model of Li et al., "Offline Evaluation of Ranking
Policies with Click Models", KDD 2018), and where the old policy had a chance of whatever the new one shows.

Rows of one person are not independent, so intervals come from resampled people. Where the log cannot answer, an
estimate says why and has no value; it does not raise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation.metrics import Estimate
from raysys.types import Keys

Floats = NDArray[np.float64]
People = NDArray[np.intp]  # [n] of rows: which person, from 0

LEAST_EFFECTIVE = 10.0  # below it a resample may hold no weight at all
FARTHEST_WEIGHT_Z = (
    6.0  # of the mean weight from 1; weights are skewed, so that by chance it came to 4 in 1 of 500 logs
)
MOST_CLIPPED = 0.1  # of all weight; with more cut off the interval is of another number
DRAWN_AT_ONCE = 1 << 22  # numbers in memory while people are resampled


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """Rows of the log, one an item shown. Raises InvalidInput for lengths that differ and values that cannot be.

    users: [n] uint64 keys, whose row it is. propensities: [n] float64, NaN = none was logged. target: [n] float64 in
    [0, 1], the chance that the new policy puts this item in this place. rewards: [n] float64.
    """

    users: Keys
    propensities: Floats
    target: Floats
    rewards: Floats

    def __post_init__(self) -> None:
        for name in ("propensities", "target", "rewards"):
            _check_column(name, getattr(self, name), len(self))
        for name in ("target", "rewards"):
            _check_finite(name, getattr(self, name))
        outside = (self.target < 0) | (self.target > 1)
        if outside.any():
            at = int(outside.argmax())
            raise InvalidInput(f"target[{at}]", f"{self.target[at]} is no chance; give numbers from 0 to 1")

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Rewards by a model that was not fitted on these rows (or cross-fitted by person). Both [n] float64.

    of_logged: of the item that was shown. of_target: the mean over what the new policy may put in this place,
    weighted by its chances.
    """

    of_logged: Floats
    of_target: Floats

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_column(field.name, getattr(self, field.name), len(self.of_logged))
            _check_finite(field.name, getattr(self, field.name))


@dataclass(frozen=True, slots=True)
class Limits:
    """When to cut a weight, and when not to conclude.

    max_weight: larger weights are cut to it; None = none is. Cutting trades variance for bias: of rewards that are
    never negative, IPS then tells too little. min_effective: rows and people that the weighted log must be worth.
    """

    max_weight: float | None = None
    min_effective: float = 100.0
    resamples: int = 1_000

    def __post_init__(self) -> None:
        if self.max_weight is not None and not self.max_weight > 0:
            raise InvalidInput("max_weight", f"{self.max_weight} would leave no weight; give a number above 0 or None")
        if not self.min_effective >= LEAST_EFFECTIVE:
            raise InvalidInput("min_effective", f"{self.min_effective} is below {LEAST_EFFECTIVE:.0f}")


@dataclass(frozen=True, slots=True)
class Weighting:
    """What the weights, target over propensity, leave of the log.

    effective_rows: Kish's effective sample size, (sum of w)^2 / sum of w^2, over rows; effective_users: the same over
    the weights of whole people. mean_weight: before cutting; 1 is expected. clipped_rows: the share of rows whose
    weight was cut. clipped_weight: the share of all weight that was cut off.
    """

    effective_rows: float
    effective_users: float
    mean_weight: float
    clipped_rows: float
    clipped_weight: float


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """The mean reward of an item that the new policy shows, or why the log cannot tell it.

    value: None where ``refused`` says why. weighting: None where no weights could be made.
    """

    method: str
    n_rows: int
    n_users: int
    weighting: Weighting | None = None
    value: Estimate | None = None
    refused: str | None = None


# Rows and the weights of them -> what to sum up above the line and below it, both [n] float64.
Totals = Callable[[Logged, Floats], tuple[Floats, Floats]]


def ips(logged: Logged, rng: np.random.Generator, limits: Limits | None = None) -> PolicyValue:
    """Inverse propensity scoring: the mean of w r. Unbiased; its variance grows with the weights.

    Horvitz and Thompson, "A Generalization of Sampling Without Replacement From a Finite Universe", JASA 1952.
    """
    return _value("ips", logged, _ips, rng, limits or Limits())


def snips(logged: Logged, rng: np.random.Generator, limits: Limits | None = None) -> PolicyValue:
    """Self-normalised: the sum of w r over the sum of w. A small bias, mostly far less variance, never out of range.

    Swaminathan and Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NeurIPS 2015.
    """
    return _value("snips", logged, _snips, rng, limits or Limits())


def doubly_robust(
    logged: Logged, predicted: Predicted, rng: np.random.Generator, limits: Limits | None = None
) -> PolicyValue:
    """What the model predicts, and w times what it got wrong. Unbiased where propensities or predictions are right.

    Raises InvalidInput where there is not one prediction a row. Dudik, Langford and Li, "Doubly Robust Policy
    Evaluation and Learning", ICML 2011.
    """
    _check_column("predicted", predicted.of_logged, len(logged))

    def totals(rows: Logged, weights: Floats) -> tuple[Floats, Floats]:
        return predicted.of_target + weights * (rows.rewards - predicted.of_logged), np.ones(len(rows))

    return _value("doubly_robust", logged, totals, rng, limits or Limits())


def concatenate(parts: Sequence[Logged]) -> Logged:
    """All rows of these parts, in their order."""
    none = np.empty(0)
    whole = [Logged(none.astype(np.uint64), none, none, none), *parts]
    return Logged(*(np.concatenate([getattr(part, field.name) for part in whole]) for field in fields(Logged)))


def _ips(rows: Logged, weights: Floats) -> tuple[Floats, Floats]:
    return weights * rows.rewards, np.ones(len(rows))


def _snips(rows: Logged, weights: Floats) -> tuple[Floats, Floats]:
    return weights * rows.rewards, weights


def _value(method: str, logged: Logged, totals: Totals, rng: np.random.Generator, limits: Limits) -> PolicyValue:
    people, user = np.unique(logged.users, return_inverse=True)
    unknown = PolicyValue(method, len(logged), len(people), refused=_unusable(logged))
    if unknown.refused is not None:
        return unknown
    raw = logged.target / logged.propensities
    weights = raw if limits.max_weight is None else np.minimum(raw, limits.max_weight)
    weighting = _weighting(raw, weights, user)
    refused = _too_little(weighting, _z_of_mean_weight(raw, user), limits)
    if refused is not None:
        return replace(unknown, weighting=weighting, refused=refused)
    sums = np.stack([_by_person(user, column) for column in totals(logged, weights)], axis=1)
    return replace(unknown, weighting=weighting, value=_ratio(sums, rng, limits.resamples))


def _unusable(logged: Logged) -> str | None:
    """Why no weight can be made of this log, or no reward of it compared."""
    given = logged.propensities[~np.isnan(logged.propensities)]
    outside = given[~((given > 0) & (given <= 1))]
    if not len(logged):
        return "the log holds no rows"
    if n_missing := len(logged) - len(given):
        return f"{n_missing} of {len(logged)} rows have no propensity; log it, or read only the rows that have one"
    if len(outside):
        return f"{len(outside)} of {len(logged)} propensities are not above 0 and up to 1, the first: {outside[0]}"
    if (given == 1).all():
        return "every propensity is 1: the old policy never explored, so the log is silent about any other"
    if (logged.rewards == logged.rewards[0]).all():
        return f"every reward is {logged.rewards[0]}; do the events carry the ids of these recommendations?"
    return None


def _weighting(raw: Floats, weights: Floats, user: People) -> Weighting:
    return Weighting(
        effective_size(weights),
        effective_size(_by_person(user, weights)),
        mean_weight=float(raw.mean()),
        clipped_rows=float((weights < raw).mean()),
        clipped_weight=float(1 - weights.sum() / raw.sum()) if raw.any() else 0.0,
    )


def effective_size(weights: Floats) -> float:
    """Kish's effective sample size of weights that are not negative, [n] float64: n where all are equal."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _too_little(found: Weighting, z_of_mean: float, limits: Limits) -> str | None:
    """Why these weights do not carry a conclusion."""
    if min(found.effective_rows, found.effective_users) < limits.min_effective:
        return (
            f"the log is worth {found.effective_rows:.1f} rows of {found.effective_users:.1f} people, and"
            f" {limits.min_effective:.0f} of each are wanted: the new policy rarely shows what the old one showed"
        )
    if abs(z_of_mean) > FARTHEST_WEIGHT_Z:
        return (
            f"the mean weight is {found.mean_weight:.3f} where 1 is expected: the new policy shows what the old one had"
            " no chance to show, or the propensities are wrong"
        )
    if found.clipped_weight > MOST_CLIPPED:
        return f"{found.clipped_weight:.0%} of the weight was cut off, more than {MOST_CLIPPED:.0%}: raise max_weight"
    return None


def _z_of_mean_weight(raw: Floats, user: People) -> float:
    """How many standard errors, over people, the mean weight is from 1."""
    excess = _by_person(user, raw - 1)
    error = float(np.sqrt(np.square(excess).sum()))
    return float(excess.sum()) / error if error > 0 else 0.0


def _by_person(user: People, column: Floats) -> Floats:
    """The sum of each person's rows: [n_people] float64."""
    return np.bincount(user, column).astype(np.float64)


def _ratio(by_person: Floats, rng: np.random.Generator, resamples: int) -> Estimate:
    """The first column's sum over the second's, [n_people, 2], with an interval from resampled people."""
    n = len(by_person)
    step = max(1, DRAWN_AT_ONCE // n)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    sums = np.concatenate([by_person[rng.integers(n, size=(size, n))].sum(axis=1) for size in sizes])
    means = sums[:, 0] / sums[:, 1]
    low, high = np.percentile(means, [2.5, 97.5])
    top, bottom = by_person.sum(axis=0)
    return Estimate(float(top / bottom), float(means.std(ddof=1)), float(low), float(high))


def _check_column(name: str, values: Floats, n_rows: int) -> None:
    if values.shape != (n_rows,):
        raise InvalidInput(name, f"has the shape {values.shape} for {n_rows} rows")


def _check_finite(name: str, values: Floats) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        at = int(bad.argmax())
        raise InvalidInput(f"{name}[{at}]", f"{values[at]} is not a finite number")
