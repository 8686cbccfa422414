"""The layers, and Ray at the rim: walks every import of the package."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "raysys"

# Lower number = lower layer. A module may import from its own layer or below.
LAYERS = {
    "": 0,  # raysys/__init__.py
    "errors": 0,
    "types": 0,
    "disk": 0,
    "keys": 0,
    "words": 0,
    "clock": 0,
    "trace": 0,
    "pressure": 0,
    "config": 1,
    "access": 1,
    "tls": 1,
    "data": 2,
    "encoder": 2,
    "index": 2,
    "state": 2,
    "profile": 3,
    "recall": 3,
    "ranking": 3,
    "lookup": 4,
    "tastes": 4,
    "arrange": 4,
    "explain": 4,
    "recommender": 4,
    "in_process": 4,
    "training": 4,
    "publishing": 4,
    "evaluation": 4,
    "privacy": 4,
    "serving": 5,
    "client": 6,
    "doctor": 6,
    "trial": 6,
    "demo": 7,
    "snapshots": 7,
    "cli": 7,
}
RAY_ALLOWED = ("raysys/serving/", "raysys/training/distributed/", "jobs/")
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


@cache
def imported(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def layer_of(module: str) -> int:
    parts = module.split(".")
    return LAYERS[parts[1] if len(parts) > 1 else ""]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_file_is_walked() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_ray_stays_at_the_rim(path: Path) -> None:
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imported(path))
    relative = path.relative_to(ROOT).as_posix()
    assert not uses_ray or relative.startswith(RAY_ALLOWED), f"{relative} imports ray"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    own = layer_of(module_of(path))
    for name in imported(path):
        if name == "raysys" or name.startswith("raysys."):
            assert layer_of(name) <= own, f"{module_of(path)} (layer {own}) imports {name} (layer {layer_of(name)})"


def test_only_one_module_imports_faiss() -> None:
    users = [path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py") if "faiss" in imported(path)]
    assert users == ["raysys/index/vector_index.py"]


def test_open_telemetry_is_an_option() -> None:
    def users(what: str) -> list[str]:
        found = [path for path in FILES if any(name.startswith(what) for name in imported(path))]
        return [path.relative_to(ROOT).as_posix() for path in found]

    assert users("opentelemetry") == ["raysys/serving/spans.py"]
    assert users("raysys.serving.spans") == ["raysys/serving/front.py"]


def test_pyjwt_is_an_option() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in FILES if any(n.startswith("jwt") for n in imported(path))}
    assert users == {"raysys/serving/jwks.py", "raysys/serving/tokens.py"}
    takers = {path.name for path in FILES if imported(path) & {"raysys.serving.jwks", "raysys.serving.tokens"}}
    assert takers == {"tokens.py", "guard.py"}


def test_nothing_unpickles() -> None:
    for path in FILES:
        assert not imported(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, path
        assert "torch.load" not in path.read_text(encoding="utf-8"), path
