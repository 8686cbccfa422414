import subprocess
import sys

import numpy as np
import pytest
from encoder_suite import EncoderSuite

from raysys.encoder.hashing import HashEncoder
from raysys.words import words


class TestHashEncoder(EncoderSuite):
    @pytest.fixture
    def encoder(self) -> HashEncoder:
        return HashEncoder(dim=128, max_tokens=64)


def cosine(a: str, b: str) -> float:
    first, second = HashEncoder(dim=4_096).encode([a, b], "item")
    return float(first @ second)


def test_words_are_folded_and_cjk_characters_stand_alone() -> None:
    assert words("Ｔoy STORY-2, 电影 Straße") == ["toy", "story", "2", "电", "影", "strasse"]


def test_more_words_in_common_are_nearer() -> None:
    same, near, far = (
        cosine("space war film", other) for other in ("film war space", "space war drama", "cooking lesson")
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > 0.4 > 0.1 > abs(far)


def test_parts_of_words_count() -> None:
    assert cosine("detectives", "detective") > 0.3
    assert cosine("我喜欢看电影", "电影院") > 0.2
    assert cosine("电影", "影电") < cosine("电影", "电影票")


def test_repeating_a_word_counts_less_than_in_proportion() -> None:
    encoder = HashEncoder(dim=4_096, normalize=False)
    once, often = np.linalg.norm(encoder.encode(["sea", "sea " * 50], "item"), axis=1)
    assert once < often < 6 * once


def test_prompts_are_part_of_identity_and_vector() -> None:
    plain, prompted = HashEncoder(), HashEncoder(query_prompt="film: ")
    assert plain.identity.fingerprint() != prompted.identity.fingerprint()
    assert not np.array_equal(plain.encode(["sea"], "query"), prompted.encode(["sea"], "query"))
    assert np.array_equal(plain.encode(["sea"], "item"), prompted.encode(["sea"], "item"))


def test_vectors_are_the_same_in_another_process() -> None:
    code = (
        "from raysys.encoder.hashing import HashEncoder\n"
        "import sys\n"
        "print(HashEncoder(8).encode(['Toy Story 电影'], 'item').tobytes().hex())\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    here = HashEncoder(8).encode(["Toy Story 电影"], "item").tobytes().hex()
    assert result.stdout.split() == [here, "False"]
