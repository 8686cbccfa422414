"""`raysys try`: a query against a handful of texts, by cosine. No server, no data, no index."""

from collections.abc import Sequence

import numpy as np

from raysys.encoder.protocol import Encoder
from raysys.errors import InvalidInput
from raysys.types import Vectors


def nearest_texts(encoder: Encoder, query: str, texts: Sequence[str], n: int) -> list[tuple[str, float]]:
    """The ``n`` texts of highest cosine to the query, best first; of equal ones the first given comes first."""
    if not texts:
        raise InvalidInput("items", "give at least one text to compare with")
    if n < 1:
        raise InvalidInput("n", f"must be 1 or more, but it is {n}")
    scores = _unit(encoder.encode(list(texts), "item")) @ _unit(encoder.encode([query], "query"))[0]
    order = np.argsort(-scores, kind="stable")[:n]
    return [(texts[at], float(scores[at])) for at in order]


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit
