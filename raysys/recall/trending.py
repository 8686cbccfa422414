"""What people turn to now: the candidate source that lives on the events of the last two days.

Each item has two sums of the weights of its events. In the one a weight halves every half hour, so that it tells what
has just begun; in the other every twelve hours, so that it tells what the day is about. From both an item's score is

    (fast / (fast + 10) + slow / (slow + 100)) / 2

It lies in 0..1 and is made of the item's own numbers alone, so that those of different shards can be compared.
"""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysys.types import Keys

FAST_HALF_LIFE_S = 1_800.0  # shows a burst within minutes, and forgets it in the hours after
SLOW_HALF_LIFE_S = 43_200.0  # carries what was liked in the evening over the night
FAST_MIDDLE, SLOW_MIDDLE = 10.0, 100.0  # views by as many people, just now or today, are half of the way to 1
KEEP_S = 2 * 86_400  # what was counted has faded to a sixteenth by then
BOUND_S = 3_600  # a person counts once for an item in this time, so that nobody pushes an item alone
AHEAD_S = 300  # how wrong the clock of a sender may be (``ProfileSettings.clock_error_s``)

MAX_ITEMS = 100_000
KEPT_ITEMS = 90_000  # of more, so that they are not sorted for every new one
MAX_COUNTED = 200_000  # what is remembered of who counted; some 200 bytes each
MAX_WAITING = 50_000
ROOM = 64  # for so many items at first

_HALF_LIVES_S = np.array([[FAST_HALF_LIFE_S], [SLOW_HALF_LIFE_S]])
_MIDDLES = np.array([[FAST_MIDDLE], [SLOW_MIDDLE]])

Trending = tuple[Keys, NDArray[np.float32]]
_NOTHING: Trending = (np.empty(0, np.uint64), np.empty(0, np.float32))


class Trends:
    """The trending items of one shard; see the top of this module. For one thread.

    Time is told in whole seconds and only goes on: asked for an earlier one, ``scores`` answers for the latest.
    """

    def __init__(self) -> None:
        self._second = 0
        self._has_news = False
        self._waiting: deque[tuple[int, int, str, float]] = deque(maxlen=MAX_WAITING)  # (second, key, user, weight)
        self._counted: dict[int, dict[int, tuple[float, int]]] = {}  # by hour, person and item: (weight, second)
        self._places: dict[int, int] = {}  # item key -> its column in the arrays, which have room for more
        self._keys = np.zeros(ROOM, np.uint64)
        self._sums = np.zeros((2, ROOM))  # fast and slow, as of ``_second``
        self._latest = np.zeros(ROOM, np.int64)  # the second of the latest event
        self._held = _NOTHING

    def __len__(self) -> int:
        """How many items are counted."""
        return len(self._places)

    def add(self, key: int, user: str, weight: float, at_s: float) -> None:
        """An event: its item, who did it, what it says (``event_weight``) and when, UTC epoch seconds.

        In any order. What says nothing good, weight 0 or less, counts nothing. Of the events of one person about one
        item in one hour of the day only the strongest counts, the latest of equally strong ones. A late event counts
        with its own age, one older than two days nothing. One in the future counts nothing; if it lies but a little
        ahead (``AHEAD_S``), until its time comes. The events wait for the next ``scores``, the latest 50,000 at most.
        """
        if weight > 0:
            self._waiting.append((math.floor(at_s), key, user, weight))
            self._has_news = True

    def scores(self, now_s: float) -> Trending:
        """(keys, ascending: [n] uint64; scores: [n] float32 in 0..1) of the items with an event in the last two days.

        The same objects until a second has passed or an event came. Beyond 100,000 items the coldest are forgotten.
        """
        second = max(math.floor(now_s), self._second)
        if second > self._second or self._has_news:
            self._pass_to(second)
            self._take_in()
            self._forget()
            self._held = self._score()
        return self._held

    def _pass_to(self, second: int) -> None:
        self._sums *= np.exp2((self._second - second) / _HALF_LIVES_S)
        self._second = second

    # Taking events in

    def _take_in(self) -> None:
        waiting, self._waiting, self._has_news = self._waiting, deque(maxlen=MAX_WAITING), False
        effects: list[tuple[int, int, float]] = []
        for event in waiting:
            age_s = self._second - event[0]
            if 0 <= age_s < KEEP_S:
                effects += self._effects(*event)
            elif -AHEAD_S <= age_s < 0:
                self._waiting.append(event)
        if effects:
            self._apply(effects)

    def _effects(self, second: int, key: int, user: str, weight: float) -> list[tuple[int, int, float]]:
        """(place, second, weight) of what is new about the sums of the item: less than 0 for what counts no more."""
        counted = self._counted.setdefault(second // BOUND_S, {})
        mark = hash((key, user))  # differs from process to process, but none of them leaves this one
        before = counted.get(mark)
        if before is not None and before >= (weight, second):
            return []
        counted[mark] = (weight, second)
        place = self._place(key)
        return [(place, second, weight)] + ([] if before is None else [(place, before[1], -before[0])])

    def _place(self, key: int) -> int:
        place = self._places.setdefault(key, len(self._places))
        if place == len(self._keys):
            room = len(self._keys)
            self._keys = np.append(self._keys, np.zeros(room, np.uint64))
            self._sums = np.hstack([self._sums, np.zeros((2, room))])
            self._latest = np.append(self._latest, np.zeros(room, np.int64))
        self._keys[place] = key
        return place

    def _apply(self, effects: Sequence[tuple[int, int, float]]) -> None:
        places, seconds, weights = (np.array(column) for column in zip(*effects, strict=True))
        for sums, worth in zip(self._sums, weights * np.exp2((seconds - self._second) / _HALF_LIVES_S), strict=True):
            np.add.at(sums, places, worth)
        np.maximum.at(self._latest, places, seconds)

    # Forgetting

    def _forget(self) -> None:
        """Where more people count than can be remembered, those of the oldest hours may count once more."""
        for hour in [hour for hour in self._counted if (hour + 1) * BOUND_S <= self._second - KEEP_S]:
            del self._counted[hour]
        while sum(map(len, self._counted.values())) > MAX_COUNTED:
            del self._counted[min(self._counted)]
        if len(self) > MAX_ITEMS:
            self._forget_coldest()

    def _forget_coldest(self) -> None:
        keys, scores = self._score()
        kept = keys[np.lexsort((keys, -scores))[:KEPT_ITEMS]].tolist()
        places = np.array([self._places[key] for key in kept])
        self._places = dict(zip(kept, range(len(kept)), strict=True))
        self._keys, self._sums, self._latest = self._keys[places], self._sums[:, places], self._latest[places]

    def _score(self) -> Trending:
        n = len(self)
        places = np.flatnonzero(self._latest[:n] > self._second - KEEP_S)
        if not len(places):
            return _NOTHING
        places = places[np.argsort(self._keys[places])]
        sums = np.maximum(self._sums[:, places], 0)
        return self._keys[places], (sums / (sums + _MIDDLES)).mean(axis=0).astype(np.float32)
