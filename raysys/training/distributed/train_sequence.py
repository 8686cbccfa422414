"""The fit of the sequence model on a Ray cluster, by Ray Train: one batch for all workers, their gradients averaged.

The workers read the histories from files that every node sees, so what Ray carries is small. After each epoch the first
of them leaves a checkpoint; a worker that dies ends its group, and a new group goes on from there.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.train.v2.api.config import LoggingConfig
from torch import distributed, nn

from raysys.config import SequenceSettings
from raysys.training.plan import NICENESS
from raysys.training.sequence.checkpoint import Progress
from raysys.training.sequence.examples import FITTED, Histories, Share
from raysys.training.sequence.fit import fit, save_fitted

MOST_FAILURES = 3
# Ray Train takes a report only when it looks after its workers, every 2 s by default, and each epoch waits for that.
LOOK_EVERY_S = 0.2


def fit_together(folder: Path, settings: SequenceSettings, n_windows: int) -> Progress:
    """Fit on the histories in this folder, and write the model into ``FITTED`` there; every node sees the folder.

    n_windows: of these histories; there are no more workers than that. Raises Ray's TrainingFailedError after
    ``MOST_FAILURES`` failures.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK_EVERY_S))
    gpus = settings.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={"folder": str(folder), "settings": settings.model_dump()},
        scaling_config=ScalingConfig(
            num_workers=min(settings.workers, n_windows),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus > 0 else {})},
        ),
        run_config=RunConfig(
            name="runs",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()
    return Progress.load(folder / FITTED)


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    if get_device().type == "cpu":
        os.nice(NICENESS)
        torch.set_num_threads(1)
    folder = Path(config["folder"])
    histories, worker = Histories.load(folder), _Together()
    latest = ray.train.get_checkpoint()
    with ExitStack() as opened:
        resume = None if latest is None else Path(opened.enter_context(latest.as_directory()))
        model, progress = fit(histories, SequenceSettings(**config["settings"]), worker, resume)
    if worker.share.rank == 0:
        save_fitted(folder, model, histories, progress)


class _Together:
    """A worker among those of Ray Train."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.share = Share(context.get_world_rank(), context.get_world_size())
        self.device: torch.device = get_device()

    def wrap(self, model: nn.Module) -> nn.Module:
        together: nn.Module = prepare_model(model)
        return together

    def total(self, values: list[float]) -> list[float]:
        if self.share.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        with TemporaryDirectory() as folder:
            checkpoint = None
            if self.share.rank == 0:
                save(Path(folder))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(dict(metrics), checkpoint=checkpoint)
