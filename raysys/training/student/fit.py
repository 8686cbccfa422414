"""The fit of the student: ridge regression of the teacher's vectors on the words of their texts.

The vector of a text is linear in those of its words, pairs and parts of words (``encoder.student``), so the best ones
are the solution of one system, by conjugate gradients (Hestenes and Stiefel, 1952), in the directions in which the
teacher's vectors differ most. There is no chance in it: the same texts give the same student.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from raysys.config import StudentSettings
from raysys.encoder.protocol import EncoderIdentity
from raysys.encoder.student import BUCKETS, About, Student, grams, pair_keys
from raysys.keys import term_keys
from raysys.types import Keys, Vectors
from raysys.words import words

COMMON = 1e-2  # a word that is this share of all words counts half
LEAST_PAIRS = 3  # a pair of neighbours that comes as often is a term
PENALTY = 1.0
ITERATIONS = 10  # more of them change nothing that can be measured
MOST_WORDS = 2_000_000  # read from all texts together: bounds time and memory

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """names: all words and pairs that are read; the first ``n_known`` of them are the terms of the student.

    weights: [len(names)] float32, 0 for pairs.
    """

    names: list[str]
    n_known: int
    weights: Floats

    @classmethod
    def of(cls, read: Sequence[Sequence[str]], most: int) -> "Vocabulary":
        """The words of these texts and their pairs. most: terms, the commonest."""
        word_counts = Counter(chain.from_iterable(read))
        pair_counts = Counter(chain.from_iterable(map(pairs, read)))
        counts = word_counts | Counter({pair: n for pair, n in pair_counts.items() if n >= LEAST_PAIRS})
        names = [name for name, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))]
        known, rest = names[:most], [name for name in names[most:] if name in word_counts]
        n_words = max(sum(word_counts.values()), 1)
        weight = {name: COMMON / (COMMON + n / n_words) for name, n in word_counts.items()} | dict.fromkeys(rest, 1.0)
        names = known + rest
        return cls(names, len(known), np.array([weight.get(name, 0.0) for name in names], dtype=np.float32))

    def counts(self, read: Sequence[Sequence[str]]) -> sp.csr_array:
        """[n, len(names)] float32: how often each text has each name, over the length of the weights of its words."""
        place = {name: number for number, name in enumerate(self.names)}
        columns, starts = [], [0]
        for found in read:
            columns += [place[name] for name in chain(found, pairs(found)) if name in place]
            starts.append(len(columns))
        table = sp.csr_array((np.ones(len(columns), np.float32), columns, starts), shape=(len(read), len(place)))
        table.sum_duplicates()
        lengths = np.sqrt(table @ np.square(self.weights))
        inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return (sp.diags_array(inverse) @ table).tocsr().astype(np.float32)

    def parts(self) -> sp.csr_array:
        """[len(names), n_known + BUCKETS] float32: what the sum of a name is made of. Its own vector, where it is a
        term, and where it is a word the vectors of its parts; both as much as the word counts."""
        rows, columns, values = [], [], []
        for row, (name, weight) in enumerate(zip(self.names, self.weights.tolist(), strict=True)):
            if row < self.n_known:
                rows.append(row)
                columns.append(row)
                values.append(weight or 1.0)
            if weight:
                buckets = grams(name)
                rows += [row] * len(buckets)
                columns += [self.n_known + bucket for bucket in buckets]
                values += [weight / len(buckets) ** 0.5] * len(buckets)
        shape = (len(self.names), self.n_known + BUCKETS)
        return sp.coo_array((np.array(values, np.float32), (rows, columns)), shape=shape).tocsr()


def fit(texts: Sequence[str], vectors: Vectors, settings: StudentSettings, teacher: EncoderIdentity) -> Student:
    """vectors: [len(texts), dim] float32, what the teacher makes of the texts, of which there is one at least. Those
    behind the first ``MOST_WORDS`` words are left out."""
    read = _read(texts, teacher.max_tokens)
    vectors = vectors[: len(read)]
    vocabulary = Vocabulary.of(read, settings.terms)
    counts, parts = vocabulary.counts(read), vocabulary.parts()
    projection = directions(vectors, settings.dim)
    solved, base = ridge(counts, parts, vectors @ projection.T)
    return _student(vocabulary, parts @ solved, solved, base, projection, teacher)


def _read(texts: Sequence[str], max_words: int) -> list[list[str]]:
    read: list[list[str]] = []
    n_words = 0
    for text in texts:
        read.append(words(text)[:max_words])
        n_words += len(read[-1])
        if n_words > MOST_WORDS:
            break
    return read


def directions(vectors: Vectors, dim: int) -> Vectors:
    """[at most dim, teacher's dim] float32, orthonormal: the mean of the vectors, and where they differ most."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean.astype(np.float32)
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    basis, _ = np.linalg.qr(np.column_stack([mean, axes[:, ::-1][:, : dim - 1]]))
    return np.ascontiguousarray(basis.T, dtype=np.float32)


def ridge(counts: sp.csr_array, parts: sp.csr_array, wanted: Vectors) -> tuple[Vectors, Floats]:
    """([f, d], [d]) float32, x and b of the least ``|counts @ parts @ x + b - wanted|^2 + PENALTY |x|^2``."""
    back, back_parts = counts.T.tocsr(), parts.T.tocsr()
    n = np.float32(len(wanted))

    def apply(x: Vectors) -> Vectors:
        """The last row of x is b."""
        made = counts @ (parts @ x[:-1]) + x[-1]
        return np.vstack([back_parts @ (back @ made) + PENALTY * x[:-1], made.sum(axis=0)])

    target = np.vstack([back_parts @ (back @ wanted), wanted.sum(axis=0)])
    scale = np.append(back_parts.power(2) @ (back.power(2) @ np.ones(len(wanted), np.float32)) + PENALTY, n)
    solved = conjugate_gradients(apply, target, scale.astype(np.float32), ITERATIONS)
    return solved[:-1], solved[-1]


def conjugate_gradients(
    apply: Callable[[Vectors], Vectors], target: Vectors, scale: Floats, iterations: int
) -> Vectors:
    """x, like target [f, d] float32, each column for itself, with ``apply(x)`` near it.

    apply: a symmetric positive operator. scale: [f], about its diagonal.
    """
    x = np.zeros_like(target)
    residual = target.copy()
    towards = residual / scale[:, None]
    step, gain = towards.copy(), (residual * towards).sum(axis=0)
    for _ in range(iterations):
        moved = apply(step)
        length = gain / np.maximum((step * moved).sum(axis=0), _TINY)
        x += length * step
        residual -= length * moved
        towards = residual / scale[:, None]
        last, gain = gain, (residual * towards).sum(axis=0)
        step = towards + (gain / np.maximum(last, _TINY)) * step
    return x


_TINY = np.float32(1e-30)


def _student(
    vocabulary: Vocabulary,
    sums: Vectors,
    solved: Vectors,
    base: Floats,
    projection: Vectors,
    teacher: EncoderIdentity,
) -> Student:
    """What serves: of a known word one vector that holds its parts."""
    n_known = vocabulary.n_known
    keys = _keys(vocabulary.names[:n_known])
    order = np.argsort(keys)
    vectors = np.vstack([sums[:n_known][order], solved[n_known:], base])
    about = About(teacher.fingerprint(), teacher.name, teacher.max_tokens, {})
    return Student(about, keys[order], vocabulary.weights[:n_known][order], vectors, projection)


def pairs(found: Sequence[str]) -> Iterator[str]:
    """The names of neighbouring words: the two with a space between, which no word has inside."""
    return (f"{one} {other}" for one, other in pairwise(found))


def _keys(names: Sequence[str]) -> Keys:
    """[len(names)] uint64: the keys of words and pairs."""
    first, second = (term_keys(parts) for parts in zip(*(name.partition(" ")[::2] for name in names), strict=True))
    is_pair = np.array([" " in name for name in names])
    return np.where(is_pair, pair_keys(first, second), first)
