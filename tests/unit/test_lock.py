"""requirements.lock holds what a release needs, within the bounds of the project; the SBOM and the audit read it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
EXTRAS = ("redis", "tracing")  # of a release, as `make lock` names them
ENTRY = re.compile(
    r"^([A-Za-z0-9._-]+)==([^\s;]+)(?: ;[^\n]*?)? ?((?:\\\n    --hash=sha256:[0-9a-f]{64} ?)*)$", re.MULTILINE
)


def locked() -> dict[str, tuple[str, int]]:
    """Package -> (version, number of hashes)."""
    return {
        canonicalize_name(name): (version, hashes.count("sha256:")) for name, version, hashes in ENTRY.findall(LOCK)
    }


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name in EXTRAS for line in project["optional-dependencies"][name]]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


def test_every_line_of_it_is_understood() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(lines) == len(locked()) > 50


def test_every_package_has_a_hash() -> None:
    assert [name for name, (_, hashes) in locked().items() if not hashes] == []


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_every_direct_dependency_is_there_within_its_bounds(requirement: Requirement) -> None:
    version, _ = locked()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_the_versions_are_those_that_the_tests_run_on() -> None:
    pairs = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {canonicalize_name(name): version for name, version in pairs}
    assert {name for name, (version, _) in locked().items() if tested.get(name, version) != version} == set()


def test_it_names_no_place_to_load_from() -> None:
    assert "://" not in LOCK
    assert "index-url" not in LOCK


def test_the_sbom_names_every_package_of_it(tmp_path: Path) -> None:
    tool, out = Path(sys.prefix) / "sbom/bin/cyclonedx-py", tmp_path / "sbom.json"
    if not tool.is_file():
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("cyclonedx-py is not there: make sbom")
    command = [
        "requirements",
        ROOT / "requirements.lock",
        "--pyproject",
        ROOT / "pyproject.toml",
        "--no-validate",
        "-o",
        out,
    ]
    subprocess.run([tool, *map(str, command)], check=True, capture_output=True)
    bom: dict[str, Any] = json.loads(out.read_text())
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["metadata"]["component"]["name"] == "raysys"
    found = {canonicalize_name(part["name"]): part["version"] for part in bom["components"]}
    assert found == {name: version for name, (version, _) in locked().items()}


def audit_lines(report: dict[str, Any]) -> list[str]:
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); import audit; "
    code += "print(json.dumps(audit.lines(sys.stdin.read())))"
    command = [sys.executable, "-c", code, str(ROOT / ".ci")]
    said = subprocess.run(command, input=json.dumps(report), capture_output=True, text=True, check=True)
    return list(json.loads(said.stdout))


def test_the_audit_tells_what_is_known_and_of_how_many_nothing_is() -> None:
    report = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]},
            {"name": "strange", "skip_reason": "not found"},
        ]
    }
    assert audit_lines(report) == [
        "audit: bad 2: PYSEC-1, mended in ['2.1']",
        "audit: 1 known faults in 2 packages; nothing could be learned of 1 others",
    ]


def test_an_audit_without_a_network_says_so_and_passes() -> None:
    nowhere = {
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "PATH": "",
        "HOME": "/nonexistent",
    }
    command = [sys.executable, str(ROOT / ".ci/audit.py")]
    ended = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False, timeout=100)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "could not be asked" in ended.stdout


def test_nothing_that_slows_each_process_of_ray_is_installed_beside_it() -> None:
    """jsonschema, which Ray imports everywhere, loads its checks of formats where it can: .9 s of parser."""
    code = "import sys, ray; print(*(name for name in ('rfc3987_syntax', 'rfc3987', 'lark') if name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []
