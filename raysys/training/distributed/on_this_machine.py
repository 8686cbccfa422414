"""A build on this machine alone: Ray is started where there is work for many processes, and only then.

To start Ray, its workers and the model in each of them takes some 18 s, in which one core encodes some 10,000 short
texts with MiniLM. What is to be encoded is known once the inputs are settled, so those of a small catalogue are, here.
"""

import os
from dataclasses import replace
from typing import Any

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings
from raysys.data.sources import bytes_of
from raysys.index.manifest import Manifest
from raysys.training import local
from raysys.training.plan import NICENESS, BuildPlan, planned
from raysys.training.report import Report

SMALL_CATALOGUE_BYTES = 32_000_000  # read and settled by one process in seconds
SMALL_EVENTS_BYTES = 1_000_000  # some 30,000: with more, the fits have something to do side by side
FEW_CHARS = 500_000  # of texts to encode: one core takes 10 to 17 s for them with MiniLM


def build_on_this_machine(
    settings: BuildSettings, say: local.Say = print, clock: Clock | None = None
) -> tuple[Manifest, dict[str, Any]]:
    """Run the whole job and publish its snapshot, as ``distributed.build`` does. A process for this alone: it becomes
    nice. Returns the manifest and the report."""
    clock = SystemClock() if clock is None else clock
    report = Report(clock)
    with planned(settings, clock.now_s()) as plan:
        settled = local.settle(plan, report) if is_small(plan) else None
        if settled is None or report.counts["todo_chars"] > FEW_CHARS:
            manifest = _with_ray(plan, report, say, settled)
        else:
            os.nice(NICENESS)
            manifest = local.conclude(plan, settled, report, say)
    return manifest, report.as_dict()


def is_small(plan: BuildPlan) -> bool:
    """Whether one process is done with all but the texts before Ray has started, and nobody asked for a pool."""
    settings, inputs = plan.settings, plan.inputs
    asks_for_more = settings.workers.encoders is not None or settings.workers.gpus_per_encoder > 0
    return (
        not asks_for_more
        and settings.behaviour.sequence is None
        and bytes_of(inputs.items) <= SMALL_CATALOGUE_BYTES
        and bytes_of(inputs.events) <= SMALL_EVENTS_BYTES
    )


def _with_ray(plan: BuildPlan, report: Report, say: local.Say, settled: local.Settled | None) -> Manifest:
    from raysys.training.distributed.build import conclude  # Ray Data takes seconds
    from raysys.training.distributed.connection import connected

    with connected(plan.settings) as adapted:
        return conclude(replace(plan, settings=adapted), report, say, settled)
