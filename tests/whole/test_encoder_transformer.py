"""The transformer encoder over a two-layer BERT with random weights, made here; no language model, no network."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers  # its classes are imported when they are used: this file alone pays for them
from encoder_suite import TITLES, EncoderSuite
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from raysys.config import EncoderSettings
from raysys.encoder.batching import pad
from raysys.encoder.build import build_encoder, encoder_identity
from raysys.encoder.models import find_model
from raysys.encoder.pooling import pool
from raysys.encoder.runtimes.torch_runtime import compute_dtype, cpu_has_bfloat16
from raysys.encoder.transformer import TransformerEncoder
from raysys.errors import ConfigError, EncoderError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "poison", "The", "Matrix", "Toy", "Story", "Alien", "sea", "sand", "and"]
DIM = 16


def tokenizer(special: bool) -> transformers.PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.normalizer = Replace("...", "")
    if special:
        core.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    # Some published tokenisers come with these; they must not decide how we pad or cut.
    core.enable_padding(length=24)
    core.enable_truncation(8)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )


def save_model(folder: Path, special: bool = True) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[WORDS.index("poison")] = torch.nan
    model.save_pretrained(folder)
    tokenizer(special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-bert")


def load(folder: Path, **settings: object) -> TransformerEncoder:
    defaults: dict[str, object] = {"dtype": "float32", "device": "cpu", "max_tokens": 32}
    return TransformerEncoder(find_model(str(folder), None), **{**defaults, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def in_float32(folder: Path) -> TransformerEncoder:
    return load(folder, batch_tokens=64)


@pytest.fixture(scope="module")
def in_bfloat16(folder: Path) -> TransformerEncoder:
    return load(folder, dtype="bfloat16", pooling="last")


class TestTransformerEncoder(EncoderSuite):
    @pytest.fixture
    def encoder(self, in_float32: TransformerEncoder) -> TransformerEncoder:
        return in_float32


class TestTransformerEncoderInBfloat16(EncoderSuite):
    tolerance = 0.03

    @pytest.fixture
    def encoder(self, in_bfloat16: TransformerEncoder) -> TransformerEncoder:
        return in_bfloat16


def test_identity_of_a_folder(folder: Path) -> None:
    identity = load(folder, pooling="cls", query_prompt="ask: ", normalize=False).identity
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (identity.name, identity.revision) == ("tiny-bert", weights)
    assert (identity.pooling, identity.query_prompt, identity.max_tokens) == ("cls", "ask: ", 32)
    assert (identity.dim, identity.normalized) == (DIM, False)
    assert identity != load(folder, pooling="mean").identity
    assert load(folder, dtype="bfloat16").identity == load(folder).identity


@pytest.mark.parametrize("changes", [{}, {"pooling": "cls", "item_prompt": "i: ", "normalize": False, "max_tokens": 9}])
def test_the_identity_is_told_without_the_model(folder: Path, changes: dict[str, object]) -> None:
    settings = EncoderSettings.model_validate({"model": str(folder), "runtime": "torch", "max_tokens": 32, **changes})
    assert encoder_identity(settings) == build_encoder(settings).identity


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_those_of_the_model_run_by_hand(folder: Path, pooling: str) -> None:
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([[2, 7, 8, 3]])).last_hidden_state[0]
    expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[3]}[pooling].numpy()
    texts = ["sea and sand and sea", "Toy Story"]  # in one batch, so the second is padded
    got = load(folder, pooling=pooling, normalize=False).encode(texts, "item")[1]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_roles_choose_the_prompt(folder: Path) -> None:
    prompted = load(folder, query_prompt="The ", item_prompt="Alien ")
    plain = load(folder)
    np.testing.assert_allclose(prompted.encode(["Matrix"], "query"), plain.encode(["The Matrix"], "query"), atol=1e-5)
    np.testing.assert_allclose(prompted.encode(["Matrix"], "item"), plain.encode(["Alien Matrix"], "item"), atol=1e-5)


def test_counts_include_the_special_tokens_and_stop_at_the_limit(folder: Path) -> None:
    assert load(folder).count_tokens(["Toy Story", "", "sea " * 100]) == [4, 0, 32]


def test_the_token_budget_does_not_change_vectors(folder: Path) -> None:
    small, large = (load(folder, batch_tokens=budget).encode(TITLES * 5, "item") for budget in (1, 10_000))
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_nan_from_the_model_names_the_text(folder: Path) -> None:
    with pytest.raises(EncoderError, match=r"tiny-bert .* text 2 \(1 of 4 texts\)"):
        load(folder).encode(["sea", "", "poison sea", "sand"], "item")


def test_a_text_without_a_token_gets_a_zero_vector(tmp_path: Path) -> None:
    encoder = load(save_model(tmp_path / "bare", special=False))
    assert encoder.count_tokens(["...", "sea"]) == [0, 1]
    vectors = encoder.encode(["...", "sea"], "item")
    assert not vectors[0].any()
    assert vectors[1].any()


def test_threads_may_share_an_encoder(folder: Path) -> None:
    encoder = load(folder)
    expected = encoder.encode(TITLES, "item")
    with ThreadPoolExecutor(4) as pool_of_threads:
        for vectors in pool_of_threads.map(lambda _: encoder.encode(TITLES, "item"), range(20)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_more_tokens_than_the_model_reads_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is 65, but the model reads at most 64"):
        load(folder, max_tokens=65)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EncoderError, match="cannot load"):
        load(tmp_path)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    torch.save(transformers.BertModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ConfigError, match=r"no \.safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("how", "expected"), [("mean", [2.0, 5.0]), ("cls", [1.0, 5.0]), ("last", [3.0, 5.0])])
def test_pooling_by_hand_with_padding_on_either_side(side: str, how: str, expected: list[float]) -> None:
    padding = 99.0
    rows, masks = [[1.0, 2.0, 3.0], [5.0, padding, padding]], [[1, 1, 1], [1, 0, 0]]
    if side == "left":
        rows[1], masks[1] = [padding, padding, 5.0], [0, 0, 1]
    hidden = torch.tensor(rows, dtype=torch.bfloat16).unsqueeze(-1)
    pooled = pool(hidden, torch.tensor(masks), how)  # type: ignore[arg-type]
    assert pooled.dtype == torch.float32
    assert pooled[:, 0].tolist() == expected


@pytest.mark.parametrize("how", ["mean", "cls", "last"])
def test_pooling_of_padding_alone_is_finite(how: str) -> None:
    assert pool(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64), how).isfinite().all()  # type: ignore[arg-type]


def test_padding_by_hand() -> None:
    ids, mask = pad([[7], [8, 9, 10]], pad_id=5, pad_to=4)
    assert ids.tolist() == [[7, 5, 5, 5], [8, 9, 10, 5]]
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert pad([[7]], pad_id=None, pad_to=2)[0].tolist() == [[7, 0]]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx512_bf16": False}, True), ({"avx2": True}, False)],
)
def test_bfloat16_follows_the_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bfloat16() is expected
    assert compute_dtype("auto", torch.device("cpu")) is (torch.bfloat16 if expected else torch.float32)
    assert compute_dtype("float32", torch.device("cpu")) is torch.float32
    assert compute_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_a_torch_that_cannot_say_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_bfloat16() is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        load(folder, device="cuda")
