"""How a state store and a stream are opened from a setting: where it is says what it is."""

import importlib.util

from raysys.errors import ConfigError
from raysys.state.protocol import StateStore
from raysys.state.sqlite import SqliteState
from raysys.state.stream import EventSource

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_REDIS_URLS = "redis://, rediss:// or unix://"


def open_state(location: str) -> StateStore:
    """A SQLite file for a path, Redis for a ``redis://``, ``rediss://`` or ``unix://`` URL.

    What stands after ``#`` in a URL is the namespace of a tenant, in which all keys are.

    Raises ConfigError for anything else, for a URL or a file that cannot be used, and without the ``redis`` package.
    Opening a file blocks; Redis is connected to by the first call.
    """
    scheme = _scheme(location)
    if scheme is None:
        return SqliteState(location)
    if scheme not in _REDIS_SCHEMES:
        raise ConfigError(
            f"there is no state store for {scheme}://; give a path for a SQLite file, or a {_REDIS_URLS} URL"
        )
    _require_redis()
    from raysys.state.redis import RedisState

    url, _, namespace = location.partition("#")
    return RedisState(url, namespace=namespace or None)


def open_stream(location: str, stream: str, group: str, consumer: str) -> EventSource:
    """A Redis stream, read as this consumer of this group. Raises ConfigError as ``open_state``."""
    if _scheme(location) not in _REDIS_SCHEMES:
        raise ConfigError(f"events can be read from a Redis stream: give a {_REDIS_URLS} URL")
    _require_redis()
    from raysys.state.redis_stream import RedisStreamSource

    return RedisStreamSource(location, stream, group, consumer)


def _scheme(location: str) -> str | None:
    scheme, separator, _ = location.partition("://")
    return scheme if separator else None


def _require_redis() -> None:
    if importlib.util.find_spec("redis") is None:
        raise ConfigError("Redis needs a package that is not installed: pip install 'raysys[redis]'")
