"""A Redis stream as a source of events."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from raysys.errors import ConfigError, Unavailable
from raysys.state.redis import answering, open_client
from raysys.state.stream import StreamEntry

_START = "0-0"


class RedisStreamSource:
    """A Redis stream, read as one consumer of a group. A group that is not there is made, from the stream's start.

    It first reads again what this consumer had read and not committed. Every ``claim_idle_s`` it takes over what any
    consumer of the group has left uncommitted for that long: the consumer died, or its answer was lost on the way.
    A consumer's name must be its own, and should be the same after a restart.

    Nothing is removed from the stream: whoever writes to it bounds it (``XADD ... MAXLEN``), generously, as an entry
    that is trimmed before it was read is lost. The events of an erased person stay in it too, and count again where
    the group is made anew.
    """

    def __init__(
        self, url: str, stream: str, group: str, consumer: str, timeout_s: float = 1.0, claim_idle_s: float = 60.0
    ) -> None:
        """Connects to nothing yet. Raises ConfigError for a URL that cannot be read."""
        self._client, self._place = open_client(url)
        self._stream, self._group, self._consumer = stream, group, consumer
        self._timeout_s = timeout_s
        self._claim_idle_s = claim_idle_s
        self._has_group = False
        self._own_from: str | None = _START  # after which of its own uncommitted entries it reads; None = has them all
        self._claim_from = _START
        self._claim_at_s = time.monotonic()

    async def read(self, max_events: int, wait_s: float) -> list[StreamEntry]:
        """See ``EventSource.read``; it waits for a millisecond or more.

        Raises ConfigError for a key that is no stream, or that this user of Redis may not read.
        """
        try:
            async with answering(self._place, self._timeout_s + wait_s):
                await self._make_group()
                entries = await self._read_own(max_events) or await self._claim(max_events)
                return entries or await self._read_from(">", max_events, max(1, round(wait_s * 1e3)))
        except ResponseError as error:
            if not re.match("NOGROUP|UNBLOCKED", str(error)):
                raise ConfigError(f"stream {self._stream} of Redis at {self._place} cannot be read: {error}") from error
            self._has_group = False
            raise Unavailable(f"stream {self._stream} of Redis at {self._place} lost its group: {error}") from error
        except BaseException:
            # Redis may have handed out entries in an answer that never arrived: they are ours, and not committed.
            self._own_from = _START
            raise

    async def commit(self, entry_ids: Sequence[str]) -> None:
        """See ``EventSource.commit``."""
        async with answering(self._place, self._timeout_s):
            await self._client.xack(self._stream, self._group, *entry_ids)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _make_group(self) -> None:
        if self._has_group:
            return
        try:
            await self._client.xgroup_create(self._stream, self._group, id=_START, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # it is there
                raise
        self._has_group = True

    async def _read_own(self, max_events: int) -> list[StreamEntry]:
        if self._own_from is None:
            return []
        entries = await self._read_from(self._own_from, max_events)
        self._own_from = entries[-1].entry_id if entries else None
        return entries

    async def _claim(self, max_events: int) -> list[StreamEntry]:
        """A part of what others left; the next call goes on, until all was looked at."""
        if time.monotonic() < self._claim_at_s:
            return []
        cursor, found, *_ = await self._client.xautoclaim(
            self._stream,
            self._group,
            self._consumer,
            min_idle_time=round(self._claim_idle_s * 1e3),
            start_id=self._claim_from,
            count=max_events,
        )
        self._claim_from = cursor.decode()
        if self._claim_from == _START:
            self._claim_at_s = time.monotonic() + self._claim_idle_s
        return _entries(found)

    async def _read_from(self, start: str, max_events: int, block_ms: int | None = None) -> list[StreamEntry]:
        answer: Any = await self._client.xreadgroup(
            self._group, self._consumer, {self._stream: start}, count=max_events, block=block_ms
        )
        return [entry for _, found in answer for entry in _entries(found)]


def _entries(found: Iterable[tuple[bytes | None, Mapping[bytes, bytes]]]) -> list[StreamEntry]:
    """An entry that was trimmed while it was uncommitted has no fields, or with Redis 6 no id."""
    return [
        StreamEntry(
            entry_id.decode(), {name.decode(errors="backslashreplace"): value for name, value in fields.items()}
        )
        for entry_id, fields in found
        if entry_id is not None
    ]
