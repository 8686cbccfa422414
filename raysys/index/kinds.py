"""The kinds of index: how vectors are laid out, as what they are kept, what that takes, and how hard it is searched.

A kind is named by its layout and its codes: ``ivf_sq8`` has lists of 8-bit numbers.

    flat  every vector is looked at                  fp32    the vectors themselves (no suffix)
    ivf   inverted lists around k-means centres      fp16    half-precision numbers
    hnsw  a graph of near neighbours                 sq8     8 bits a dimension (scalar quantisation)
                                                     pq      4 bits for two dimensions (product quantisation, fast scan)
                                                     rabitq  1 bit a dimension (Gao & Long 2024)

What codes find is compared once more by the shard's own vectors, which are memory-mapped (``Effort.refined``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from raysys.config import IndexKind as Kind
from raysys.errors import InvalidInput

KINDS: tuple[Kind, ...] = get_args(Kind)

HNSW_LINKS = 32
PQ_BITS = 4
PQ_DIMS_PER_CODE = 2  # 1 where the number of dimensions is odd
IVF_POINTS_PER_LIST = 39  # FAISS warns below this
IVF_PROBED_SHARE = 1 / 8
IVF_LEAST_PROBED = 8
HNSW_LEAST_BREADTH = 128
REFINED = {"fp32": 1, "fp16": 2, "sq8": 2, "pq": 10, "rabitq": 10}
TUNED_HITS = 100  # efforts are found for so many hits; deeper searches are made wider
CODES_PER_VECTOR = 8  # so many codes in lists, a tenth of which pass, take as long as one vector anywhere
HNSW_COMPARED_PER_BREADTH = 12
DEEPER_BY = 0.7  # a search for c times as many hits looks c ** DEEPER_BY times as wide

_ROW_ID_BYTES = 8
_PQ_BLOCK = 32  # codes that are compared at once
_LINK_BYTES = 4
_HNSW_NODE_BYTES = 12  # level and offset
_RABITQ_FACTOR_BYTES = 8
_BITS = {"fp32": 32, "fp16": 16, "sq8": 8, "rabitq": 1}  # a dimension


@dataclass(frozen=True, slots=True)
class Filtered:
    """What was found to be enough behind a filter that leaves this share of the items: otherwise as ``Effort``."""

    share: float
    breadth: int
    refined: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard one search tries, for up to ``TUNED_HITS`` hits.

    breadth: lists that are probed, or how broad the walk through the graph is (efSearch); 0 = neither.
    refined: so many candidates for each hit are compared by their exact vectors. filtered: what filters take, by
    falling share. narrow: behind one that leaves c times fewer than the least share there, c ** narrow times as wide.
    """

    breadth: int
    refined: int
    narrow: float = 1.0
    filtered: tuple[Filtered, ...] = ()

    def for_hits(self, k: int, share: float = 1.0) -> "Effort":
        """For k hits among this share of the items: those that pass a filter may all lie far from the query."""
        effort = self if share >= 1 else self._behind(share)
        if k <= TUNED_HITS:
            return effort
        return replace(effort, breadth=math.ceil(effort.breadth * (k / TUNED_HITS) ** DEEPER_BY))

    def _behind(self, share: float) -> "Effort":
        """Between the shares that were measured by powers of the share."""
        known = [Filtered(1.0, self.breadth, self.refined), *self.filtered]
        at = -np.log([each.share for each in known])
        breadth, refined = (
            float(np.exp(np.interp(-math.log(share), at, np.log(np.maximum(values, 1)))))
            for values in ([each.breadth for each in known], [each.refined for each in known])
        )
        wider = max(known[-1].share / share, 1.0) ** self.narrow
        return Effort(round(breadth * wider), round(refined))


def layout_of(kind: Kind) -> str:
    """``flat``, ``ivf`` or ``hnsw``."""
    return kind.partition("_")[0]


def codes_of(kind: Kind) -> str:
    """As what its vectors are kept: ``fp32``, ``fp16``, ``sq8``, ``pq`` or ``rabitq``."""
    return kind.partition("_")[2] or "fp32"


def choose_kind(n: int, kind: str, flat_below: int) -> Kind:
    """The kind for n vectors where nothing is measured: the one asked for; for ``auto`` flat up to ``flat_below``, HNSW
    above.

    No vectors are always flat, and so are fewer than a code of ``ivf_pq`` has values. Raises InvalidInput for a kind
    that does not exist.
    """
    if kind == "auto":
        return "flat" if n <= flat_below else "hnsw"
    known: Kind | None = next((known for known in KINDS if known == kind), None)
    if known is None:
        raise InvalidInput("index.kind", f"must be auto, {', '.join(KINDS)}, but is {kind!r}")
    return "flat" if n == 0 or (kind == "ivf_pq" and n < 2**PQ_BITS) else known


def pq_codes(dim: int) -> int:
    """Into how many codes product quantisation cuts a vector."""
    return dim // PQ_DIMS_PER_CODE if dim % PQ_DIMS_PER_CODE == 0 else dim


def ivf_lists(n: int) -> int:
    """How many lists an IVF index over n vectors has: 2 sqrt(n), fewer where a list would get too little to learn."""
    return max(1, min(2 * math.isqrt(n), n // IVF_POINTS_PER_LIST))


def default_effort(kind: Kind, n: int) -> Effort:
    """Where nothing was measured."""
    refined = REFINED[codes_of(kind)]
    if layout_of(kind) == "hnsw":
        return Effort(HNSW_LEAST_BREADTH, refined)
    lists = ivf_lists(n)
    probed = min(max(IVF_LEAST_PROBED, math.ceil(IVF_PROBED_SHARE * lists)), lists)
    return Effort(probed if layout_of(kind) == "ivf" else 0, refined)


def efforts(kind: Kind, n: int) -> tuple[Sequence[int], Sequence[int]]:
    """The breadths and the refinements to try, both ascending."""
    most = {"flat": 0, "ivf": ivf_lists(n), "hnsw": max(HNSW_LEAST_BREADTH, min(2048, n))}[layout_of(kind)]
    least = 16 if layout_of(kind) == "hnsw" else 1
    breadths = sorted({min(round(least * 2 ** (step / 4)), most) for step in range(4 * most.bit_length() + 1)})
    refined = {"fp32": (1,), "fp16": (1, 2), "sq8": (1, 2, 4), "pq": (2, 4, 8, 16, 32), "rabitq": (2, 4, 8, 16, 32)}
    return breadths, refined[codes_of(kind)]


def work_of(kind: Kind, n: int, effort: Effort) -> float:
    """About what a search for ``TUNED_HITS`` of n vectors takes, in vectors that are compared one by one."""
    walked = effort.breadth * HNSW_COMPARED_PER_BREADTH
    scanned = effort.breadth * n / ivf_lists(n) / CODES_PER_VECTOR
    return {"flat": 0, "ivf": scanned, "hnsw": walked}[layout_of(kind)] + effort.refined * TUNED_HITS


def bytes_of(kind: Kind, n: int, dim: int) -> int:
    """What an index over n vectors takes: codes, row ids, centres, links. Not what is read of the mapped vectors.

    A flat index is the mapped vectors, all of which every search reads.
    """
    codes = codes_of(kind)
    bits = PQ_BITS * pq_codes(dim) if codes == "pq" else _BITS[codes] * dim
    each = math.ceil(bits / 8) + (_RABITQ_FACTOR_BYTES if codes == "rabitq" else 0)
    if layout_of(kind) == "hnsw":
        return n * (each + 2 * HNSW_LINKS * _LINK_BYTES + _HNSW_NODE_BYTES)
    if layout_of(kind) == "ivf":
        padding = each * _PQ_BLOCK // 2 if codes == "pq" else 0  # on average, of each list
        return n * (each + _ROW_ID_BYTES) + ivf_lists(n) * (dim * 4 + padding)
    return n * each
