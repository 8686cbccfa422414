"""Words and texts for the benchmarks. The words are whole tokens of MiniLM, so a text of n words is n + 2 tokens."""

import json
import random
from collections.abc import Iterator

from raysys.encoder.models import minilm_folder

QUERY_WORDS = (4, 10)
ITEM_WORDS = (8, 90)
MIN_LETTERS = 3


def vocabulary() -> list[str]:
    """Some 20,000 English words, in a fixed order."""
    tokenizer = json.loads((minilm_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    return sorted(word for word in words if word.isascii() and word.isalpha() and len(word) >= MIN_LETTERS)


def texts(words: list[str], n_words: tuple[int, int], seed: str) -> Iterator[str]:
    """Random texts without end, the same for the same seed. Two alike are as good as impossible."""
    chance = random.Random(seed)
    while True:
        yield " ".join(chance.choices(words, k=chance.randint(*n_words)))
