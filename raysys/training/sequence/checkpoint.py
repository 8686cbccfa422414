"""Where a fit stands, on disk: tensors as safetensors, the rest as JSON. Nothing here is ever unpickled."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysys.errors import ConfigError

TENSORS, PROGRESS = "tensors.safetensors", "progress.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each weight


@dataclass(slots=True)
class Progress:
    """How far a fit is. epochs, steps: finished ones. best: the epoch of the best quality, -1 = none yet.

    losses: of each epoch, the mean over its targets. quality: after each epoch, the mean reciprocal rank of the
    held-out events. resumed: how many epochs were finished, each time that a checkpoint was gone on from.
    """

    epochs: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)
    best: int = -1
    resumed: list[int] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """For the report of a build."""
        return {
            "sequence_epochs": self.epochs,
            "sequence_best_epoch": self.best + 1,
            "sequence_resumed": len(self.resumed),
        }

    def save(self, folder: Path) -> None:
        """Write into this folder."""
        (folder / PROGRESS).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Progress":
        """Read what ``save`` wrote."""
        return cls(**json.loads((folder / PROGRESS).read_bytes()))


@dataclass(slots=True)
class State:
    """Everything that a fit needs to go on. best: the weights of the best epoch."""

    model: torch.nn.Module
    optimizer: torch.optim.AdamW
    best: dict[str, Tensor]
    progress: Progress

    def save(self, folder: Path) -> None:
        """Write into this folder, which exists."""
        tensors = {f"weight/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        for name, moments in self._moments().items():
            tensors |= {f"{key}/{name}": value for key, value in moments.items()}
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, folder / TENSORS)
        self.progress.save(folder)

    def restore(self, folder: Path) -> None:
        """Go on from what ``save`` wrote. Raises ConfigError where it is damaged or of a model of another shape."""
        try:
            tensors = load_file(folder / TENSORS)
            self.progress = Progress.load(folder)
            self.model.load_state_dict(_under("weight", tensors))
            self._set_moments({key: _under(key, tensors) for key in _MOMENTS})
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split("\n\t")[:2])  # torch names every weight, one a line
            raise ConfigError(f"the checkpoint in {folder} cannot be used: {reason}; remove it and fit anew") from error
        self.best = _under("best", tensors)

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        named = {name: self.optimizer.state.get(weight) for name, weight in self.model.named_parameters()}
        return {name: {key: moments[key] for key in _MOMENTS} for name, moments in named.items() if moments}

    def _set_moments(self, found: dict[str, dict[str, Tensor]]) -> None:
        for name, weight in self.model.named_parameters():
            if name in found["step"]:
                moments: dict[str, Any] = {key: found[key][name] for key in _MOMENTS}
                moments |= {key: moments[key].to(weight.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[weight] = moments


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{prefix}/")}
