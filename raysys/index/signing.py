"""Signatures of snapshots: Ed25519 over the exact bytes of the manifest, which has the SHA-256 of every other file.

The signature is a file beside the manifest, 64 bytes, as ``openssl pkeyutl -verify -rawin`` takes it. A signed manifest
names its snapshot, so that a signature is worth nothing in another folder.
"""

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from raysys.errors import ConfigError, SnapshotUntrusted

SIGNATURE = "manifest.sig"
PUBLIC = ".pub"

log = logging.getLogger(__name__)


def make_signing_key(path: Path) -> Path:
    """A new key of mode 0600 at ``path``, its public part beside it. Returns where that is.

    Raises ConfigError where either cannot be written, or is there already.
    """
    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name + PUBLIC)
    for target in (path, public):
        if target.exists():
            raise ConfigError(f"{target} is there already, and what it signed would be worth nothing without it")
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _write(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    return public


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"cannot write the key {path}: {error.strerror}") from error


def read_signing_key(path: str | Path) -> Ed25519PrivateKey:
    """Raises ConfigError for a file that others may read, and for one that holds no such key."""
    content = _content(path, 0o077, "read or write")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # without their text: it may tell of the content
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no private Ed25519 key in PEM form; `raysys keys signing` makes one")
    return key


def read_public_key(path: str | Path) -> Ed25519PublicKey:
    """Raises ConfigError for a file that others may write, and for one that holds no such key."""
    content = _content(path, 0o022, "write")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} holds no public Ed25519 key in PEM form; `raysys keys signing` makes one")
    return key


def _content(path: str | Path, forbidden: int, what: str) -> bytes:
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            mode, content = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}; `raysys keys signing` makes one") from error
    if mode & forbidden:
        raise ConfigError(f"others may {what} {path} (mode {mode:04o}): chmod {mode & ~forbidden:o} {path}")
    return content


class Signers:
    """Whose snapshots are taken: those signed with one of these keys, each the path of a public one.

    The files are read at each check, so that another key in one of them counts at once. What can then not be read
    changes nothing: the key that was in it before still counts.
    """

    def __init__(self, public_keys: Sequence[str | Path]) -> None:
        """Raises ConfigError as ``read_public_key``."""
        self._keys = {path: read_public_key(path) for path in public_keys}
        self._problem: str | None = None

    def check(self, folder: Path, manifest: bytes) -> None:
        """Whether one of them has signed these bytes of the manifest in ``folder``. Raises SnapshotUntrusted."""
        self._read_again()
        try:
            signature = (folder / SIGNATURE).read_bytes()
        except OSError as error:
            raise SnapshotUntrusted(
                f"{folder} is not signed ({SIGNATURE}: {error.strerror}), and only signed snapshots are taken here; "
                "`raysys snapshots sign` signs one"
            ) from error
        if not any(_is_of(key, signature, manifest) for key in self._keys.values()):
            known = "the key" if len(self._keys) == 1 else f"any of the {len(self._keys)} keys"
            raise SnapshotUntrusted(
                f"the signature of {folder} is not by {known} that is trusted here, or the manifest was changed since"
            )

    def _read_again(self) -> None:
        problems = []
        for path in self._keys:
            try:
                self._keys[path] = read_public_key(path)
            except ConfigError as error:
                problems.append(str(error))
        problem = "; ".join(problems) or None
        if problem is not None and problem != self._problem:
            log.warning("a key that signs snapshots cannot be read again, the one before still counts: %s", problem)
        self._problem = problem


def _is_of(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True
