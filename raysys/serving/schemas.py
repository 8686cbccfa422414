"""The bodies of the HTTP API. Strict: no value is silently turned into another type, no unknown field is ignored."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raysys.config import IndexSettings
from raysys.index.filters import Filter, given

MAX_LIMIT = 500
MAX_IDS = 1_000
MAX_EVENTS = 1_000
MAX_ITEMS = 1_000
MAX_USERS = 1_000
MAX_QUERY_CHARS = 4_000
MAX_CAPS = 10
MAX_PROMOTIONS = 50
MAX_LABEL_CHARS = 100
MAX_KIND_CHARS = 64
MAX_ID_BYTES = 256
MILLISECONDS_FROM = 10**11  # smaller numbers are seconds by mistake: 10**11 ms is March 1973


def _check_id(value: str) -> str:
    if "\0" in value or not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        raise PydanticCustomError("bad_id", f"an id has 1 to {MAX_ID_BYTES} UTF-8 bytes and no NUL")
    return value


def _check_kind(value: str) -> str:
    if "\0" in value:  # no store keeps it, and the whole batch would be refused
        raise PydanticCustomError("bad_kind", "must not hold a NUL character")
    return value


def _check_text(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("blank", "must hold something other than white space")
    return value


def _check_explain(value: Any) -> Any:
    if not isinstance(value, bool) and value != "full":  # to a Literal 1 is True
        raise PydanticCustomError("explain", "must be false, true or 'full'")
    return value


# What the document says of an id. Characters are all that JSON Schema counts; the limit is in bytes.
ID_SCHEMA: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": "^[^\\u0000]*$",
    "description": f"Of 1 to {MAX_ID_BYTES} UTF-8 bytes, without NUL.",
}
TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARS, "pattern": r"\S"}
ONE_IDENTITY: dict[str, Any] = {"oneOf": [given("user_id"), given("session_id")]}

Explain = Annotated[Literal[False, True, "full"], BeforeValidator(_check_explain)]
Id = Annotated[str, AfterValidator(_check_id), WithJsonSchema(ID_SCHEMA)]
Ids = Annotated[tuple[Id, ...], Field(max_length=MAX_IDS, fail_fast=True)]
Evidence = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES + len("text:"))]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Share = Annotated[float, Field(ge=0, le=1)]
FieldName = Annotated[str, Field(min_length=1, max_length=256)]
Language = Annotated[str, Field(min_length=1, max_length=35)]
LABEL_SCHEMA = TEXT_SCHEMA | {"maxLength": MAX_LABEL_CHARS}
SnapshotId = Annotated[str, Field(pattern="^[0-9A-Za-z-]{1,64}$")]
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS), AfterValidator(_check_text), WithJsonSchema(LABEL_SCHEMA)]
Text = Annotated[str, Field(max_length=MAX_QUERY_CHARS), AfterValidator(_check_text), WithJsonSchema(TEXT_SCHEMA)]


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Person(Body):
    """Who asks and what is known of them: any mix of a stored profile, items, and free text."""

    model_config = ConfigDict(json_schema_extra={"not": {"allOf": [given("user_id"), given("session_id")]}})

    user_id: Id | None = Field(default=None, description="A user with a stored profile; an unknown one is fine.")
    session_id: Id | None = Field(default=None, description="An anonymous visitor; instead of user_id.")
    query: Text | None = Field(default=None, description="What they look for or like, in their own words.")
    history: Ids = Field(default=(), description="Items seen just now, oldest first.")
    positive: Ids = Field(default=(), description="Items they like.")
    negative: Ids = Field(default=(), description="Items they do not like.")

    @model_validator(mode="after")
    def _one_identity(self) -> "Person":
        if self.user_id is not None and self.session_id is not None:
            raise PydanticCustomError("two_identities", "give user_id or session_id, not both")
        return self


class CapBody(Body):
    """At most so many items of one value of a field in the list; of a list of values, each counts."""

    field: FieldName
    most: Limit


class PromotionBody(Body):
    """An item that is to stand at a slot, counted from 1, if it may be shown to this person at all."""

    item_id: Id
    slot: Limit
    label: Label | None = Field(default=None, description="Comes back with the item, such as `Ad`.")


class RecommendBody(Person):
    """Ask for recommendations. The rules of the list are those of the settings where the request does not say."""

    filter: Filter | None = None
    limit: Limit = 10
    exclude_seen: bool = Field(default=True, description="Leave out items of the profile and of history.")
    diversity: Share | None = Field(default=None, description="0 = the best scores alone, 1 = as unlike as can be.")
    calibration: Share | None = Field(
        default=None, description="How much the list follows the mix of categories that the person has; 0 = off."
    )
    caps: Annotated[tuple[CapBody, ...], Field(max_length=MAX_CAPS, fail_fast=True)] = ()
    one_per: FieldName | None = Field(default=None, description="A field, such as a series: one item of each value.")
    promotions: Annotated[tuple[PromotionBody, ...], Field(max_length=MAX_PROMOTIONS, fail_fast=True)] = ()
    explain: Explain = Field(
        default=False,
        description="Whether each item comes with its reasons; `full`: also with what would be without the main one.",
    )
    language: Language | None = Field(
        default=None, description="Of the reasons, as in BCP 47: en or zh. null = that of the user, else en."
    )
    explore: bool | None = Field(default=None, description="Whether some places go to new items, drawn by chance.")


class RankBody(Person):
    """Ask for an order of given items."""

    items: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]


class SimilarBody(Body):
    """Ask for items like one item."""

    item_id: Id
    filter: Filter | None = None
    limit: Limit = 10


class SearchBody(Body):
    """Ask for the items whose text is nearest to a query."""

    query: Text
    filter: Filter | None = None
    limit: Limit = 10


class ItemIdsBody(Body):
    """Items by id: to read, hide, show again, or delete."""

    item_ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]


class ItemsBody(Body):
    """Items to write. Each is checked on its own: a bad one is rejected by its index, the others go in."""

    items: Annotated[tuple[dict[str, Any], ...], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class EventsBody(Body):
    """A batch of events. Each is checked on its own: a bad one is rejected by its index, the others go in."""

    events: Annotated[tuple[dict[str, Any], ...], Field(min_length=1, max_length=MAX_EVENTS, fail_fast=True)]


def _check_time(value: datetime | int) -> datetime | int:
    if isinstance(value, int) and value < MILLISECONDS_FROM:
        raise PydanticCustomError("not_milliseconds", "a number must be UTC epoch milliseconds, this is too small")
    if isinstance(value, datetime) and value.timestamp() * 1e3 < MILLISECONDS_FROM:
        raise PydanticCustomError("too_early", "a time before March 1973 cannot be when this happened")
    return value


TIME_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer", "minimum": MILLISECONDS_FROM}]
}
KIND_SCHEMA = ID_SCHEMA | {"maxLength": MAX_KIND_CHARS, "description": "Of 1 to 64 characters, without NUL."}
Kind = Annotated[
    str, Field(min_length=1, max_length=MAX_KIND_CHARS), AfterValidator(_check_kind), WithJsonSchema(KIND_SCHEMA)
]
Time = Annotated[AwareDatetime | int, AfterValidator(_check_time), WithJsonSchema(TIME_SCHEMA)]


class EventBody(Body):
    """One event. ``timestamp``: RFC 3339 with an offset, or integer epoch milliseconds; now where left out."""

    model_config = ConfigDict(json_schema_extra=ONE_IDENTITY)

    event_id: Id
    type: Kind
    user_id: Id | None = None
    session_id: Id | None = None
    item_id: Id | None = None
    value: float | None = None
    timestamp: Time | None = None
    text: Annotated[str, Field(max_length=MAX_QUERY_CHARS)] | None = None
    recommendation_id: Id | None = None
    impressions: Ids = ()
    properties: Annotated[dict[str, Any], Field(max_length=50)] = {}

    @model_validator(mode="after")
    def _one_identity(self) -> "EventBody":
        if (self.user_id is None) == (self.session_id is None):
            raise PydanticCustomError("identity", "give either user_id or session_id")
        return self

    def timestamp_s(self, now_s: float) -> float:
        """UTC epoch seconds."""
        if self.timestamp is None:
            return now_s
        return self.timestamp / 1e3 if isinstance(self.timestamp, int) else self.timestamp.timestamp()


class UserEntry(Body):
    """Who a person is. What is not given is no longer there; what they pinned and muted stays."""

    user_id: Id
    description: Text | None = Field(default=None, description="Who they are or what they like, in their own words.")
    language: Language | None = Field(default=None, description="As in BCP 47. That of the reasons, where we have it.")
    attributes: Annotated[dict[str, Any], Field(max_length=50)] = {}
    follows: Ids = Field(
        default=(), description="Whom they follow: people as `user:<user_id>`, any other id is an `owner_id` of items."
    )


class UsersBody(Body):
    """People to write. Each is checked on its own: a bad one is rejected by its index, the others go in."""

    users: Annotated[tuple[dict[str, Any], ...], Field(min_length=1, max_length=MAX_USERS, fail_fast=True)]


class UserBody(Body):
    """One person: a user, or a visitor without a user id. A session that was merged stands for its user."""

    model_config = ConfigDict(json_schema_extra=ONE_IDENTITY)

    user_id: Id | None = None
    session_id: Id | None = None

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.user_id is None) == (self.session_id is None):
            raise PydanticCustomError("identity", "give either user_id or session_id")
        return self


class UserEditBody(UserBody):
    """What a person has to say about their profile: keep it, let it not count, or remove it for good.

    It is said of all the evidence of one interest, or of single pieces. An event that is evidence for an item and for
    a sentence is deleted with either.
    """

    model_config = ConfigDict(
        json_schema_extra={"allOf": [ONE_IDENTITY, {"oneOf": [given("interest_id"), given("evidence")]}]}
    )

    action: Literal["pin", "unpin", "mute", "unmute", "delete"]
    interest_id: Id | None = None
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.interest_id is None) == (self.evidence is None):
            raise PydanticCustomError("target", "give either interest_id or evidence")
        return self


class UserMergeBody(Body):
    """A visitor turns out to be a user: what the session did, and will do, is the user's."""

    session_id: Id
    user_id: Id


class SnapshotVerifyBody(Body):
    """A snapshot to look through: files, shards, index."""

    snapshot_id: SnapshotId = Field(default="current", description="`current` = the published one.")
    encoder: bool = Field(
        default=False, description="Also encode some texts again, for which this gateway loads the model."
    )


class SnapshotActivateBody(Body):
    """A snapshot to publish."""

    snapshot_id: SnapshotId
    force: bool = Field(default=False, description="Also where it is unlike the published one; never a damaged one.")


class SnapshotRollbackBody(Body):
    """Back to what was published before."""

    published: SnapshotId = Field(
        description="The one to go back from, 409 if it is not the published one: who sends this twice goes back once."
    )


class SnapshotCanaryBody(Body):
    """A snapshot for a share of the people; of the one that is the canary already, another share."""

    snapshot_id: SnapshotId
    share: float = Field(gt=0, le=1, description="Of the people. A larger one has all of a smaller one.")
    force: bool = Field(default=False, description="Also where it differs from the published one by too much.")


class SnapshotRunningBody(Body):
    """The canary that is meant."""

    canary: SnapshotId | None = Field(default=None, description="409 if another one is it; null = whichever.")


class SnapshotGcBody(Body):
    """What to remove."""

    keep: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=IndexSettings.model_fields["keep"].default,
        description="So many complete snapshots stay, the newest.",
    )
    dry_run: bool = Field(default=False, description="Only say what would go.")
    embeddings: bool = Field(default=False, description="Also vectors that no snapshot needs.")


class MoveAnswer(BaseModel):
    """A rule of the list that moved an item, and the rank that it would have without the rule."""

    rule: str = Field(description="`diversity`, `calibration`, `promotion`, `cap:<field>` or `one_per:<field>`.")
    from_rank: int | None = Field(alias="from", description="null = it would not be in the list.")


class UnmetAnswer(BaseModel):
    """A rule of the list that could not be fulfilled."""

    rule: str
    item_id: str | None = Field(description="Of a promotion.")
    why: str


class CauseAnswer(BaseModel):
    """One thing that the person did or wrote, as a cause of an item's score."""

    evidence: str = Field(description="The name to pin, mute or delete it by.")
    kind: str = Field(description="Of the event, or `description`.")
    share: float = Field(description="0 to 1, of all that lifts the item.")
    item_id: str | None = Field(description="Of the item that the event is about; null for a text.")
    title: str | None
    sentence: str | None = Field(description="What they wrote; null for an item.")


class ReasonAnswer(BaseModel):
    """One reason why an item stands where it does, found out from its score."""

    kind: Literal["source", "rule", "without"] = Field(
        description="A source of the score, a rule of the list, or what would be without a cause."
    )
    name: str = Field(description="Of the source, the rule, or the evidence that is taken away.")
    text: str = Field(description="A sentence for the person.")
    share: float | None = Field(description="Of a source, 0 to 1: its part of all that lifts the item.")
    causes: list[CauseAnswer] = Field(description="The weightiest first.")
    words: list[str] = Field(description="That matched, the weightiest first.")
    rank: int | None = Field(description="Without this rule or cause; null = not in the list.")


class ItemAnswer(BaseModel):
    """One recommended item."""

    item_id: str
    score: float
    rank: int
    sources: Mapping[str, float]
    metadata: Mapping[str, Any]
    moved: list[MoveAnswer]
    promoted: bool
    label: str | None
    reasons: list[ReasonAnswer] = Field(description="Why it stands here, where `explain` asks for it.")
    explored: bool = Field(description="It is new, and was drawn for this place.")
    propensity: float | None = Field(
        description="How likely it was that the item stands here; null where nothing was left to chance."
    )
    team: Literal["first", "second"] | None = Field(description="Of an interleaved list: which ranking picked it.")


class ExposureAnswer(BaseModel):
    """An experiment that the person is in, and their arm."""

    experiment: str
    arm: str


class ListAnswer(BaseModel):
    """A list of items and how it came about."""

    recommendation_id: str
    snapshot_id: str
    profile_version: int
    items: list[ItemAnswer]
    underfilled: bool
    exact: bool
    coverage: float
    degraded: list[str]
    reasons: list[str]
    unmet: list[UnmetAnswer]
    unknown_items: list[str]
    experiments: list[ExposureAnswer]
    timings_ms: Mapping[str, float]


class ItemsAnswer(BaseModel):
    """Items by id, and the ids that the catalogue does not hold."""

    snapshot_id: str
    items: list[dict[str, Any]]
    unknown_items: list[str]


class RejectedItem(BaseModel):
    """Why one item was not taken."""

    index: int
    code: str
    field: str
    message: str


class WrittenAnswer(BaseModel):
    """What became of a batch of items: the ids that count from now on, and the others with a reason."""

    accepted: list[str]
    rejected: list[RejectedItem]
    unknown_items: list[str] = []


class RejectedEvent(BaseModel):
    """Why one event was not taken."""

    index: int
    code: str
    message: str


class EventsAnswer(BaseModel):
    """What became of a batch of events."""

    accepted: int
    duplicates: int
    rejected: list[RejectedEvent]
    profile_versions: dict[str, int]


class UsersAnswer(BaseModel):
    """What became of a batch of people: the ids that were written, and the others with a reason."""

    accepted: list[str]
    rejected: list[RejectedItem]
    profile_versions: dict[str, int]


class PersonAnswer(BaseModel):
    """What a person said about themselves and their profile."""

    description: str | None
    language: str | None
    attributes: dict[str, Any]
    follows: list[str]
    pinned: list[str]
    muted: list[str]
    updated_at: str


class EvidenceAnswer(BaseModel):
    """One thing that a person did or said. ``weight``: how much it counts now, below 0 for a dislike."""

    evidence: str = Field(description="The name to pin, mute or delete it by.")
    item_id: str | None = None
    title: str | None = None
    sentence: str | None = None
    source: str = Field(description="The kind of the event, or `description`.")
    at: str
    weight: float
    pinned: bool
    muted: bool


class InterestAnswer(BaseModel):
    """Items that belong together, or one sentence. ``share``: of all items, or of all sentences, that count."""

    interest_id: str = Field(description="Stays the same while its strongest evidence does.")
    words: str
    kind: Literal["session", "long_term", "text", "description"]
    share: float
    pinned: bool
    muted: bool
    evidence: list[EvidenceAnswer]


class UserAnswer(BaseModel):
    """What the system believes of a person. A stranger has version 0 and nothing else."""

    user_id: str | None
    session_id: str | None
    profile_version: int
    person: PersonAnswer | None
    interests: list[InterestAnswer]
    dislikes: list[EvidenceAnswer]
    seen: int = Field(description="Items that they met, in whatever way.")
    counts: dict[str, int] = Field(description="Events by kind.")


class UserMergeAnswer(BaseModel):
    """``already``: they were merged before, and nothing changed."""

    outcome: Literal["merged", "already"]
    profile_version: int


class ErasedPlace(BaseModel):
    """One place that held something of a person. ``pending``: it is not gone yet; the note says when it will be."""

    place: str
    removed: int
    state: Literal["gone", "pending"]
    note: str | None = None


class ErasureAnswer(BaseModel):
    """The receipt of an erasure. ``verified``: everything that is said to be gone was looked for, and not found."""

    receipt_id: str
    user: str
    at: str
    places: list[ErasedPlace]
    verified: bool


class ExportAnswer(UserAnswer):
    """Everything that is kept of a person. Events are the latest first, as they were reported."""

    at: str
    sessions: list[str]
    events: list[dict[str, Any]]
    impressions: list[dict[str, Any]]


class SnapshotAnswer(BaseModel):
    """One snapshot."""

    snapshot_id: str
    state: Literal["complete", "damaged", "unfinished", "too new", "being built"]
    problem: str = Field(description="What is wrong with it; empty = nothing that shows without reading its files.")
    age_s: float
    items: int | None
    shards: int | None
    encoder: str | None
    index: list[str] = Field(description="Kinds over all shards.")
    size_bytes: int
    is_current: bool
    is_before: bool = Field(description="A rollback goes back to it.")
    is_canary: bool = Field(description="A share of the people are answered from it.")
    is_held: bool = Field(description="Some process writes, serves or verifies it now.")
    refused_at: str | None = Field(description="When it was last refused; null = never, or it was published since.")
    refused: list[str] = Field(description="The reasons for that.")


class LeftoverAnswer(BaseModel):
    """What builds and collections have left. ``path``: relative to the root."""

    path: str
    size_bytes: int
    is_held: bool


class PointerMoveAnswer(BaseModel):
    """One move of the pointer. ``forced``: the reasons that were set aside."""

    at: str
    snapshot_id: str
    by: Literal["build", "activate", "promote", "rollback", "another way"]
    forced: list[str]


class CanaryAnswer(BaseModel):
    """The snapshot that a ``share`` of the people get; the others get the one ``beside``."""

    snapshot_id: str
    share: float
    beside: str
    at: str
    forced: list[str] = Field(description="The reasons that were set aside.")


class SnapshotsAnswer(BaseModel):
    """All snapshots, oldest first."""

    root: str
    current: str | None
    canary: CanaryAnswer | None
    snapshots: list[SnapshotAnswer]
    leftovers: list[LeftoverAnswer]
    embeddings_bytes: int
    history: list[PointerMoveAnswer]


class CheckAnswer(BaseModel):
    """One thing that was looked at. ``file``: which one is wrong; empty = none, or all of it."""

    level: Literal["ok", "note", "fail"]
    what: str
    found: str
    file: str


class SnapshotVerifyAnswer(BaseModel):
    """``ok``: no check failed."""

    snapshot_id: str
    ok: bool
    checks: list[CheckAnswer]


class AgreementAnswer(BaseModel):
    """How both answered the same people."""

    n_asked: int
    n_people: int = Field(description="Of whom something is known.")
    overlap: float = Field(description="Mean share of the first items that both show.")
    empty: float = Field(description="Share of the people who get something of the old one alone.")
    old_ms: float = Field(description="Median, in this process, beside whatever else it did.")
    new_ms: float


class ComparisonAnswer(BaseModel):
    """A snapshot beside the one that was published. ``answers``: null where ``note`` says why there are none."""

    items_before: int
    items: int
    answers: AgreementAnswer | None
    note: str


class SnapshotActivateAnswer(BaseModel):
    """The pointer was moved; servers take the snapshot up within seconds, ``/readyz`` says when."""

    snapshot_id: str
    before: str | None
    comparison: ComparisonAnswer | None = Field(description="null where there was nothing to compare with.")
    forced: list[str] = Field(description="The reasons that were set aside.")


class SnapshotRollbackAnswer(BaseModel):
    """What is published now, and what was."""

    snapshot_id: str
    before: str


class SnapshotCanaryAnswer(CanaryAnswer):
    """The canary; servers take it up within seconds, ``/readyz`` says when."""

    comparison: ComparisonAnswer | None = Field(description="null where only the share was changed.")


class SnapshotWithdrawAnswer(BaseModel):
    """What everybody is answered from, and what was the canary."""

    snapshot_id: str
    withdrawn: str


class RemovalAnswer(BaseModel):
    """Something that goes. ``path``: relative to the root."""

    path: str
    size_bytes: int
    why: str


class SnapshotGcAnswer(BaseModel):
    """What was removed, or would be."""

    removed: list[RemovalAnswer]
    freed_bytes: int
    dry_run: bool


class AliveAnswer(BaseModel):
    """It answers."""

    alive: bool


class ReadyAnswer(BaseModel):
    """Whether requests can be answered, and for operators the state of each part."""

    model_config = ConfigDict(extra="allow")

    ready: bool


class FieldError(BaseModel):
    """One wrong value."""

    field: str
    code: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []
    request_id: str
