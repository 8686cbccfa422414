"""A renewed certificate counts without a restart: its files are looked at now and then."""

import logging
import threading
from pathlib import Path

from raysys.config import TlsSettings
from raysys.disk import Stamp, stamp_of
from raysys.errors import ConfigError
from raysys.serving.proxy import give_certificate, put_certificate, read_certificate
from raysys.tls import check_certificate

LOOK_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Renewal:
    """Gives the proxy in front what is new in the files of the certificate. What cannot be served changes nothing."""

    def __init__(self, folder: Path, tls: TlsSettings) -> None:
        """folder: of the head, where the certificate lies as it is now (``proxy.set_front``). Raises ConfigError."""
        self._folder, self._tls = folder, tls
        self._seen, self._is_fresh = self._stamp(), False
        self._problem: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="raysys-tls", daemon=True)

    def start(self) -> None:
        """Look every few seconds from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Give the proxy the certificate if it is new. What fails is said once, and tried again at the next look."""
        try:
            self._look()
        except Exception as error:  # whatever it is, the proxy serves on and the looking must not end
            if str(error) != self._problem:
                log.warning("the certificate that is in use stays: %s", error)
            self._problem = str(error)
        else:
            self._problem = None

    def _look(self) -> None:
        stamp = self._stamp()
        is_new = stamp != self._seen
        if not is_new and not self._is_fresh:
            return
        check_certificate(self._tls)
        content = read_certificate(self._tls)
        if self._stamp() != stamp:  # it is just being written
            return
        give_certificate(self._folder, content)
        put_certificate(self._folder, content)
        # Once more at the next look: a proxy that was just starting in place of the other has read the old one.
        self._seen, self._is_fresh = stamp, is_new

    def _stamp(self) -> tuple[Stamp, Stamp]:
        try:
            return stamp_of(Path(self._tls.certificate)), stamp_of(Path(self._tls.key))
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}, of TLS: {error.strerror}") from error

    def _loop(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.look()
