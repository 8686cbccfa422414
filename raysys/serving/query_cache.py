"""Vectors of the latest queries, by their text: what many people ask is encoded once."""

from collections import OrderedDict

from prometheus_client import Counter

from raysys.encoder.protocol import Role
from raysys.keys import text_key
from raysys.recommender import Encode
from raysys.types import Vectors


class QueryCache:
    """The last ``size`` texts that encoders were asked for, under a hash: no text of anybody stays in memory.

    A vector is that of an encoder, not of a snapshot. So one cache is for all snapshots of a gateway, and a new one
    starts with what people ask. outcomes: has the label ``outcome``, hit or miss.
    """

    def __init__(self, size: int, outcomes: Counter) -> None:
        self._size, self._outcomes = size, outcomes
        self._held: OrderedDict[bytes, Vectors] = OrderedDict()

    def before(self, encode: Encode, fingerprint: str) -> Encode:
        """``encode``, of the encoder with this fingerprint, for what is not remembered.

        Its vectors are read-only. It raises what ``encode`` raises; that is not remembered.
        """
        if self._size == 0:
            return encode

        async def encode_new(text: str, role: Role) -> Vectors:
            key = text_key(f"{fingerprint} {role}", text)
            vector = self._held.get(key)
            self._outcomes.labels("miss" if vector is None else "hit").inc()
            if vector is None:
                vector = (await encode(text, role)).copy()  # of its own: a row would keep its whole batch alive
                vector.setflags(write=False)
            self._remember(key, vector)
            return vector

        return encode_new

    def _remember(self, key: bytes, vector: Vectors) -> None:
        self._held[key] = vector
        self._held.move_to_end(key)
        if len(self._held) > self._size:
            self._held.popitem(last=False)
