"""Factors from events to answers: fitted by blocks, saved by shard, and a source of candidates."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from support import FITTED, N_USERS, NOW_S, SPACE_DIM, FixedClock, Shop, recommender

from raysys.config import EVENT_WEIGHTS, BehaviourSettings
from raysys.errors import SnapshotError
from raysys.in_process import LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import read_manifest, verify_files
from raysys.keys import item_key, item_keys
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import event_weight
from raysys.profile.seeds import seeds
from raysys.recall.live import LiveItem
from raysys.tastes import tastes
from raysys.training import factors
from raysys.training.finish import REPORT
from raysys.training.local import build_here
from raysys.training.report import readable
from raysys.types import FACTORS, Answer, ItemChange, Profile, RecallQuery, Request

SETTINGS = BehaviourSettings(**FITTED)


def likes_of(shop: Shop) -> tuple[np.ndarray, sp.csr_array]:
    """(keys of the items that were met twice, [people, items] the greatest weight of each pair), event by event."""
    rows = [row for row in shop.world.events.to_pylist() if event_weight(row["kind"], None, EVENT_WEIGHTS) > 0]
    met, times = np.unique(item_keys([row["item_id"] for row in rows]), return_counts=True)
    keys, people = met[times >= 2], sorted({item_key(row["user_id"]) for row in rows})
    likes = np.zeros((len(people), len(keys)), dtype=np.float32)
    for row in rows:
        key = item_key(row["item_id"])
        if key in keys:
            cell = people.index(item_key(row["user_id"])), int(np.searchsorted(keys, key))
            likes[cell] = max(likes[cell], event_weight(row["kind"], None, EVENT_WEIGHTS))
    return keys, sp.csr_array(likes[likes.any(axis=1)])


def space_of(folder: Path) -> dict[int, np.ndarray]:
    """Item key -> its vector."""
    shards = Catalogue(folder).shards
    return {int(key): v for files in shards for key, v in zip(files.keys, files.spaces[FACTORS], strict=True)}


@pytest.mark.parametrize("n_shards", [1, 3])
def test_the_blocks_of_a_build_fit_what_one_process_fits(shop: Shop, n_shards: int) -> None:
    keys, likes = likes_of(shop)
    expected = factors.fit(
        likes, SPACE_DIM, SETTINGS.factors_iterations, SETTINGS.factors_unobserved, SETTINGS.factors_penalty
    )
    space = space_of(shop.snapshot(n_shards))
    found = np.stack([space[key] for key in keys.tolist()])
    np.testing.assert_allclose(found @ found.T, expected.vectors @ expected.vectors.T, atol=1e-4)
    assert all(not vector.any() for key, vector in space.items() if key not in keys)


def test_the_number_of_shards_changes_nothing(shop: Shop) -> None:
    one, three = (space_of(shop.snapshot(n)) for n in (1, 3))
    for key, vector in one.items():
        np.testing.assert_allclose(vector, three[key], atol=1e-5)
    models = [Catalogue(shop.snapshot(n)).models[FACTORS] for n in (1, 3)]
    np.testing.assert_allclose(models[0].floor, models[1].floor, rtol=1e-5)


async def test_a_person_stands_where_their_history_puts_them(shop: Shop) -> None:
    path = recommender(shop.snapshot(3))
    known = seeds(shop.profile(1), path.settings)
    keys, space = item_keys(known.items), space_of(shop.snapshot(1))
    expected = path.catalogue.models[FACTORS].person(np.stack([space[key] for key in keys.tolist()]), known.weights)
    found = await tastes(known, path.lookup, path.settings, NOW_S)
    np.testing.assert_allclose(found.placed[FACTORS], expected, atol=1e-5)
    nobody = await tastes(seeds(Profile("u:x"), path.settings), path.lookup, path.settings, NOW_S)
    assert nobody.placed == {}


async def answer(folder: Path, shop: Shop, user: int = 1) -> Answer:
    return await recommender(folder).recommend(Request(limit=10), shop.profile(user))


async def test_what_the_factors_say_is_in_the_answer(shop: Shop) -> None:
    """And it is the product of the vectors of person and item."""
    path = recommender(shop.snapshot(2))
    placed = (await tastes(seeds(shop.profile(1), path.settings), path.lookup, path.settings, NOW_S)).placed[FACTORS]
    space = space_of(shop.snapshot(2))
    items = (await answer(shop.snapshot(2), shop)).items
    assert sum("factors" in item.sources for item in items) > 5
    for item in items:
        expected = float(space[item_key(item.item_id)] @ placed)
        assert item.sources.get("factors", 0.0) == pytest.approx(expected, abs=1e-6)


async def test_a_build_without_factors_is_answered_as_before(shop: Shop, tmp_path: Path) -> None:
    """Files written before there were any look the same: nothing names a space."""
    plain = Shop(tmp_path)
    folder = plain.snapshot(2)
    manifest = read_manifest(folder)
    assert not [name for name in manifest.files if "spaces" in name or "factors" in name]
    assert Catalogue(folder).models == {}
    assert all(files.spaces == {} for files in Catalogue(folder).shards)
    items = (await answer(folder, plain)).items
    assert len(items) == 10
    assert all("factors" not in item.sources for item in items)


@pytest.mark.parametrize(
    ("behaviour", "fitted"),
    [({"ridge_items": 10}, True), ({"ridge_items": 10, "factors": "never"}, False)],
)
def test_they_are_fitted_where_the_regression_is_not_unless_settings_say_otherwise(
    tmp_path: Path, behaviour: dict[str, object], fitted: bool
) -> None:
    shop = Shop(tmp_path, behaviour={"factors_iterations": 1, **behaviour})
    folder = shop.snapshot(2)
    report = json.loads((folder / REPORT).read_text())
    assert (report.get("factors_items", 0) > 10) is fitted
    assert ("spaces/factors/fold-in.json" in read_manifest(folder).files) is fitted
    lines = [line for line in readable(report, read_manifest(folder)) if "factors of" in line]
    expected = f"who likes what by factors of {report.get('factors_items')} items and {N_USERS} people"
    assert lines == [expected] * fitted
    verify_files(folder, read_manifest(folder))


def test_without_events_there_are_no_factors(tmp_path: Path) -> None:
    shop = Shop(tmp_path, behaviour=FITTED)
    settings = shop.settings(2).model_copy(update={"events": None})
    manifest = build_here(settings, FixedClock())
    assert not [name for name in manifest.files if "spaces" in name]


def test_a_snapshot_whose_model_is_damaged_is_refused(shop: Shop, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shop.snapshot(1), tmp_path / "copy"))
    (folder / "spaces/factors/fold-in.json").write_bytes(b"{")
    with pytest.raises(SnapshotError, match=r"fold-in\.json"):
        Catalogue(folder)


def query_of(vector: np.ndarray, **changes: object) -> RecallQuery:
    nothing = np.empty(0, np.uint64)
    plain = RecallQuery(None, None, None, nothing, np.empty(0, np.float32), nothing, None, NOW_S, 40)
    return replace(plain, placed={FACTORS: vector}, **changes)


def found_by_factors(answers: list) -> dict[int, float]:
    return {
        int(key): float(scores[FACTORS])
        for found in answers
        for key, scores, bits in zip(found.key, found.scores, found.found_by, strict=True)
        if bits >> FACTORS & 1
    }


async def test_an_item_that_is_new_is_not_put_forward_and_one_that_changed_keeps_its_place(shop: Shop) -> None:
    shards = open_shards(shop.snapshot(1))
    vector = next(v for v in space_of(shop.snapshot(1)).values() if v.any())
    before = found_by_factors((await LocalRecall(shards).recall("", query_of(vector)))[0])
    best = max(before, key=before.__getitem__)
    item_id = Catalogue(shop.snapshot(1)).item_id(0, int(np.searchsorted(shards[0].files.keys, np.uint64(best))))
    for number, changed in enumerate((item_id, "brand-new"), start=1):
        change = ItemChange(number, changed, {"title": "quasar"}, "quasar", NOW_S, NOW_S)
        shards[0].apply([LiveItem(change, None)])
    after = found_by_factors((await LocalRecall(shards).recall("", query_of(vector)))[0])
    assert after == before
    (only,), _ = await LocalRecall(shards).recall("", query_of(vector, only=item_keys(["brand-new"])))
    assert only.scores[0, FACTORS] == 0
    assert not only.found_by[0] >> FACTORS & 1


def test_the_gateway_maps_the_vectors_of_a_history_only(shop: Shop) -> None:
    catalogue = Lookup(Catalogue(shop.snapshot(2)), NothingLive()).catalogue
    found = catalogue.find(["item-0", "no such item", "item-1"])
    space = space_of(shop.snapshot(2))
    expected = np.stack([space[item_key(item_id)] for item_id in ("item-0", "item-1")])
    assert catalogue.placed(found, FACTORS).tobytes() == expected.tobytes()
    assert catalogue.placed(catalogue.find(["no such item"]), FACTORS).shape == (0, SPACE_DIM)
