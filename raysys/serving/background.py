"""Tasks that run beside the requests for as long as their owner lives."""

import asyncio
import contextlib


async def end(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel these and wait until they have ended; None = never started."""
    for task in tasks:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
