"""The same stages one after the other in this process, without Ray: for tests, evaluation, and small catalogues."""

from collections.abc import Callable
from typing import Any, NamedTuple

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings
from raysys.encoder.build import build_encoder, encoder_identity
from raysys.encoder.protocol import EncoderIdentity
from raysys.index.manifest import Manifest
from raysys.training import behaviour, factor_blocks, finish, items, learn, log, words
from raysys.training.encoding import Encoding, Turns
from raysys.training.held_out import HeldOut
from raysys.training.plan import BuildPlan, planned
from raysys.training.report import Report
from raysys.training.student.stage import fit_student

Say = Callable[[str], None]


class Settled(NamedTuple):
    """What is known when the inputs are read and settled and the texts to encode are listed.

    latest_s: the time of the latest event, minus infinity = there is none. shards: what ``settle_shard`` has counted.
    """

    identity: EncoderIdentity
    latest_s: float
    shards: list[dict[str, Any]]


def build_here(settings: BuildSettings, clock: Clock | None = None) -> Manifest:
    """Build and publish a snapshot. Raises what the distributed job raises."""
    clock = SystemClock() if clock is None else clock
    report = Report(clock)
    with planned(settings, clock.now_s()) as plan:
        return conclude(plan, settle(plan, report), report)


def settle(plan: BuildPlan, report: Report) -> Settled:
    """Read and settle all inputs. No model is loaded where the identity of the encoder can be told without."""
    with report.stage("read and clean"):
        for number in range(len(plan.inputs.items)):
            report.add_staged(items.stage_items(plan, number), "items_")
        report.add_staged(items.stage_changes(plan), "changes_")
        event_counts = [behaviour.stage_events(plan, number) for number in range(len(plan.inputs.events))]
        for counts in event_counts:
            report.add_staged(counts, "events_")
    with report.stage("settle"):
        identity = encoder_identity(plan.settings.encoder)
        shards = [items.settle_shard(plan, part, identity) for part in range(plan.n_shards)]
        words.count_all(plan)
    for counts in shards:
        report.add(counts)
    latest_s = max((counts["latest_s"] for counts in event_counts), default=float("-inf"))
    return Settled(identity, latest_s, shards)


def conclude(plan: BuildPlan, settled: Settled, report: Report, say: Say = lambda _: None) -> Manifest:
    """Everything after that."""
    identity = settled.identity
    encode(plan, report, say)
    with report.stage("behaviour"):
        report.add(_fit(plan, settled.latest_s))
        report.add(fit_sequence(plan, identity))
    if plan.settings.student is not None:
        with report.stage("student"):
            report.student = fit_student(plan, build_encoder(plan.settings.encoder), report.clock)
    with report.stage("build shards"):
        finished = [finish.finish_shard(plan, part, identity) for part in range(plan.n_shards)]
    held_out = log.hold_out(plan, settled.latest_s)
    if held_out is not None:
        with report.stage("learn to rank"):
            _learn(plan, held_out, identity, report)
    with report.stage("publish"):
        manifest = finish.publish(plan, identity, finished, report.as_dict())
    retired = finish.retire(plan)
    if retired:
        say(retired)
    return manifest


def stage(plan: BuildPlan, report: Report) -> tuple[EncoderIdentity, float]:
    """Everything that needs no fit: inputs read and settled, texts encoded.

    Returns the identity of the encoder and the time of the latest event, minus infinity = there is none.
    """
    settled = settle(plan, report)
    encode(plan, report)
    return settled.identity, settled.latest_s


def encode(plan: BuildPlan, report: Report, say: Say = lambda _: None) -> None:
    """Encode the texts that have no vector yet; where there are none, no model is loaded."""
    files = items.todo_files(plan)
    if not files:
        return
    with report.stage("encode"):
        workers = plan.settings.workers
        turns = Turns(workers.limit_rate)
        encoding = Encoding(report.counts["todo"], 1, workers, report.elapsed_s(), report.clock)
        encoder = build_encoder(plan.settings.encoder)
        report.follow(encoding, (items.encode_file(plan, path, encoder, turns) for path in files), say)


def _fit(plan: BuildPlan, now_s: float) -> dict[str, int]:
    """The behaviour models that need no text, on what the plan does not hold out. Returns counts for the report."""
    count(plan, now_s)
    fit_factors(plan)
    return behaviour.fit_ridge(plan) | factor_blocks.counts(plan)


def count(plan: BuildPlan, now_s: float) -> None:
    """Popularity and transitions."""
    for part in range(plan.n_shards):
        behaviour.count_part(plan, part, now_s)
    for part in range(plan.n_shards):
        behaviour.weigh_part(plan, part)


def fit_factors(plan: BuildPlan) -> None:
    """The factor model, where it is wanted."""
    for tasks in factor_blocks.stages(plan):
        for task in tasks:
            task(plan)


def fit_sequence(plan: BuildPlan, identity: EncoderIdentity) -> dict[str, int]:
    """The sequence model, where it is wanted. Returns counts for the report."""
    if plan.settings.behaviour.sequence is None:
        return {}
    from raysys.training.sequence.alone import fit_alone  # torch takes a second to load

    return fit_alone(plan, identity)


def _learn(plan: BuildPlan, held_out: HeldOut, identity: EncoderIdentity, report: Report) -> None:
    """The ranking, from a snapshot of the same items that is fitted without what is held out."""
    earlier = plan.without(held_out)
    _fit(earlier, held_out.now_s)
    fit_sequence(earlier, identity)
    complete(earlier, identity, report)
    report.learned = learn.save(learn.learn(earlier), plan)


def complete(plan: BuildPlan, identity: EncoderIdentity, report: Report) -> None:
    """The snapshot of what is fitted, which is not published."""
    finished = [finish.finish_shard(plan, part, identity) for part in range(plan.n_shards)]
    finish.seal(plan, identity, finished, report.as_dict())
