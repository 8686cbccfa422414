"""The public keys of an issuer of tokens (JWKS, RFC 7517): from a file, or fetched beside the requests."""

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from raysys.clock import Clock
from raysys.disk import Stamp, stamp_of
from raysys.errors import ConfigError, Unavailable

LOOK_EVERY_S = 1.0  # at a file
FETCH_EVERY_S = 120.0
RETRY_S = 10.0
FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
MIN_RSA_BITS = 2_048

_READERS: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key that signatures are checked with. kind: ``kty`` of RFC 7517. algorithm: None = any of its kind."""

    kid: str | None
    kind: str
    algorithm: str | None
    key: Any


class IssuerKeys(Protocol):
    @property
    def problem(self) -> str | None:
        """Why newer keys are not in use."""
        ...

    def now(self) -> tuple[PublicKey, ...]:
        """The keys in use; the same object until they change. Raises Unavailable where there were none yet."""
        ...


def read_keys(content: bytes, place: str) -> tuple[PublicKey, ...]:
    """Those that signatures can be checked with. Raises ConfigError, which shows nothing of the content."""
    try:
        entries = json.loads(content)["keys"]
        keys = tuple(_keys(entries))
    except (PyJWTError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{place} holds no JWKS that can be read ({type(error).__name__})") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    if not keys:
        raise ConfigError(f"{place} holds no public key for signatures, of kty {', '.join(_READERS)}")
    return keys


def _keys(entries: list[Mapping[str, Any]]) -> Iterator[PublicKey]:
    for entry in entries:
        reader = _READERS.get(entry.get("kty", ""))
        if reader is None or entry.get("use", "sig") != "sig":
            continue
        if "d" in entry:
            raise ConfigError("it holds a private key: give the public ones alone, and make a new pair")
        key = reader.from_jwk(dict(entry))
        if entry["kty"] == "RSA" and key.key_size < MIN_RSA_BITS:
            raise ConfigError(f"an RSA key of {key.key_size} bits is too short; {MIN_RSA_BITS} are the least")
        yield PublicKey(entry.get("kid"), entry["kty"], entry.get("alg"), key)


class _Problem:
    """What is wrong now. It is told once, however often it is tried again."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.problem: str | None = None

    def is_now(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            self._tell(problem)
        self.problem = problem


class FileKeys(_Problem):
    """Keys in a file. It is read again when it changed; until a new one can be read the old keys count."""

    def __init__(self, path: str, clock: Clock, tell: Callable[[str], None]) -> None:
        """tell: gets each problem. Raises ConfigError for a file that cannot be used."""
        super().__init__(tell)
        self._path, self._clock = Path(path), clock
        self._look_at_s = clock.monotonic_s() + LOOK_EVERY_S
        self._stamp: Stamp | None = self._stamp_now()
        self._keys = self._read()

    def now(self) -> tuple[PublicKey, ...]:
        """See ``IssuerKeys``. Looks at the file at most once a second."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            self._look()
        return self._keys

    def _look(self) -> None:
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._keys, self._stamp = self._read(), stamp
        except ConfigError as error:
            self._stamp = None  # so that it is tried again, whatever the next look finds
            self.is_now(str(error))
        else:
            self.is_now(None)

    def _stamp_now(self) -> Stamp:
        try:
            return stamp_of(self._path)
        except OSError as error:
            raise ConfigError(f"cannot read the JWKS in {self._path}: {error.strerror}") from error

    def _read(self) -> tuple[PublicKey, ...]:
        try:
            with self._path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(MAX_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot read the JWKS in {self._path}: {error.strerror}") from error
        if mode & 0o022:
            raise ConfigError(f"others may write {self._path} (mode {mode:04o}): chmod go-w {self._path}")
        return read_keys(content, str(self._path))


class FetchedKeys(_Problem):
    """Keys behind a URL, fetched by a thread, so that no request waits. Those in use stay while a fetch fails."""

    def __init__(self, url: str, clock: Clock, tell: Callable[[str], None]) -> None:
        """Begins to fetch. tell: gets each problem, in the thread."""
        super().__init__(tell)
        self._url, self._clock = url, clock
        self._content = b""
        self._keys: tuple[PublicKey, ...] = ()
        self._due_s = float("inf")  # monotonic; not while a thread fetches
        self._thread = self._begin()

    def now(self) -> tuple[PublicKey, ...]:
        """See ``IssuerKeys``. Has them fetched again every two minutes, after a failure every ten seconds."""
        if self._clock.monotonic_s() >= self._due_s:
            self._due_s = float("inf")
            self._thread = self._begin()
        if not self._keys:
            raise Unavailable(f"the keys of the issuer are not here yet: {self.problem or 'they are being fetched'}")
        return self._keys

    def wait(self, timeout_s: float) -> None:
        """Until the fetch that goes on has ended."""
        self._thread.join(timeout_s)

    def _begin(self) -> threading.Thread:
        thread = threading.Thread(target=self._fetch, name="raysys-jwks", daemon=True)
        thread.start()
        return thread

    def _fetch(self) -> None:
        pause_s = RETRY_S
        try:
            content = _get(self._url)
            if content != self._content:
                self._keys, self._content = read_keys(content, self._url), content
            self.is_now(None)
            pause_s = FETCH_EVERY_S
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # OSError: of what TLS needs on the disk
            self.is_now(f"cannot fetch the JWKS from {self._url}: {type(error).__name__}")
        except ConfigError as error:
            self.is_now(str(error))
        finally:
            self._due_s = self._clock.monotonic_s() + pause_s


def _get(url: str) -> bytes:
    """The body. Follows no redirects. Raises what httpx raises, and ConfigError for one that is too large or slow."""
    content, end_s = b"", time.monotonic() + FETCH_TIMEOUT_S
    with httpx.stream("GET", url, timeout=FETCH_TIMEOUT_S) as answer:
        answer.raise_for_status()
        for part in answer.iter_bytes():
            content += part
            if len(content) > MAX_BYTES or time.monotonic() > end_s:
                raise ConfigError(f"{url} sends too much, or too slowly, for a JWKS")
    return content
