"""Which snapshot was published when: one line of JSON a move of the pointer, oldest first.

A line is written before the pointer moves. Killed between the two, the last line never came true, and ``settled``
leaves it out: the pointer alone says what is published.
"""

import logging
from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from raysys.config import Settings

By = Literal["build", "activate", "promote", "rollback", "another way"]

log = logging.getLogger(__name__)


class Move(Settings):
    """The pointer was put on ``snapshot_id``. forced: the reasons against it that somebody set aside."""

    at: str
    snapshot_id: str
    by: By
    forced: tuple[str, ...] = ()


def read(content: str) -> list[Move]:
    """The moves of a history file. A line that cannot be read is left out: publishing must go on without it."""
    moves = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            moves.append(Move.model_validate_json(line))
        except ValidationError:
            log.warning("line %d of the history of snapshots cannot be read, and is left out", number)
    return moves


def write(moves: Sequence[Move]) -> bytes:
    return "".join(move.model_dump_json() + "\n" for move in moves).encode()


def settled(moves: Sequence[Move], current: str | None, at: str) -> list[Move]:
    """The moves up to what the pointer names: without a last one that never came true, with one that was made by hand
    or by a version that kept no history. None = nothing is published."""
    if current is None:
        return []
    if moves and moves[-1].snapshot_id == current:
        return list(moves)
    if len(moves) > 1 and moves[-2].snapshot_id == current:
        return list(moves[:-1])
    return [*moves, Move(at=at, snapshot_id=current, by="another way")]


def way(moves: Sequence[Move]) -> list[str]:
    """The snapshots that one came from, the published one last: a rollback goes back along it, a step each time."""
    path: list[str] = []
    for move in moves:
        if move.by == "rollback" and move.snapshot_id in path:
            while path[-1] != move.snapshot_id:
                path.pop()
        elif not path or path[-1] != move.snapshot_id:
            path.append(move.snapshot_id)
    return path
