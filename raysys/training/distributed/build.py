"""The indexing job on a Ray cluster. Ray Data spreads staging and encoding; one task builds each shard.

What a worker does is in ``training.items``, ``training.behaviour`` and ``training.finish``, which know nothing of
Ray. Data moves through files that every node sees, so what Ray carries is small: split numbers out, counts back.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from raysys.clock import Clock, SystemClock
from raysys.config import BuildSettings, EncoderSettings
from raysys.encoder.build import build_encoder, encoder_identity
from raysys.encoder.protocol import EncoderIdentity
from raysys.index.contrast import Moments
from raysys.index.manifest import Manifest, ShardRecord
from raysys.training import behaviour, factor_blocks, finish, items, learn, log, memory, words
from raysys.training.encoding import Encoding, Turns
from raysys.training.local import Say, Settled
from raysys.training.plan import NICENESS, BuildPlan, planned
from raysys.training.report import PROGRESS_EVERY_S, Report
from raysys.training.sequence import stage as sequence
from raysys.training.student.stage import fit_student


def build(settings: BuildSettings, say: Say = print, clock: Clock | None = None) -> tuple[Manifest, dict[str, Any]]:
    """Run the whole job on the cluster that ``ray`` is connected to, and publish its snapshot.

    Raises ConfigError and CatalogError before any model loads when the inputs are not usable; OverBudget. Killed or
    stopped at any point, nothing half-built is ever published, and the next run finds the texts that were encoded.
    """
    clock = SystemClock() if clock is None else clock
    report = Report(clock)
    with planned(settings, clock.now_s()) as plan:
        manifest = conclude(plan, report, say)
    return manifest, report.as_dict()


def conclude(plan: BuildPlan, report: Report, say: Say, settled: Settled | None = None) -> Manifest:
    """The job by a plan that is made. settled: of ``local.settle``, where its inputs have been read and settled."""
    return _Build(plan, report, say).run(settled)


class _Count(NamedTuple):
    """What is being counted and weighed for one plan."""

    plan: BuildPlan
    counted: list[ray.ObjectRef]
    weighed: list[ray.ObjectRef]


class _Fit(NamedTuple):
    """What is being fitted for one plan."""

    plan: BuildPlan
    ridge: ray.ObjectRef
    factor_steps: list[list[ray.ObjectRef]]


class _Build:
    """One run of the job: the stages in their order."""

    def __init__(self, plan: BuildPlan, report: Report, say: Say) -> None:
        self._plan, self._report, self._say, self._clock = plan, report, say, report.clock
        self._shard_bytes: list[int] = []  # that the task of each shard takes
        _quiet()

    def run(self, settled: Settled | None = None) -> Manifest:
        latest_s = self._stage() if settled is None else settled.latest_s
        held_out = log.hold_out(self._plan, latest_s)
        counting = [self._count(self._plan, latest_s)]
        if held_out is not None:
            counting.append(self._count(self._plan.without(held_out), held_out.now_s))
        settled = self._settle(latest_s) if settled is None else settled
        identity = settled.identity
        for counts in settled.shards:
            n_bytes = memory.shard_bytes(counts["items"], counts.get("item_bytes", 0), identity.dim)
            self._shard_bytes.append(n_bytes)
        fits: list[_Fit] = []
        for count in counting:
            fits.append(self._fit(count, [fit.ridge for fit in fits]))
        self._encode()
        with self._report.stage("behaviour"):
            ridge_counts = [self._wait(fit) for fit in fits]
            self._report.add(ridge_counts[0])
            self._report.add(factor_blocks.counts(self._plan))
        for fit in fits:
            self._fit_sequence(fit.plan, identity)
        self._fit_student()
        finished = self._finish(identity)
        if held_out is not None:
            self._learn(fits[1].plan, identity)
        with self._report.stage("publish"):
            manifest = finish.publish(self._plan, identity, finished, self._report.as_dict())
        retired = finish.retire(self._plan)
        if retired:
            self._say(retired)
        return manifest

    def _stage(self) -> float:
        """Read and clean all inputs. Returns the time of the latest event."""
        inputs = self._plan.inputs
        kinds = [("items", n) for n in range(len(inputs.items))] + [("events", n) for n in range(len(inputs.events))]
        latest_s = float("-inf")
        with self._report.stage("read and clean"):
            changed = _stage_changes.remote(self._plan)
            rows = [{"kind": kind, "number": number} for kind, number in kinds]
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            for counts in _results(dataset.map_batches(_stage_one, fn_args=(self._plan,), **_ONE_BY_ONE)):
                counts["rejected"] = {r["reason"]: r["n"] for r in counts["rejected"]}
                self._report.add_staged(counts, f"{counts['kind']}_")
                latest_s = max(latest_s, counts["latest_s"])
            self._report.add_staged(ray.get(changed), "changes_")
        self._say(f"read {self._report.counts['items_read']:,} rows, {self._report.counts['events_read']:,} events")
        return latest_s

    def _count(self, plan: BuildPlan, now_s: float) -> "_Count":
        """Start to count and to weigh behaviour; both run beside the encoding."""
        parts = range(plan.n_shards)
        counted = [_count_part.remote(plan, part, now_s) for part in parts]
        return _Count(plan, counted, [_weigh_part.remote(plan, part, *counted) for part in parts])

    def _fit(self, count: "_Count", earlier: list[ray.ObjectRef]) -> "_Fit":
        """Start the fits, beside the encoding: the regression after earlier ones, as each takes much memory; the
        factors, where they are fitted, task after task."""
        ray.get(count.counted)  # only then is it known how many items there are
        ridge = _fit_ridge.remote(count.plan, *count.weighed, *earlier)
        plan, steps = ray.put(count.plan), [count.counted]
        for tasks in factor_blocks.stages(count.plan):
            steps.append([_run.remote(plan, task, *steps[-1]) for task in tasks])
        return _Fit(count.plan, ridge, steps)

    def _wait(self, fit: "_Fit") -> dict[str, int]:
        """What the regression counted, once everything is fitted."""
        counts: dict[str, int] = ray.get(fit.ridge)
        start_s = said_s = self._clock.monotonic_s()
        for number, step in enumerate(fit.factor_steps):
            ray.get(step)
            now_s = self._clock.monotonic_s()
            if now_s - said_s >= PROGRESS_EVERY_S:
                said_s = now_s
                self._say(f"factors: step {number} of {len(fit.factor_steps) - 1} after {now_s - start_s:.0f} s")
        return counts

    def _settle(self, latest_s: float) -> Settled:
        with self._report.stage("settle"):
            identity: EncoderIdentity = ray.get(_identity.remote(self._plan.settings.encoder))
            n_bytes = memory.settle_bytes(self._report.counts["items_kept_bytes"], self._plan.n_shards)
            settle = _settle.options(**_asked([n_bytes])[0])
            shards = ray.get([settle.remote(self._plan, n, identity) for n in range(self._plan.n_shards)])
            ray.get(_count_words.remote(self._plan))
        for counts in shards:
            self._report.add(counts)
        return Settled(identity, latest_s, shards)

    def _encode(self) -> None:
        files = items.todo_files(self._plan)
        if not files:
            self._say("every text has been encoded by an earlier build")
            return
        with self._report.stage("encode"):
            dataset = ray.data.from_items([{"path": str(path)} for path in files], override_num_blocks=len(files))
            workers, n_encoders = self._plan.settings.workers, self._n_encoders(len(files))
            share = None if workers.limit_rate is None else workers.limit_rate / min(n_encoders, len(files))
            # Two files an encoder: while one is encoded, the next is read and the last is written. A third would
            # only wait, at the end for an encoder that is slower than others.
            at_once = {"max_concurrent_calls_per_actor": 2, "max_tasks_in_flight_per_actor": 2}
            pool = dataset.map_batches(
                _Encoder,
                compute=ActorPoolStrategy(size=n_encoders, enable_true_multi_threading=True, **at_once),
                fn_constructor_args=(self._plan, share),
                num_cpus=1,
                num_gpus=workers.gpus_per_encoder,
                **_ONE_BY_ONE,
            )
            spent_s = self._report.elapsed_s()
            encoding = Encoding(self._report.counts["todo"], n_encoders, workers, spent_s, self._clock)
            self._report.follow(encoding, _results(pool), self._say)

    def _n_encoders(self, n_files: int) -> int:
        workers = self._plan.settings.workers
        if workers.encoders is not None:
            return min(workers.encoders, n_files)  # one more would start up for nothing
        resources = ray.cluster_resources()
        if workers.gpus_per_encoder > 0:
            return max(1, int(resources.get("GPU", 0) / workers.gpus_per_encoder))
        # Ray Data's own helper tasks each want a whole CPU; a pool that takes all of them would wait for ever.
        return max(1, min(int(resources["CPU"]) - 1, n_files))

    def _fit_sequence(self, plan: BuildPlan, identity: EncoderIdentity) -> None:
        settings = plan.settings.behaviour.sequence
        if settings is None:
            return
        with self._report.stage("sequence model"):
            counts: dict[str, int] = ray.get(_write_histories.remote(plan, identity))
            if not counts:
                return
            from raysys.training.distributed.train_sequence import fit_together  # torch and Ray Train take seconds

            progress = fit_together(plan.fitted("sequence"), settings, counts["sequence_windows"])
            sequence.conclude(plan)
        if plan is self._plan:
            self._report.add(counts | progress.counts())
        self._say(f"sequence model: {progress.epochs} epochs, the best {progress.best + 1}")

    def _fit_student(self) -> None:
        if self._plan.settings.student is None:
            return
        gpus = self._plan.settings.workers.gpus_per_encoder
        with self._report.stage("student"):
            self._report.student = ray.get(_fit_student.options(num_gpus=gpus).remote(self._plan))

    def _finish(self, identity: EncoderIdentity) -> list[tuple[ShardRecord, Moments]]:
        with self._report.stage("build shards"):
            finished = self._finished(self._plan, identity)
        self._say("shards: " + ", ".join(f"{s.n_items:,} items ({s.index_kind})" for s, _ in finished))
        return finished

    def _learn(self, earlier: BuildPlan, identity: EncoderIdentity) -> None:
        """The ranking, from a snapshot of the same items that is fitted without what is held out."""
        self._say("learning the ranking from what people did last; some 5 s a thousand of them")
        with self._report.stage("learn to rank"):
            finished = self._finished(earlier, identity)
            self._report.learned = ray.get(_learn.remote(self._plan, earlier, identity, finished))

    def _finished(self, plan: BuildPlan, identity: EncoderIdentity) -> list[tuple[ShardRecord, Moments]]:
        """One task a shard, side by side, as many as fit."""
        asked = enumerate(_asked(self._shard_bytes))
        tasks = [_finish.options(**given).remote(plan, n, identity) for n, given in asked]
        finished: list[tuple[ShardRecord, Moments]] = ray.get(tasks)
        return finished


def _asked(sizes_bytes: list[int]) -> list[dict[str, Any]]:
    """What tasks of these sizes ask Ray for, so that a node is given no more of them than fit.

    At most what the largest node has to give: a task that asks for more would wait for ever, where it may yet succeed.
    """
    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return [{"memory": int(min(size, largest))} if largest > 0 else {} for size in sizes_bytes]


_ONE_BY_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}


def _results(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The counts that the tasks return, as they come in."""
    yield from dataset.iter_rows()


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=_COUNTS)


_COUNTS = pa.schema(
    [
        ("kind", pa.string()),
        ("read", pa.int64()),
        ("kept", pa.int64()),
        ("kept_bytes", pa.int64()),
        ("erased", pa.int64()),
        ("latest_s", pa.float64()),
        ("rejected", pa.list_(pa.struct([("reason", pa.string()), ("n", pa.int64())]))),
    ]
)


def _stage_one(batch: pa.Table, plan: BuildPlan) -> pa.Table:
    rows = []
    for kind, number in zip(batch["kind"].to_pylist(), batch["number"].to_pylist(), strict=True):
        stage = items.stage_items if kind == "items" else behaviour.stage_events
        counts = {"latest_s": float("-inf"), **stage(plan, number)}
        rejected = [{"reason": reason, "n": n} for reason, n in counts.pop("rejected").items()]
        rows.append({"kind": kind, "rejected": rejected, **counts})
    return _table(rows)


class _Encoder:
    """One worker of the pool: a model that stays loaded, and file after file of texts, called by two threads."""

    def __init__(self, plan: BuildPlan, texts_per_s: float | None) -> None:
        self._plan, self._turns = plan, Turns(texts_per_s)
        os.nice(NICENESS)
        self._encoder = build_encoder(self._plan.settings.encoder, threads=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        paths = batch["path"].to_pylist()
        return pa.Table.from_pylist(
            [items.encode_file(self._plan, Path(path), self._encoder, self._turns) for path in paths]
        )


@ray.remote
def _identity(settings: EncoderSettings) -> EncoderIdentity:
    return encoder_identity(settings)


@ray.remote
def _stage_changes(plan: BuildPlan) -> dict[str, Any]:
    return items.stage_changes(plan)


@ray.remote
def _settle(plan: BuildPlan, number: int, identity: EncoderIdentity) -> dict[str, Any]:
    return items.settle_shard(plan, number, identity)


@ray.remote
def _count_words(plan: BuildPlan) -> None:
    words.count_all(plan)


@ray.remote
def _count_part(plan: BuildPlan, part: int, latest_s: float) -> None:
    behaviour.count_part(plan, part, latest_s)


@ray.remote
def _weigh_part(plan: BuildPlan, part: int, *counted: None) -> None:
    behaviour.weigh_part(plan, part)


@ray.remote
def _fit_ridge(plan: BuildPlan, *before: Any) -> dict[str, int]:
    os.nice(NICENESS)
    return behaviour.fit_ridge(plan)


@ray.remote
def _run(plan: BuildPlan, task: factor_blocks.Task, *before: None) -> None:
    os.nice(NICENESS)
    task(plan)


@ray.remote
def _write_histories(plan: BuildPlan, identity: EncoderIdentity) -> dict[str, int]:
    return sequence.write_histories(plan, identity)


@ray.remote
def _fit_student(plan: BuildPlan) -> dict[str, Any]:
    os.nice(NICENESS)
    return fit_student(plan, build_encoder(plan.settings.encoder, threads=1), SystemClock())


@ray.remote
def _finish(plan: BuildPlan, number: int, identity: EncoderIdentity) -> tuple[ShardRecord, Moments]:
    return finish.finish_shard(plan, number, identity)


@ray.remote
def _learn(
    plan: BuildPlan, earlier: BuildPlan, identity: EncoderIdentity, finished: list[tuple[ShardRecord, Moments]]
) -> dict[str, Any]:
    os.nice(NICENESS)
    finish.seal(earlier, identity, finished, {"rejected": {}})
    return learn.save(learn.learn(earlier), plan)


def _quiet() -> None:
    """Our own progress lines say more than Ray Data's bars do in the log of a job."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # what fails also raises
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
