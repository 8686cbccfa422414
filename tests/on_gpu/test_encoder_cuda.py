"""The transformer encoder on a GPU, over the MiniLM weights: ``pytest -m gpu``."""

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_suite import BLANK, STRANGE, TITLES, EncoderSuite
from torch.profiler import ProfilerActivity, profile

from raysys.encoder.models import find_model
from raysys.encoder.transformer import TransformerEncoder
from raysys.types import Vectors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.model,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

WORDS = ["river", "stone", "light", "forest", "engine", "letter", "harbour", "winter", "signal", "copper", "garden"]
MOST_WORDS = 400  # more than the 256 tokens that are read
COSINE = {"float32": 0.99999, "bfloat16": 0.999}


def load(**settings: object) -> TransformerEncoder:
    return TransformerEncoder(find_model("minilm", None), **settings)  # type: ignore[arg-type]


def mixed(n: int) -> list[str]:
    """Texts of one word to ``MOST_WORDS``, in no order; most are short, as titles are."""
    chance = random.Random(7)
    return [" ".join(chance.choices(WORDS, k=1 + int(MOST_WORDS * chance.random() ** 3))) for _ in range(n)]


TEXTS = [*mixed(300), *STRANGE.values(), *BLANK, *TITLES]
PRESENT = [row for row, text in enumerate(TEXTS) if text not in BLANK]


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Vectors]:
    """The vectors of TEXTS in float32 from the CPU."""
    threads = torch.get_num_threads()
    yield load(device="cpu", dtype="float32", threads=os.cpu_count() or 1).encode(TEXTS, "item")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def in_float32() -> TransformerEncoder:
    return load(device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def in_bfloat16() -> TransformerEncoder:
    return load(device="cuda", dtype="bfloat16")


class TestInFloat32(EncoderSuite):
    @pytest.fixture
    def encoder(self, in_float32: TransformerEncoder) -> TransformerEncoder:
        return in_float32


class TestInBfloat16(EncoderSuite):
    tolerance = 0.01

    @pytest.fixture
    def encoder(self, in_bfloat16: TransformerEncoder) -> TransformerEncoder:
        return in_bfloat16


def assert_near(vectors: Vectors, expected: Vectors, cosine: float) -> None:
    """Row by row; blank texts are zero vectors on both sides."""
    assert (vectors[PRESENT] * expected[PRESENT]).sum(axis=1).min() >= cosine
    assert not np.delete(vectors, PRESENT, axis=0).any()


def test_auto_is_the_gpu_in_a_half_type() -> None:
    encoder = load()
    assert encoder.runtime.name == "torch"
    assert encoder.runtime.pad_to == 8  # what a GPU likes
    assert encoder.runtime.dtype in ("bfloat16", "float16")
    assert encoder.identity == load(device="cpu", dtype="float32").identity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_are_those_of_the_cpu_in_float32(on_cpu: Vectors, dtype: str) -> None:
    assert_near(load(device="cuda", dtype=dtype).encode(TEXTS, "item"), on_cpu, COSINE[dtype])


def test_half_vectors_of_auto_are_those_of_the_cpu_in_float32(on_cpu: Vectors) -> None:
    assert_near(load().encode(TEXTS, "item"), on_cpu, COSINE["bfloat16"])


@pytest.mark.parametrize("batch_tokens", [1, 100, 2_048, 500_000])
def test_order_and_vectors_stay_however_the_texts_are_cut(on_cpu: Vectors, batch_tokens: int) -> None:
    # 1: every text is a batch of its own. 500,000: all are one.
    encoder = load(device="cuda", dtype="float32", batch_tokens=batch_tokens)
    assert_near(encoder.encode(TEXTS, "item"), on_cpu, COSINE["float32"])


def test_tokens_are_those_of_the_cpu(in_float32: TransformerEncoder) -> None:
    counts = load(device="cpu", dtype="float32").count_tokens(TEXTS)
    assert in_float32.count_tokens(TEXTS) == counts
    assert max(counts) == in_float32.identity.max_tokens


def test_threads_may_share_an_encoder(in_float32: TransformerEncoder) -> None:
    expected = in_float32.encode(TEXTS, "item")
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(lambda _: in_float32.encode(TEXTS, "item"), range(12)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def peak_bytes(encoder: TransformerEncoder, texts: list[str]) -> int:
    """The most memory of the GPU in use during a call, beyond what was in use before it."""
    encoder.encode(texts[:10], "item")  # the libraries' own workspaces
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    encoder.encode(texts, "item")
    return torch.cuda.max_memory_allocated() - before


def test_memory_grows_with_the_batch_and_not_with_the_texts() -> None:
    small, large = (load(device="cuda", dtype="bfloat16", batch_tokens=tokens) for tokens in (2_048, 32_768))
    few, many = mixed(1_000), mixed(8_000)
    vector_bytes = 4 * small.identity.dim
    few_bytes = peak_bytes(small, few)
    # Every vector waits on the GPU, and is there twice when the batches are put together.
    assert peak_bytes(small, many) <= few_bytes + 2 * vector_bytes * len(many)
    assert few_bytes < peak_bytes(large, few) / 4


def gpu_work(encoder: TransformerEncoder, texts: list[str], trace: Path) -> list[dict[str, object]]:
    """Kernels and copies of one call, in the order in which they began."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        encoder.encode(texts, "item")
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return sorted((e for e in events if e.get("cat") in ("kernel", "gpu_memcpy")), key=lambda event: event["ts"])


def test_vectors_stay_on_the_gpu_until_the_end(tmp_path: Path) -> None:
    encoder = load(device="cuda", dtype="bfloat16", batch_tokens=4_096)
    texts = mixed(500)
    encoder.encode(texts, "item")
    work = gpu_work(encoder, texts, tmp_path / "trace.json")
    # transformers asks one boolean a batch of the mask; whatever is larger is ours.
    back = [event for event in work if "DtoH" in event["name"] and event["args"]["bytes"] > 1]
    assert [event["args"]["bytes"] for event in back] == [4 * encoder.identity.dim * len(texts)]
    assert back[0] is work[-1]
    assert sum(event["cat"] == "kernel" for event in work) > 100
