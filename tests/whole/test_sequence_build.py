"""The sequence model in a snapshot: only where asked for, with a vector an item, those nobody met by their text."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import DIM, NOW_S, Shop, plain_query, recommender

from raysys.config import BuildSettings, EventsSettings, SequenceSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.hashing import HashEncoder
from raysys.in_process import open_shards
from raysys.index.arrays import open_array
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import Manifest, verify_files
from raysys.index.sequence import SHAPE, WEIGHTS, SequenceEncoder
from raysys.index.store import SnapshotStore
from raysys.keys import item_key, item_keys
from raysys.recall.live import LiveItem
from raysys.training import behaviour, items
from raysys.training.encoding import Turns
from raysys.training.local import build_here
from raysys.training.plan import planned
from raysys.training.sequence import stage
from raysys.training.sequence.examples import Histories
from raysys.types import SEQUENCE, ItemChange, RecallQuery, Request

SMALL = {"dim": 16, "epochs": 2, "negatives": 32, "max_history": 10}


@pytest.fixture(scope="module")
def settings(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    given = shop.settings(2, tmp_path_factory.mktemp("index"))
    behaviour = given.behaviour.model_copy(update={"sequence": SequenceSettings(**SMALL)})
    return given.model_copy(update={"behaviour": behaviour})


@pytest.fixture(scope="module")
def built(settings: BuildSettings) -> tuple[Manifest, Path]:
    manifest = build_here(settings)
    return manifest, SnapshotStore(settings.index.root).folder(manifest.snapshot_id)


FILES = {f"spaces/sequence/{name}" for name in (SHAPE, WEIGHTS)}


def test_the_snapshot_names_the_model_and_its_vectors(built: tuple[Manifest, Path]) -> None:
    manifest, folder = built
    verify_files(folder, manifest)
    assert {*FILES, "shard-00000/spaces/sequence.npy", "shard-00001/spaces/sequence.npy"} <= set(manifest.files)
    catalogue = Catalogue(folder)
    assert isinstance(catalogue.models[SEQUENCE], SequenceEncoder)
    for shard in catalogue.shards:
        placed = shard.spaces[SEQUENCE]
        assert (placed.shape, placed.dtype) == ((len(shard.keys), 16), np.float32)


def test_met_items_have_drifted_and_the_others_are_their_text(shop: Shop, built: tuple[Manifest, Path]) -> None:
    met = set(shop.world.events["item_id"].to_pylist())
    for shard in Catalogue(built[1]).shards:
        by_text = shard.item_models[SEQUENCE].items(shard.vectors)
        is_met = np.array([item_id in met for item_id in shard.items["item_id"].to_pylist()])
        same = (shard.spaces[SEQUENCE] == by_text).all(axis=1)
        assert same[~is_met].all()
        assert not same[is_met].any()


def looking_at(person: np.ndarray) -> RecallQuery:
    return plain_query(k=5, placed={SEQUENCE: person})


def test_a_new_item_scores_by_its_text_and_a_changed_one_as_before(built: tuple[Manifest, Path]) -> None:
    shards = open_shards(built[1])
    number = item_key("brand-new") % 2
    shard = shards[number]
    model, row = shard.files.item_models[SEQUENCE], 3
    changed = shard.files.items["item_id"][row].as_py()
    vector = HashEncoder(DIM).encode(["bababa dadada"], "item")[0]
    person = model.items(vector[None])[0]
    before = shard.files.spaces[SEQUENCE] @ person
    changes = [
        ItemChange(n, item_id, {"title": "x"}, "x", NOW_S, NOW_S) for n, item_id in ((1, "brand-new"), (2, changed))
    ]
    shard.apply([LiveItem(change, vector) for change in changes])
    query = replace(looking_at(person), only=item_keys(["brand-new", changed]))
    found = shard.recall([looking_at(person), query])
    scores = dict(zip(found[1].key.tolist(), found[1].scores[:, SEQUENCE], strict=True))
    assert scores == pytest.approx({item_key("brand-new"): 1, item_key(changed): before[row]}, abs=1e-5)
    best = found[0].key[np.argmax(found[0].scores[:, SEQUENCE])]
    assert best == item_key("brand-new")
    assert found[0].found_by[found[0].key == best][0] & (1 << SEQUENCE)


def test_an_answer_has_the_product_of_person_and_item(shop: Shop, built: tuple[Manifest, Path]) -> None:
    profile = shop.profile(0)
    answer = asyncio.run(recommender(built[1]).recommend(Request(limit=20), profile))
    catalogue = Catalogue(built[1])
    liked = catalogue.find([i.item_id for i in profile.interactions if i.weight > 0])
    vectors = catalogue.placed(liked, SEQUENCE)
    person = catalogue.models[SEQUENCE].person(vectors, np.ones(len(vectors), np.float32))
    assert person is not None
    for item in answer.items:
        expected = (catalogue.placed(catalogue.find([item.item_id]), SEQUENCE) @ person)[0]
        assert item.sources["sequence"] == pytest.approx(expected, abs=1e-5)


def test_it_is_off_unless_asked_for(shop: Shop) -> None:
    catalogue = Catalogue(shop.snapshot(2))
    assert not FILES & set(catalogue.manifest.files)
    assert SEQUENCE not in catalogue.models
    assert SEQUENCE not in catalogue.shards[0].item_models


def test_everything_means_the_sequence_model_too(settings: BuildSettings, shop: Shop) -> None:
    assert shop.settings(2).with_everything().behaviour.sequence == SequenceSettings()
    assert settings.with_everything().behaviour == settings.behaviour


def test_without_events_there_is_none(settings: BuildSettings, tmp_path: Path) -> None:
    index = settings.index.model_copy(update={"root": str(tmp_path)})
    manifest = build_here(settings.model_copy(update={"events": None, "index": index}))
    assert not FILES & set(manifest.files)


def test_events_of_one_time_stay_in_the_order_of_the_file(settings: BuildSettings, tmp_path: Path) -> None:
    walks = {f"user-{user}": np.random.default_rng(user).permutation(20).tolist() for user in range(9)}
    rows = [{"user_id": user, "item_id": f"item-{item}", "timestamp": NOW_S} for user in walks for item in walks[user]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet")
    changes = {
        "events": EventsSettings(path=str(tmp_path / "events.parquet")),
        "index": settings.index.model_copy(update={"root": str(tmp_path)}),
    }
    encoder = build_encoder(settings.encoder)
    with planned(settings.model_copy(update=changes), NOW_S) as plan:
        items.stage_items(plan, 0)
        behaviour.stage_events(plan, 0)
        for part in range(plan.n_shards):
            behaviour.count_part(plan, part, NOW_S)
            items.settle_shard(plan, part, encoder.identity)
        for path in items.todo_files(plan):
            items.encode_file(plan, path, encoder, Turns())
        assert stage.write_histories(plan, encoder.identity)["sequence_items"] == 20
        found = Histories.load(plan.fitted("sequence"))
        keys = open_array(plan.fitted("sequence") / "keys.npy")
    expected = {tuple(item_keys(f"item-{item}" for item in walk).tolist()) for walk in walks.values()}
    bounds = pairwise(found.starts.tolist())
    assert {tuple(keys[found.items[begin:end]].tolist()) for begin, end in bounds} == expected
