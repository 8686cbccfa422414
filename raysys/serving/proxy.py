"""HAProxy as a head of our own starts it: all of it on loopback but its front, and TLS there where it is wanted.

Serve writes the proxy's configuration and has no setting for either. So Ray is given a wrapper as the proxy's binary,
which changes the lines of the configuration that begin with ``bind``, has requests read whole, and becomes the proxy.
"""

from collections.abc import Iterable
from pathlib import Path

from raysys.config import TlsSettings

FRONT = "front"  # the file with what the front's bind is to say
CERTIFICATE = "front.pem"
# Only what it has read whole can the proxy send to another gateway where one dies. Of longer bodies than its buffer,
# 16 KiB, it reads so much.
READ_WHOLE = r"s/^( *)option redispatch.*/&\n\1option http-buffer-request/"


def write_wrapper(folder: Path, binary: str, private_ports: Iterable[int]) -> Path:
    """The wrapper around the proxy's ``binary``. ``private_ports``: those that it keeps on loopback.

    A configuration whose front it cannot change it does not serve: in its place would be plain text, or all interfaces.
    """
    wrapper = folder / "haproxy-on-loopback"
    private = "|".join(map(str, private_ports))
    wrapper.write_text(
        "#!/bin/sh\n"
        f'front=$(cat "{folder / FRONT}" 2>/dev/null)\n'
        'for argument in "$@"; do\n'
        '  case "$argument" in *.cfg)\n'
        f'    sed -i -E "s/^( *bind) \\*?:({private})\\b/\\1 127.0.0.1:\\2/" "$argument"\n'
        f'    sed -i -E "{READ_WHOLE}" "$argument"\n'
        '    [ -n "$front" ] || continue\n'
        '    sed -i -E "/^frontend http_frontend/,/^ *bind /s|^( *bind ).*|\\1$front|" "$argument"\n'
        '    grep -qF "bind $front" "$argument" || { echo "cannot set the front of $argument" >&2; exit 1; }\n'
        "  esac\n"
        "done\n"
        f'exec "{binary}" "$@"\n'
    )
    wrapper.chmod(0o700)
    return wrapper


def set_front(folder: Path, host: str, port: int, tls: TlsSettings | None) -> None:
    """Where the proxy listens for callers from its next start on, and with which certificate."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    (folder / FRONT).write_text(address if tls is None else f"{address} {_with_tls(folder, tls)}")


def _with_tls(folder: Path, tls: TlsSettings) -> str:
    """Links, so that no second copy of the key lies about; the proxy looks for the key beside the certificate."""
    for name, target in ((CERTIFICATE, tls.certificate), (f"{CERTIFICATE}.key", tls.key)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    return f"ssl crt {folder / CERTIFICATE} ssl-min-ver TLSv1.2"
