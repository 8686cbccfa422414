"""From where the log of item changes has to be applied to a snapshot."""

from raysys.index.manifest import Manifest
from raysys.state.protocol import StateStore


async def first_position(state: StateStore, manifest: Manifest) -> int:
    """The sequence after which changes are news to this snapshot. Raises Unavailable.

    The sequences of another store than the one that was folded in say nothing: then all of its changes are.
    """
    folded = manifest.change_store != "" and manifest.change_store == await state.identity()
    return manifest.change_sequence if folded else 0
