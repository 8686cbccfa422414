"""The model of capacity: it finds again what it was made of, and its plans grow with what is asked of them."""

import os
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import capacity
from capacity import Costs, Index, Plan, Point, plan

INDEX = Index("ivf_rabitq", 1_000_000, 0.6, 0.3, 67.0)
MIB = {"gateway": 300.0, "shard": 250.0, "ranker": 200.0, "encoder": 700.0}


def point(items: int, shards: int) -> Point:
    """By a rule: a gateway takes 1 ms and .2 a shard; a shard .3 ms and 20 ns an item, which takes 2,000 bytes."""
    per_shard = items / shards
    return Point(
        items=items,
        shards=shards,
        requests_per_s=0.0,
        p50_ms=0.0,
        p99_ms=0.0,
        gateway_ms=1 + 0.2 * shards,
        shard_ms=0.3 + 20e-6 * per_shard,
        ranker_ms=0.1,
        encoder_ms=3.0,
        rest_ms=1 + 0.1 * shards,
        mib=MIB | {"shard": 250 + per_shard * 2_000 / 2**20},
    )


@pytest.fixture(scope="module")
def costs() -> Costs:
    return Costs.of([point(*sizes) for sizes in capacity.FITTED], point(10_000, 2))


def test_the_fit_finds_the_rule_and_predicts_what_it_was_not_fitted_on(costs: Costs) -> None:
    assert costs.gateway_ms == pytest.approx((1.0, 0.2))
    assert costs.shard_ms == pytest.approx((0.3, 20e-6))
    assert costs.shard_bytes_per_item == pytest.approx(2_000)
    unseen = point(*capacity.CHECKED)
    assert unseen.request_ms == unseen.gateway_ms + 4 * unseen.shard_ms + unseen.ranker_ms + unseen.rest_ms
    assert costs.request_ms(*capacity.CHECKED, INDEX) == pytest.approx(unseen.request_ms)
    expected = min(2_000 / unseen.request_ms, 1_000 / unseen.gateway_ms)
    assert costs.requests_per_s(*capacity.CHECKED, cores=2, index=INDEX) == pytest.approx(expected)


def test_a_check_says_how_far_above_the_measured_point_the_prediction_is(costs: Costs) -> None:
    per_s = costs.requests_per_s(20_000, 4, os.cpu_count() or 1, INDEX)
    found = capacity.checked(costs, INDEX, replace(point(*capacity.CHECKED), requests_per_s=per_s / 1.25))
    assert (found["error"], found["cpu_error"]) == (0.25, 0.0)


def test_behind_an_approximate_index_only_the_search_grows(costs: Costs) -> None:
    most = costs.shard(capacity.MOST_MEASURED, INDEX)
    assert costs.shard(1_000_000, INDEX) == pytest.approx(most + 2 * 0.6)
    assert costs.shard(8_000_000, INDEX) == pytest.approx(most + 2 * 0.6 * 8**0.3)


@given(st.integers(1_000, 100_000_000), st.floats(1, 20_000))
@example(46_164, 7_084.0)
def test_more_requests_or_more_items_never_take_less(items: int, per_s: float) -> None:
    fitted = Costs.of([point(*sizes) for sizes in capacity.FITTED], point(10_000, 2))
    one = plan(fitted, INDEX, items, per_s, 0.1)
    busier, larger = plan(fitted, INDEX, items, 2 * per_s, 0.1), plan(fitted, INDEX, 4 * items, per_s, 0.1)
    assert one.machines <= busier.machines
    if one.index == larger.index:  # small shards are compared whole, which costs more than an index over a few more
        assert one.machines <= larger.machines
    assert one.usd_per_month > 0
    assert all(one.replicas[tier] >= 2 for tier in one.replicas)


def test_each_tier_has_the_cores_that_it_needs_and_the_machines_hold_all_of_it(costs: Costs) -> None:
    for one in (plan(costs, INDEX, 10**power, 1_000.0, 0.2) for power in (4, 6, 8)):
        cores = capacity.MACHINES[capacity.MACHINE].cores
        assert sum(one.cores.values()) <= one.machines * cores * capacity.UTILISATION + 1
        assert sum(one.gib.values()) <= one.machines * capacity.MACHINE_GIB * capacity.MOST_OF_MEMORY + 1
        assert one.shard_gib <= capacity.MACHINE_GIB * capacity.MOST_OF_MEMORY
        for tier, used in one.cores.items():
            assert one.replicas[tier] >= used / capacity.UTILISATION - 1


def test_a_small_catalogue_is_compared_vector_by_vector_and_a_large_one_is_not(costs: Costs) -> None:
    plans: list[Plan] = [plan(costs, INDEX, 10**power, 100.0, 0.0) for power in range(4, 9)]
    assert plans[0].index == "flat"
    assert plans[-1].index == "ivf_rabitq"
    assert all(a.shards <= b.shards or a.index != b.index for a, b in pairwise(plans))


def test_without_text_no_encoder_is_busy(costs: Costs) -> None:
    assert plan(costs, INDEX, 10_000, 100.0, 0.0).cores["encoder"] == 0
    assert plan(replace(costs, encoder_ms=9.0), INDEX, 10_000, 100.0, 0.5).cores["encoder"] == pytest.approx(
        0.5, abs=0.1
    )


def test_replicas_on_one_machine_share_what_is_mapped(costs: Costs) -> None:
    few, many = (plan(costs, INDEX, 10**7, per_s, 0.0) for per_s in (100.0, 1_000.0))
    assert few.shards == many.shards
    assert many.replicas["shard"] > few.replicas["shard"]
    assert many.gib["shard"] - few.gib["shard"] < few.shard_gib * few.shards
