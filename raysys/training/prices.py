"""What machines cost, for estimates in the report. Nobody is billed by this table.

On-demand list prices of AWS for Linux in us-west-2, the types in cluster.yaml. Spot, reserved and other regions cost
less or more: ``workers.prices`` overrides them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raysys.config import WorkerSettings
from raysys.errors import ConfigError

AS_OF = "August 2026"
Unit = Literal["core", "accelerator"]


@dataclass(frozen=True)
class Machine:
    """cores: logical ones, as Ray counts them."""

    usd_per_hour: float
    cores: int
    accelerators: int = 0

    def units(self, unit: Unit) -> int:
        """How many encoders' worth it has. The cores of a machine with accelerators are not for encoding."""
        if unit == "accelerator":
            return self.accelerators
        return 0 if self.accelerators else self.cores


MACHINES = {
    "m6i.4xlarge": Machine(0.768, 16),
    "r6i.2xlarge": Machine(0.504, 8),
    "g6.2xlarge": Machine(0.9776, 8, accelerators=1),
}


def check(prices: Mapping[str, float]) -> None:
    """Raises ConfigError where a price is of a machine that is not in the table."""
    unknown = sorted(prices.keys() - MACHINES.keys())
    if unknown:
        known = ", ".join(MACHINES)
        raise ConfigError(
            f"workers.prices: {', '.join(unknown)} is not in the table of machines ({known}). For other machines give "
            "what they cost together as workers.usd_per_hour"
        )


def usd_per_million(texts_per_unit_s: float, unit: Unit, workers: WorkerSettings) -> dict[str, float]:
    """Machine -> dollars for a million texts, if each of its units encodes like those of this build, and all do."""
    costs = {}
    for name, machine in MACHINES.items():
        if machine.units(unit):
            price = workers.prices.get(name, machine.usd_per_hour)
            costs[name] = round(price / (machine.units(unit) * texts_per_unit_s * 3600) * 1e6, 4)
    return costs
