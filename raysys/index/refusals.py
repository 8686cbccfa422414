"""Why a snapshot was last refused: a small file of JSON each, until it is published or collected."""

import logging
from pathlib import Path

from pydantic import ValidationError

from raysys.config import Settings

log = logging.getLogger(__name__)


class Refusal(Settings):
    """at: when, as ISO 8601 in UTC. reasons: what spoke against it, with figures."""

    at: str
    reasons: tuple[str, ...]


def read(path: Path) -> Refusal | None:
    """None where the snapshot was not refused, or the file cannot be read: it only informs."""
    try:
        return Refusal.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("why a snapshot was refused cannot be read from %s: %s", path, error)
        return None
