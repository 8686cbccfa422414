"""The fit of the sequence model: the same loop for one worker and for many, which see one batch together.

Each worker computes its share of a batch; their gradients are averaged, so that the step is that of the whole batch,
whoever computes it. When to stop is told by the last events of some people, which are not fitted on.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raysys.config import SequenceSettings
from raysys.index.arrays import save_array
from raysys.training.sequence.checkpoint import Progress, State
from raysys.training.sequence.examples import (
    FITTED,
    FITTED_VECTORS,
    Batch,
    HeldOut,
    Histories,
    Negatives,
    Places,
    Share,
    Windows,
    epoch,
)
from raysys.training.sequence.model import SequenceModel

JUDGED_AT_ONCE, ITEMS_AT_ONCE = 256, 65_536
MOST_GRADIENT = 1.0


class Worker(Protocol):
    """One of those who fit together, and how they do."""

    share: Share
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averaged over all workers."""
        ...

    def total(self, values: list[float]) -> list[float]:
        """Each value summed over all workers."""
        ...

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """An epoch has ended; ``save`` writes a checkpoint into a folder. Called by all workers."""
        ...


class Alone:
    """The only worker, in this process, on the CPU. ``checkpoint``: a folder that holds the latest, None = none."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.share, self.device = Share(), torch.device("cpu")
        self._checkpoint = checkpoint

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def total(self, values: list[float]) -> list[float]:
        return values

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        if self._checkpoint is not None:
            save(self._checkpoint)


def fit(
    histories: Histories, settings: SequenceSettings, worker: Worker, resume: Path | None = None
) -> tuple[SequenceModel, Progress]:
    """The model of the best epoch, and how it went. The same on every worker.

    resume: the folder of a checkpoint to go on from. Raises ConfigError where that cannot be used.
    """
    return _Fit(histories, settings, worker).run(resume)


class _Fit:
    def __init__(self, histories: Histories, settings: SequenceSettings, worker: Worker) -> None:
        self._histories, self._settings, self._worker = histories, settings, worker
        self._held_out = HeldOut.of(histories, settings.seed)
        self._windows = Windows.of(histories, self._held_out, settings.max_history)
        self._negatives = Negatives(histories, settings)
        torch.manual_seed(settings.seed)
        self._model = SequenceModel(settings, histories.n_items, histories.text.shape[1])
        self._model.start_from(histories.text)
        self._model.to(worker.device)
        self._together = worker.wrap(self._model)
        self._state = State(self._model, _optimizer(self._model, settings), {}, Progress())

    def run(self, resume: Path | None) -> tuple[SequenceModel, Progress]:
        if resume is not None:
            self._state.restore(resume)
            self._state.progress.resumed.append(self._state.progress.epochs)
        progress = self._state.progress
        while progress.epochs < self._settings.epochs and not self._has_peaked(progress):
            self._epoch(progress)
            metrics = {"epoch": progress.epochs, "loss": progress.losses[-1], "quality": progress.quality[-1]}
            self._worker.report(metrics, self._state.save)
        self._model.load_state_dict(self._state.best)
        return self._model, progress

    def _has_peaked(self, progress: Progress) -> bool:
        return progress.best >= 0 and progress.epochs - 1 - progress.best >= self._settings.patience

    def _epoch(self, progress: Progress) -> None:
        # Masks of dropout differ by worker, and those of a resumed run are those of one that was not interrupted.
        number = progress.epochs
        torch.manual_seed(_seed(self._settings.seed, number, self._worker.share.rank))
        progress.losses.append(self._train(progress))
        progress.quality.append(self._quality())
        progress.epochs += 1
        if progress.best < 0 or progress.quality[-1] > progress.quality[progress.best] or not len(self._held_out.users):
            progress.best = number
            self._state.best = {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def _train(self, progress: Progress) -> float:
        """One pass over all windows. Returns the mean loss of a target."""
        self._together.train()
        lost, n_predicted = torch.zeros((), device=self._worker.device), 0
        n_workers = self._worker.share.size
        for batch in epoch(
            self._histories, self._windows, self._negatives, self._settings, progress.epochs, self._worker.share
        ):
            self._set_rate(progress)
            with torch.autocast("cuda", torch.bfloat16, enabled=self._worker.device.type == "cuda"):
                loss = self._together(*self._tensors(batch))
            # The mean over the workers of this is the mean over the targets of all of them.
            (loss * n_workers / batch.n_predicted).backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), MOST_GRADIENT)
            self._state.optimizer.step()
            self._state.optimizer.zero_grad()
            lost, n_predicted = lost + loss.detach(), n_predicted + batch.n_predicted
        return self._worker.total([float(lost)])[0] / n_predicted

    def _set_rate(self, progress: Progress) -> None:
        """The rate of the next step: it rises for the first ones, then stays."""
        progress.steps += 1
        warm = min(1.0, progress.steps / self._settings.warm_up_steps)
        for group in self._state.optimizer.param_groups:
            group["lr"] = warm * self._settings.learning_rate

    def _quality(self) -> float:
        """Mean reciprocal rank of the held-out events among all items but those of their histories; 0 without any."""
        self._model.eval()
        users = self._held_out.users[self._worker.share.rank :: self._worker.share.size]
        with torch.no_grad():
            items = all_items(self._model, self._histories)
            found = sum(self._reciprocal_ranks(items, rows) for rows in _parts(users, JUDGED_AT_ONCE))
        return self._worker.total([found])[0] / max(len(self._held_out.users), 1)

    def _reciprocal_ranks(self, items: Tensor, users: Places) -> float:
        """The sum over these users; ties go against them."""
        history, length, target = self._asked(users)
        row = torch.arange(len(users), device=items.device)
        scores = self._model.users(items[history])[row, length - 1] @ items.T
        wanted = scores[row, target].clone()
        scores.scatter_(1, history, -torch.inf)
        return float((1 / (scores >= wanted[:, None]).sum(dim=1).clamp(min=1)).sum())

    def _asked(self, users: Places) -> tuple[Tensor, Tensor, Tensor]:
        """(history [b, l], filled up with its own items; length of it [b]; what came next [b])."""
        last = self._histories.starts[users + 1] - 1
        length = np.minimum(last - self._histories.starts[users], self._settings.max_history)
        at = (last - length)[:, None] + np.minimum(np.arange(length.max()), length[:, None] - 1)
        found = (self._histories.items[at], length, self._histories.items[last])
        history, length, target = (torch.from_numpy(each.astype(np.int64)).to(self._worker.device) for each in found)
        return history, length, target

    def _tensors(self, batch: Batch) -> list[Tensor]:
        """The arguments of the model."""
        arrays = (batch.items, batch.text, batch.inputs, batch.targets, batch.negatives, batch.log_expected)
        return [torch.from_numpy(array).to(self._worker.device) for array in arrays]


def save_fitted(folder: Path, model: SequenceModel, histories: Histories, progress: Progress) -> None:
    """Write what serves, the vectors of the items that were met, and how it went, into ``FITTED`` of this folder."""
    (folder / FITTED).mkdir(exist_ok=True)
    model.eval()
    with torch.no_grad():
        save_array(folder / FITTED / FITTED_VECTORS, all_items(model, histories).cpu().numpy())
    progress.save(folder / FITTED)
    model.encoder().save(folder / FITTED)


def all_items(model: SequenceModel, histories: Histories) -> Tensor:
    """[n_items, dim] float32: the vectors of all items."""
    device = model.scale_in.device
    parts = [
        model.items(torch.from_numpy(rows).to(device), torch.from_numpy(histories.text[rows]).to(device))
        for rows in _parts(np.arange(histories.n_items), ITEMS_AT_ONCE)
    ]
    return torch.cat(parts)


def _parts(rows: Places, size: int) -> Iterator[Places]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _optimizer(model: nn.Module, settings: SequenceSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
