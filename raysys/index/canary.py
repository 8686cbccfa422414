"""The canary: a snapshot beside the published one, from which a share of the people are answered.

A small file of JSON beside the pointer. It names the published snapshot that it stands beside, and holds only as long
as the pointer is there: one move of the pointer ends it, in the same instant.
"""

import logging
from pathlib import Path

from pydantic import Field, ValidationError

from raysys.config import Settings
from raysys.keys import point_of

log = logging.getLogger(__name__)


class Canary(Settings):
    """share: of the people, above 0 and at most 1. beside: the published snapshot that has the others.

    at: since when, as ISO 8601 in UTC. forced: the reasons against it that somebody set aside.
    """

    snapshot_id: str
    share: float = Field(gt=0, le=1)
    beside: str
    at: str
    forced: tuple[str, ...] = ()

    def has(self, user: str) -> bool:
        """Whether this ``types.user_key`` is answered from it. A larger share has all of a smaller one."""
        return point_of(f"canary {self.snapshot_id}", user) < self.share


def read(path: Path) -> Canary | None:
    """None where there is no file, or none that can be read: then everybody is answered from the published one."""
    try:
        return Canary.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("which snapshot is the canary cannot be read from %s: %s", path, error)
        return None
