"""Leave-last-out: the last item of each sequence is the test, the one before it the validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput

Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Predict ``targets[u]`` after ``histories[u]``. All are item indices in ``range(n_items)``.

    histories: one [h] int64 array a user, oldest first. targets: [n_users] int64.
    """

    histories: Sequence[Items]
    targets: Items

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True, eq=False)
class LeaveLastOut:
    """What to fit on and what to predict.

    train: the sequences without their last two items; models are fitted on nothing else.
    validation: after ``train``; settings are chosen on it. test: after ``train`` and the validation item, looked at
    once.
    """

    train: Sequence[Items]
    validation: Task
    test: Task


def leave_last_out(sequences: Sequence[Items]) -> LeaveLastOut:
    """Split sequences in time order, each of three items or more (shorter ones raise InvalidInput)."""
    for user, sequence in enumerate(sequences):
        if len(sequence) < 3:
            raise InvalidInput(f"sequences[{user}]", f"{len(sequence)} items; leave-last-out needs at least 3")
    train, longer = [s[:-2] for s in sequences], [s[:-1] for s in sequences]
    last_two = np.array([s[-2:] for s in sequences], dtype=np.int64).reshape(-1, 2)
    return LeaveLastOut(train, Task(train, last_two[:, 0]), Task(longer, last_two[:, 1]))
