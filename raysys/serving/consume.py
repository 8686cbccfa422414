"""`raysys consume`: events of a stream into the state store, by a process that runs until it is told to stop."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from raysys.clock import SystemClock
from raysys.config import ProfileSettings
from raysys.errors import ConfigError
from raysys.serving.events import read_event
from raysys.state.protocol import StateStore
from raysys.state.stream import DeadLetters, EventSource, consume

PROGRESS_S = 5.0


def default_consumer() -> str:
    """A name that no other process has: host and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


def default_stream(tenant: str | None) -> str:
    """The key of the stream whose events are for this tenant."""
    return "raysys-events" if tenant is None else f"raysys@{tenant}:stream"


def run(
    source: EventSource, state: StateStore, letters: Path, profile: ProfileSettings, say: Callable[[str], None]
) -> Counter[str]:
    """Consume until SIGINT or SIGTERM, which let the batch in hand be finished; then close source and store.

    letters: the file for the entries that hold no event. say: gets a line every few seconds in which something came.
    Returns counts: accepted, duplicate, rejected. Raises ConfigError for a source, store or file that cannot be used.
    """
    with _writing(letters):
        letters.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        DeadLetters(letters).add([])  # so that a file that cannot be written is known now
        return asyncio.run(_run(source, state, DeadLetters(letters), profile, say))


async def _run(
    source: EventSource, state: StateStore, letters: DeadLetters, profile: ProfileSettings, say: Callable[[str], None]
) -> Counter[str]:
    stop, counts, clock = asyncio.Event(), Counter[str](), SystemClock()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with _telling(counts, say):
            say("reading the stream; Ctrl-C ends it")
            return await consume(
                source, lambda raw: read_event(raw, profile, clock.now_s()), state, letters, stop, counts=counts
            )
    finally:
        await source.close()
        await state.close()


def summary(counts: Counter[str]) -> str:
    """The counts as a line for people."""
    return f"accepted {counts['accepted']:,}, known already {counts['duplicate']:,}, put aside {counts['rejected']:,}"


@asynccontextmanager
async def _telling(counts: Counter[str], say: Callable[[str], None]) -> AsyncIterator[None]:
    """Says the counts every few seconds in which they changed."""

    async def tell() -> None:
        told = counts.copy()
        while True:
            await asyncio.sleep(PROGRESS_S)
            if counts != told:
                told = counts.copy()
                say(summary(counts))

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def _writing(letters: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"the dead letters cannot be written to {letters}: {error}; name another file") from error
