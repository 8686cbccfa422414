"""The same stages one after the other in this process, without Ray: for tests, evaluation, and small catalogues."""

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import EncoderIdentity
from raysys.index.manifest import Manifest
from raysys.training import behaviour, factor_blocks, finish, items, learn, log
from raysys.training.held_out import HeldOut
from raysys.training.plan import BuildPlan, planned
from raysys.training.report import Report


def build_here(settings: BuildSettings, clock: Clock | None = None) -> Manifest:
    """Build and publish a snapshot. Raises ConfigError and CatalogError like the distributed job."""
    clock = SystemClock() if clock is None else clock
    report = Report(clock)
    with planned(settings, clock.now_s()) as plan:
        for number in range(len(plan.inputs.items)):
            report.add_staged(items.stage_items(plan, number), "items_")
        report.add_staged(items.stage_changes(plan), "changes_")
        event_counts = [behaviour.stage_events(plan, number) for number in range(len(plan.inputs.events))]
        for counts in event_counts:
            report.add_staged(counts, "events_")
        latest_s = max((counts["latest_s"] for counts in event_counts), default=float("-inf"))
        parts = range(plan.n_shards)
        encoder = build_encoder(settings.encoder)
        for part in parts:
            report.add(items.settle_shard(plan, part, encoder.identity))
        report.add(_fit(plan, latest_s))
        for path in items.todo_files(plan):
            report.add(items.encode_file(plan, path, encoder))
        report.add(_fit_sequence(plan, encoder.identity))
        finished = [finish.finish_shard(plan, part, encoder.identity) for part in parts]
        held_out = log.hold_out(plan, latest_s)
        if held_out is not None:
            _learn(plan, held_out, encoder.identity, report)
        return finish.publish(plan, encoder.identity, finished, report.as_dict())


def _fit(plan: BuildPlan, now_s: float) -> dict[str, int]:
    """The behaviour models that need no text, on what the plan does not hold out. Returns counts for the report."""
    for part in range(plan.n_shards):
        behaviour.count_part(plan, part, now_s)
    for part in range(plan.n_shards):
        behaviour.weigh_part(plan, part)
    for tasks in factor_blocks.stages(plan):
        for task in tasks:
            task(plan)
    return behaviour.fit_ridge(plan) | factor_blocks.counts(plan)


def _fit_sequence(plan: BuildPlan, identity: EncoderIdentity) -> dict[str, int]:
    if plan.settings.behaviour.sequence is None:
        return {}
    from raysys.training.sequence.alone import fit_alone  # torch takes a second to load

    return fit_alone(plan, identity)


def _learn(plan: BuildPlan, held_out: HeldOut, identity: EncoderIdentity, report: Report) -> None:
    """The ranking, from a snapshot of the same items that is fitted without what is held out."""
    earlier = plan.without(held_out)
    _fit(earlier, held_out.now_s)
    _fit_sequence(earlier, identity)
    finished = [finish.finish_shard(earlier, part, identity) for part in range(plan.n_shards)]
    finish.seal(earlier, identity, finished, report.as_dict())
    report.learned = learn.save(learn.learn(earlier), plan)
