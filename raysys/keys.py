"""Stable hashes: the same in every process, on every machine, in every release.

Python's own ``hash`` is salted per process, so it can name neither a shard nor a cached text.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raysys.types import TextKeys


# A person's ids come again with each of their requests; a known one costs a tenth of a hash.
@lru_cache(maxsize=1 << 17)
def item_key(item_id: str) -> int:
    """The 64-bit key of an item id: the first 8 bytes of BLAKE2b over its UTF-8 bytes, little endian."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")


def item_keys(item_ids: Iterable[str]) -> NDArray[np.uint64]:
    """``item_key`` of each id: [n] uint64."""
    return np.fromiter((item_key(item_id) for item_id in item_ids), dtype=np.uint64)


def seed_of(name: str) -> int:
    """64 bits for a random generator that belongs to this name, such as a recommendation id. Not remembered."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=b"seed").digest(), "little")


def point_of(name: str, user: str) -> float:
    """A number in [0, 1) of 53 bits, as good as random, of this user key under this name, such as an experiment's.

    BLAKE2b over both, each with its length. Points under different names have nothing to do with each other.
    """
    parts = (part.encode() for part in (name, user))
    digest = hashlib.blake2b(b"".join(b"%d:%b" % (len(part), part) for part in parts), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


@lru_cache(maxsize=1 << 17)
def term_key(term: str) -> int:
    """The 64-bit key of a term: the hash of ``item_key``, remembered apart so that neither drives the other out."""
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")


def term_keys(terms: Iterable[str]) -> NDArray[np.uint64]:
    """``term_key`` of each term: [t] uint64."""
    return np.fromiter(map(term_key, terms), dtype=np.uint64)


def shard_of(key: int, n_shards: int) -> int:
    """The shard, in ``range(n_shards)``, that owns the item with this key."""
    return key % n_shards


def text_key(encoder_fingerprint: str, text: str) -> bytes:
    """32 bytes that name one text under one encoder: SHA-256 of fingerprint, NUL, text."""
    return hashlib.sha256(encoder_fingerprint.encode() + b"\0" + text.encode()).digest()


def text_keys(encoder_fingerprint: str, texts: Iterable[str]) -> TextKeys:
    """``text_key`` of each text: [n], without an object a key."""
    keys = bytearray()
    for text in texts:
        keys += text_key(encoder_fingerprint, text)
    return np.frombuffer(keys, dtype="V32")
