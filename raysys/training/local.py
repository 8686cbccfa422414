"""The same stages one after the other in this process, without Ray: for tests, evaluation, and small catalogues."""

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import Encoder, EncoderIdentity
from raysys.index.manifest import Manifest
from raysys.training import behaviour, factor_blocks, finish, items, learn, log, words
from raysys.training.encoding import Encoding, Turns
from raysys.training.held_out import HeldOut
from raysys.training.plan import BuildPlan, planned
from raysys.training.report import Report
from raysys.training.student.stage import fit_student


def build_here(settings: BuildSettings, clock: Clock | None = None) -> Manifest:
    """Build and publish a snapshot. Raises what the distributed job raises."""
    clock = SystemClock() if clock is None else clock
    report = Report(clock)
    with planned(settings, clock.now_s()) as plan:
        identity, latest_s = stage(plan, report)
        report.add(_fit(plan, latest_s))
        report.add(fit_sequence(plan, identity))
        if settings.student is not None:
            report.student = fit_student(plan, build_encoder(settings.encoder), clock)
        finished = [finish.finish_shard(plan, part, identity) for part in range(plan.n_shards)]
        held_out = log.hold_out(plan, latest_s)
        if held_out is not None:
            _learn(plan, held_out, identity, report)
        manifest = finish.publish(plan, identity, finished, report.as_dict())
        finish.retire(plan)
        return manifest


def stage(plan: BuildPlan, report: Report) -> tuple[EncoderIdentity, float]:
    """Everything that needs no fit: inputs read and settled, texts encoded.

    Returns the identity of the encoder and the time of the latest event, minus infinity = there is none.
    """
    for number in range(len(plan.inputs.items)):
        report.add_staged(items.stage_items(plan, number), "items_")
    report.add_staged(items.stage_changes(plan), "changes_")
    event_counts = [behaviour.stage_events(plan, number) for number in range(len(plan.inputs.events))]
    for counts in event_counts:
        report.add_staged(counts, "events_")
    encoder = build_encoder(plan.settings.encoder)
    for part in range(plan.n_shards):
        report.add(items.settle_shard(plan, part, encoder.identity))
    words.count_all(plan)
    _encode(plan, encoder, report)
    return encoder.identity, max((counts["latest_s"] for counts in event_counts), default=float("-inf"))


def _encode(plan: BuildPlan, encoder: Encoder, report: Report) -> None:
    workers = plan.settings.workers
    turns = Turns(workers.limit_rate)
    encoding = Encoding(report.counts["todo"], 1, workers, report.elapsed_s(), report.clock)
    for path in items.todo_files(plan):
        counts = items.encode_file(plan, path, encoder, turns)
        report.add_encoded(counts)
        encoding.add(counts)
    report.encoding = encoding.figures()


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
