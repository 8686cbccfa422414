"""HAProxy as a head of our own starts it: all of it on loopback but its front, and TLS there where it is wanted.

Serve writes the proxy's configuration and has no setting for either. So Ray is given a wrapper as the proxy's binary,
which changes the lines of the configuration that begin with ``bind``, has requests read whole, and becomes the proxy.
"""

import socket
from collections.abc import Iterable
from pathlib import Path

from raysys.config import TlsSettings
from raysys.disk import replacing
from raysys.errors import Unavailable

FRONT = "front"  # the file with what the front's bind is to say
WRAPPER, CERTIFICATE = "haproxy-on-loopback", "front.pem"
ADMIN = "admin.sock"  # where the proxy takes commands, in a folder that Serve names by the node
ANSWER_S = 5.0
# Only what it has read whole can the proxy send to another gateway where one dies. Of longer bodies than its buffer,
# 16 KiB, it reads so much.
READ_WHOLE = r"s/^( *)option redispatch.*/&\n\1option http-buffer-request/"


def write_wrapper(folder: Path, binary: str, private_ports: Iterable[int]) -> Path:
    """The wrapper around the proxy's ``binary``. ``private_ports``: those that it keeps on loopback.

    A configuration whose front it cannot change it does not serve: in its place would be plain text, or all interfaces.
    """
    wrapper = folder / WRAPPER
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
    put_certificate(folder, read_certificate(tls))
    return f"ssl crt {folder / CERTIFICATE} ssl-min-ver TLSv1.2"


def read_certificate(tls: TlsSettings) -> bytes:
    """Certificate and key, as the proxy wants them in one file. Raises OSError."""
    return b"".join(Path(path).read_bytes().rstrip() + b"\n" for path in (tls.certificate, tls.key))


def put_certificate(folder: Path, content: bytes) -> None:
    """What the proxy reads when it starts, as Serve starts it anew whenever gateways change: a copy, which nobody else
    may read. Of the files themselves one may be broken, or not yet be that of the other, just then."""
    with replacing(folder / CERTIFICATE, mode=0o600) as file:
        file.write(content)


def give_certificate(folder: Path, content: bytes) -> None:
    """Have the proxy that runs show this certificate from the next connection on; those that are open stay.

    Raises Unavailable where none answers, or it does not take it: then it shows the one before.
    """
    found = sorted(folder.glob(f"*/{ADMIN}"))
    if not found:
        raise Unavailable(f"no proxy takes commands under {folder}")
    for admin in found:
        _give(admin, folder / CERTIFICATE, content)


def _give(admin: Path, path: Path, content: bytes) -> None:
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]  # an empty one ends it
    said = _ask(admin, "\n".join([f"set ssl cert {path} <<", *lines, "", ""]))
    if "Transaction created" in said or "Transaction updated" in said:
        said = _ask(admin, f"commit ssl cert {path}\n")
    if "Success" not in said:
        raise Unavailable(f"the proxy does not take the certificate: {' '.join(said.split())}")


def _ask(admin: Path, command: str) -> str:
    """The answer of the proxy to a command."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(admin))
            connection.sendall(command.encode())
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile() as answer:
                return answer.read()
    except OSError as error:
        raise Unavailable(f"the proxy does not answer at {admin}: {error}") from error
