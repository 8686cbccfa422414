"""The rules of the list as a whole, each against its plainest form, and all of them together."""

import math
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.ranking.calibrate import SMOOTHING, Miscalibration, miscalibration
from raysys.ranking.diversify import Likeness
from raysys.ranking.groups import Groups
from raysys.ranking.promote import at_slots
from raysys.ranking.rerank import CALIBRATION, Listing, Mix, Pool, Rules, rerank
from raysys.types import Cap

DIM = 8
COLOURS = ("red", "green", "blue", "grey")


def world(seed: int, size: int = 40, n_found: int | None = None) -> Pool:
    """Candidates of a few topics, some without text, brand or colour, some with equal scores."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(4, size=size)
    vectors = rng.normal(size=(4, DIM))[topics] + 0.4 * rng.normal(size=(size, DIM))
    vectors[rng.random(size) < 0.1] = 0
    brands = pa.array([None if b == 5 else f"b{b}" for b in rng.integers(6, size=size)], pa.string())
    colours = [[COLOURS[c] for c in rng.integers(4, size=rng.integers(3))] for _ in range(size)]
    groups = {"brand": Groups.of(brands), "colour": Groups.of(pa.array(colours, pa.list_(pa.string())))}
    scores = np.sort(np.round(rng.gamma(2, size=size if n_found is None else n_found), 1).astype(np.float32))[::-1]
    wanted = groups["colour"].mix(rng.random(size) ** 4)
    assert wanted is not None
    likeness = Likeness(vectors.astype(np.float32), np.zeros(DIM, np.float32))
    return Pool(scores, size, groups, likeness, Mix(wanted, groups["colour"]))


def values_of(pool: Pool, field: str, order) -> list[int]:
    return [value for at in order for value in pool.groups[field].of_item(at).tolist()]


def likeness_within(pool: Pool, order) -> float:
    """The mean cosine of the pairs of a list."""
    return float(np.mean([pool.likeness.row(a)[b] for a, b in combinations(order, 2)]))


# Single rules


@given(st.integers(0, 50), st.integers(0, 60))
def test_without_rules_the_best_come_in_their_order(seed: int, n: int) -> None:
    pool = world(seed)
    assert rerank(pool, Rules(), n) == Listing(list(range(min(n, pool.size))), [()] * min(n, pool.size), {}, ())


@given(st.integers(0, 50), st.integers(1, 12), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_mmr_is_what_carbonell_and_goldstein_say(seed: int, n: int, diversity: float) -> None:
    pool = world(seed, size=20)
    spread = max(float(pool.scores[0] - pool.scores[-1]), 1e-9)
    expected: list[int] = []
    for _ in range(n):

        def gain(at: int) -> float:
            redundancy = max((max(pool.likeness.row(other)[at], 0) for other in expected), default=0)
            relevance = float(pool.scores[at] - pool.scores[-1]) / spread
            return (1 - diversity) * relevance - diversity * redundancy

        left = [at for at in range(20) if at not in expected]
        best = max(gain(at) for at in left)
        expected.append(next(at for at in left if gain(at) >= best - 1e-12))
    assert rerank(pool, Rules(diversity=diversity), n).order == expected


@given(st.integers(0, 50), st.sampled_from([0.1, 0.5, 0.9]))
def test_dpp_takes_the_item_that_adds_most_to_the_log_determinant(seed: int, diversity: float) -> None:
    pool = world(seed, size=20)
    order = rerank(pool, Rules(diversity=diversity, method="dpp"), DIM).order
    kernel = (1 + np.stack([pool.likeness.row(at) for at in range(20)])) / 2
    relevance = (pool.scores - pool.scores[-1]) / max(pool.scores[0] - pool.scores[-1], 1e-9)

    def worth(chosen: list[int]) -> float:
        log_det = np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1]
        return (1 - diversity) * float(relevance[chosen].sum()) + diversity * log_det

    for step in range(len(order)):
        so_far = list(order[:step])
        best = max(worth([*so_far, at]) for at in range(20) if at not in so_far)
        assert worth([*so_far, order[step]]) == pytest.approx(best, abs=1e-4)


def test_dpp_goes_on_where_nothing_new_is_left() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    pool = Pool(np.linspace(1, 0, 60, dtype=np.float32), 60, likeness=Likeness(vectors, np.zeros(3, np.float32)))
    order = rerank(pool, Rules(diversity=0.5, method="dpp"), 60).order
    assert sorted(order) == list(range(60))
    assert {at // 20 for at in order[:3]} == {0, 1, 2}


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_more_diversity_never_makes_lists_more_alike_on_average(method) -> None:
    pools = [world(seed, size=60) for seed in range(80)]
    dials = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    means = [
        np.mean([likeness_within(p, rerank(p, Rules(diversity=dial, method=method), 10).order) for p in pools])
        for dial in dials
    ]
    assert all(more <= less + 1e-3 for less, more in pairwise(means)), means
    assert means[-1] < means[0] - 0.1


def test_an_item_without_text_is_like_no_other() -> None:
    likeness = Likeness(np.array([[1, 0], [0, 0], [0, 0]], np.float32), np.array([0.5, 0.5], np.float32))
    assert [likeness.row(at).tolist() for at in (1, 2)] == [[0, 1, 0], [0, 0, 1]]


@given(st.integers(0, 50), st.integers(1, 3), st.integers(1, 3), st.integers(1, 45))
def test_caps_leave_the_best_that_they_allow(seed: int, brands: int, colours: int, n: int) -> None:
    pool = world(seed)
    caps = {"cap:brand": Cap("brand", brands), "cap:colour": Cap("colour", colours)}
    expected: list[int] = []
    for at in range(pool.size):
        fits = all(
            values_of(pool, cap.field, expected).count(value) < cap.most
            for cap in caps.values()
            for value in pool.groups[cap.field].of_item(at)
        )
        if fits and len(expected) < n:
            expected.append(at)
    found = rerank(pool, Rules(caps=caps), n)
    assert found.order == expected
    assert bool(found.short_by) == (len(expected) < n and len(expected) < pool.size)


@given(st.integers(0, 50), st.integers(0, 12), st.data())
def test_the_cost_of_calibration_is_the_divergence_of_the_longer_list(seed: int, length: int, data) -> None:
    mix = world(seed).mix
    chosen = data.draw(st.lists(st.integers(0, 39), min_size=length, max_size=length, unique=True))
    growing = Miscalibration(mix.wanted, mix.groups)
    for at in chosen:
        growing.take(at)
    expected = [miscalibration(mix.wanted, mix.groups, [*chosen, at]) for at in range(40)]
    np.testing.assert_allclose(growing.cost, expected, atol=1e-9)


def test_divergence_by_hand() -> None:
    groups = Groups.of(pa.array([["a"], ["a", "b"], ["c"], None], pa.list_(pa.string())))
    wanted = np.array([0.5, 0.5, 0.0])
    list_mix = (1 - SMOOTHING) * np.array([0.75, 0.25]) + SMOOTHING * 0.5
    expected = 0.5 * math.log(0.5 / list_mix[0]) + 0.5 * math.log(0.5 / list_mix[1])
    assert miscalibration(wanted, groups, [0, 1]) == pytest.approx(expected)
    assert miscalibration(wanted, groups, []) == pytest.approx(math.log(1 / SMOOTHING))
    assert miscalibration(wanted, groups, [2, 3]) == pytest.approx(math.log(1 / SMOOTHING))


def test_a_list_follows_the_mix_of_the_person() -> None:
    topics = pa.array(["romance"] * 20 + ["thriller"] * 20)
    groups = Groups.of(topics)
    pool = Pool(np.linspace(1, 0.5, 40, dtype=np.float32), 40, mix=Mix(np.array([0.7, 0.3]), groups))
    order = rerank(pool, Rules(calibration=0.99), 10).order
    assert sorted(groups.values[order].tolist()) == [0] * 7 + [1] * 3


@given(st.dictionaries(st.integers(1, 12), st.integers(100, 120), max_size=5), st.integers(0, 12), st.integers(1, 12))
def test_pins_stand_at_their_slots_and_leave_no_holes(pins: dict[int, int], n_others: int, n: int) -> None:
    others = list(range(n_others))
    order = at_slots(pins, others, n)
    n_before = {slot: sum(other <= slot for other in pins) for slot in pins}
    for slot, at in pins.items():
        if slot <= n and n_others >= slot - n_before[slot]:
            assert order[slot - 1] == at
    assert [at for at in order if at < 100] == others[: sum(at < 100 for at in order)]
    assert len(order) == min(n, n_others + len(pins))


# All of them together


@st.composite
def cases(draw) -> tuple[Pool, Rules, int]:
    n_found = draw(st.integers(0, 40))
    pool = world(draw(st.integers(0, 1_000)), n_found=n_found)
    n = draw(st.integers(1, 15))
    share = st.sampled_from([0.0, 0.0, 0.2, 0.6, 1.0])
    caps = draw(st.dictionaries(st.sampled_from(["brand", "colour"]), st.integers(1, 4)))
    slots = draw(st.lists(st.integers(1, n), unique=True, max_size=3))
    places = draw(st.lists(st.integers(0, 39), unique=True, min_size=len(slots), max_size=len(slots)))
    rules = Rules(
        diversity=draw(share),
        method=draw(st.sampled_from(["mmr", "dpp"])),
        calibration=draw(share),
        caps={f"cap:{name}": Cap(name, most) for name, most in caps.items()},
        pins=dict(zip(slots, places, strict=True)),
    )
    return pool, rules, n


@given(cases())
def test_a_list_holds_each_candidate_once_and_what_was_not_found_only_where_it_is_promoted(case) -> None:
    pool, rules, n = case
    order = rerank(pool, rules, n).order
    assert len(set(order)) == len(order) <= n
    assert all(at < len(pool.scores) or at in rules.pins.values() for at in order)


@given(cases())
def test_no_cap_is_ever_exceeded_and_a_short_list_names_what_made_it_short(case) -> None:
    pool, rules, n = case
    found = rerank(pool, rules, n)
    for cap in rules.caps.values():
        counts = np.bincount(values_of(pool, cap.field, found.order), minlength=1)
        assert counts.max() <= cap.most
    left = set(range(len(pool.scores))) - set(found.order)
    assert bool(found.short_by) == (len(found.order) < n and bool(left))


@given(cases())
def test_a_promoted_item_stands_at_its_slot_or_a_cap_is_named(case) -> None:
    pool, rules, n = case
    found = rerank(pool, rules, n)
    for slot, at in rules.pins.items():
        if at in found.refused:
            assert found.refused[at] in rules.caps
            assert at not in found.order
        else:
            others = [each for each in found.order if each not in rules.pins.values()]
            sooner = [s for s, pinned in rules.pins.items() if s < slot and pinned in found.order]
            fits = len(others) + len(sooner) >= slot - 1
            assert found.order.index(at) == (slot - 1 if fits else len(others) + len(sooner))


@given(cases())
def test_what_a_rule_moved_is_found_by_really_doing_without_it(case) -> None:
    pool, rules, n = case
    found = rerank(pool, rules, n)
    for name in rules.names():
        without = rerank(pool, rules.without(name), n).order
        ranks = {at: rank for rank, at in enumerate(without, start=1)}
        for rank, (at, moves) in enumerate(zip(found.order, found.moves, strict=True), start=1):
            told = {move.rule: move.rank for move in moves}.get(name, rank)
            if told is not None and told <= len(without):
                assert ranks[at] == told
            else:
                assert at not in ranks


@given(cases())
def test_calibration_never_leaves_a_list_further_off(case) -> None:
    pool, rules, n = case
    with_it, without = (rerank(pool, r, n).order for r in (rules, rules.without(CALIBRATION)))
    off = [miscalibration(pool.mix.wanted, pool.mix.groups, order) for order in (with_it, without)]
    assert off[0] <= off[1]


@pytest.mark.parametrize("rules", [Rules(diversity=0.5), Rules(diversity=0.5, method="dpp"), Rules(calibration=0.5)])
def test_equal_ones_keep_the_order_of_the_candidates(rules: Rules) -> None:
    groups = Groups.of(pa.array(["a"] * 5))
    likeness = Likeness(np.zeros((5, 2), np.float32), np.zeros(2, np.float32))
    pool = Pool(np.full(5, 0.5, np.float32), 5, likeness=likeness, mix=Mix(np.ones(1), groups))
    assert rerank(pool, rules, 9).order == [0, 1, 2, 3, 4]


# Groups


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None, "b", "a"]), [["a"], [], ["b"], ["a"]]),
        (pa.array([3, None, 3]), [[3], [], [3]]),
        (pa.array([True, False, None]), [[True], [False], []]),
        (pa.array([["a", "b"], None, [], ["b", "b", None]]), [["a", "b"], [], [], ["b"]]),
        (pa.array([None, None], pa.string()), [[], []]),
        (pa.array([], pa.list_(pa.string())), []),
    ],
    ids=str,
)
def test_groups_are_the_values_of_a_column(column: pa.Array, expected: list[list[object]]) -> None:
    groups = Groups.of(column)
    assert len(groups) == len(expected)
    flat = sorted({value for values in expected for value in values}, key=str)
    assert groups.n_values == len(flat)
    names = dict(zip(values_in(groups), [v for values in expected for v in values], strict=True))
    assert [sorted((names[value] for value in groups.of_item(i)), key=str) for i in range(len(groups))] == expected


def values_in(groups: Groups) -> list[int]:
    return [int(value) for at in range(len(groups)) for value in groups.of_item(at)]


def test_a_mix_counts_an_item_once_however_many_values_it_has() -> None:
    groups = Groups.of(pa.array([["a"], ["a", "b"], None], pa.list_(pa.string())))
    assert groups.mix(np.array([1.0, 1.0, 5.0])).tolist() == [0.75, 0.25]
    assert groups.mix(np.array([0.0, 0.0, 1.0])) is None
    assert groups.first(1).mix(np.array([2.0])).tolist() == [1.0, 0.0]
