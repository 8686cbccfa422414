"""What to fit on and what to predict: leave-last-out, points and windows in time, and held-out items.

A fold is fitted on events that the people who answer it could have known, and is asked for what came then. A data set
that is too small to split is refused by its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from raysys.errors import InvalidInput
from raysys.evaluation.lists import Mask
from raysys.evaluation.sequences import Items, Sequences

LEAST_USERS = 2  # with fewer there is no interval


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Predict ``targets`` after ``histories``, user by user.

    users: [n] int64, who each row is; a person may stand in several folds. histories: n sequences, empty ones for
    people of whom nothing is known. targets: n sequences of one relevant item or more, none of them in the history.
    """

    users: Items
    histories: Sequences
    targets: Sequences

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: Items) -> "Task":
        return Task(self.users[rows], self.histories.take(rows), self.targets.take(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """What one snapshot is fitted on, and what it is asked.

    part: "validation" or "test". fitted_on: in words. train: nothing else may be looked at; the sequence of person u of
    ``task.users`` is the u-th. now_s: when it is asked. Raises InvalidInput where a target is in train.
    """

    part: str
    fitted_on: str
    train: Sequences
    task: Task
    now_s: float

    def __post_init__(self) -> None:
        asked = self.task.users[self.task.targets.owners], self.task.targets.items
        width = 1 + int(max(self.train.items.max(initial=0), asked[1].max(initial=0)))
        leaked = np.isin(asked[0] * width + asked[1], self.train.owners * width + self.train.items)
        if leaked.any():
            raise InvalidInput("fold", f"{np.count_nonzero(leaked)} targets are in what it is fitted on")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """name: of the data set. rule: in words. validation: to choose by. test: looked at once. counts: see the rule."""

    name: str
    rule: str
    validation: tuple[Fold, ...]
    test: tuple[Fold, ...]
    counts: Mapping[str, int]


def leave_last_out(sequences: Sequences, name: str) -> Split:
    """Each user's last event is the test, the one before it the validation.

    Users of fewer than three events are not asked (``short_users``); what they did is trained on. Where the last three
    events share a time, what is last is the order of the file (``tied_users``). The test is answered twice: by what is
    fitted on train alone, and by what is fitted on train and validation. Raises InvalidInput, naming the data set.
    """
    long = sequences.lengths >= 3
    asked, back = long[sequences.owners], sequences.steps_back
    train = sequences.keep(~asked | (back >= 2))
    longer = sequences.keep(~asked | (back >= 1))
    users = np.flatnonzero(long)
    validation = _task(users, train, sequences.keep(asked & (back == 1)))
    test = _task(users, longer, sequences.keep(asked & (back == 0)))
    _check(name, validation, "have three events or more")
    last_three = sequences.take(users).latest(3)
    times_s = last_three.times_s.reshape(-1, 3)
    now_s = float(sequences.times_s.max())
    return Split(
        name,
        "leave-last-out",
        (Fold("validation", "train", train, validation, now_s),),
        (Fold("test", "train", train, test, now_s), Fold("test", "train + validation", longer, test, now_s)),
        {
            "short_users": int(np.count_nonzero(~long)),
            "tied_users": int(np.count_nonzero((times_s[:, 1:] == times_s[:, :-1]).any(axis=1))),
            "validation_targets_not_in_train": _new_targets(train, validation),
        },
    )


def global_temporal(sequences: Sequences, name: str, points: Sequence[float], liked_above: float = -np.inf) -> Split:
    """Cut the time line at ``points``; after each it is the past that is fitted on, and what comes next is predicted.

    points: shares of the time line from its first event to its last, rising, in (0, 1). The window from the last point
    to the end is the test, those between are validation. Everything at the very time of a point comes after it, so
    equal times are never on both sides. What a person met in a window and graded above ``liked_above``, or did not
    grade, is relevant; who has nothing relevant in it is not asked. Raises InvalidInput, naming the data set.
    """
    if not points or list(points) != sorted(set(points)) or points[0] <= 0 or points[-1] >= 1:
        raise InvalidInput("points", f"{list(points)} must rise and lie between 0 and 1")
    if not len(sequences.items):
        raise InvalidInput(name, "holds no events, so there is nothing to split")
    first_s, last_s = float(sequences.times_s.min()), float(sequences.times_s.max())
    edges = [first_s + point * (last_s - first_s) for point in points] + [np.inf]
    relevant = ~(sequences.values <= liked_above)
    *validation, test = [_window(sequences, name, begin, end, relevant) for begin, end in pairwise(edges)]
    return Split(
        name,
        f"global temporal, cut at {', '.join(f'{point:.0%}' for point in points)} of the time line",
        tuple(replace(fold, part="validation") for fold in validation),
        (test,),
        {
            "test_users_without_history": int(np.count_nonzero(test.task.histories.lengths == 0)),
            "validation_users_without_history": sum(
                int(np.count_nonzero(fold.task.histories.lengths == 0)) for fold in validation
            ),
            "not_liked": int(np.count_nonzero(~relevant)),
        },
    )


def _window(sequences: Sequences, name: str, begin_s: float, end_s: float, relevant: Mask) -> Fold:
    past = sequences.keep(sequences.times_s < begin_s)
    targets = sequences.keep((sequences.times_s >= begin_s) & (sequences.times_s < end_s) & relevant)
    task = _task(np.flatnonzero(targets.lengths), past, targets)
    if not len(past.items):
        raise InvalidInput(name, f"holds no events before {begin_s:.0f}, so nothing can be fitted; take a later point")
    _check(name, task, f"have something relevant from {begin_s:.0f} to {end_s:.0f}")
    return Fold("test", "all before the window", past, task, begin_s)


def held_out_at_random(sequences: Sequences, name: str, share: float, rng: np.random.Generator) -> Split:
    """For events without times: of each user this share is the test, and as much the validation, at least one each.

    Users of fewer than three events are not asked (``short_users``). Raises InvalidInput, naming the data set.
    """
    if not 0 < share < 0.5:
        raise InvalidInput("share", f"{share} must be above 0 and below 0.5: validation and test take it twice")
    lengths, owners = sequences.lengths, sequences.owners
    order = np.lexsort((rng.random(len(owners)), owners))
    place = np.empty(len(owners), dtype=np.int64)
    place[order] = np.arange(len(owners)) - sequences.starts[owners]
    n_out = np.maximum((share * lengths).astype(np.int64), 1)
    asked = (lengths >= 3)[owners]
    is_test = asked & (place < n_out[owners])
    is_validation = asked & ~is_test & (place < 2 * n_out[owners])
    train, longer = sequences.keep(~is_test & ~is_validation), sequences.keep(~is_test)
    users = np.flatnonzero(lengths >= 3)
    validation, test = _task(users, train, sequences.keep(is_validation)), _task(users, longer, sequences.keep(is_test))
    _check(name, validation, "have three events or more")
    now_s = float(sequences.times_s.max())
    return Split(
        name,
        f"{share:.0%} of each user's events held out at random",
        (Fold("validation", "train", train, validation, now_s),),
        (Fold("test", "train", train, test, now_s), Fold("test", "train + validation", longer, test, now_s)),
        {"short_users": int(np.count_nonzero(lengths < 3))},
    )


def without_items(fold: Fold, new: Mask, name: str) -> Fold:
    """The same fold in a world where nobody has met the ``new`` items yet: for judging how new items are found.

    new: [n_items] bool. They go from what is fitted on and from the histories; the targets stay. A model can know them
    by their text alone. Raises InvalidInput, naming the data set, where no target is new or none is known.
    """
    is_new = new[fold.task.targets.items]
    if is_new.all() or not is_new.any():
        raise InvalidInput(name, f"{np.count_nonzero(is_new)} of {len(is_new)} targets are new items; both are needed")
    histories = fold.task.histories.keep(~new[fold.task.histories.items])
    task = replace(fold.task, histories=histories)
    words = f"{fold.fitted_on}, without {np.count_nonzero(new)} new items"
    return replace(fold, fitted_on=words, train=fold.train.keep(~new[fold.train.items]), task=task)


def shortened(task: Task, n: int) -> Task:
    """The same users with only the last ``n`` events of their history known: how soon does it get good?"""
    return replace(task, histories=task.histories.latest(n))


def _task(users: Items, histories: Sequences, targets: Sequences) -> Task:
    return Task(users, histories.take(users), targets.take(users))


def _check(name: str, task: Task, have: str) -> None:
    if len(task) < LEAST_USERS:
        raise InvalidInput(name, f"is too small to split: {len(task)} users {have}, and {LEAST_USERS} are needed")


def _new_targets(train: Sequences, task: Task) -> int:
    return int(np.count_nonzero(~np.isin(task.targets.items, train.items)))
