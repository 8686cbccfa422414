"""The stage of the build around the fit of the student: texts and vectors in, the student's files out."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.clock import Clock
from raysys.config import StudentSettings
from raysys.encoder.protocol import Encoder
from raysys.encoder.student import FOLDER, Student
from raysys.encoder.vectors import KEY
from raysys.keys import seed_of, text_key
from raysys.training.items import TEXT
from raysys.training.plan import BuildPlan
from raysys.training.student.fit import fit
from raysys.training.student.queries import queries
from raysys.types import TextKeys, Vectors
from raysys.words import words

LEAST_TEXTS = 100  # of fewer no student is made: there is little to learn, and the encoder is soon done with them
MOST_HELD_OUT = 1_000  # about
TEXTS_PER_CALL = 512
COMPARED_AT_ONCE = 64
NEAREST = 10


@dataclass(frozen=True, eq=False)
class Lessons:
    """texts: with their vectors, [n, dim] float32. asked: the same of queries made of them."""

    texts: list[str]
    vectors: Vectors
    asked: list[str]
    asked_vectors: Vectors


def fit_student(plan: BuildPlan, encoder: Encoder, clock: Clock) -> dict[str, Any]:
    """Fit a student on the settled items, whose texts are encoded, and leave it for ``publish``.

    Returns the report on it: ``why_not`` alone where none is made.
    """
    settings = plan.settings.student
    assert settings is not None  # noqa: S101  # nobody asks without
    if not encoder.identity.normalized:
        return {"why_not": "the encoder's vectors are of any length (encoder.normalize), and its would have length 1"}
    lessons = _lessons(plan, encoder, settings, clock)
    if min(len(lessons.texts), len(lessons.asked)) < LEAST_TEXTS:
        found = f"{len(lessons.texts):,} texts and {len(lessons.asked):,} queries made of them"
        return {"why_not": f"there are {found}, and {LEAST_TEXTS} of each are the least to learn from"}
    student, quality = taught(lessons, encoder, settings)
    student.about = replace(student.about, quality=quality)
    student.save(plan.staged(FOLDER))
    return quality


def publish(plan: BuildPlan) -> None:
    """Put the student into the snapshot, where one was fitted."""
    folder = plan.staging / FOLDER
    if folder.is_dir() and plan.held_out is None:  # what is fitted without some events is asked by events alone
        shutil.copytree(folder, plan.snapshot / FOLDER)


def taught(lessons: Lessons, encoder: Encoder, settings: StudentSettings) -> tuple[Student, dict[str, Any]]:
    """The student, and how near it comes to its teacher for queries that it did not learn from."""
    identity = encoder.identity
    held = np.array([is_held_out(text, len(lessons.asked)) for text in lessons.asked])
    learned = [text for text, is_held in zip(lessons.asked, held.tolist(), strict=True) if not is_held]
    texts, vectors = learned, lessons.asked_vectors[~held]
    if identity.query_prompt == identity.item_prompt:  # else an item's vector is not what a query would get
        texts, vectors = texts + lessons.texts, np.concatenate([vectors, lessons.vectors])
    student = fit(texts, vectors, settings, identity)
    made = student.encode([lessons.asked[place] for place in np.flatnonzero(held)], "query")
    figures = nearness(made, lessons.asked_vectors[held], lessons.vectors)
    return student, {"texts": len(lessons.texts), "queries": len(learned), "held_out": int(held.sum()), **figures}


def is_held_out(query: str, n_queries: int) -> bool:
    """Whether it is not learned from, for its words: about a tenth of the queries, ``MOST_HELD_OUT`` of many."""
    return seed_of(" ".join(words(query))) % max(10, n_queries // MOST_HELD_OUT) == 0


def nearness(made: Vectors, wanted: Vectors, items: Vectors) -> dict[str, float]:
    """``cosine``: the mean of those of the student's vectors to the teacher's, [n, dim] float32. ``overlap@10``: the
    mean share of the teacher's ten nearest items, [m, dim] float32, that are among the student's."""
    found = zip(_nearest(made, items), _nearest(wanted, items), strict=True)
    shared = [len(np.intersect1d(one, other)) / NEAREST for one, other in found]
    cosine = float(np.einsum("nd,nd->n", made, wanted).mean())
    return {"cosine": round(cosine, 4), f"overlap@{NEAREST}": round(float(np.mean(shared)), 4)}


def _nearest(asked: Vectors, items: Vectors) -> Iterator[NDArray[np.intp]]:
    """The rows of the items with the highest products, in any order, for each query."""
    for start in range(0, len(asked), COMPARED_AT_ONCE):
        products = asked[start : start + COMPARED_AT_ONCE] @ items.T
        yield from np.argpartition(-products, NEAREST, axis=1)[:, :NEAREST]


def _lessons(plan: BuildPlan, encoder: Encoder, settings: StudentSettings, clock: Clock) -> Lessons:
    """Of each different text one; the keys, which are hashes, say which and in what order."""
    by_key: dict[bytes, str] = {}
    for path in sorted(plan.staged("settled").glob("*.parquet")):
        table = pq.read_table(path, columns=["text_key", TEXT])
        by_key |= zip(table["text_key"].to_pylist(), table[TEXT].to_pylist(), strict=True)
        by_key = dict(sorted(by_key.items())[: settings.texts])
    texts, vectors = list(by_key.values()), plan.embeddings(encoder.identity).load(_array([*by_key]))
    asked, asked_vectors = _encoded(plan, encoder, queries(texts, settings.queries, settings.seed), settings, clock)
    return Lessons(texts, vectors, asked, asked_vectors)


def _encoded(
    plan: BuildPlan, encoder: Encoder, asked: Sequence[str], settings: StudentSettings, clock: Clock
) -> tuple[list[str], Vectors]:
    """The queries with a vector, in their order: of earlier builds, and those that there is time to encode."""
    store = plan.embeddings(encoder.identity)
    keys = {text_key(f"{encoder.identity.fingerprint()}/query", text): text for text in asked}
    known = store.holds(_array([*keys]))
    done = {key for key, is_done in zip(keys, known, strict=True) if is_done}
    todo = [key for key in keys if key not in done]
    end_s = clock.monotonic_s() + settings.seconds
    for start in range(0, len(todo), TEXTS_PER_CALL):
        if clock.monotonic_s() >= end_s:
            break
        part = todo[start : start + TEXTS_PER_CALL]
        store.write(part, encoder.encode([keys[key] for key in part], "query"))
        done |= set(part)
    kept = [key for key in keys if key in done]
    return [keys[key] for key in kept], store.load(_array(kept))


def _array(keys: Sequence[bytes]) -> TextKeys:
    return np.array(keys, dtype=KEY)
