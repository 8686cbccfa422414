"""Experiments in the gateway: each arm ranks by its own settings, and the log alone gives the verdict."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import DAY_S, NOW_S, Served, Shop, post, serve_here

from raysys.cli import _serve_args
from raysys.config import ExploreSettings, RankingSettings, ServeSettings, parse
from raysys.data.impressions import IMPRESSION_SCHEMA, read_impressions
from raysys.errors import ConfigError
from raysys.evaluation.experiments import (
    EXPOSURE_SCHEMA,
    Experiment,
    SequentialPlan,
    first_exposures,
    look,
    mismatch_p_value,
    outcomes,
    read_exposures,
)
from raysys.evaluation.interleaving import preference, read_credit, team_draft
from raysys.evaluation.shown import event_batch, read_rewards
from raysys.types import Event

LISTS = "/v1/recommendations"
PEOPLE = [f"p{number}" for number in range(40)]
OTHER_WEIGHTS = {"popular": 0.0, "words": 1.0, "transition": 0.0}
TRIAL = {
    "name": "ranking",
    "arms": [
        {"name": "control"},
        {"name": "weights", "ranking": OTHER_WEIGHTS},
        {"name": "both", "ranking": {"profile": 0.5}, "interleave": [{}, OTHER_WEIGHTS]},
    ],
}
RULES = {
    "name": "rules",
    "arms": [{"name": "plain", "share": 1}, {"name": "diverse", "share": 3, "ranking": {"diversity": 0.6}}],
}


def ids(body: Mapping[str, Any]) -> list[str]:
    return [item["item_id"] for item in body["items"]]


async def lists_of(served: Served, people: Sequence[str] = PEOPLE, **body: Any) -> dict[str, dict[str, Any]]:
    client = served.client()
    bodies = await asyncio.gather(*(post(client, LISTS, user_id=person, **body) for person in people))
    return dict(zip(people, bodies, strict=True))


def in_arm(bodies: Mapping[str, dict[str, Any]], experiment: str, arm: str) -> list[str]:
    return [person for person, body in bodies.items() if {"experiment": experiment, "arm": arm} in body["experiments"]]


# Settings


def settings(*experiments: Any) -> ServeSettings:
    return parse(ServeSettings, {"experiments": list(experiments)}, "serve.yaml")


def arms(*given: Mapping[str, Any], name: str = "x") -> dict[str, Any]:
    return {"name": name, "arms": [{"name": f"arm-{at}", **arm} for at, arm in enumerate(given)]}


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        ([arms({}, {"ranking": {"wrods": 1}})], r"experiments\.0\.arms\.1\.ranking\.wrods: .*did you mean 'words'"),
        ([arms({}, {"rankin": {}})], r"experiments\.0\.arms\.1\.rankin: there is no such setting"),
        ([arms({}, {"ranking": {"explore": {"onein": 9}}})], r"ranking\.explore\.onein: .*did you mean 'one_in'"),
        ([arms({}, {"interleave": [{}, {"word": 1}]})], r"arms\.1\.interleave\.1\.word: "),
        ([arms({}, {"interleave": [{}]})], r"arms\.1\.interleave"),
        ([arms({}, {"ranking": {"diversity": 2}})], r"arms\.1\.ranking\.diversity: .*\(given: 2\)"),
        ([arms({}, {"share": 0})], r"arms\.1\.share"),
        ([arms({}, {"share": float("inf")})], r"arms\.1\.share"),
        ([arms({})], r"experiments\.0\.arms"),
        ([arms({}, {}, name="")], r"experiments\.0\.name"),
        ([arms({"name": "a"}, {"name": "a"})], "two arms have the name 'a'"),
        ([arms({}, {}), arms({}, {})], "two experiments have the name 'x'"),
        (
            [arms({}, {"ranking": {"words": 1}}), arms({}, {"interleave": [{}, {"words": 2}]}, name="y")],
            r"ranking\.words is changed by 2 experiments",
        ),
        (
            [arms({}, {"interleave": [{}, {"words": 2}]}), arms({}, {"interleave": [{}, {"fresh": 2}]}, name="y")],
            "two experiments interleave",
        ),
        ([arms({}, {}, name=f"x{number}") for number in range(9)], "more than 256 combinations"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(experiments: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*experiments)


def test_an_arm_changes_what_it_says_and_nothing_else() -> None:
    base = RankingSettings(words=0.5, explore=ExploreSettings(one_in=7, days=3.0))
    given = {"words": RankingSettings().words, "explore": {"enabled": True, "one_in": 10}}
    (experiment,) = settings(arms({}, {"ranking": given})).experiments
    control, treated = (arm.rankings(base) for arm in experiment.arms)
    assert control == (base,)
    changed = {"words": RankingSettings().words, "explore": ExploreSettings(enabled=True, one_in=10, days=3.0)}
    assert treated == (base.model_copy(update=changed),)


def test_what_is_served_keeps_an_arm_that_goes_back_to_a_default(tmp_path: Path) -> None:
    """The settings travel to the replicas as plain values; what equals a default is given all the same."""
    raw = {"ranking": {"words": 0.5}, "experiments": [arms({}, {"ranking": {"words": RankingSettings().words}})]}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(raw))
    served = parse(ServeSettings, _serve_args(path, {"topology": "fused"}), "args")
    assert served.topology == "fused"
    (ranking,) = served.experiments[0].arms[1].rankings(served.ranking)
    assert ranking.words == RankingSettings().words


async def test_rules_of_an_arm_that_do_not_fit_the_snapshot_keep_it_from_being_used(shop: Shop, tmp_path: Path) -> None:
    trial = arms({}, {"ranking": {"caps": {"colour": 1}}})
    with pytest.raises(ConfigError, match=r"people in arm-1: ranking\.caps\.colour: there is no field 'colour'"):
        await serve_here(shop.store(2), tmp_path / "s.sqlite3", experiments=[trial], impressions={"folder": None})


# Lists


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("experiments")
    made = await serve_here(shop.store(2), folder / "s.sqlite3", experiments=[TRIAL, RULES])
    yield made
    await made.stop()


@pytest.mark.asyncio(loop_scope="module")
async def test_an_arm_answers_as_a_gateway_of_its_own_would(shop: Shop, served: Served, tmp_path: Path) -> None:
    body = {"history": ["item-1", "item-7"], "limit": 12}
    bodies = await lists_of(served, **body)
    alone = {
        ("control", "plain"): {},
        ("control", "diverse"): {"diversity": 0.6},
        ("weights", "plain"): OTHER_WEIGHTS,
        ("weights", "diverse"): OTHER_WEIGHTS | {"diversity": 0.6},
    }
    lists = set()
    for (ranking, rules), settings in alone.items():
        other = await serve_here(shop.store(2), tmp_path / "s.sqlite3", ranking=settings, impressions={"folder": None})
        wanted = await post(other.client(), LISTS, **body)
        await other.stop()
        people = set(in_arm(bodies, "ranking", ranking)) & set(in_arm(bodies, "rules", rules))
        assert people
        assert all(bodies[person]["items"] == wanted["items"] for person in people)
        lists.add(tuple(ids(wanted)))
    assert len(lists) == 4


@pytest.mark.asyncio(loop_scope="module")
async def test_arms_follow_from_the_user_key_alone(served: Served) -> None:
    bodies = await lists_of(served)
    ranking = Experiment("ranking", {"control": 1, "weights": 1, "both": 1})
    rules = Experiment("rules", {"plain": 1, "diverse": 3})
    for person, answer in bodies.items():
        assert answer["experiments"] == [
            {"experiment": trial.name, "arm": trial.arm_of(f"u:{person}")} for trial in (ranking, rules)
        ]
    visitor = await post(served.client(), LISTS, session_id="p0")
    assert visitor["experiments"][0]["arm"] == ranking.arm_of("s:p0")
    for path, more in (
        (LISTS, {}),
        ("/v1/rank", {"user_id": "p0", "items": ["item-1"]}),
        ("/v1/search", {"query": "x"}),
    ):
        assert (await post(served.client(), path, **more))["experiments"] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_without_experiments_nobody_is_in_any(shop: Shop, tmp_path: Path) -> None:
    made = await serve_here(shop.store(2), tmp_path / "s.sqlite3")
    assert (await post(made.client(), LISTS, user_id="ann"))["experiments"] == []
    await made.stop()
    (column,) = read_impressions(tmp_path / "impressions").to_table(["experiments"]).columns
    assert column.to_pylist() == [[]] * 10
    assert sum(map(len, read_exposures(tmp_path / "impressions"))) == 0


# Interleaving


async def sides(shop: Shop, folder: Path, body: Mapping[str, Any], rules: str) -> list[list[str]]:
    """What each of the two rankings of the arm ``both`` would show."""
    found = []
    for weights in ({}, OTHER_WEIGHTS):
        ranking = {"profile": 0.5, **weights, "diversity": 0.6 if rules == "diverse" else 0.0}
        made = await serve_here(shop.store(2), folder / "s.sqlite3", ranking=ranking, impressions={"folder": None})
        found.append(ids(await post(made.client(), LISTS, **body)))
        await made.stop()
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_an_interleaved_list_is_a_draft_of_both_rankings(shop: Shop, served: Served, tmp_path: Path) -> None:
    body = {"history": ["item-1", "item-7"], "limit": 9, "explore": True}
    ranking, rules = (Experiment(t["name"], {a["name"]: a.get("share", 1) for a in t["arms"]}) for t in (TRIAL, RULES))
    plain = [p for p in map("p{}".format, range(150)) if rules.arm_of(f"u:{p}") == "plain"]
    bodies = await lists_of(served, [*PEOPLE[:10], *(p for p in plain if ranking.arm_of(f"u:{p}") == "both")], **body)
    first, second = await sides(shop, tmp_path, body, "plain")
    assert first != second
    drafted = set(in_arm(bodies, "ranking", "both"))
    people = drafted & set(in_arm(bodies, "rules", "plain"))
    assert len(people) > 5
    for person in people:
        answer = bodies[person]
        for item in answer["items"]:
            ranking = {"first": first, "second": second}[item["team"]]
            before = ids(answer)[: item["rank"] - 1]
            assert item["item_id"] == next(other for other in ranking if other not in before)
        teams = Counter(item["team"] for item in answer["items"])
        assert abs(teams["first"] - teams["second"]) == 1
        assert [item["rank"] for item in answer["items"]] == list(range(1, 10))
        assert {(item["explored"], item["propensity"]) for item in answer["items"]} == {(False, None)}
    assert len({tuple(ids(bodies[person])) for person in people}) > 3
    assert {item["team"] for person in set(bodies) - drafted for item in bodies[person]["items"]} == {None}


@pytest.mark.asyncio(loop_scope="module")
async def test_caps_and_promotions_hold_in_an_interleaved_list(served: Served) -> None:
    body = {
        "history": ["item-1", "item-7"],
        "limit": 12,
        "caps": [{"field": "categories", "most": 3}],
        "one_per": "year",
        "promotions": [{"item_id": "item-200", "slot": 3, "label": "Ad"}, {"item_id": "nope", "slot": 5}],
    }
    bodies = await lists_of(served, **body)
    for person in in_arm(bodies, "ranking", "both"):
        answer = bodies[person]
        third = answer["items"][2]
        assert (third["item_id"], third["promoted"], third["label"], third["team"]) == ("item-200", True, "Ad", None)
        kinds = Counter(kind for item in answer["items"] for kind in item["metadata"]["categories"])
        years = Counter(item["metadata"]["year"] for item in answer["items"] if "year" in item["metadata"])
        assert max(kinds.values()) <= 3
        assert max(years.values()) == 1
        assert [unmet["item_id"] for unmet in answer["unmet"] if unmet["rule"] == "promotion"] == ["nope"]
        teams = Counter(item["team"] for item in answer["items"])
        assert abs(teams["first"] - teams["second"]) <= 1


@given(
    st.lists(st.integers(0, 9), unique=True),
    st.lists(st.integers(0, 9), unique=True),
    st.integers(0, 10),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_a_draft_never_takes_what_does_not_fit(
    first: list[int], second: list[int], n: int, most: int, seed: int
) -> None:
    """At most so many of each rest by three."""

    def fits(taken: Any, item: str) -> bool:
        return sum(int(other) % 3 == int(item) % 3 for other in taken) < most

    shown = team_draft([*map(str, first)], [*map(str, second)], n, np.random.default_rng(seed), fits)
    rests = Counter(int(item) % 3 for item in shown.items)
    assert max(rests.values(), default=0) <= most
    possible = Counter(item % 3 for item in {*first, *second})
    assert len(shown.items) == min(n, sum(min(most, count) for count in possible.values()))


# From the log to the verdict


def event(person: str, kind: str, item_id: str, list_id: str, at_s: float = NOW_S + 60) -> Event:
    return Event(f"{person}-{kind}-{item_id}-{list_id}", kind, f"u:{person}", item_id, at_s, recommendation_id=list_id)


async def test_from_requests_to_a_look(shop: Shop, tmp_path: Path) -> None:
    """People of one arm buy more: served, logged, read back, and found."""
    trial = arms({"share": 1}, {"share": 1, "ranking": {"diversity": 0.5}}, name="more")
    made = await serve_here(shop.store(2), tmp_path / "s.sqlite3", experiments=[trial, RULES | {"arms": [
        {"name": "a"}, {"name": "b"}]}])  # fmt: skip
    people = [f"p{number}" for number in range(200)]
    bodies = await lists_of(made, people, limit=3)
    await lists_of(made, people[:20], limit=3)  # who comes again counts once
    await made.stop()
    exposures = list(read_exposures(tmp_path / "impressions"))
    assert {batch.schema for batch in exposures} == {EXPOSURE_SCHEMA}
    assert sum(map(len, exposures)) == 2 * 220
    experiment = Experiment("more", {"arm-0": 1, "arm-1": 1})
    first = first_exposures(exposures, experiment)
    assert dict(zip(first["user"].to_pylist(), first["arm"].to_pylist(), strict=True)) == {
        f"u:{person}": experiment.arm_of(f"u:{person}") for person in people
    }
    rng, chance = np.random.default_rng(0), {"arm-0": 0.1, "arm-1": 0.4}
    bought = [
        event(person, "purchase", ids(body)[0], body["recommendation_id"])
        for person, body in bodies.items()
        if rng.random() < chance[body["experiments"][0]["arm"]]
    ]
    seen = outcomes(first, [event_batch(bought)], {"purchase": 1.0}, experiment, DAY_S, now_s=NOW_S + 2 * DAY_S)
    assert (seen.n_open, seen.n_mixed) == (0, 0)
    assert mismatch_p_value(experiment, {arm: len(values) for arm, values in seen.values.items()}) > 0.001
    found = look(seen.values["arm-0"], seen.values["arm-1"], SequentialPlan(effect=0.1, min_per_arm=80))
    assert found.verdict == "better"
    assert found.low < 0.3 < found.high


async def test_from_an_interleaved_list_to_a_preference(shop: Shop, tmp_path: Path) -> None:
    """People choose from the second ranking more often; people of the other arm, who choose much, do not count."""
    trial = arms({"interleave": [{}, OTHER_WEIGHTS]}, {}, name="two")
    made = await serve_here(shop.store(2), tmp_path / "s.sqlite3", experiments=[trial], deadline_s=30.0)  # all at once
    people = [f"p{number}" for number in range(450)]  # who stands where is drawn anew in each run: few could mislead
    bodies = await lists_of(made, people, history=["item-1", "item-7"], limit=6)
    await made.stop()
    rng, wants = np.random.default_rng(0), {"first": 0.1, "second": 0.3, None: 0.9}
    chosen = [
        event(person, "click", item["item_id"], body["recommendation_id"])
        for person, body in bodies.items()
        for item in body["items"]
        if rng.random() < wants[item["team"]]
    ]
    rewards = read_rewards([event_batch(chosen)], {"click": 1.0})
    credit = read_credit(tmp_path / "impressions", rewards, "two", "arm-0")
    interleaved = in_arm(bodies, "two", "arm-0")
    assert len(credit.users) == len(interleaved)
    teams = {
        (body["recommendation_id"], item["item_id"]): item["team"] for body in bodies.values() for item in body["items"]
    }
    counts = Counter(teams[one.recommendation_id or "", one.item_id or ""] for one in chosen)
    assert (credit.first.sum(), credit.second.sum()) == (counts["first"], counts["second"])
    found = preference(credit.users, credit.first, credit.second)
    assert found.prefers == "second"
    assert found.first + found.second + found.even == len(interleaved)
    others = read_credit(tmp_path / "impressions", rewards, "two", "arm-1")
    assert (others.first.sum(), others.second.sum()) == (0, 0)


def test_files_from_before_there_were_experiments_are_still_read(tmp_path: Path) -> None:
    old = pa.schema([field for field in IMPRESSION_SCHEMA if field.name not in ("experiments", "team")])
    row = {
        "recommendation_id": "r1",
        "timestamp": datetime(2026, 11, 25, tzinfo=UTC),
        "route": "recommendations",
        "user": "u:ann",
        "snapshot_id": "s",
        "profile_version": 1,
        "position": 1,
        "item_id": "a",
        "score": 1.0,
        "sources": [],
        "propensity": None,
        "degraded": [],
    }
    (tmp_path / "day=2026-11-25").mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=old), tmp_path / "day=2026-11-25" / "old.parquet")
    (read,) = read_impressions(tmp_path).to_table().to_pylist()
    assert read == {**row, "experiments": None, "team": None, "day": "2026-11-25"}
    assert list(read_exposures(tmp_path)) == []
    rewards = read_rewards([event_batch([event("ann", "click", "a", "r1")])], {"click": 1.0})
    assert len(read_credit(tmp_path, rewards, "two", "arm-0").users) == 0


async def test_exposures_of_some_days_can_be_chosen(shop: Shop, tmp_path: Path) -> None:
    made = await serve_here(shop.store(2), tmp_path / "s.sqlite3", experiments=[RULES])
    await lists_of(made, ["ann"])
    await made.stop()
    folder = tmp_path / "impressions"
    (day,) = {row["day"] for row in read_impressions(folder).to_table(["day"]).to_pylist()}
    assert sum(map(len, read_exposures(folder, pads.field("day") == day))) == 1
    assert sum(map(len, read_exposures(folder, pads.field("day") > day))) == 0
