"""Where the figures of a run are kept: TensorBoard or Weights & Biases, both in extra ``tracking``.

Weights & Biases writes to the folder alone (offline) unless ``WANDB_MODE`` says otherwise.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from raysys.errors import ConfigError


class Tracker(Protocol):
    """One run."""

    def metric(self, name: str, value: float, step: int) -> None:
        """One figure at one step."""
        ...


class NotTracked:
    """Keeps nothing."""

    def metric(self, name: str, value: float, step: int) -> None:
        pass


class TensorBoardTracker:
    """Event files in the folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("tensorboard is not installed: pip install 'raysys[tracking]'") from error
        self._writer: Any = SummaryWriter(str(folder))
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=1, default=str)}\n```")

    def metric(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("wandb is not installed: pip install 'raysys[tracking]'") from error
        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run: Any = wandb.init(project="raysys", name=name, dir=str(folder), config=dict(settings), mode=mode)

    def metric(self, name: str, value: float, step: int) -> None:
        self._run.log({name: value}, step=step)

    def close(self) -> None:
        self._run.finish()


@contextmanager
def tracker(
    kind: Literal["tensorboard", "wandb"] | None, folder: Path, name: str, settings: Mapping[str, Any]
) -> Iterator[Tracker]:
    """A run, closed whatever happens. None = nothing is kept. Raises ConfigError where the package is missing."""
    if kind is None:
        yield NotTracked()
        return
    run = TensorBoardTracker(folder / name, settings) if kind == "tensorboard" else WandbTracker(folder, name, settings)
    try:
        yield run
    finally:
        run.close()
