"""Who may call which route, and how often: asked at the edge, before the body is read or anybody takes a place."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.types import Scope as Connection

from raysys.access import KEY, Caller, Key, KeyFile, Scope
from raysys.clock import Clock
from raysys.config import JwtSettings, RateLimit
from raysys.disk import Stamp
from raysys.errors import ConfigError, Forbidden, RateLimited, Unauthenticated, Unavailable
from raysys.serving.audit import record_keys, record_refusal
from raysys.serving.bucket import Bucket

if TYPE_CHECKING:  # PyJWT is an option
    from raysys.serving.tokens import Tokens

CHECK_EVERY_S = 1.0
MAX_SUBJECTS = 10_000  # whose buckets are kept, the latest: those of tokens

READ: frozenset[Scope] = frozenset({"read"})
WRITE: frozenset[Scope] = frozenset({"write"})
ADMIN: frozenset[Scope] = frozenset({"admin"})
OPERATORS: frozenset[Scope] = frozenset({"admin", "metrics"})

# One of these scopes is needed. A route that is in neither of the three is closed to everybody where there are keys.
NEEDED: dict[str, frozenset[Scope]] = {
    "/v1/recommendations": READ,
    "/v1/similar": READ,
    "/v1/search": READ,
    "/v1/rank": READ,
    "/v1/items:get": READ,
    "/v1/users:get": READ,
    "/v1/events": WRITE,
    "/v1/items": WRITE,
    "/v1/items:patch": WRITE,
    "/v1/items:delete": WRITE,
    "/v1/items:hide": WRITE,
    "/v1/items:unhide": WRITE,
    "/v1/users": WRITE,
    "/v1/users:edit": WRITE,
    "/v1/users:merge": WRITE,
    "/v1/users:export": ADMIN,
    "/v1/users:delete": ADMIN,
    "/v1/admin/snapshots": ADMIN,
    "/v1/admin/snapshots:verify": ADMIN,
    "/v1/admin/snapshots:activate": ADMIN,
    "/v1/admin/snapshots:rollback": ADMIN,
    "/v1/admin/snapshots:canary": ADMIN,
    "/v1/admin/snapshots:promote": ADMIN,
    "/v1/admin/snapshots:withdraw": ADMIN,
    "/v1/admin/snapshots:gc": ADMIN,
    "/metrics": OPERATORS,
}
DETAILS = {"/readyz": OPERATORS}  # anybody may ask; the details are for these
OPEN = frozenset({"/livez", "/openapi.json", "/docs", "/docs/oauth2-redirect"})

_BEARER = b"bearer "


class Guard:
    """For one event loop. The file is read again when it changed; until a new one can be read the old keys count."""

    def __init__(
        self,
        path: str | None,
        clock: Clock,
        rate_limit: RateLimit | None = None,
        tokens: "Tokens | None" = None,
        tenant: str | None = None,
    ) -> None:
        """path: of the keys; with neither it nor tokens everybody may do everything.

        rate_limit: of each key that has none of its own, and of each subject of tokens. tenant: whose keys count; None
        = those of no tenant. Raises ConfigError for a file that cannot be used.
        """
        self._file, self._clock = None if path is None else KeyFile(path), clock
        self._rate_limit, self._tokens, self.tenant = rate_limit, tokens, tenant
        self._keys: dict[bytes, Key] = {}
        self._buckets: dict[str, Bucket] = {}  # by the id of the key; of those that have a limit
        self._subjects: OrderedDict[str, Bucket] = OrderedDict()
        self._stamp: Stamp | None = None
        self._check_at_s = clock.monotonic_s() + CHECK_EVERY_S
        self._problem: str | None = None
        if self._file is not None:
            self._read(self._file)

    def check(self, request: Connection) -> None:
        """Note whose key it is as ``raysys.key``, and headers about its limit as ``raysys.rate_limit``.

        Raises Unauthenticated, RateLimited, Forbidden, and HTTPException for no route.
        """
        path = request["path"]
        if self._asks_nobody() or path in OPEN:
            return
        if self._file is not None:
            self._follow(self._file)
        try:
            key = request["raysys.key"] = self._known(request["headers"])
        except (Unauthenticated, Unavailable):
            if path in DETAILS:
                return
            raise
        if path in DETAILS:
            return
        self._spend(request, key)
        needed = NEEDED.get(path)
        if needed is None:  # not left to the router, which might find more in a path than is seen here
            raise HTTPException(404)
        if key.scopes.isdisjoint(needed):
            raise Forbidden(_lacking(key, needed), needed)

    def tells_details(self, request: Connection) -> bool:
        """Whether who asks may see how each part is."""
        if self._asks_nobody():
            return True
        key: Caller | None = request.get("raysys.key")
        return key is not None and not key.scopes.isdisjoint(DETAILS[request["path"]])

    def status(self) -> dict[str, object]:
        """How many keys are in use, and why a newer file is not; nothing where none are needed."""
        keys = {} if self._file is None else {"api_keys": {"in_use": len(self._keys), "refused": self._problem}}
        return keys | ({} if self._tokens is None else {"jwt": self._tokens.status()})

    def _asks_nobody(self) -> bool:
        return self._file is None and self._tokens is None

    def _known(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        given = _given(headers)
        if given is None:
            raise Unauthenticated("a key is needed: `Authorization: Bearer KEY`, or `X-API-Key: KEY`", False)
        parts = KEY.fullmatch(given)
        return self._tokens.check(given) if self._tokens is not None and parts is None else self._key(parts)

    def _key(self, parts: re.Match[bytes] | None) -> Key:
        key = None if parts is None else self._keys.get(parts[1])
        if parts is None or key is None or not key.has(parts[2]):
            raise Unauthenticated("this key is not known here: mistyped, revoked, or of somewhere else", True)
        if key.is_expired(self._clock.now_s()):
            raise Unauthenticated(f"this key expired at {key.expires_at}; a new one is needed", True)
        return key

    def _spend(self, request: Connection, key: Caller) -> None:
        """Whatever is asked counts, also what the key may not do. Raises RateLimited."""
        bucket = self._buckets.get(key.id) if isinstance(key, Key) else self._of_subject(key.name)
        if bucket is None:
            return
        may_pass = bucket.take(self._clock.monotonic_s())
        request["raysys.rate_limit"] = bucket.headers()
        if not may_pass:
            raise RateLimited(f"the key {key.name!r} may send {bucket.limit}; wait a little", bucket.wait_s())

    def _of_subject(self, name: str) -> Bucket | None:
        if self._rate_limit is None:
            return None
        if name not in self._subjects:
            self._subjects[name] = Bucket(self._rate_limit, self._clock.monotonic_s())
        self._subjects.move_to_end(name)
        if len(self._subjects) > MAX_SUBJECTS:
            self._subjects.popitem(last=False)
        return self._subjects[name]

    def _follow(self, file: KeyFile) -> None:
        """Read the file again where it changed, looking at most once a second."""
        now_s = self._clock.monotonic_s()
        if now_s < self._check_at_s:
            return
        self._check_at_s = now_s + CHECK_EVERY_S
        try:
            if file.stamp() != self._stamp:
                self._read(file)
        except ConfigError as error:
            self._stamp = None  # so that it is tried again, whatever the next look finds
            if self._problem != str(error):
                self._problem = str(error)
                record_refusal(str(error), self.tenant)
            return
        self._problem = None

    def _read(self, file: KeyFile) -> None:
        stamp = file.stamp()  # before its content: what is written in between is seen at the next look
        self._keys = {key.id.encode(): key for key in file.read() if key.tenant == self.tenant}
        self._stamp = stamp
        self._buckets = dict(self._buckets_of(self._keys.values()))
        record_keys(list(self._keys.values()), self.tenant)

    def _buckets_of(self, keys: Iterable[Key]) -> Iterator[tuple[str, Bucket]]:
        """As full as they are, where the limit is as it was: a change of one key must not fill those of others."""
        now_s = self._clock.monotonic_s()
        for key in keys:
            limit, known = self._limit_of(key), self._buckets.get(key.id)
            if limit is not None:
                yield key.id, known if known is not None and known.limit == limit else Bucket(limit, now_s)

    def _limit_of(self, key: Key) -> RateLimit | None:
        return self._rate_limit if key.rate_limit is None else key.rate_limit


def _given(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key of a request. Raises Unauthenticated for two that differ: a proxy may have gone by the other."""
    given: bytes | None = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            value = value[7:]
        elif name != b"x-api-key":
            continue
        value = value.strip()
        if given is not None and given != value:
            raise Unauthenticated("two keys that differ were given; send one", True)
        given = value
    return given


def _lacking(key: Caller, needed: frozenset[Scope]) -> str:
    has, needs = (", ".join(sorted(scopes)) or "none" for scopes in (key.scopes, needed))
    return f"this route needs the scope {needs.replace(', ', ' or ')}; the key {key.name!r} has {has}"


def open_tokens(settings: JwtSettings | None, clock: Clock, tenant: str | None) -> "Tokens | None":
    """None where no tokens count. Raises ConfigError without PyJWT, and for a file of keys that cannot be used."""
    if settings is None:
        return None
    try:
        from raysys.serving.tokens import Tokens
    except ImportError as error:
        raise ConfigError(
            f"jwt is in the settings, but {error.name} is not installed: pip install 'raysys[jwt]', or take it out"
        ) from error
    return Tokens(settings, clock, tenant)
