"""Vectors of the latest queries, by their text: what many people ask is encoded once."""

from collections import OrderedDict

from prometheus_client import Counter

from raysys.encoder.protocol import Role
from raysys.keys import text_key
from raysys.recommender import Encode
from raysys.types import Vectors


class QueryCache:
    """An encoder that remembers its last ``size`` texts, under a hash: no text of anybody stays in memory.

    Of one encoder, so a new snapshot has a new one. outcomes: has the label ``outcome``, hit or miss.
    """

    def __init__(self, encode: Encode, size: int, outcomes: Counter) -> None:
        self._encode, self._size, self._outcomes = encode, size, outcomes
        self._held: OrderedDict[bytes, Vectors] = OrderedDict()

    async def encode(self, text: str, role: Role) -> Vectors:
        """[dim] float32, read-only. Raises what the encoder raises; that is not remembered."""
        key = text_key(role, text)
        vector = self._held.get(key)
        self._outcomes.labels("miss" if vector is None else "hit").inc()
        if vector is None:
            vector = (await self._encode(text, role)).copy()  # of its own: a row would keep its whole batch alive
            vector.setflags(write=False)
        self._held[key] = vector
        self._held.move_to_end(key)
        if len(self._held) > self._size:
            self._held.popitem(last=False)
        return vector
