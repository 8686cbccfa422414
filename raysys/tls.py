"""Whether a certificate and its key can be served, found out before anything starts, in words for people."""

import os
import stat
import warnings
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from raysys.config import TlsSettings
from raysys.errors import ConfigError


def check_certificate(tls: TlsSettings, now: datetime | None = None) -> None:
    """Raises ConfigError for files that cannot be read, do not belong together, or are out of their time.

    Also for a key that others may read. Whether callers trust who has signed the certificate, nobody knows here.
    """
    certificate, key = _certificate(Path(tls.certificate)), _key(Path(tls.key))
    _check_time(tls.certificate, certificate, datetime.now(UTC) if now is None else now)
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise ConfigError(
            f"the key in {tls.key} is not that of the certificate in {tls.certificate}. "
            "The certificate of this server must come first in its file, before those that signed it"
        )


def _check_time(path: str, certificate: x509.Certificate, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise ConfigError(f"the certificate in {path} expired at {ends:%Y-%m-%d %H:%M} UTC: renew it")
    if now < begins:
        raise ConfigError(
            f"the certificate in {path} counts from {begins:%Y-%m-%d %H:%M} UTC on, and here it is "
            f"{now:%Y-%m-%d %H:%M}: is the clock right?"
        )


def _certificate(path: Path) -> x509.Certificate:
    content = _content(path, "certificate")
    try:
        with warnings.catch_warnings(action="ignore"):  # odd dates and numbers in certificates of long ago
            return x509.load_pem_x509_certificates(content)[0]
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE") from (
            error
        )


def _key(path: Path) -> PrivateKeyTypes:
    content = _content(path, "key")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        raise ConfigError(f"others may read or write the key in {path} (mode {mode:04o}): chmod 600 {path}")
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigError(
            f"the key in {path} has a password, which nobody could give at a restart; "
            f"take it away: openssl pkey -in {path} -out KEY, chmod 600 KEY"
        ) from None
    except (ValueError, UnsupportedAlgorithm):  # without their text: it may tell of the content
        raise ConfigError(f"{path} holds no private key in PEM form, which begins with -----BEGIN") from None


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the {what} of TLS in {path}: {error.strerror}") from error
