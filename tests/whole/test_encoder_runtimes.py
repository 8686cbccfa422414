"""The runtimes behind the transformer encoder: the same vectors, what is refused, and what is measured once."""

import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_suite import TITLES, EncoderSuite
from test_encoder_transformer import DIM, load, save_model

from raysys.encoder.batching import TokenBatch
from raysys.encoder.models import file_sha256
from raysys.encoder.runtimes import choose as choosing
from raysys.encoder.runtimes import exported as exporting
from raysys.encoder.runtimes.choose import choices
from raysys.encoder.runtimes.openvino_runtime import OpenVinoRuntime
from raysys.encoder.runtimes.sample import FLOORS, Sample, texts
from raysys.encoder.transformer import TransformerEncoder
from raysys.errors import ConfigError, EncoderError
from raysys.types import Vectors

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def in_openvino(folder: Path, cache: Path) -> TransformerEncoder:
    return load(folder, runtime="openvino", cache=cache, batch_tokens=64)


@pytest.fixture(scope="module")
def in_onnxruntime(folder: Path, cache: Path) -> TransformerEncoder:
    return load(folder, runtime="onnxruntime", cache=cache, batch_tokens=64)


class TestOpenVino(EncoderSuite):
    @pytest.fixture
    def encoder(self, in_openvino: TransformerEncoder) -> TransformerEncoder:
        return in_openvino


class TestOnnxRuntime(EncoderSuite):
    @pytest.fixture
    def encoder(self, in_onnxruntime: TransformerEncoder) -> TransformerEncoder:
        return in_onnxruntime


class TestOpenVinoInInt8(EncoderSuite):
    tolerance = 0.03

    @pytest.fixture
    def encoder(self, folder: Path, cache: Path) -> TransformerEncoder:
        return load(folder, runtime="openvino", dtype="int8", cache=cache)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_vectors_and_identity_are_those_of_torch(folder: Path, cache: Path, runtime: str, pooling: str) -> None:
    ours = load(folder, runtime=runtime, cache=cache, pooling=pooling, normalize=False)
    reference = load(folder, pooling=pooling, normalize=False)
    np.testing.assert_allclose(ours.encode(TITLES * 3, "item"), reference.encode(TITLES * 3, "item"), atol=1e-5)
    assert (ours.runtime.name, ours.identity) == (runtime, reference.identity)


def test_int8_is_a_model_of_its_own(folder: Path, cache: Path) -> None:
    rounded = load(folder, runtime="auto", dtype="int8", cache=cache)
    exact = load(folder)
    assert (rounded.runtime.name, rounded.runtime.dtype) == ("openvino", "int8")
    assert rounded.identity.revision == exact.identity.revision + "+int8-2"
    cosines = (rounded.encode(TITLES, "item") * exact.encode(TITLES, "item")).sum(axis=1)
    assert FLOORS["int8"] <= cosines.min() < 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"runtime": "torch", "dtype": "int8"}, "torch does not compute here; set encoder.runtime to openvino"),
        ({"runtime": "onnxruntime", "dtype": "int8"}, "int8, but onnxruntime computes in float32"),
        ({"runtime": "onnxruntime", "dtype": "bfloat16"}, "bfloat16, but onnxruntime computes in float32"),
    ],
)
def test_what_a_runtime_does_not_compute_is_refused(
    folder: Path, cache: Path, settings: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load(folder, cache=cache, **settings)


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_missing_package_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'raysys\["):
        load(folder, runtime=package, cache=cache)


class Turned:
    """A runtime whose vectors are those of another, turned by the angle of a given cosine."""

    name, batch_tokens, pad_to = "openvino", 64, 1

    def __init__(self, vectors: Vectors, cosine: float, dtype: str) -> None:
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        aside = np.roll(units, 1, axis=1)
        aside -= (aside * units).sum(axis=1, keepdims=True) * units
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        self._vectors = (cosine * units + np.sqrt(1 - cosine**2) * aside).astype(np.float32)
        self.dtype = dtype

    def embed(self, batches: Iterable[TokenBatch]) -> Vectors:
        return self._vectors[np.concatenate([batch.ids[:, 0] for batch in batches])]


@pytest.mark.parametrize(
    ("dtype", "cosine", "passes"),
    [
        ("float32", 0.9995, True),
        ("bfloat16", 0.9985, False),
        ("int8", 0.9985, True),
        ("int8", 0.975, False),
    ],
)
def test_vectors_too_far_from_float32_are_refused_with_both_numbers(dtype: str, cosine: float, passes: bool) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    sample = Sample([[row] for row in range(20)], vectors)
    runtime = Turned(vectors, cosine, dtype)
    assert sample.min_cosine(runtime) == pytest.approx(cosine, abs=1e-5)
    if passes:
        sample.check(runtime)
        return
    with pytest.raises(EncoderError, match=rf"{dtype} .* {cosine:.4f}, and {FLOORS[dtype]} is the least"):
        sample.check(runtime)


def test_vectors_that_are_no_numbers_are_refused() -> None:
    sample = Sample([[0], [1]], np.eye(2, dtype=np.float32))
    runtime = Turned(np.eye(2, dtype=np.float32), 1.0, "float32")
    runtime._vectors[1] = np.nan
    with pytest.raises(EncoderError, match=r"float32 is 0\.0000"):
        sample.check(runtime)


def test_the_sample_is_32_texts_of_many_lengths() -> None:
    lengths = [len(text.split()) for text in texts()]
    assert (len(lengths), min(lengths), max(lengths)) == (32, 1, 74)


def test_a_sample_is_read_as_it_was_written(tmp_path: Path) -> None:
    sample = Sample([[1, 2, 3], [4], [5, 0]], np.arange(6, dtype=np.float32).reshape(3, 2), pad_id=None)
    sample.save(tmp_path / "sample.npz")
    read = Sample.load(tmp_path / "sample.npz")
    assert (read.tokens, read.pad_id) == (sample.tokens, None)
    np.testing.assert_array_equal(read.vectors, sample.vectors)


@pytest.fixture
def own_cache(in_openvino: TransformerEncoder, cache: Path, tmp_path: Path) -> Path:
    """The exported model without what was measured."""
    return Path(shutil.copytree(cache, tmp_path / "encoders", ignore=shutil.ignore_patterns(choosing.FOLDER)))


def exported_folder(cache: Path) -> Path:
    (found,) = (path.parent for path in cache.glob(f"*/{exporting.MODEL}"))
    return found


def test_a_model_is_exported_once_and_again_when_its_file_is_damaged(folder: Path, tmp_path: Path) -> None:
    expected = load(folder, runtime="openvino", cache=tmp_path).encode(TITLES, "item")
    model = exported_folder(tmp_path) / exporting.MODEL
    made = model.stat().st_mtime_ns
    load(folder, runtime="onnxruntime", cache=tmp_path)
    assert model.stat().st_mtime_ns == made
    model.write_bytes(model.read_bytes()[:-100])
    np.testing.assert_allclose(load(folder, runtime="openvino", cache=tmp_path).encode(TITLES, "item"), expected)
    assert model.stat().st_mtime_ns != made
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.parent.name]  # nothing unfinished stays


def test_a_cache_that_cannot_be_written_is_named_and_auto_goes_on_in_torch(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EncoderError, match="cannot write the exported model"):
        load(folder, runtime="openvino", cache=tmp_path / "file")
    assert load(folder, runtime="auto", cache=tmp_path / "file").runtime.name == "torch"
    assert "the encoder runs in torch" in caplog.text


def test_a_model_that_cannot_be_traced_runs_in_torch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent control flow")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(EncoderError, match="cannot be exported to ONNX: data-dependent control flow"):
        load(folder, runtime="openvino", cache=tmp_path)
    assert load(folder, runtime="auto", cache=tmp_path).runtime.name == "torch"
    assert "the encoder runs in torch: the model cannot be exported" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_runtime_cannot_read_names_the_model(own_cache: Path, folder: Path) -> None:
    for model in own_cache.glob(f"*/{exporting.MODEL}"):  # one for each pooling
        model.write_bytes(b"not a graph")
        (model.parent / exporting.DIGESTS).write_text(json.dumps({exporting.MODEL: file_sha256(model)}))
    for runtime in ("openvino", "onnxruntime"):
        with pytest.raises(EncoderError, match=f"{runtime} cannot compute tiny-bert"):
            load(folder, runtime=runtime, cache=own_cache)


def test_auto_measures_once_and_keeps_what_it_found(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        first = load(folder, runtime="auto", cache=own_cache)
    (choice,) = choices(own_cache)
    assert set(choice.measured) == {"torch", "openvino", "onnxruntime"}
    assert choice.chosen == first.runtime.name == max(choice.measured, key=lambda n: choice.measured[n].texts_per_s)
    assert all(it.min_cosine > FLOORS["float32"] for it in choice.measured.values())
    assert caplog.text.count(f"encoder runtime of {choice}") == 1
    monkeypatch.setattr(choosing, "_measure", lambda *_: pytest.fail("measured again"))
    assert load(folder, runtime="auto", cache=own_cache).runtime.name == first.runtime.name


@pytest.mark.parametrize("content", ["{", '{"chosen": "abacus", "model": "", "measured": {}}', "[]"])
def test_a_choice_that_cannot_be_read_is_made_again(folder: Path, own_cache: Path, content: str) -> None:
    load(folder, runtime="auto", cache=own_cache)
    (file,) = (own_cache / choosing.FOLDER).iterdir()
    file.write_text(content)
    load(folder, runtime="auto", cache=own_cache)
    assert json.loads(file.read_text())["chosen"] in choosing.PACKAGES


def test_auto_leaves_out_a_runtime_that_fails(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: OpenVinoRuntime, batches: Iterable[TokenBatch]) -> Vectors:
        return np.ones((sum(len(batch.ids) for batch in batches), DIM), dtype=np.float32)

    monkeypatch.setattr(OpenVinoRuntime, "embed", refuse)
    assert load(folder, runtime="auto", cache=own_cache).runtime.name != "openvino"
    (choice,) = choices(own_cache)
    assert "is the least allowed" in str(choice.measured["openvino"].error)


def test_auto_is_torch_at_no_cost_where_nothing_else_is_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(choosing, "find_spec", lambda name: None if name == "onnx" else real(name))
    assert load(folder, runtime="auto", cache=tmp_path).runtime.name == "torch"
    assert not list(tmp_path.iterdir())


def test_tokens_are_counted_in_the_one_pass_that_encodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(folder, item_prompt="sea ")
    calls: list[list[str]] = []
    tokenize = encoder._tokenize
    monkeypatch.setattr(encoder, "_tokenize", lambda texts: (calls.append(texts), tokenize(texts))[1])
    vectors, n_tokens = encoder.encode_counted(["Toy Story", "", "sea " * 100], "item")
    assert len(calls) == 1
    assert n_tokens == 5 + 0 + 32
    np.testing.assert_array_equal(vectors, encoder.encode(["Toy Story", "", "sea " * 100], "item"))
