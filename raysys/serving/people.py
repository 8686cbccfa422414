"""What people may know and say of their profile: see it, correct it, take it with them, have it removed."""

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from raysys.clock import Clock
from raysys.config import ProfileSettings
from raysys.errors import Conflict, InvalidInput
from raysys.profile.beliefs import Belief, Beliefs, Evidence, Known, beliefs
from raysys.profile.fold import DESCRIPTION, fold
from raysys.profile.reader import Profiles
from raysys.serving import schemas
from raysys.serving.current import Current, InUse
from raysys.serving.impressions import ImpressionLog
from raysys.serving.near_line import vector_key
from raysys.serving.problems import faults
from raysys.state.protocol import History, StateStore
from raysys.types import Event, Person, Profile, Vectors, user_key

FIRST_PAGE = 10_000
_TEXT = "text:"
_NOTES = {
    "person": "the key alone stays on the list of the erased, so that no build brings back what they did",
    "vectors": "of the texts, by the encoder in use; what an earlier encoder made of them carries no name and cannot "
    "be found",
}
_COUNTS_NOTE = (
    "which items go together, and how popular they are, was counted over everybody; it names nobody. Gone with the "
    "next build that reads this store (`state` in the build settings)"
)
_OTHERS_NOTE = (
    "other gateways keep texts and profiles in memory until newer ones push them out or they restart, "
    "and may have files of impressions of their own"
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A person as of now. profile: what recommendations start from."""

    history: History
    profile: Profile
    beliefs: Beliefs


class People:
    """Reads and writes of what is known of single people."""

    def __init__(
        self,
        in_use: InUse,
        state: StateStore,
        profiles: Profiles,
        settings: ProfileSettings,
        clock: Clock,
        impressions: ImpressionLog | None = None,
        is_alone: bool = True,
    ) -> None:
        """impressions: None = nothing that was shown is recorded. is_alone: there is no other gateway on this store."""
        self._in_use, self._state, self._profiles = in_use, state, profiles
        self._settings, self._clock = settings, clock
        self._impressions, self._is_alone = impressions, is_alone
        self._editing = asyncio.Lock()  # a person is read, changed and written: one at a time

    # Who they are

    async def upsert(self, body: schemas.UsersBody) -> dict[str, Any]:
        """New people, and what is new of those who are known: what is not given is no longer there."""
        versions: dict[str, int] = {}
        rejected: list[dict[str, Any]] = []
        for index, raw in enumerate(body.users):
            try:
                entry = read_user(raw)
                versions[entry.user_id] = await self._write(entry)
            except InvalidInput as error:
                rejected.append({"index": index, "code": "invalid", "field": error.field, "message": error.message})
        return {"accepted": list(versions), "rejected": rejected, "profile_versions": versions}

    async def _write(self, entry: schemas.UserEntry) -> int:
        async with self._editing:
            history = await self._history(f"u:{entry.user_id}", 0)
            person = replace(
                self._person(history),
                description=entry.description,
                language=entry.language,
                attributes=entry.attributes,
                follows=entry.follows,
                updated_s=self._clock.now_s(),
            )
            version = await self._state.put_person(person)
        self._in_use.read_soon([entry.description] if entry.description is not None else [])
        return version

    async def merge(self, body: schemas.UserMergeBody) -> dict[str, Any]:
        """Raises Conflict for a session that belongs to somebody else."""
        session, user = f"s:{body.session_id}", f"u:{body.user_id}"
        async with self._editing:
            said = (await self._history(session, 0)).person
            outcome, version = await self._state.link(session, user)
            if outcome == "conflict":
                raise Conflict("session_id", f"session {body.session_id!r} belongs to another user already")
            if outcome == "merged" and said is not None:
                version = await self._keep_wishes(user, said)
        return {"outcome": outcome, "profile_version": version}

    async def _keep_wishes(self, user: str, said: Person) -> int:
        """What somebody pinned or muted before they were known still holds; where the two differ, muting does."""
        history = await self._history(user, 0)
        person = self._person(history)
        muted = person.muted | said.muted
        changed = replace(person, muted=muted, pinned=(person.pinned | said.pinned) - muted)
        return history.version if changed == person else await self._state.put_person(changed)

    # What is believed of them

    async def get(self, body: schemas.UserBody) -> dict[str, Any]:
        """What the system believes of a person."""
        return _answer(await self._see(await self._history(_key(body), self._settings.max_events)))

    async def edit(self, body: schemas.UserEditBody) -> dict[str, Any]:
        """Pin, mute or delete. Raises InvalidInput for an interest or evidence that is not this person's."""
        async with self._editing:
            everything = await self._everything(_key(body))
            names = await self._evidence(body, everything)
            if body.action == "delete":
                await self._forget(everything, names)
            person = self._person(everything)
            changed = _changed(person, body.action, names, self._clock.now_s())
            if changed != person:
                await self._state.put_person(changed)
        return await self.get(body)

    async def _evidence(self, body: schemas.UserEditBody, history: History) -> frozenset[str]:
        """The evidence that an edit is about."""
        if body.evidence is not None:
            known = _names(history)
            for index, name in enumerate(body.evidence):
                if name not in known:
                    raise InvalidInput(f"evidence[{index}]", f"nothing of this person goes by the name {name!r}")
            return frozenset(body.evidence)
        for interest in (await self._see(history)).beliefs.interests:
            if interest.interest_id == body.interest_id:
                return frozenset(each.evidence for each in interest.evidence)
        raise InvalidInput("interest_id", f"this person has no interest {body.interest_id!r} now; see /v1/users:get")

    async def _forget(self, history: History, names: frozenset[str]) -> None:
        """Remove these events, and every other one that says the same in words."""
        said = {_text_of(event) for event in history.events if f"{_TEXT}{event.event_id}" in names} - {""}
        gone = [event for event in history.events if event.item_id in names or _text_of(event) in said]
        texts = [event.text for event in gone if event.text]
        if DESCRIPTION in names and history.person is not None and history.person.description is not None:
            texts.append(history.person.description)
        keys = self._text_keys(texts)
        self._forget_in_memory(keys)
        await self._state.forget(history.user, [event.event_id for event in gone], keys)

    def _text_keys(self, texts: Iterable[str]) -> list[bytes]:
        """What names the vectors of these texts, as they were written and as they are read, by whichever encoder."""
        given = dict.fromkeys(form for text in texts for form in (text, text.strip()))
        return [vector_key(space, text, "query") for space in self._in_use.spaces for text in given]

    def _forget_in_memory(self, keys: Sequence[bytes]) -> int:
        """Returns how many of these vectors were here."""
        return sum(current.texts.forget(keys) for current in self._in_use.all())

    async def _see(self, history: History) -> _Seen:
        profile = self._fold(history, history.person)
        person = None if history.person is None else replace(history.person, muted=frozenset())
        unmuted = self._fold(history, person)
        current = self._in_use.on(self._in_use.side_of(history.user))
        known = await _known(current, unmuted)
        return _Seen(history, profile, beliefs(profile, unmuted, current.recommender.settings, known))

    def _fold(self, history: History, person: Person | None) -> Profile:
        return fold(history.user, history.events, self._settings, self._clock.now_s(), person)

    # Taking it with them, and having it removed

    async def export(self, body: schemas.UserBody) -> dict[str, Any]:
        """Everything that is kept of a person."""
        everything = await self._everything(_key(body))
        seen = await self._see(everything)
        sessions = await self._state.sessions(everything.user)
        return {
            **_answer(seen),
            "at": _time(self._clock.now_s()),
            "sessions": [session[2:] for session in sessions],
            "events": [_event(event) for event in everything.events],
            "impressions": await self._shown([everything.user, *sessions]),
        }

    async def delete(self, body: schemas.UserBody) -> dict[str, Any]:
        """Remove a person wholly. The receipt names each place, and what is not gone yet.

        The store comes last: should a part fail before it, the same call again finds everything there was.
        """
        async with self._editing:
            everything = await self._everything(_key(body))
            who = [everything.user, *await self._state.sessions(everything.user)]
            person = everything.person
            texts = [event.text for event in everything.events if event.text]
            keys = self._text_keys([*texts, *([person.description] if person and person.description else ())])
            places = await self._erase(who, keys)
            verified = await self._is_gone(who, keys)
        return {
            "receipt_id": uuid.uuid4().hex,
            "user": everything.user,
            "at": _time(self._clock.now_s()),
            "places": [*places, *self._pending(everything)],
            "verified": verified,
        }

    async def _erase(self, who: Sequence[str], keys: Sequence[bytes]) -> list[dict[str, Any]]:
        removed: dict[str, int] = {}
        if self._impressions is not None:
            removed["impressions"] = await asyncio.to_thread(self._impressions.erase, *who)
        removed["vectors in memory"] = self._forget_in_memory(keys)
        removed |= await self._state.erase(who[0], keys)
        self._profiles.friends.forget(who)
        notes = {place: {"note": note} for place, note in _NOTES.items()}
        return [{"place": place, "removed": n, "state": "gone", **notes.get(place, {})} for place, n in removed.items()]

    def _pending(self, erased: History) -> list[dict[str, Any]]:
        found = []
        if any(event.item_id is not None for event in erased.events):
            found.append(("counts of the snapshot", _COUNTS_NOTE))
        if not self._is_alone:
            found.append(("other gateways", _OTHERS_NOTE))
        return [{"place": place, "removed": 0, "state": "pending", "note": note} for place, note in found]

    async def _is_gone(self, who: Sequence[str], keys: Sequence[bytes]) -> bool:
        """Look again, as a request would; this also drops the folded profiles."""
        profiles = [await self._profiles.of(user) for user in who]
        left = [
            any(profile != Profile(profile.user) for profile in profiles),
            bool(await self._state.sessions(who[0])),
            bool(await self._state.vectors(keys)),
            self._forget_in_memory(keys) > 0,
            bool(await self._shown(who)),
        ]
        return not any(left)

    async def _shown(self, who: Sequence[str]) -> list[dict[str, Any]]:
        if self._impressions is None:
            return []
        return [_shown(row) for row in (await asyncio.to_thread(self._impressions.rows_of, *who)).to_pylist()]

    async def _history(self, user: str, limit: int) -> History:
        history = await self._state.history(user, limit)
        assert history is not None  # noqa: S101  # no version was given that it could be
        return history

    async def _everything(self, user: str) -> History:
        """All events of a person."""
        limit = FIRST_PAGE
        while len((history := await self._history(user, limit)).events) == limit:
            limit *= 10
        return history

    def _person(self, history: History) -> Person:
        return Person(history.user, updated_s=self._clock.now_s()) if history.person is None else history.person


def read_user(raw: Mapping[str, Any]) -> schemas.UserEntry:
    """One person from plain JSON values. Raises InvalidInput that names the field."""
    try:
        return schemas.UserEntry.model_validate_json(orjson.dumps(raw))
    except ValidationError as error:
        first = faults(error)[0]
        message = _no_field(first.field) if first.code == "extra_forbidden" else first.message
        raise InvalidInput(first.field, message) from error
    except orjson.JSONEncodeError as error:  # a whole number of more than 64 bits, a lone surrogate
        raise InvalidInput("user", str(error)) from error


def _no_field(name: str) -> str:
    fields = list(schemas.UserEntry.model_fields)
    close = get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"there is no such field; {hint}a user has: {', '.join(fields)}"


def _changed(person: Person, action: str, names: frozenset[str], now_s: float) -> Person:
    """The person after an edit. What is muted is not pinned, and the reverse."""
    pinned, muted = person.pinned, person.muted
    if action != "unmute":
        pinned = pinned | names if action == "pin" else pinned - names
    if action != "unpin":
        muted = muted | names if action == "mute" else muted - names
    changed = replace(person, pinned=pinned, muted=muted)
    if action == "delete" and DESCRIPTION in names:
        return replace(changed, description=None, updated_s=now_s)
    return changed


def _key(body: schemas.UserBody) -> str:
    user = user_key(body.user_id, body.session_id)
    assert user is not None  # noqa: S101  # the schema wants exactly one of the two
    return user


def _names(history: History) -> set[str]:
    """All that a person may name as evidence."""
    names = {event.item_id for event in history.events if event.item_id is not None}
    names |= {f"{_TEXT}{event.event_id}" for event in history.events if event.text}
    if history.person is not None:
        names |= history.person.pinned | history.person.muted
        names |= {DESCRIPTION} if history.person.description is not None else set()
    return names


def _text_of(event: Event) -> str:
    """What an event says, as the fold compares it."""
    return "" if event.text is None else event.text.strip().casefold()


async def _known(current: Current, profile: Profile) -> Known:
    """What the catalogue has of the items that a profile likes and dislikes."""
    ids = [interaction.item_id for interaction in profile.interactions if interaction.weight != 0]
    vectors, is_known = await current.lookup.vectors(ids)
    with_vector = [item_id for item_id, known in zip(ids, is_known.tolist(), strict=True) if known]
    fields = await current.lookup.items(ids)
    return Known(dict(zip(with_vector, vectors, strict=True)), fields, _center(current))


def _center(current: Current) -> Vectors:
    contrast = current.catalogue.contrast
    dim = current.catalogue.manifest.encoder_identity.dim
    return np.zeros(dim, dtype=np.float32) if contrast is None else contrast.mean


def _answer(seen: _Seen) -> dict[str, Any]:
    user, person = seen.history.user, seen.history.person
    return {
        "user_id": user[2:] if user.startswith("u:") else None,
        "session_id": user[2:] if user.startswith("s:") else None,
        "profile_version": seen.history.version,
        "person": None if person is None else _person(person),
        "interests": [_interest(interest) for interest in seen.beliefs.interests],
        "dislikes": [_piece(each) for each in seen.beliefs.dislikes],
        "seen": len(seen.profile.interactions),
        "counts": seen.profile.counts,
    }


def _person(person: Person) -> dict[str, Any]:
    return {
        "description": person.description,
        "language": person.language,
        "attributes": person.attributes,
        "follows": person.follows,
        "pinned": sorted(person.pinned),
        "muted": sorted(person.muted),
        "updated_at": _time(person.updated_s),
    }


def _interest(interest: Belief) -> dict[str, Any]:
    return {
        "interest_id": interest.interest_id,
        "words": interest.words,
        "kind": interest.kind,
        "share": interest.share,
        "pinned": interest.pinned,
        "muted": interest.muted,
        "evidence": [_piece(each) for each in interest.evidence],
    }


def _piece(evidence: Evidence) -> dict[str, Any]:
    optional = {"item_id": evidence.item_id, "title": evidence.title, "sentence": evidence.sentence}
    return {
        "evidence": evidence.evidence,
        **{name: value for name, value in optional.items() if value is not None},
        "source": evidence.source,
        "at": _time(evidence.timestamp_s),
        "weight": evidence.weight,
        "pinned": evidence.pinned,
        "muted": evidence.muted,
    }


def _event(event: Event) -> dict[str, Any]:
    """An event in the words of ``/v1/events``, but for its user."""
    optional = {
        "item_id": event.item_id,
        "value": event.value,
        "text": event.text,
        "recommendation_id": event.recommendation_id,
        "properties": event.properties or None,
        "expires_at": None if event.expires_s is None else _time(event.expires_s),
    }
    given = {name: value for name, value in optional.items() if value is not None}
    return {"event_id": event.event_id, "type": event.kind, "timestamp": _time(event.timestamp_s), **given}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the impression log as plain JSON values."""
    sources = {source["name"]: source["score"] for source in row["sources"]}
    return {**row, "timestamp": row["timestamp"].isoformat(), "sources": sources}


def _time(seconds: float) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
