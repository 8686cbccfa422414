"""Raw events made into sequences. Everything that is wrong with them has a rule and a count.

The rules, in the order in which they are applied:

- ``bad_time``: the time is no finite number. The event is dropped.
- ``bad_grade``: there is a grade, and it is no finite number (text, NaN, infinity). The event is dropped.
- ``grade_out_of_range``: the grade is below or above the scale, so negative and huge ones too. The event is dropped.
- ``unknown_item``: the catalogue does not hold the item. The event is dropped.
- ``repeated``: the user met the item before. The first event of a pair stays: what is met again is no discovery.
- ``equal_times``: the user's event before has the same time. It stays; such events keep the order of the file.
- ``users_of_one_event``: they stay; what becomes of them is for the split to say.

A column of times is in UTC epoch seconds. An event without a grade (None) is not graded, and nothing is wrong with it.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation.sequences import Floats, Items, Sequences

Mask = NDArray[np.bool_]
_NO_NUMBER = np.inf  # what is no number at all; like infinity, it is never kept


@dataclass(frozen=True, slots=True, eq=False)
class RawEvents:
    """Columns of equal length, as they came. grades: None = there is no such column."""

    users: Sequence[Hashable]
    items: Sequence[Hashable]
    times_s: Sequence[Any] | NDArray[Any]
    grades: Sequence[Any] | NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Cleaned:
    """sequences: one a user of ``users``, in the order in which they are first met. counts: events or users a rule."""

    sequences: Sequences
    users: list[Hashable]
    counts: Mapping[str, int]


def clean(raw: RawEvents, catalogue: Sequence[Hashable], scale: tuple[float, float] | None = None) -> Cleaned:
    """Sequences of the events that can be used; the item index is the place in ``catalogue``.

    scale: the lowest and highest grade that there is, None = any. Users keep their sequence, an empty one too.
    Raises InvalidInput where the columns differ in length.
    """
    _check_lengths(raw)
    times_s, has_time = _numbers(raw.times_s)
    grades, has_grade = _numbers([None] * len(times_s) if raw.grades is None else raw.grades)
    low, high = (-np.inf, np.inf) if scale is None else scale
    place = {item: index for index, item in enumerate(catalogue)}
    items = np.array([place.get(item, -1) for item in raw.items], dtype=np.int64)
    wrong = {
        "bad_time": ~has_time | ~np.isfinite(times_s),
        "bad_grade": has_grade & ~np.isfinite(grades),
        "grade_out_of_range": has_grade & ((grades < low) | (grades > high)),
        "unknown_item": items < 0,
    }
    usable, counts = _usable(wrong, len(items))
    users, names = _codes(raw.users)
    graded = np.where(has_grade, grades, np.nan)
    sequences, more = _sequences(users[usable], items[usable], times_s[usable], graded[usable], len(names))
    return Cleaned(sequences, names, counts | more)


def _check_lengths(raw: RawEvents) -> None:
    columns = [raw.users, raw.items, raw.times_s, *([] if raw.grades is None else [raw.grades])]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise InvalidInput("events", f"columns differ in length: {', '.join(map(str, map(len, columns)))}")


def _numbers(column: Sequence[Any] | NDArray[Any]) -> tuple[Floats, Mask]:
    """([n] float64, [n] bool): the numbers, and where there is any value at all."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
        return column.astype(np.float64), np.ones(len(column), dtype=np.bool_)
    given = np.array([value is not None for value in column], dtype=np.bool_)
    return np.array([_number(value) for value in column], dtype=np.float64), given


def _number(value: Any) -> float:
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return _NO_NUMBER


def _usable(wrong: Mapping[str, Mask], n: int) -> tuple[Mask, dict[str, int]]:
    """What no rule drops, and how many events each rule was the first to drop."""
    usable, counts = np.ones(n, dtype=np.bool_), {}
    for rule, mask in wrong.items():
        counts[rule] = int(np.count_nonzero(mask & usable))
        usable &= ~mask
    return usable, counts


def _codes(ids: Iterable[Hashable]) -> tuple[Items, list[Hashable]]:
    """([n] int64, the ids): each id as the place of its first occurrence among all ids."""
    places: dict[Hashable, int] = {}
    codes = np.array([places.setdefault(one, len(places)) for one in ids], dtype=np.int64)
    return codes, list(places)


def _sequences(
    users: Items, items: Items, times_s: Floats, grades: Floats, n_users: int
) -> tuple[Sequences, dict[str, int]]:
    order = np.lexsort((times_s, users))  # stable: equal times keep the order of the file
    users, items, times_s, grades = users[order], items[order], times_s[order], grades[order]
    pairs = users * (1 + int(items.max(initial=0))) + items
    first = np.zeros(len(users), dtype=np.bool_)
    first[np.unique(pairs, return_index=True)[1]] = True
    users, items, times_s, grades = users[first], items[first], times_s[first], grades[first]
    starts = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))]).astype(np.int64)
    tied = (users[1:] == users[:-1]) & (times_s[1:] == times_s[:-1])
    return Sequences(starts, items, times_s, grades), {
        "repeated": int(np.count_nonzero(~first)),
        "equal_times": int(np.count_nonzero(tied)),
        "users_of_one_event": int(np.count_nonzero(np.diff(starts) == 1)),
    }
