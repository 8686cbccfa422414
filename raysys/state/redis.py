"""The state store of a cluster: one Redis, 6.2 or newer, shared by every process of every machine.

What is kept: Redis must run with ``appendonly yes`` and ``appendfsync always``, which is checked. An acknowledged
write is then on the disk: it survives a kill -9 of the server and a power cut. The price is one fsync for all writes
of one turn of the server's loop. With ``everysec``, the default of Redis, a power cut loses the last second or two of
acknowledged writes, and so does a kill -9 while an fsync of its background thread goes on, as Redis then answers
before it has handed the write to the operating system (measured: 2 of 15 kills under disk load). A replica that takes
over can lack the last writes with either, since Redis copies to it after it has answered.

What is promised besides: each write is one Lua script, so it is there wholly or not at all. Where an answer does not
come in time, nobody can know whether the write was made; doing it again is safe, as an event counts once by its id.

What was erased: it stays in the append-only file until Redis next writes that anew, as it does when the file has
doubled (``auto-aof-rewrite-percentage``), or when told ``BGREWRITEAOF``.

Memory: some 610 bytes a typical event, 960 where it is a person's only one, and 1.9 kB a vector of 384 numbers. A full
Redis (``maxmemory``) refuses every write, erasure and expiry too. It must not evict: an ``allkeys`` policy is refused.
Redis Cluster is not supported, as one script writes to keys that it would put on several nodes.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from raysys.clock import Clock, SystemClock
from raysys.errors import ConfigError, Unavailable
from raysys.state import records, redis_scripts
from raysys.state.protocol import History, Link, Outcome
from raysys.types import Event, ItemChange, ItemDraft, Person, Vectors

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 32
# What Redis cannot do now but at other times. Any other refusal is a mistake of ours, and is not hidden as an outage.
_NOT_NOW = (
    OSError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.MasterDownError,
)
_NOT_NOW_WORDS = re.compile(r"\b(LOADING|READONLY|OOM|MISCONF|BUSY|MASTERDOWN|NOREPLICAS)\b")
# Not for a URL to choose. No retries: a write must not be made twice unseen. No socket timeouts: one bounds the call.
_CONNECTION: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "retry": Retry(NoBackoff(), 0),
}


def open_client(url: str) -> tuple[Redis, str]:
    """A client of the Redis at a ``redis://``, ``rediss://`` or ``unix://`` URL, and its ``host:port`` for messages.

    Nothing is connected yet. Raises ConfigError for a URL that cannot be read; it does not repeat the URL, which may
    hold a password.
    """
    try:
        pool = BlockingConnectionPool.from_url(url, max_connections=_MAX_CONNECTIONS, timeout=None, **_CONNECTION)
        pool.connection_kwargs.update(_CONNECTION)
        pool.connection_class(**pool.connection_kwargs)  # finds an option that there is not
    except (ValueError, TypeError, exceptions.RedisError):
        raise ConfigError(
            "the Redis URL cannot be read: it looks like redis://user:password@host:6379/0, or unix:///path, "
            "with special characters of the password written as %XX, and only options that redis-py knows after '?'"
        ) from None
    options = pool.connection_kwargs
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return Redis.from_pool(pool), place


@asynccontextmanager
async def answering(place: str, timeout_s: float) -> AsyncIterator[None]:
    """Make Unavailable of all that Redis cannot do now, or not within ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise Unavailable(f"Redis at {place} did not answer within {timeout_s:g} s") from error
    except _NOT_NOW as error:
        raise Unavailable(f"Redis at {place} cannot answer: {error}") from error
    except exceptions.ResponseError as error:
        if not _NOT_NOW_WORDS.search(str(error)):
            raise
        raise Unavailable(f"Redis at {place} cannot answer: {error}") from error


class RedisState:
    """A ``StateStore`` in one Redis; see the top of this module for what is kept and when.

    The constructor connects to nothing. The first call checks the server, and raises ConfigError where it would lose
    writes (``appendonly no``, eviction), is a Redis Cluster, or refuses the password. ``timeout_s`` bounds each call.
    """

    def __init__(
        self, url: str, timeout_s: float = 1.0, clock: Clock | None = None, namespace: str | None = None
    ) -> None:
        """namespace: of a tenant; whatever is in another one is not seen and not touched.

        Raises ConfigError for a URL that cannot be read, and a namespace that names no tenant.
        """
        self._client, self._place = open_client(url)
        self._prefix = redis_scripts.prefix(namespace)
        self._scripts = {script: self._client.register_script(script) for script in redis_scripts.ALL}
        self._timeout_s = timeout_s
        self._clock = SystemClock() if clock is None else clock
        self._checked = False
        self._closed = False

    async def append(self, events: Sequence[Event]) -> list[Outcome]:
        """See ``StateStore.append``."""
        args: list[str | bytes] = []
        for index, event in enumerate(events):
            record = records.event_to_json(event, f"events[{index}]")
            args += [event.event_id, event.user, _number(event.timestamp_s), _number(event.expires_s), record]
        return ["accepted" if new else "duplicate" for new in await self._run(redis_scripts.APPEND, args)]

    async def history(self, user: str, limit: int, known_version: int = -1) -> History | None:
        """See ``StateStore.history``. One round trip, and a known version brings back nothing."""
        records.check_key(user, "user")
        answer = await self._run(redis_scripts.HISTORY, [user, str(limit), str(known_version)])
        return None if answer is None else _history(answer)

    async def histories(self, users: Sequence[str], limit: int) -> dict[str, History]:
        """See ``StateStore.histories``. One round trip."""
        _check_keys(users, "users")
        answers = await self._run(redis_scripts.HISTORIES, [str(limit), *users])
        return {user: _history(answer) for user, answer in zip(users, answers, strict=True)}

    async def versions(self, users: Sequence[str]) -> dict[str, int]:
        """See ``StateStore.versions``."""
        _check_keys(users, "users")
        found = await self._run(redis_scripts.VERSIONS, users)
        return {user: int(version) for user, version in zip(users, found, strict=True)}

    async def put_person(self, person: Person) -> int:
        """See ``StateStore.put_person``. That of a linked session is its user's."""
        return int(await self._run(redis_scripts.PUT_PERSON, [person.user, records.person_to_json(person)]))

    async def link(self, session: str, user: str) -> tuple[Link, int]:
        """See ``StateStore.link``. The person of the session becomes the user's, where there is none."""
        records.check_link(session, user)
        outcome, version = await self._run(redis_scripts.LINK, [session, user])
        return outcome.decode(), int(version)

    async def sessions(self, user: str) -> list[str]:
        """See ``StateStore.sessions``."""
        records.check_key(user, "user")
        return sorted(session.decode() for session in await self._run(redis_scripts.SESSIONS, [user]))

    async def forget(self, user: str, event_ids: Sequence[str], text_keys: Sequence[bytes] = ()) -> int:
        """See ``StateStore.forget``."""
        records.check_key(user, "user")
        _check_keys(event_ids, "event_ids")
        args: list[str | bytes] = [user, str(len(event_ids)), *event_ids, *text_keys]
        return int(await self._run(redis_scripts.FORGET, args))

    async def erase(self, user: str, text_keys: Sequence[bytes] = ()) -> dict[str, int]:
        """See ``StateStore.erase``. The keys of the user's sessions are remembered as erased as well."""
        records.check_key(user, "user")
        counts = await self._run(redis_scripts.ERASE, [user, _number(self._clock.now_s()), *text_keys])
        return dict(zip(("events", "person", "links", "vectors"), counts, strict=True))

    async def erased(self) -> dict[str, float]:
        """See ``StateStore.erased``."""
        async with self._answering():
            times: Any = await self._client.hgetall(self._prefix + redis_scripts.ERASED)
        return {user.decode(): float(at_s) for user, at_s in times.items()}

    async def expire(self, now_s: float, limit: int = 10_000) -> int:
        """See ``StateStore.expire``. The versions of those who lose events grow."""
        return int(await self._run(redis_scripts.EXPIRE, [_number(now_s), str(limit)]))

    async def events_after(self, sequence: int, limit: int) -> list[tuple[int, Event]]:
        """See ``StateStore.events_after``."""
        found = await self._run(redis_scripts.EVENTS_AFTER, [str(sequence), str(limit)])
        return [(int(at), records.event_from_json(record, user.decode())) for at, user, record in found]

    async def change_items(self, drafts: Sequence[ItemDraft], now_s: float) -> list[ItemChange | None]:
        """See ``StateStore.change_items``."""
        args: list[str | bytes] = [_number(now_s)]
        for index, draft in enumerate(drafts):
            expected = "" if draft.expected is None else str(draft.expected)
            record = records.item_to_json(draft, f"items[{index}]")
            args += [draft.item_id, expected, "gone" if draft.fields is None else "here", record]
        answers = await self._run(redis_scripts.CHANGE_ITEMS, args)
        return [None if answer is None else _change(*answer) for answer in answers]

    async def item_changes(self, after: int, limit: int) -> list[ItemChange]:
        """See ``StateStore.item_changes``."""
        return [_change(*found) for found in await self._run(redis_scripts.ITEM_CHANGES, [str(after), str(limit)])]

    async def items(self, item_ids: Sequence[str]) -> dict[str, ItemChange]:
        """See ``StateStore.items``."""
        _check_keys(item_ids, "item_ids")
        changes = (_change(*found) for found in await self._run(redis_scripts.GET_ITEMS, item_ids))
        return {change.item_id: change for change in changes}

    async def identity(self) -> str:
        """See ``StateStore.identity``."""
        async with self._answering():
            key = self._prefix + redis_scripts.IDENTITY
            await self._client.set(key, uuid.uuid4().hex, nx=True)
            identity: Any = await self._client.get(key)
            return str(identity, "ascii")

    async def last_sequence(self) -> int:
        """See ``StateStore.last_sequence``."""
        async with self._answering():
            return int(await self._client.get(self._prefix + redis_scripts.SEQUENCE) or 0)

    async def put_vectors(self, vectors: Mapping[bytes, Vectors], item_ids: Sequence[str] = ()) -> None:
        """See ``StateStore.put_vectors``. Raises InvalidInput for what is not [dim] float32."""
        _check_keys(item_ids, "item_ids")
        pairs = [part for key, vector in vectors.items() for part in (key, records.vector_to_bytes(vector))]
        await self._run(redis_scripts.PUT_VECTORS, [str(len(vectors)), *pairs, *item_ids])

    async def vectors(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """See ``StateStore.vectors``. The arrays are read-only."""
        async with self._answering():
            found: Any = await self._client.hmget(self._prefix + redis_scripts.VECTORS, keys) if keys else []
        return {key: records.vector_from_bytes(data) for key, data in zip(keys, found, strict=True) if data is not None}

    async def size(self) -> dict[str, Any]:
        """See ``StateStore.size``.

        people: everyone with a version. items: deleted ones included. bytes: the memory of the whole server, whoever
        uses it, less what it took at its start.
        """
        counts = await self._run(redis_scripts.SIZE, [])
        async with self._answering():
            memory = await self._client.info("memory")
        size: dict[str, Any] = dict(zip(("events", "people", "items", "vectors"), counts, strict=True))
        return size | {"bytes": memory["used_memory"] - memory["used_memory_startup"]}

    async def close(self) -> None:
        """See ``StateStore.close``."""
        self._closed = True
        await self._client.aclose()

    async def _run(self, script: str, args: Iterable[str | bytes]) -> Any:
        """What a script returns. One round trip, but for the first run after a start of Redis, which loads it."""
        async with self._answering():
            return await self._scripts[script](keys=[self._prefix], args=args)

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        if self._closed:
            raise Unavailable("the state store is closed")
        async with answering(self._place, self._timeout_s):
            if not self._checked:
                await _check(self._client, self._place)
                self._checked = True
            yield


def _check_keys(keys: Iterable[str], field: str) -> None:
    for key in keys:
        records.check_key(key, field)


def _history(answer: Sequence[Any]) -> History:
    owner, version, person, events = answer[0].decode(), int(answer[1]), answer[2], answer[3]
    return History(
        owner,
        version,
        tuple(records.event_from_json(record, owner) for record in events),
        None if person is None else records.person_from_json(person, owner),
    )


def _number(number: float | None) -> str:
    return "" if number is None else repr(float(number))


def _change(sequence: bytes | int, item_id: bytes, value: bytes) -> ItemChange:
    created_s, changed_s, _, record = value.split(b" ", 3)
    return records.item_from_json(record, int(sequence), item_id.decode(), float(changed_s), float(created_s))


async def _check(client: Redis, place: str) -> None:
    """Raise ConfigError for a server that would lose writes; warn where it can lose some, or does not say."""
    try:
        mode = (await client.info("server")).get("redis_mode")
        settings = await client.config_get("append*") | await client.config_get("maxmemory*")
    except exceptions.AuthenticationError as error:
        raise ConfigError(f"Redis at {place} refuses the user name or the password of the URL: {error}") from error
    except exceptions.ResponseError as error:
        if isinstance(error, _NOT_NOW) or _NOT_NOW_WORDS.search(str(error)):
            raise
        log.warning("Redis at %s does not say whether it keeps what is written (appendonly): %s", place, error)
        return
    _check_settings(place, mode, settings)


def _check_settings(place: str, mode: str | None, settings: Mapping[Any, Any]) -> None:
    if mode == "cluster":
        raise ConfigError(f"Redis at {place} is a Redis Cluster, which is not supported: use a single Redis")
    if settings.get("appendonly") == "no":
        raise ConfigError(
            f"Redis at {place} would lose acknowledged writes: it runs with appendonly no. Set 'appendonly yes' in its "
            "redis.conf and restart it, or run: redis-cli config set appendonly yes, then: redis-cli config rewrite"
        )
    if settings.get("appendfsync", "always") != "always":
        raise ConfigError(
            f"Redis at {place} would lose acknowledged writes: with appendfsync {settings['appendfsync']} those of the "
            "last seconds go with a power cut, or with a kill while its disk is busy. Run: redis-cli config set "
            "appendfsync always, then: redis-cli config rewrite"
        )
    policy = settings.get("maxmemory-policy", "")
    if settings.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        raise ConfigError(
            f"Redis at {place} would throw away what is written when it is full (maxmemory-policy {policy}): "
            "run: redis-cli config set maxmemory-policy noeviction"
        )
