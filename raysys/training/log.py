"""The staged events, read again by part of the users: what people liked, and what of it is held out."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.training.held_out import HeldOut
from raysys.training.plan import BuildPlan
from raysys.types import Keys

DAY_S = 86_400.0
LEAST_SPAN_DAYS = 7.0
RECENT_SHARES = (0.1, 0.2, 0.3)  # of the events: the least of these in which enough people like something, or the last
LARGEST_SHARE_OF_PEOPLE = 0.5  # whose last like is held out
ENOUGH_PEOPLE = 100
LEAST_PEOPLE = 60  # of fewer nothing can be learned


@dataclass(frozen=True, slots=True, eq=False)
class Liked:
    """What some users liked, an entry an event. user, item: uint64 keys. time_s, weight: float."""

    user: Keys
    item: Keys
    time_s: NDArray[np.float64]
    weight: NDArray[np.float32]


def read_part(plan: BuildPlan, part: int) -> pa.Table | None:
    """The events of one part of the users, one an event however often it comes. None where there are none."""
    files = sorted(plan.staged("events", f"{part:05d}").glob("*.parquet"))
    if not files:
        return None
    table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    _, once = np.unique(table["event"].to_numpy(), return_index=True)
    return table.take(np.sort(once))


def liked(plan: BuildPlan, part: int) -> Liked | None:
    """The events of weight > 0 of one part of the users, without what the plan holds out."""
    table = read_part(plan, part)
    if table is None:
        return None
    user, item, time_s, weight = (table[name].to_numpy() for name in ("user", "item", "timestamp_s", "weight"))
    kept = weight > 0
    if plan.held_out is not None:
        kept &= ~plan.held_out.rows(user, time_s, weight > 0)
    return Liked(user[kept], item[kept], time_s[kept], weight[kept])


def hold_out(plan: BuildPlan, latest_s: float) -> HeldOut | None:
    """What to hold out so that a ranking can be learned; None where too few people would be asked, or it is not wanted.

    What will be asked is what comes next, so it is the newest tenth of the events, or more of a small log. A log whose
    events lie within a week has an order rather than times (a place in a sequence for a time, say); there it is what
    people liked last.
    Decided by the first part of the users that has any, who are a sample of all.
    """
    people = plan.settings.learning.people
    table = next((t for t in (read_part(plan, part) for part in range(plan.n_shards)) if t is not None), None)
    if table is None or people < LEAST_PEOPLE:
        return None
    times_s, users = table["timestamp_s"].to_numpy(), table["user"].to_numpy()
    if (latest_s - times_s.min()) / DAY_S < LEAST_SPAN_DAYS:
        n_people = plan.n_shards * len(np.unique(users))
        share = min(LARGEST_SHARE_OF_PEOPLE, people / n_people)
        return HeldOut(None, share, latest_s) if share * n_people >= LEAST_PEOPLE else None
    for recent in RECENT_SHARES:
        since_s = float(np.quantile(times_s, 1 - recent))
        n_people = plan.n_shards * len(np.unique(users[times_s >= since_s]))
        if n_people >= ENOUGH_PEOPLE:
            break
    return HeldOut(since_s, min(1.0, people / n_people), since_s) if n_people >= LEAST_PEOPLE else None
