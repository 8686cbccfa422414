"""What somebody follows. People: the items that they like are candidates. Owners of items: a taste, by their name.

Of a person only the items count that they acted on (liked, bought, graded well, shared, ...), never one that they only
looked at, never what they wrote, and nothing that they muted. Of these the latest count, and the weight of an item is
the share of friends who like it, where a friend stands for 1 and for each of their items that one likes oneself:

    sum over those who like it of (1 + shared) * like / (sum over all of (1 + shared) + 20)
    like = min(weight, 3) / 3 * 0.95 ** steps back from their latest * 0.5 ** (age / half-life of its kind)

The 20 keeps one friend's word from counting like everybody's. It, 0.95 and (1 + shared) were chosen on the validation
of Last.fm (docs/evaluation.md). What followed owners have is in ``tastes``.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raysys.clock import Clock
from raysys.config import LOOKS, ProfileSettings
from raysys.errors import Unavailable
from raysys.keys import item_keys
from raysys.profile.fold import DAY_S, WEIGHT_CAP, fold
from raysys.state.protocol import History, StateStore
from raysys.types import FriendLikes, Keys, Person, Profile

USER = "user:"  # begins the ids of people among all that somebody follows; any other is that of an owner
MOST_FRIENDS = 50  # that count, the first in the list
MOST_LIKED = 20  # items of each of them, the latest
MOST_EVENTS = 50  # that are read of each of them, the latest
READ_AT_ONCE = 10  # people: some 5 ms of one core
MOST_KNOWN = 20_000  # people whose likes are remembered: some 30 MB
STEP_DECAY, SHRINK = 0.95, 20.0  # see the top of this module
DEADLINE_S = 0.1  # that a list may wait for its friends


def friends_of(person: Person | None) -> list[str]:
    """The user keys of the people that somebody follows, each once and without themselves, ``MOST_FRIENDS`` at most."""
    if person is None or not person.follows:
        return []
    ids = (each.removeprefix(USER) for each in person.follows if each.startswith(USER))
    users = dict.fromkeys(f"u:{user_id}" for user_id in ids if user_id)
    users.pop(person.user, None)
    return [*users][:MOST_FRIENDS]


def owners_of(person: Person | None) -> tuple[str, ...]:
    """The ids of the owners that somebody follows."""
    return () if person is None else tuple(each for each in person.follows if not each.startswith(USER))


@dataclass(frozen=True, slots=True, eq=False)
class Likes:
    """The latest items that one person likes: keys, [m] uint64; weights above 0 and at most 1, times_s of the latest
    event and half_lives_s, [m] float64 each. valid_until_s: from when an event of theirs has expired."""

    keys: Keys
    weights: NDArray[np.float64]
    times_s: NDArray[np.float64]
    half_lives_s: NDArray[np.float64]
    version: int = 0
    valid_until_s: float = math.inf


def likes_of(profile: Profile, settings: ProfileSettings) -> Likes:
    """What others may see of a profile."""
    liked = [i for i in profile.interactions if i.weight > 0 and i.kind not in LOOKS][-MOST_LIKED:]
    half_lives = [settings.half_life_days.get(i.kind, settings.default_half_life_days) for i in liked]
    weights = np.array([min(i.weight, WEIGHT_CAP) / WEIGHT_CAP for i in liked], dtype=np.float64)
    return Likes(
        item_keys(i.item_id for i in liked),
        weights * STEP_DECAY ** np.arange(len(liked) - 1, -1, -1),
        np.array([i.timestamp_s for i in liked], dtype=np.float64),
        np.array(half_lives, dtype=np.float64) * DAY_S,
        profile.version,
        profile.valid_until_s,
    )


def together(likes: Iterable[Likes], own: Keys, now_s: float) -> FriendLikes | None:
    """What several people like, by the formula at the top of this module; None where nothing is known.

    own: [o] uint64, the items that one likes oneself.
    """
    known = [each for each in likes if len(each.keys)]
    if not known:
        return None
    every = np.concatenate([each.keys for each in known])
    owners = np.repeat(np.arange(len(known)), [len(each.keys) for each in known])
    standing = 1.0 + np.bincount(owners, weights=np.isin(every, own))
    ages_s = np.maximum(now_s - np.concatenate([each.times_s for each in known]), 0)
    faded = 0.5 ** (ages_s / np.concatenate([each.half_lives_s for each in known]))
    weights = standing[owners] * faded * np.concatenate([each.weights for each in known])
    keys, at = np.unique(every, return_inverse=True)
    shares = np.bincount(at, weights=weights) / (standing.sum() + SHRINK)
    return FriendLikes(keys, shares.astype(np.float32))


class Friends:
    """What the people somebody follows like, read from the state store.

    Every call asks the store for their versions, all in one go, and reads again only those that changed: so the next
    list counts what they did, muted or had erased a moment ago. What was read is remembered, of the ``MOST_KNOWN``
    people asked for last.
    """

    def __init__(self, state: StateStore, settings: ProfileSettings, clock: Clock) -> None:
        self._state, self._settings, self._clock = state, settings, clock
        self._kept: OrderedDict[str, Likes] = OrderedDict()

    async def of(self, profile: Profile) -> tuple[FriendLikes | None, bool]:
        """(what those whom this person follows like, whether all of them were read).

        None where nothing is known of any. What cannot be read in ``DEADLINE_S`` counts with the next call.
        """
        users, found = friends_of(profile.person), dict[str, Likes]()
        if not users:
            return None, True
        now_s = self._clock.now_s()
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for user, likes in self._read(users, now_s):
                    found[user] = likes
        except (Unavailable, TimeoutError):
            pass
        own = item_keys(i.item_id for i in profile.interactions if i.weight > 0)
        likes_of_all = (found[user] for user in users if user in found)
        return together(likes_of_all, own, now_s), len(found) == len(users)

    def forget(self, users: Sequence[str]) -> None:
        """Remember nothing of these people."""
        for user in users:
            self._kept.pop(user, None)

    async def _read(self, users: Sequence[str], now_s: float) -> AsyncIterator[tuple[str, Likes]]:
        """The likes of each, in the version that they have now; first of those who did not change."""
        changed = []
        for user, version in (await self._state.versions(users)).items():
            likes = self._kept.get(user)
            if likes is None or likes.version != version or now_s >= likes.valid_until_s:
                changed.append(user)
            else:
                self._kept.move_to_end(user)
                yield user, likes
        for start in range(0, len(changed), READ_AT_ONCE):
            part = changed[start : start + READ_AT_ONCE]
            for user, history in (await self._state.histories(part, MOST_EVENTS)).items():
                yield user, self._keep(user, history, now_s)
            await asyncio.sleep(0)  # the turn of others, and of the deadline

    def _keep(self, user: str, history: History, now_s: float) -> Likes:
        profile = fold(history.user, history.events, self._settings, now_s, history.person)
        likes = self._kept[user] = replace(likes_of(profile, self._settings), version=history.version)
        self._kept.move_to_end(user)
        if len(self._kept) > MOST_KNOWN:
            self._kept.popitem(last=False)
        return likes
