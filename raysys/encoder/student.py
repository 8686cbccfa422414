"""A student of another encoder: the mean of static vectors of words and their parts, in numpy and in microseconds.

It stands in for its teacher where that is too slow or away. Each known word, and each pair of neighbours that comes
often, has a vector; of an unknown word its parts have, runs of ``GRAMS`` characters hashed into ``BUCKETS``
(Bojanowski et al., "Enriching Word Vectors with Subword Information", TACL 2017). A text is their sum over the length
of the words' weights, which fall with how common a word is (Arora et al., "A Simple but Tough-to-Beat Baseline for
Sentence Embeddings", ICLR 2017), projected to the dimension of the teacher. How the vectors are found is in
``training.student``.

    student/student.json      whose student it is, and how near it came
    student/keys.npy          [t] uint64, ascending: ``keys.term_key`` of a word, ``pair_keys`` of a pair
    student/weights.npy       [t] float32, how much a word counts; 0 for a pair, which only adds to its words
    student/vectors.npy       [t + BUCKETS + 1, d] float32: of terms, of buckets, and of every text
    student/projection.npy    [d, dim] float32
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.encoder.edges import clean, encode_texts, is_blank
from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.errors import SnapshotError, SnapshotMismatch
from raysys.index.arrays import open_array, save_array
from raysys.keys import term_keys
from raysys.types import Keys, Vectors
from raysys.words import words

FOLDER, ABOUT = "student", "student.json"
GRAMS = (3, 4, 5)  # characters
BUCKETS = 1 << 14

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class About:
    """teacher: the fingerprint of its identity. quality: how near the student came to it, for people."""

    teacher: str
    name: str
    max_tokens: int
    quality: Mapping[str, Any]


class Student:
    """Reads words of any language, but knows only those of its catalogue. The teacher's vectors have length 1."""

    def __init__(self, about: About, keys: Keys, weights: Floats32, vectors: Vectors, projection: Vectors) -> None:
        """The arrays are those of the files; they may be mapped."""
        self.about = about
        self._keys, self._weights, self._vectors, self._projection = keys, weights, vectors, projection
        self.identity = EncoderIdentity(
            name=f"student of {about.name}",
            revision=about.teacher,
            pooling="mean",
            query_prompt="",
            item_prompt="",
            max_tokens=about.max_tokens,
            dim=projection.shape[1],
            normalized=True,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words of each text (characters, where it is Chinese, Japanese or Korean), at most ``max_tokens``."""
        limit = self.identity.max_tokens
        return [0 if is_blank(text) else len(words(clean(text, limit))[:limit]) for text in texts]

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """See ``Encoder.encode``. A text without a letter or digit gets a zero vector too. A text has the same vector
        alone and among others, to the last bit."""
        return encode_texts(texts, role, self.identity, self._forward)

    def encode_counted(self, texts: Sequence[str], role: Role) -> tuple[Vectors, int]:
        """See ``Encoder.encode_counted``."""
        return self.encode(texts, role), sum(self.count_tokens(texts))

    def _forward(self, texts: list[str]) -> Vectors:
        read = [words(text)[: self.identity.max_tokens] for text in texts]
        present = [place for place, found in enumerate(read) if found]
        vectors = np.zeros((len(texts), self.identity.dim), dtype=np.float32)
        if present:
            # One product a text, as a product of many rows would round otherwise than that of one.
            sums = self._sums([read[place] for place in present])
            vectors[present] = np.matmul(sums[:, None, :], self._projection)[:, 0]
        return vectors

    def _sums(self, read: list[list[str]]) -> Vectors:
        """[len(read), d] float32, from the words of each text, of which it has one at least."""
        spoken = list(chain.from_iterable(read))
        ends = np.cumsum([len(found) for found in read])
        rows = self._rows(spoken, ends)
        known = rows >= 0
        taken = rows[known]
        until = np.cumsum(known)[2 * ends - 1].tolist()
        vectors, weights = self._vectors[taken], np.square(self._weights[taken])
        # Text by text, so that the company of a text does not change in what order it is added up.
        between = [slice(start, end) for start, end in pairwise([0, *until])]
        sums = np.array([np.add.reduce(vectors[own]) for own in between])
        squares = np.array([np.add.reduce(weights[own]) for own in between])
        for at in np.flatnonzero(~known[::2]).tolist():
            text = int(np.searchsorted(ends, at, side="right"))
            sums[text] += self._parts(spoken[at])
            squares[text] += 1
        means: Vectors = sums / np.sqrt(squares)[:, None] + self._vectors[-1]
        return means

    def _rows(self, spoken: list[str], ends: NDArray[np.int64]) -> NDArray[np.intp]:
        """[2 * len(spoken)]: the row of each word, and behind it that of its pair with the next one; -1 where it is
        unknown, and behind the last word of each text. ends: where the words of each text end."""
        keys = term_keys(spoken)
        terms = np.zeros(2 * len(keys), dtype=np.uint64)
        terms[::2], terms[1:-1:2] = keys, pair_keys(keys[:-1], keys[1:])
        if not len(self._keys):
            return np.full(len(terms), -1, dtype=np.intp)
        at = np.minimum(np.searchsorted(self._keys, terms), len(self._keys) - 1)
        rows = np.where(self._keys[at] == terms, at, -1)
        rows[2 * ends - 1] = -1
        return rows

    def _parts(self, word: str) -> Vectors:
        """[d] float32: what stands for an unknown word."""
        buckets = len(self._keys) + np.array(grams(word))
        total: Vectors = np.add.reduce(self._vectors[buckets], axis=0) / np.float32(len(buckets) ** 0.5)
        return total

    def save(self, folder: Path) -> None:
        """Write the files into this folder, which exists."""
        (folder / ABOUT).write_text(json.dumps(asdict(self.about), indent=2), encoding="utf-8")
        for name, array in zip(_ARRAYS, self._arrays(), strict=True):
            save_array(folder / f"{name}.npy", array)

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self._keys, self._weights, self._vectors, self._projection

    @classmethod
    def load(cls, folder: Path, teacher: EncoderIdentity) -> "Student":
        """Map what ``save`` wrote. Raises SnapshotError, and SnapshotMismatch where it is a student of another."""
        try:
            about = About(**json.loads((folder / ABOUT).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise SnapshotError(f"the student in {folder} cannot be read: {error}; build it again") from error
        if about.teacher != teacher.fingerprint():
            raise SnapshotMismatch(
                f"the student in {folder} learned from encoder {about.teacher} ({about.name}), and the snapshot is of "
                f"{teacher.fingerprint()} ({teacher.name}); build it again"
            )
        return cls(about, *(open_array(folder / f"{name}.npy") for name in _ARRAYS))


_ARRAYS = ("keys", "weights", "vectors", "projection")


def pair_keys(first: Keys, second: Keys) -> Keys:
    """[n] uint64: the key of each pair of neighbouring words, from theirs. The other way round it is another."""
    return first * _ODD + second


_ODD = np.uint64(0x9E3779B97F4A7C15)


def grams(word: str) -> list[int]:
    """The buckets, in ``range(BUCKETS)``, of the parts of a word; one at least."""
    edged = f"<{word}>"
    parts = (edged[start : start + n] for n in GRAMS for start in range(len(edged) - n + 1))
    return [zlib.crc32(part.encode()) % BUCKETS for part in parts]
