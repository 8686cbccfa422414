"""When the answer to a request is due: set where it comes in, and kept by every part that it waits for.

A part has what is left when it is asked, less what those after it need: where the encoder is silent a list can still be
made without the text, and where a shard is, from what the others found.
"""

import asyncio
from contextvars import ContextVar

FOR_TEXT = 0.75  # of what is left
FOR_SHARDS = 0.9

DUE: ContextVar[float | None] = ContextVar("due_s", default=None)  # by the clock of the event loop


def due_in(seconds: float) -> float:
    """What ``DUE`` is set to for a request that comes in now."""
    return asyncio.get_running_loop().time() + seconds


def left_s(most_s: float, share: float = 1.0) -> float:
    """How long the request that is being answered may wait for a part; ``most_s`` where it is not one that is due."""
    due_s = DUE.get()
    if due_s is None:
        return most_s
    return min(most_s, max(share * (due_s - asyncio.get_running_loop().time()), 0.0))
