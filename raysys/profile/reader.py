"""Profiles from the state store: read only where something changed, and folded here."""

from collections import OrderedDict
from dataclasses import replace

from raysys.clock import Clock
from raysys.config import ProfileSettings
from raysys.profile.fold import fold
from raysys.profile.follows import Friends
from raysys.state.protocol import StateStore
from raysys.types import Profile


class Profiles:
    """Folded profiles, kept while the version in the store stays the same and nothing in them has expired.

    They are kept up to ``max_cached_interactions`` interactions and sayings in all; the ones used longest ago make
    room. Whoever writes the store, the next ``of`` sees it, since it always asks the store for the version.

    ``friends``: what those whom a profile follows like, read from the same store.
    """

    def __init__(
        self, state: StateStore, settings: ProfileSettings, clock: Clock, max_cached_interactions: int = 500_000
    ) -> None:
        self._state, self._settings, self._clock = state, settings, clock
        self.friends = Friends(state, settings, clock)
        self._free = max_cached_interactions
        self._kept: OrderedDict[str, Profile] = OrderedDict()

    async def of(self, user: str) -> Profile:
        """The profile of a user key as of now; that of the user where it is a linked session.

        A stranger has version 0 and no interactions. Raises Unavailable where the store cannot be read now.
        """
        now_s = self._clock.now_s()
        known = self._known(user, now_s)
        version = -1 if known is None else known.version
        history = await self._state.history(user, self._settings.max_events, version)
        if history is None and known is not None:
            return known
        assert history is not None  # noqa: S101  # no version is -1
        profile = fold(history.user, history.events, self._settings, now_s, history.person)
        profile = replace(profile, version=history.version)
        self._keep(user, profile)
        return profile

    def _known(self, user: str, now_s: float) -> Profile | None:
        """The profile that was folded last, if nothing in it has expired."""
        profile = self._kept.get(user)
        if profile is None or now_s >= profile.valid_until_s:
            return None
        self._kept.move_to_end(user)
        return profile

    def _keep(self, user: str, profile: Profile) -> None:
        """Keep it, whatever its version: after an erasure the version of a person starts at 0 again."""
        self._drop(user)
        self._kept[user] = profile
        self._free -= _size(profile)
        while self._free < 0:
            self._drop(next(iter(self._kept)))

    def _drop(self, user: str) -> None:
        known = self._kept.pop(user, None)
        if known is not None:
            self._free += _size(known)


def _size(profile: Profile) -> int:
    return 1 + len(profile.interactions) + len(profile.sayings)
