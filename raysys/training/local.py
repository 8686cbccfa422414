"""The same stages one after the other in this process, without Ray: for tests, evaluation, and small catalogues."""

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings
from raysys.encoder.build import build_encoder
from raysys.index.manifest import Manifest
from raysys.training import behaviour, factor_blocks, finish, items
from raysys.training.plan import planned
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
        for part in parts:
            behaviour.count_part(plan, part, latest_s)
        for part in parts:
            behaviour.weigh_part(plan, part)
        encoder = build_encoder(settings.encoder)
        for part in parts:
            report.add(items.settle_shard(plan, part, encoder.identity))
        report.add(behaviour.fit_ridge(plan))
        for tasks in factor_blocks.stages(plan):
            for task in tasks:
                task(plan)
        report.add(factor_blocks.counts(plan))
        for path in items.todo_files(plan):
            report.add(items.encode_file(plan, path, encoder))
        if settings.behaviour.sequence is not None:
            from raysys.training.sequence.alone import fit_alone  # torch takes a second to load

            report.add(fit_alone(plan, encoder.identity))
        finished = [finish.finish_shard(plan, part, encoder.identity) for part in parts]
        return finish.publish(plan, encoder.identity, finished, report.as_dict())
