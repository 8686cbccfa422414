"""The student in a build, in a snapshot, and in the place of its teacher when that is too slow or away."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import DIM, FixedClock, Shop, post, raising, recommender, serve_here

from raysys.config import BuildSettings, StudentSettings
from raysys.encoder.hashing import HashEncoder
from raysys.encoder.student import Student
from raysys.errors import SnapshotError, SnapshotMismatch, Unavailable
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import Manifest, verify_files
from raysys.index.store import SnapshotStore, write_manifest
from raysys.pressure import NO_ENCODER, NO_SOURCES
from raysys.recommender import STUDENT
from raysys.serving.coalescer import PATIENCE
from raysys.training import local
from raysys.training.finish import REPORT
from raysys.training.local import build_here
from raysys.training.report import readable
from raysys.types import QUERY, SOURCES, Profile, Request

QUICK = StudentSettings(queries=500, dim=32)
STRANGER = Profile("u:nobody")
ASKED = Request(limit=10, query="bababa")
GONE = raising(Unavailable("gone"))
LIST = "/v1/recommendations"


def with_student(shop: Shop, root: Path, **changes: Any) -> BuildSettings:
    return shop.settings(2, root).model_copy(update={"student": QUICK, "events": None, **changes})


def build(settings: BuildSettings, at_s: float = FixedClock().at_s) -> tuple[Manifest, Path]:
    manifest = build_here(settings, FixedClock(at_s))
    return manifest, SnapshotStore(settings.index.root).folder(manifest.snapshot_id)


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / REPORT).read_text())
    return report


@pytest.fixture(scope="module")
def store(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    settings = with_student(shop, tmp_path_factory.mktemp("student"))
    build(settings)
    return SnapshotStore(settings.index.root)


@pytest.fixture(scope="module")
def folder(store: SnapshotStore) -> Path:
    return store.folder(store.current_id())


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    found = Catalogue(folder).student
    assert found is not None
    return found


def test_the_snapshot_names_the_files_of_its_student_and_how_near_it_came(folder: Path, student: Student) -> None:
    manifest = Catalogue(folder).manifest
    names = {name for name in manifest.files if name.startswith("student/")}
    assert names == {f"student/{name}" for name in ("student.json", *ARRAYS)}
    quality = report_of(folder)["student"]
    assert student.about.quality == quality
    assert student.about.teacher == manifest.encoder_identity.fingerprint()
    assert quality["queries"] + quality["held_out"] == 500
    assert 20 < quality["held_out"] < 100
    assert quality["cosine"] > 0.7
    assert quality["overlap@10"] > 0.3
    (line,) = (line for line in readable(report_of(folder), manifest) if line.startswith("student of the encoder"))
    assert f"cosine {quality['cosine']:.3f}" in line


ARRAYS = ("keys.npy", "weights.npy", "vectors.npy", "projection.npy")


def test_a_snapshot_without_one_opens_as_before(shop: Shop) -> None:
    assert shop.settings(2).student is None
    assert Catalogue(shop.snapshot(2)).student is None


def test_files_that_the_manifest_does_not_name_are_not_opened(shop: Shop, tmp_path: Path) -> None:
    manifest, folder = build(with_student(shop, tmp_path))
    files = {name: record for name, record in manifest.files.items() if not name.startswith("student/")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    assert Catalogue(folder).student is None


def test_a_damaged_student_is_not_published_and_one_of_another_encoder_not_opened(shop: Shop, tmp_path: Path) -> None:
    manifest, folder = build(with_student(shop, tmp_path))
    about = folder / "student" / "student.json"
    about.write_text(about.read_text().replace(manifest.encoder_identity.fingerprint(), "0123456789abcdef"))
    with pytest.raises(SnapshotError, match=r"student\.json is damaged"):
        verify_files(folder, manifest)
    with pytest.raises(SnapshotMismatch, match="0123456789abcdef"):
        Catalogue(folder)


def test_a_second_build_encodes_no_query_again_and_fits_the_same(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    class Counting(HashEncoder):
        def encode(self, texts, role):
            encoded.extend(texts)
            return super().encode(texts, role)

    monkeypatch.setattr(local, "build_encoder", lambda settings: Counting(settings.dim))
    first, _ = build(with_student(shop, tmp_path))
    assert len(encoded) > 500
    encoded.clear()
    second, _ = build(with_student(shop, tmp_path), FixedClock().at_s + 60)
    assert not encoded
    one, other = ({n: r for n, r in m.files.items() if n.startswith("student/")} for m in (first, second))
    assert one == other


def test_queries_that_there_is_no_time_for_are_left_out(shop: Shop, tmp_path: Path) -> None:
    class Hurrying(FixedClock):
        def monotonic_s(self) -> float:
            self.at_s += 1.0
            return self.at_s

    settings = with_student(shop, tmp_path, student=QUICK.model_copy(update={"queries": 600, "seconds": 1.5}))
    manifest = build_here(settings, Hurrying())
    quality = report_of(SnapshotStore(tmp_path).folder(manifest.snapshot_id))["student"]
    assert quality["queries"] + quality["held_out"] == 512


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": {"normalize": False}, "index": {"metric": "ip"}}, "of any length"),
        ({"student": {"texts": 99}}, "99 texts"),
        ({"student": {"queries": 99}}, "99 queries"),
    ],
)
def test_a_build_that_can_make_none_says_why(shop: Shop, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    settings = with_student(shop, tmp_path)
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
    manifest, folder = build(settings.model_copy(update=changed))
    report = report_of(folder)
    assert reason in report["student"]["why_not"]
    assert [line for line in readable(report, manifest) if line.startswith("no student of the encoder")]
    assert Catalogue(folder).student is None


def test_an_encoder_with_other_prompts_for_queries_is_learned_from_queries_alone(shop: Shop, tmp_path: Path) -> None:
    encoder = shop.settings(2).encoder.model_copy(update={"query_prompt": "find: "})
    _, folder = build(with_student(shop, tmp_path, encoder=encoder))
    assert report_of(folder)["student"]["cosine"] > 0.5


def test_the_job_that_fits_everything_fits_one(shop: Shop) -> None:
    assert shop.settings(2).with_everything().student == StudentSettings()
    asked = shop.settings(2).model_copy(update={"student": QUICK})
    assert asked.with_everything().student == QUICK


async def test_the_student_answers_while_the_encoder_is_away_and_says_so(folder: Path, student: Student) -> None:
    path = recommender(folder, encode=GONE)
    answer = await path.recommend(ASKED, STRANGER)
    assert answer.degraded == (STUDENT,)
    assert any(SOURCES[QUERY] in item.sources for item in answer.items)

    async def encode(text: str, role: object) -> np.ndarray:
        return student.encode([text], "query")[0]

    by_student = await recommender(folder, encode=encode).recommend(ASKED, STRANGER)
    assert [(item.item_id, item.score) for item in answer.items] == [(i.item_id, i.score) for i in by_student.items]
    assert by_student.degraded == ()


async def test_a_search_is_answered_by_the_student_too(folder: Path) -> None:
    found = await recommender(folder, encode=GONE).search(ASKED)
    expected = await recommender(folder).search(ASKED)
    assert (found.degraded, expected.degraded) == ((STUDENT,), ())
    assert {item.item_id for item in found.items} & {item.item_id for item in expected.items}


async def test_never_means_that_the_encoder_is_missed(folder: Path) -> None:
    path = recommender(folder, encode=GONE, use_student="never")
    assert (await path.recommend(ASKED, STRANGER)).degraded == ("encoder",)
    with pytest.raises(Unavailable, match="gone"):
        await path.search(ASKED)


async def test_always_means_that_the_encoder_is_not_asked(folder: Path) -> None:
    always = await recommender(folder, encode=raising(AssertionError("asked")), use_student="always").search(ASKED)
    fallen = await recommender(folder, encode=GONE).search(ASKED)
    assert always.degraded == ()
    assert [item.item_id for item in always.items] == [item.item_id for item in fallen.items]


@pytest.mark.parametrize(("pressure", "degraded"), [(2, (NO_ENCODER,)), (3, (NO_ENCODER, NO_SOURCES))])
async def test_under_pressure_the_encoder_is_not_asked(folder: Path, pressure: int, degraded: tuple[str, ...]) -> None:
    path = recommender(folder, encode=raising(AssertionError("asked")))
    answer = await path.recommend(replace(ASKED, pressure=pressure), STRANGER)
    assert answer.degraded == degraded
    assert any(SOURCES[QUERY] in item.sources for item in answer.items)
    found = await path.search(replace(ASKED, pressure=pressure))
    assert found.degraded == (NO_ENCODER,)
    assert found.items == (await recommender(folder, encode=GONE).search(ASKED)).items
    with pytest.raises(AssertionError, match="asked"):
        await path.search(replace(ASKED, pressure=1))


class Stuck(HashEncoder):
    """Encodes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.may_go = threading.Event()
        self.asked = 0

    def encode(self, texts, role):
        self.asked += 1
        assert self.may_go.wait(30)
        return super().encode(texts, role)


async def test_a_slow_encoder_is_not_waited_for_and_asked_again_when_it_is_back(
    store: SnapshotStore, tmp_path: Path
) -> None:
    model = Stuck()
    served = await serve_here(store, tmp_path / "state.sqlite3", model=model, deadline_s=0.1)
    async with served.client() as client:
        answers = [await post(client, LIST, query="bababa", limit=5) for _ in range(3)]
        assert [answer["degraded"] for answer in answers] == [[STUDENT]] * 3
        assert len({json.dumps(answer["items"]) for answer in answers}) == 1
        assert model.asked == 1  # after the first had waited, the others were not sent
        metrics = (await client.get("/metrics")).text
        assert f'raysys_degraded_total{{part="{STUDENT}"}} 3.0' in metrics
        model.may_go.set()
        answer = await post(client, LIST, query="bababa", limit=5)
        while answer["degraded"]:  # until the call that was stuck has ended
            answer = await post(client, LIST, query="bababa", limit=5)
    await served.stop()


async def test_without_a_student_the_encoder_is_waited_for(shop: Shop, tmp_path: Path) -> None:
    model = Stuck()
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", model=model, deadline_s=2.0)
    async with served.client() as client:
        asking = asyncio.create_task(post(client, LIST, query="bababa", limit=5))
        done, _ = await asyncio.wait({asking}, timeout=2 * PATIENCE * 2.0)  # a student would have been asked by then
        assert model.asked
        assert not done
        model.may_go.set()
        assert (await asking)["degraded"] == []
    await served.stop()
