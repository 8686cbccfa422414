"""Certificates that sign themselves, for tests."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from raysys.config import TlsSettings


def make_certificate(
    folder: Path,
    address: str = "127.0.0.1",
    begins: datetime | None = None,
    days: float = 1.0,
    password: bytes | None = None,
) -> TlsSettings:
    """A certificate for this address, and its key of mode 0600, as files in a fresh folder."""
    folder.mkdir()
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raysys test")])
    first = datetime.now(UTC) - timedelta(minutes=1) if begins is None else begins
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(first + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    form = NoEncryption() if password is None else BestAvailableEncryption(password)
    (folder / "tls.key").touch(mode=0o600)
    (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form))
    return TlsSettings(certificate=str(folder / "tls.crt"), key=str(folder / "tls.key"))
