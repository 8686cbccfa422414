"""Looks through all of a snapshot: is every file what the manifest says, do they fit, does an item find itself?"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.config import RankingSettings
from raysys.data import catalog
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import Encoder
from raysys.errors import RaysysError, SnapshotError, SnapshotMismatch, SnapshotUntrusted
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import FORMAT_VERSION, MANIFEST, Manifest, file_problems, read_manifest, writers
from raysys.index.shard_files import ShardFiles
from raysys.index.signing import SIGNATURE, Signers
from raysys.index.store import SnapshotStore
from raysys.index.vector_index import VectorIndex
from raysys.keys import item_key, text_key
from raysys.ranking.learned import open_ranker
from raysys.types import Vectors

SELF_QUERIES = 64  # a shard
ENCODED_AGAIN = 8  # items, of the first shard that has some
LEAST_FOUND = 0.9  # of the self-queries of an approximate index
SCORE_TOLERANCE = 1e-4
LEAST_COSINE = 0.98  # between runtimes and number formats of one model; another model is far below

Level = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. file: which one is wrong, relative to the snapshot; "" = none, or all of it."""

    level: Level
    what: str
    found: str
    file: str = ""


def look_through(store: SnapshotStore, snapshot_id: str, with_encoder: bool = True) -> Iterator[Check]:
    """All checks of this snapshot, which nobody collects meanwhile. ``current`` = the published one.

    Raises UnknownSnapshot, and SnapshotError where nothing is published or no lease can be had.
    """
    folder = store.existing(store.resolve(snapshot_id))
    with store.lease(folder.name):
        yield from checks(folder, with_encoder, store.signers)


def checks(folder: Path, with_encoder: bool = True, signers: Signers | None = None) -> Iterator[Check]:
    """All checks of the snapshot in this folder, one after the other. Never raises for what it finds."""
    try:
        manifest = read_manifest(folder, signers)
    except SnapshotUntrusted as error:
        yield Check("fail", "signature", str(error), SIGNATURE)
        return
    except SnapshotError as error:
        yield Check("fail", "manifest", str(error), MANIFEST)
        return
    if signers is not None:
        yield Check("ok", "signature", "by a key that is trusted here")
    yield from _manifest(folder, manifest)
    yield _writers(manifest)
    bad = dict(file_problems(folder, manifest, contents=True))
    yield from (Check("fail", "files", problem, name) for name, problem in bad.items())
    yield from _unnamed(folder, manifest)
    if bad:  # a damaged index can end the process that opens it
        yield Check("note", "contents", "not looked at, as files are damaged")
        return
    yield Check("ok", "files", f"{len(manifest.files)} with their sizes and SHA-256")
    yield from _contents(folder, manifest)
    if with_encoder:
        yield _guarded("encoder", "", partial(_encoder, folder, manifest))


def failed(found: Iterable[Check]) -> bool:
    return any(check.level == "fail" for check in found)


def _manifest(folder: Path, manifest: Manifest) -> Iterator[Check]:
    if manifest.snapshot_id != folder.name:
        yield Check("fail", "manifest", f"it is that of {manifest.snapshot_id}, not of {folder.name}", MANIFEST)
    total = sum(shard.n_items for shard in manifest.shards)
    if total != manifest.n_items:
        yield Check("fail", "manifest", f"{manifest.n_items} items, but {total} in its shards", MANIFEST)
    yield Check("ok", "manifest", f"format {manifest.format_version} of {FORMAT_VERSION}")


def _writers(manifest: Manifest) -> Check:
    here = writers()
    others = [f"{name} {v} (here {here.get(name)})" for name, v in manifest.written_by.items() if here.get(name) != v]
    if others:
        return Check("note", "writers", f"other versions than here: {', '.join(others)}")
    return Check("ok", "writers", ", ".join(f"{name} {v}" for name, v in here.items()))


def _unnamed(folder: Path, manifest: Manifest) -> Iterator[Check]:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(there - {*manifest.files, MANIFEST, SIGNATURE}):
        yield Check("fail", "files", f"{folder / name} is there, though the manifest does not name it", name)


def _contents(folder: Path, manifest: Manifest) -> Iterator[Check]:
    yield _guarded("ranking", "ranking.json", partial(_ranking, folder))
    yield _guarded("models", "spaces", partial(_models, folder))
    for number, record in enumerate(manifest.shards):
        files = ShardFiles(folder / record.folder, record.index_kind, manifest.metric)
        shape = _guarded("shard", record.folder, partial(_shard, files, number, manifest))
        yield shape
        if shape.level != "fail":
            yield _guarded("self-queries", f"{record.folder}/index.faiss", partial(_self_queries, files))


def _guarded(what: str, file: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (RaysysError, OSError, KeyError, ValueError, pa.ArrowException) as error:
        return Check("fail", what, f"{type(error).__name__}: {error}", file)


def _ranking(folder: Path) -> Check:
    open_ranker(RankingSettings(), folder)
    return Check("ok", "ranking", "it can be used")


def _models(folder: Path) -> Check:
    catalogue = Catalogue(folder)
    return Check("ok", "models", f"{len(catalogue.models)} with vectors, {len(catalogue.vocabulary.terms):,} terms")


def _shard(files: ShardFiles, number: int, manifest: Manifest) -> Check:
    name, n, dim = files.folder.name, manifest.shards[number].n_items, manifest.encoder_identity.dim

    def wrong(file: str, found: object, wanted: object) -> Check:
        return Check("fail", "shard", f"{files.folder / file}: {found}, but {wanted} expected", f"{name}/{file}")

    lengths = {"items.arrow": len(files.items), "keys.npy": len(files.keys), "popularity.npy": len(files.popularity)}
    for file, length in lengths.items():
        if length != n:
            return wrong(file, f"{length} rows", n)
    if files.vectors.shape != (n, dim) or files.vectors.dtype != np.float32:
        return wrong("vectors.npy", f"{list(files.vectors.shape)} {files.vectors.dtype}", f"{[n, dim]} float32")
    missing = {*catalog.ITEM_SCHEMA.names, "text_key"} - set(files.items.column_names)
    if missing:
        return wrong("items.arrow", f"no column {', '.join(sorted(missing))}", "all columns of an item")
    if (files.keys[1:] <= files.keys[:-1]).any() or (files.keys % np.uint64(len(manifest.shards)) != number).any():
        return wrong("keys.npy", "keys out of order or of another shard", f"ascending keys of shard {number}")
    rows = _sample(n)
    ids = files.items["item_id"].take(rows).to_pylist()
    if [item_key(item_id) for item_id in ids] != files.keys[rows].tolist():
        return wrong("keys.npy", "keys of other items", "those of items.arrow")
    _ = files.attributes, files.transition, files.ridge, files.words, files.spaces, files.item_models
    return Check("ok", "shard", f"{name}: {n:,} items of {dim} dimensions")


def _self_queries(files: ShardFiles) -> Check:
    """Whether each of a sample of vectors finds itself, or one that is as near, first."""
    name, index = files.folder.name, files.index
    rows = _sample(len(files.vectors))
    rows = rows[files.vectors[rows].any(axis=1)]
    if not len(rows):
        return Check("ok", "self-queries", f"{name}: no item has a text")
    queries = np.ascontiguousarray(files.vectors[rows])
    if not np.isfinite(queries).all():
        return Check("fail", "self-queries", f"{files.folder}: vectors that are not finite", f"{name}/vectors.npy")
    found = index.search(queries, 1, None).rows
    hits = sum(
        len(first) > 0 and _score(index, query, first[0]) >= _score(index, query, row) - SCORE_TOLERANCE
        for query, row, first in zip(queries, rows, found, strict=True)
    )
    is_enough = hits >= len(rows) * (1.0 if index.kind == "flat" else LEAST_FOUND)
    said = f"{name}: {hits} of {len(rows)} vectors find themselves first ({index.kind})"
    return (
        Check("ok", "self-queries", said) if is_enough else Check("fail", "self-queries", said, f"{name}/index.faiss")
    )


def _score(index: VectorIndex, query: Vectors, row: int) -> float:
    return float(index.score_rows(query[None], np.array([row]))[0, 0])


def _sample(n: int) -> NDArray[np.int64]:
    """Rows of a shard of n items, the same each time."""
    return np.sort(np.random.default_rng(0).choice(n, min(SELF_QUERIES, n), replace=False)).astype(np.int64)


def _encoder(folder: Path, manifest: Manifest) -> Check:
    try:
        encoder = build_encoder(manifest.encoder)
    except RaysysError as error:
        return Check("note", "encoder", f"it cannot be loaded here, so nothing was encoded again: {error}")
    try:
        manifest.check_encoder(encoder.identity)
    except SnapshotMismatch as error:
        return Check("fail", "encoder", str(error), MANIFEST)
    cosines = _encoded_again(Catalogue(folder), encoder)
    if not cosines:
        return Check("ok", "encoder", f"{encoder.identity.name}, {encoder.identity.dim} dimensions")
    found = f"{encoder.identity.name}; {len(cosines)} items encoded again, the least cosine {min(cosines):.4f}"
    return Check("ok" if min(cosines) >= LEAST_COSINE else "fail", "encoder", found)


def _encoded_again(catalogue: Catalogue, encoder: Encoder) -> list[float]:
    """Cosines of the vectors of some items to what the encoder gives for their texts now."""
    manifest = catalogue.manifest
    files = next((shard for shard in catalogue.shards if len(shard.keys)), None)
    if files is None:
        return []
    template = catalog.template_of(manifest.item_rules, files.attribute_names)
    rows = _sample(len(files.keys))[:ENCODED_AGAIN]
    texts = [catalog.text_of(template, row, manifest.item_rules.max_text_chars) for row in _rows(files, rows)]
    keys = files.items["text_key"].take(rows).to_pylist()
    fingerprint = encoder.identity.fingerprint()
    same = [i for i, key in enumerate(keys) if text_key(fingerprint, texts[i]) == key and texts[i].strip()]
    if not same:
        return []
    fresh, kept = encoder.encode([texts[i] for i in same], "item"), files.vectors[rows[same]]
    lengths = np.linalg.norm(fresh, axis=1) * np.linalg.norm(kept, axis=1)
    has_vector = lengths > 0
    products = np.einsum("nd,nd->n", fresh, kept)
    return [float(x) for x in products[has_vector] / lengths[has_vector]]


def _rows(files: ShardFiles, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = files.items.take(rows).to_pylist()
    return taken
