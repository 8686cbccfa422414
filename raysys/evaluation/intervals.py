"""How sure a figure is: intervals by resampling users, and paired tests between two recommenders.

A resample of users is a multinomial draw over the distinct values of the metric, which costs the number of values
rather than the number of users. A metric with more than ``LEVELS`` distinct values is rounded to that many for the
interval alone; means are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysys.errors import InvalidInput
from raysys.evaluation.metrics import Estimate, Floats, PerUser
from raysys.evaluation.sequences import Items

LEVELS = 1_024
RESAMPLES = 1_000
FLIPS = 10_000
DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Paired:
    """Is one recommender better than another on the same users?

    difference: the first less the second. p: of a difference this large by chance, two-sided, by flipping the sign of
    each user's difference. users: how many were compared.
    """

    difference: Estimate
    p: float
    users: int


def estimate(values: Floats, rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimate | None:
    """Summarise one value a user, [n] float64. None for fewer than two users: one person says nothing of others."""
    if len(values) < 2:
        return None
    levels, counts = _levels(values)
    drawn = [rng.multinomial(len(values), counts / len(values), size) for size in _sizes(resamples, len(levels))]
    low, high = np.percentile(np.concatenate(drawn) @ levels / len(values), [2.5, 97.5])
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(error), float(low), float(high))


def paired(first: Floats, second: Floats, rng: np.random.Generator, flips: int = FLIPS) -> Paired | None:
    """Compare two recommenders user by user, both [n] float64. None for fewer than two users.

    The null hypothesis is that the difference of a user could as well have had the other sign (Fisher 1935); p has the
    correction of Phipson and Smyth (2010), so it is never 0.
    """
    if first.shape != second.shape:
        raise InvalidInput("paired", f"compares {len(first)} users with {len(second)}; both must answer the same ones")
    difference = first - second
    found = estimate(difference, rng)
    if found is None:
        return None
    levels, counts = _levels(np.abs(difference[difference != 0]))
    heads = [rng.binomial(counts, 0.5, (size, len(levels))) for size in _sizes(flips, len(levels))]
    sums = np.abs((2 * np.concatenate(heads) - counts) @ levels)
    as_large = np.count_nonzero(sums >= abs(difference.sum()) * (1 - 1e-9))
    return Paired(found, float((1 + as_large) / (1 + flips)), len(difference))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The same p values, so that among all of them the chance of any false alarm is kept (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def by_person(users: Items, metric: PerUser) -> Floats:
    """One value a person where a person stands for several rows (windows): their mean. Without the undefined ones.

    users: [n] int64, who each row of the metric is. The values are in the order of the persons' numbers.
    """
    people, place = np.unique(users[metric.defined], return_inverse=True)
    sums = np.bincount(place, metric.values[metric.defined], minlength=len(people))
    return sums / np.bincount(place, minlength=len(people))


def _levels(values: Floats) -> tuple[Floats, Items]:
    """The distinct values, at most ``LEVELS``, and how many users have each."""
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) <= LEVELS:
        return levels, counts
    counts, edges = np.histogram(values, LEVELS)
    sums = np.histogram(values, edges, weights=values)[0]
    return np.divide(sums, counts, out=np.zeros(LEVELS), where=counts > 0), counts


def _sizes(n: int, width: int) -> Sequence[int]:
    """How many of the n draws to make at once, so that memory is bounded."""
    step = max(1, DRAWN_AT_ONCE // max(width, 1))
    return [min(step, n - start) for start in range(0, n, step)]
