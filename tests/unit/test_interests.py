"""Several interests of one person: made-up groups of vectors around known directions, and what must come of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import ProfileSettings
from raysys.profile.interests import interests
from raysys.profile.seeds import decayed_mean

SETTINGS = ProfileSettings()
DIM = 32
NO_CENTER = np.zeros(DIM, dtype=np.float32)
DAY_S = 86_400.0


def around(*topics: int, spread: float = 0.6, seed: int = 0) -> np.ndarray:
    """One unit vector an item, near the axis of its topic: [len(topics), DIM] float32."""
    noise = np.random.default_rng(seed).normal(size=(len(topics), DIM)) / np.sqrt(DIM)
    vectors = np.eye(DIM)[list(topics)] + spread * noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.float32)


def days(n: int) -> np.ndarray:
    """One item a day, so that the newest alone is the session."""
    return np.arange(n) * DAY_S


def found(vectors, weights=None, times_s=None, settings=SETTINGS, center=NO_CENTER):
    n = len(vectors)
    return interests(
        vectors, ones(n) if weights is None else weights, days(n) if times_s is None else times_s, settings, center
    )


def members(those) -> list[tuple[str, list[int]]]:
    return [(interest.kind, interest.members.tolist()) for interest in those]


def test_two_far_groups_are_two_interests():
    vectors = around(0, 1, 0, 1, 0, 1, 0)
    two = found(vectors)
    assert members(two) == [("long_term", [0, 2, 4, 6]), ("long_term", [1, 3, 5])]
    assert [interest.weight for interest in two] == pytest.approx([4 / 7, 3 / 7])
    for topic, interest in enumerate(two):
        assert interest.vector[topic] > 0.8
        assert np.linalg.norm(interest.vector) == pytest.approx(1.0, abs=1e-6)
        assert interest.vector.dtype == np.float32


def test_one_blob_is_the_taste_as_ever():
    vectors, weights = around(*[3] * 20), (0.7 ** np.arange(20)[::-1]).astype(np.float32)
    (one,) = found(vectors, weights)
    assert (one.kind, one.members.tolist(), one.weight) == ("long_term", list(range(20)), pytest.approx(1.0))
    np.testing.assert_array_equal(one.vector, decayed_mean(vectors, weights, vectors[:0], weights[:0]))


def test_the_weightiest_comes_first_and_is_weighed_inside():
    vectors, weights = around(0, 0, 0, 1, 1), np.array([1, 1, 1, 5, 1], dtype=np.float32)
    first, second = found(vectors, weights)
    assert (first.members.tolist(), second.members.tolist()) == ([3, 4], [0, 1, 2])
    assert first.weight == pytest.approx(6 / 9)
    np.testing.assert_allclose(first.vector, decayed_mean(vectors[3:], weights[3:], vectors[:0], weights[:0]))


def test_items_that_are_all_different_are_one_interest():
    assert members(found(around(0, 1, 2, 3, 4))) == [("long_term", [0, 1, 2, 3, 4])]


def test_a_stray_item_stays_with_what_is_nearest():
    stray = around(1, spread=0.0) + around(2, spread=0.0) * 0.2
    vectors = np.concatenate([stray / np.linalg.norm(stray), around(0, 0, 0, 2, 2)]).astype(np.float32)
    # 0.2 of cosine to topic 2 is less than what joins two groups here
    settings = ProfileSettings(interest_similarity=0.4)
    assert members(found(vectors, settings=settings)) == [("long_term", [1, 2, 3]), ("long_term", [0, 4, 5])]


def test_one_item_of_great_weight_is_an_interest():
    vectors, weights = around(1, 0, 0, 0), np.array([3, 1, 1, 1], dtype=np.float32)
    assert members(found(vectors, weights)) == [("long_term", [1, 2, 3]), ("long_term", [0])]


def test_no_more_interests_than_the_settings_allow():
    vectors = around(*[0] * 6, *[1] * 5, *[2] * 4, *[3] * 3)
    four = found(vectors, settings=ProfileSettings(max_interests=4))
    assert [len(interest.members) for interest in four] == [6, 5, 4, 3]
    for most in (1, 2, 3, 4):
        several = found(vectors, settings=ProfileSettings(max_interests=most))
        assert len(several) == most
        assert sorted(np.concatenate([interest.members for interest in several])) == list(range(18))


def test_a_session_of_something_new_stands_for_itself():
    vectors = around(0, 0, 0, 1, 1, 5, 5)
    times_s = np.array([0, 1, 2, 3, 4, 9, 9.01]) * DAY_S
    assert members(found(vectors, times_s=times_s)) == [
        ("session", [5, 6]),
        ("long_term", [0, 1, 2]),
        ("long_term", [3, 4]),
    ]


def test_a_session_of_what_was_liked_before_is_no_interest_of_its_own():
    vectors, times_s = around(0, 0, 0, 1, 1, 1, 1), np.array([0, 1, 2, 3, 4, 9, 9.01]) * DAY_S
    assert members(found(vectors, times_s=times_s)) == [("long_term", [3, 4, 5, 6]), ("long_term", [0, 1, 2])]


def test_one_new_item_is_a_session_only_with_weight():
    vectors = around(0, 0, 0, 0, 5)
    assert members(found(vectors)) == [("long_term", [0, 1, 2, 3, 4])]
    heavy = np.array([1, 1, 1, 1, 3], dtype=np.float32)
    assert members(found(vectors, heavy)) == [("session", [4]), ("long_term", [0, 1, 2, 3])]


def test_a_session_is_a_chain_that_ends_at_the_first_long_pause():
    vectors = around(0, 0, 5, 5, 5)
    minutes = np.array([0.0, 40.0, 80.0, 109.0, 139.0])
    assert members(found(vectors, times_s=minutes * 60))[0] == ("session", [2, 3, 4])
    longer = ProfileSettings(session_gap_minutes=40.0)
    assert {kind for kind, _ in members(found(vectors, times_s=minutes * 60, settings=longer))} == {"long_term"}


def test_a_first_session_falls_apart_like_any_history():
    vectors = around(0, 0, 1, 1, 1)
    assert members(found(vectors, times_s=np.zeros(5))) == [("long_term", [2, 3, 4]), ("long_term", [0, 1])]


def test_in_a_narrow_cone_the_center_tells_groups_apart():
    cone = np.full(DIM, 4 / np.sqrt(DIM))
    vectors = cone + around(0, 0, 0, 1, 1, 1)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert (vectors @ vectors.T).min() > 0.9
    assert len(found(vectors)) == 1
    center = vectors.mean(axis=0)
    assert [indices for _, indices in members(found(vectors, center=center))] == [[0, 1, 2], [3, 4, 5]]


def test_a_single_item():
    (one,) = found(around(7))
    assert (one.kind, one.members.tolist(), one.weight) == ("long_term", [0], 1.0)
    np.testing.assert_allclose(one.vector, around(7)[0], rtol=1e-6)


def test_nothing_gives_nothing():
    assert found(np.zeros((0, DIM), dtype=np.float32)) == []
    assert found(np.zeros((3, DIM), dtype=np.float32)) == []
    assert found(around(0, 0), weights=np.zeros(2, dtype=np.float32)) == []


def test_zero_vectors_belong_to_no_interest():
    vectors = around(0, 0, 9, 1, 1, 1)
    vectors[2] = 0
    assert members(found(vectors)) == [("long_term", [3, 4, 5]), ("long_term", [0, 1])]


def test_items_that_cancel_out_are_no_interest():
    up = around(0, 0, spread=0.0)
    up[1] *= -1
    assert found(up, settings=ProfileSettings(interest_similarity=-1.0)) == []


def test_an_item_that_is_the_center_itself():
    vectors = around(0, 0, 0, 1, 1)
    assert sum(len(i.members) for i in found(vectors, center=vectors[0])) == 5


def test_equal_vectors_are_one_interest():
    assert members(found(np.repeat(around(4), 9, axis=0), times_s=np.zeros(9))) == [("long_term", list(range(9)))]


TOPICS = st.lists(st.integers(0, 5), min_size=1, max_size=24)


@given(TOPICS, st.sampled_from([0.1, 0.8, 2.0]), st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_order_does_not_matter_and_nothing_is_lost(topics, spread, rng, most):
    n = len(topics)
    vectors, settings = around(*topics, spread=spread, seed=1), ProfileSettings(max_interests=most)
    weights = np.array([rng.uniform(0.1, 3) for _ in topics], dtype=np.float32)
    times_s = np.cumsum([rng.choice([60.0, DAY_S]) for _ in topics])
    here = found(vectors, weights, times_s, settings)
    order = np.array(rng.sample(range(n), n))
    there = found(vectors[order], weights[order], times_s[order], settings)
    assert [(i.kind, i.members.tolist()) for i in here] == [(i.kind, sorted(order[i.members].tolist())) for i in there]
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)
    assert sorted(np.concatenate([i.members for i in here]).tolist()) == list(range(n))
    assert sum(i.weight for i in here) == pytest.approx(1.0, abs=1e-5)
    long_term = [i.weight for i in here if i.kind == "long_term"]
    assert len(long_term) <= most
    assert all(i.kind == "long_term" for i in here[1:])


@given(TOPICS, st.sampled_from([0.1, 0.8, 2.0]))
def test_the_same_items_give_the_same_bytes(topics, spread):
    vectors = around(*topics, spread=spread)
    for one, other in zip(found(vectors), found(vectors.copy()), strict=True):
        assert (one.kind, one.weight) == (other.kind, other.weight)
        np.testing.assert_array_equal(one.vector, other.vector)


def slowly(cosines: np.ndarray, threshold: float) -> list[set[int]]:
    """Average-link clustering as the books have it: join the most alike pair, one at a time."""
    groups = [{row} for row in range(len(cosines))]
    while len(groups) > 1:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        alike = [cosines[np.ix_(sorted(groups[a]), sorted(groups[b]))].mean() for a, b in pairs]
        if max(alike) < threshold:
            break
        a, b = pairs[int(np.argmax(alike))]
        groups[b] |= groups.pop(a)
    return groups


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spread", [0.8, 1.5, 3.0])
def test_clusters_are_those_of_joining_one_pair_at_a_time(seed, spread):
    vectors = around(*np.random.default_rng(seed).integers(0, 6, 30), spread=spread, seed=seed)
    expected = sorted(sorted(group) for group in slowly(vectors.astype(float) @ vectors.T, 0.2) if len(group) >= 2)
    settings = ProfileSettings(max_interests=50, interest_share=1.0)
    got = found(vectors, settings=settings)
    if len(expected) < 2:
        assert members(got) == [("long_term", list(range(30)))]
    else:  # strays have joined, so each group holds its cluster
        assert len(got) == len(expected)
        for group in expected:
            assert any(set(group) <= set(interest.members.tolist()) for interest in got)
