"""API keys: who may call what. The text of a key is shown once, when it is made; the file of the keys holds its hash.

A key is ``rs_<id>_<secret>``: a public id of 32 bits, by which its hash is found, and a secret of 256 random bits. The
hash is one salted BLAKE2b. What makes scrypt and its like slow is there for passwords, which can be guessed; nobody
tries 2^256 secrets, and a slow hash would only let callers without a key keep the gateway busy.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Protocol, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_serializer

from raysys.config import RateLimit, Tenant, check_tenant
from raysys.disk import Stamp, replacing, stamp_of
from raysys.errors import ConfigError

Scope = Literal["read", "write", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
KEY = re.compile(rb"rs_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Caller(Protocol):
    """Who shows a key, or a token of an issuer."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def scopes(self) -> frozenset[Scope]: ...


class Key(BaseModel):
    """One key, without its secret.

    expires_at: None = never. rate_limit: None = that of the settings, if any. tenant: whose gateways it opens; None =
    those of no tenant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="hex", val_json_bytes="hex")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    salt: Annotated[bytes, Field(min_length=16, max_length=16, repr=False)]
    hash: Annotated[bytes, Field(min_length=32, max_length=32, repr=False)]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    rate_limit: RateLimit | None = None
    tenant: Tenant | None = None

    @field_serializer("scopes")
    def _in_order(self, scopes: frozenset[Scope]) -> list[Scope]:
        return [scope for scope in SCOPES if scope in scopes]

    def has(self, secret: bytes) -> bool:
        """Whether this is the secret of the key. Takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(_hash(secret, self.salt), self.hash)

    def is_expired(self, now_s: float) -> bool:
        """Whether it is past its time. now_s: UTC epoch seconds."""
        return self.expires_at is not None and self.expires_at.timestamp() <= now_s


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...]


def _hash(secret: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(secret, digest_size=32, salt=salt, person=b"raysys-api-key").digest()


def _place(location: tuple[int | str, ...]) -> str:
    """Of a wrong value. Names of ours alone: who took the file for a list of keys must not find one in the log."""
    known = [str(part) for part in location if isinstance(part, int) or part in {"keys", *Key.model_fields}]
    return ".".join(known) or "the file"


def make_key(
    name: str,
    scopes: Set[str],
    expires_at: datetime | None = None,
    now: datetime | None = None,
    rate_limit: RateLimit | None = None,
    tenant: str | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which nothing can give again. Raises ConfigError for what cannot be."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{name!r} cannot name a key: 1 to 64 letters, digits, '.', '_' and '-'")
    granted, unknown = [scope for scope in SCOPES if scope in scopes], sorted(scopes - set(SCOPES))
    if unknown or not granted:
        raise ConfigError(f"a key has one scope or more of {', '.join(SCOPES)} (given: {', '.join(sorted(scopes))})")
    try:
        _ = tenant is None or check_tenant(tenant)
    except ValueError as error:
        raise ConfigError(f"{tenant!r} {error}") from error
    number, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_bytes(16)
    key = Key(
        id=number,
        name=name,
        scopes=frozenset(granted),
        salt=salt,
        hash=_hash(secret.encode(), salt),
        created_at=datetime.now(UTC) if now is None else now,
        expires_at=expires_at,
        rate_limit=rate_limit,
        tenant=tenant,
    )
    return key, f"rs_{number}_{secret}"


class KeyFile:
    """The keys in one JSON file, which nobody but its owner may read. It is replaced as a whole, never written into."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def stamp(self) -> Stamp:
        """Numbers that are others once the file or its permissions changed. Raises ConfigError where there is none."""
        try:
            return stamp_of(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self) -> tuple[Key, ...]:
        """All keys, also expired ones. Raises ConfigError for a file that is not there, not private or not whole."""
        try:
            with self.path.open("rb") as file:
                self._check_private(os.fstat(file.fileno()))
                content = file.read()
        except OSError as error:
            raise self._unreadable(error) from error
        return self._parse(content)

    def add(self, key: Key) -> None:
        """Write one key more. Raises ConfigError where the file that is there cannot be read, or none be written."""
        with self._alone():
            keys = self.read() if self.path.exists() else ()
            if any(known.id == key.id for known in keys):
                raise ConfigError(f"the id {key.id} is taken, by a rare chance; run the command again")
            self._replace((*keys, key))

    def revoke(self, name_or_id: str) -> Key:
        """Take one key out. Raises ConfigError where none has this name or id, and where several have this name."""
        with self._alone():
            keys = self.read()
            found = [key for key in keys if name_or_id in (key.id, key.name)]
            if not found:
                raise ConfigError(f"{self.path} has no key {name_or_id!r}; `raysys keys list` shows those it has")
            if len(found) > 1:
                ids = ", ".join(key.id for key in found)
                raise ConfigError(f"{len(found)} keys have the name {name_or_id!r}; say which by its id: {ids}")
            self._replace(tuple(key for key in keys if key is not found[0]))
        return found[0]

    def _parse(self, content: bytes) -> tuple[Key, ...]:
        try:
            keys = _Content.model_validate_json(content).keys
        except ValidationError as error:
            wrong = "; ".join(f"{_place(e['loc'])}: {e['type']}" for e in error.errors(include_input=False)[:3])
            raise ConfigError(f"{self.path} holds no keys ({wrong}); make it with `raysys keys create`") from None
        if len({key.id for key in keys}) < len(keys):
            raise ConfigError(f"two keys in {self.path} have one id; revoke one with `raysys keys revoke`")
        return keys

    def _check_private(self, found: os.stat_result) -> None:
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise ConfigError(f"others may read or write {self.path} (mode {mode:04o}): chmod 600 {self.path}")
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{self.path} belongs to another user (id {found.st_uid}): chown it to who serves")

    def _unreadable(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot read the keys in {self.path}: {error.strerror}; `raysys keys create` makes them")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No two commands change the file at once: the later one would bring a revoked key back."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ConfigError(f"cannot write the keys in {self.path}: {error.strerror}") from error

    def _replace(self, keys: tuple[Key, ...]) -> None:
        with replacing(self.path, mode=0o600) as file:  # on the disk: a power cut must not bring a revoked key back
            # Without what is not set, so that versions that know no limits read files without any.
            file.write(_Content(keys=keys).model_dump_json(indent=2, exclude_none=True).encode() + b"\n")
