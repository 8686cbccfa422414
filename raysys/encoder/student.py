"""A student of another encoder: the mean of static vectors of words and their parts, in numpy and in microseconds.

It stands in for its teacher where that is too slow or away. Each known word, and each pair of neighbours that comes
often, has a vector; of an unknown word its parts have, runs of ``GRAMS`` characters hashed into ``BUCKETS``
(Bojanowski et al., "Enriching Word Vectors with Subword Information", TACL 2017). A text is their sum over the length
of the words' weights, which fall with how common a word is (Arora et al., "A Simple but Tough-to-Beat Baseline for
Sentence Embeddings", ICLR 2017), projected to the dimension of the teacher. How the vectors are found is in
``training.student``.

    student/student.json      whose student it is, and how near it came
    student/keys.npy          [t] uint64, ``keys.term_key`` of each term, ascending
    student/weights.npy       [t] float32, how much a word counts; 0 for a pair, which only adds to its words
    student/vectors.npy       [t + BUCKETS + 1, d] float32: of terms, of buckets, and of every text
    student/projection.npy    [d, dim] float32
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
        terms = [[*found, *pairs(found)] for found in read]
        rows = self._rows(list(chain.from_iterable(terms)))
        known = rows >= 0
        ends = np.cumsum([len(each) for each in terms])
        until = np.cumsum(known)[ends - 1].tolist()
        vectors, squares = self._vectors[rows[known]], np.square(self._weights[rows[known]])
        # Text by text, so that the company of a text does not change in what order it is added up.
        between = list(pairwise([0, *until]))
        sums = np.stack([np.add.reduce(vectors[start:end], axis=0) for start, end in between])
        lengths = np.array([np.add.reduce(squares[start:end]) for start, end in between])
        for text, word in _unknown_words(read, terms, known, ends):
            sums[text] += self._parts(word)
            lengths[text] += 1
        means: Vectors = sums / np.sqrt(lengths)[:, None] + self._vectors[-1]
        return means

    def _rows(self, terms: list[str]) -> NDArray[np.intp]:
        """[len(terms)]: the rows of the terms, -1 for unknown ones."""
        keys = term_keys(terms)
        if not len(self._keys):
            return np.full(len(keys), -1, dtype=np.intp)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, at, -1)

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


def _unknown_words(
    read: Sequence[Sequence[str]],
    terms: Sequence[Sequence[str]],
    known: NDArray[np.bool_],
    ends: NDArray[np.int64],
) -> Iterator[tuple[int, str]]:
    """Text and word, in their order. known: of the terms of all texts; ends: where those of each text end."""
    missing = np.flatnonzero(~known)
    texts = np.searchsorted(ends, missing, side="right")
    for text, at in zip(texts.tolist(), (missing - ends[texts]).tolist(), strict=True):
        place = at + len(terms[text])
        if place < len(read[text]):
            yield text, read[text][place]


def pairs(found: Sequence[str]) -> Iterator[str]:
    """Neighbouring words as one term."""
    return (f"{one} {other}" for one, other in pairwise(found))


def grams(word: str) -> list[int]:
    """The buckets, in ``range(BUCKETS)``, of the parts of a word; one at least."""
    edged = f"<{word}>"
    parts = (edged[start : start + n] for n in GRAMS for start in range(len(edged) - n + 1))
    return [zlib.crc32(part.encode()) % BUCKETS for part in parts]
