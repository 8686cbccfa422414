"""The sequence model against what it must equal: full softmax, itself in numpy, and itself not interrupted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from raysys.config import SequenceSettings, parse
from raysys.errors import ConfigError, SnapshotError
from raysys.index.sequence import WEIGHTS, SequenceEncoder
from raysys.training.sequence.checkpoint import TENSORS
from raysys.training.sequence.examples import Histories, Negatives
from raysys.training.sequence.fit import Alone, all_items, fit
from raysys.training.sequence.model import SequenceModel

N_ITEMS, TEXT_DIM, N_TOPICS = 40, 12, 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def settings(**changes: object) -> SequenceSettings:
    small = {"dim": 16, "max_history": 12, "negatives": 16, "batch": 32, "warm_up_steps": 5, "epochs": 4}
    return parse(SequenceSettings, small | changes, "test")


def model_of(given: SequenceSettings, seed: int = 0) -> SequenceModel:
    """Far from where it starts, so that every part of it has something to say."""
    torch.manual_seed(seed)
    model = SequenceModel(given, N_ITEMS, TEXT_DIM)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
        model.log_scale[()] = -math.log(given.temperature)
    return model.eval()


def texts(seed: int = 0) -> np.ndarray:
    """Items of a topic have like texts; the last item has none."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(N_TOPICS, TEXT_DIM))
    found = topics[np.arange(N_ITEMS) % N_TOPICS] + 0.3 * rng.normal(size=(N_ITEMS, TEXT_DIM))
    found[-1] = 0
    return found.astype(np.float32)


def histories(n_users: int = 120, structure: bool = True, without: int | None = None) -> Histories:
    """People who stay with a topic, or wander anywhere. The last item of each topic is met by nobody if ``without``."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(n_users):
        mine = np.arange(user % N_TOPICS, N_ITEMS, N_TOPICS) if structure else np.arange(N_ITEMS)
        row = rng.permutation(mine)[:7]
        rows.append(row[row != without])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Histories(starts, np.concatenate(rows).astype(np.int32), texts())


def person(encoder: SequenceEncoder, items: np.ndarray) -> np.ndarray | None:
    return encoder.person(items, np.ones(len(items), np.float32))


@pytest.mark.parametrize(("blocks", "heads"), [(1, 1), (2, 4)])
def test_numpy_says_what_torch_says(blocks: int, heads: int) -> None:
    model = model_of(settings(blocks=blocks, heads=heads))
    items = all_items(model, histories())
    for length in (1, 2, 12, 30):
        rows = np.random.default_rng(length).integers(0, N_ITEMS, length)
        with torch.no_grad():
            expected = model.users(items[rows[-12:]][None])[0, -1].numpy()
        found = person(model.encoder(), items.detach().numpy()[rows])
        assert found is not None
        assert np.abs(found - expected).max() < 1e-5
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_items_of_which_nothing_is_known_are_passed_over() -> None:
    encoder = model_of(settings()).encoder()
    items = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    alone, among = person(encoder, items), person(encoder, np.insert(items, [0, 2, 3], 0, axis=0))
    assert alone is not None
    assert np.array_equal(alone, among)
    assert person(encoder, np.zeros((2, 16), np.float32)) is None
    assert person(encoder, items[:0]) is None


def test_new_items_are_their_text_without_its_drift() -> None:
    model = model_of(settings())
    with torch.no_grad():
        model.moved.weight[:] = 0
    found = model.encoder().items(texts())
    assert np.abs(found[:-1] - all_items(model, histories()).detach().numpy()[:-1]).max() < 1e-6
    assert not found[-1].any()


@pytest.mark.parametrize("drift", [0.0, 0.25, 0.7])
def test_an_item_never_drifts_farther_from_its_text_than_allowed(drift: float) -> None:
    model = model_of(settings(drift=drift))
    with torch.no_grad():
        model.moved.weight *= 1_000
    cosines = (all_items(model, histories()).detach().numpy() * model.encoder().items(texts())).sum(axis=1)
    assert (cosines[:-1] >= np.sqrt(1 - drift**2) - 1e-5).all()
    assert drift == 0 or (cosines[:-1] < 0.999).any()


def test_an_item_without_text_is_free() -> None:
    model = model_of(settings())
    expected = functional.normalize(model.moved.weight[-1], dim=0)
    assert torch.allclose(all_items(model, histories())[-1], expected)


def test_nothing_looks_ahead() -> None:
    model = model_of(settings())
    items = torch.randn(1, 9, 16)
    changed = items.clone()
    changed[0, 5:] = torch.randn(4, 16)
    before, after = model.users(items), model.users(changed)
    assert torch.allclose(before[0, :5], after[0, :5])
    assert not torch.allclose(before[0, 5:], after[0, 5:])


def test_with_every_item_as_a_negative_once_the_loss_is_that_of_the_full_softmax() -> None:
    given = settings(temperature=0.2)
    model = model_of(given)
    rows, text = torch.arange(N_ITEMS), torch.from_numpy(texts())
    inputs, targets = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[2, 3, 9], [5, 7, -1]])
    found = model(rows, text, inputs, targets, rows, torch.zeros(N_ITEMS))
    items = all_items(model, histories())
    scores = model.users(items[inputs])[targets >= 0] @ items.T / 0.2
    assert found.item() == pytest.approx(
        functional.cross_entropy(scores, targets[targets >= 0], reduction="sum").item()
    )


def test_the_correction_makes_what_is_drawn_stand_for_all_items() -> None:
    """exp(loss) is the sum over all items of exp(score - score of the target), on average over many draws."""
    given = settings(temperature=0.5)
    model, negatives = model_of(given), Negatives(histories(), given)
    rows, text, target = torch.arange(N_ITEMS), torch.from_numpy(texts()), torch.tensor([[2]])
    draws = [negatives.draw(np.random.default_rng(seed)) for seed in range(400)]
    with torch.no_grad():
        losses = [model(rows, text, torch.tensor([[1]]), target, *map(torch.from_numpy, draw)) for draw in draws]
        everything = model(rows, text, torch.tensor([[1]]), target, rows, torch.zeros(N_ITEMS))
    assert torch.stack(losses).exp().mean().item() == pytest.approx(everything.exp().item(), rel=0.05)


def test_it_finds_structure_and_only_where_there_is_some() -> None:
    given = settings(epochs=8, patience=8, batch=64, learning_rate=0.01)
    found = {structure: fit(histories(structure=structure), given, Alone())[1] for structure in (True, False)}
    by_chance = (1 / np.arange(1, N_ITEMS - 5)).mean()
    assert max(found[True].quality) > 2 * by_chance
    assert found[True].losses[-1] < found[True].losses[0] - 0.3
    assert np.mean(found[False].quality) < 1.5 * by_chance


def test_an_item_that_nobody_met_is_found_by_its_text() -> None:
    new = N_ITEMS - 4  # of the first topic
    given = settings(epochs=5, patience=5, batch=64, learning_rate=0.01)
    model, _ = fit(histories(without=new), given, Alone())
    encoder, items = model.encoder(), all_items(model, histories()).detach().numpy()
    vector = encoder.items(texts()[new : new + 1])[0]
    scores = {}
    for topic in range(N_TOPICS):
        user = person(encoder, items[topic : 5 * N_TOPICS : N_TOPICS])
        assert user is not None
        scores[topic] = float(vector @ user)
    assert max(scores, key=scores.__getitem__) == 0


def test_the_same_seed_gives_the_same_model_and_another_another() -> None:
    one, same, other = (fit(histories(), settings(seed=seed, epochs=2), Alone()) for seed in (3, 3, 4))
    assert one[1].losses == same[1].losses != other[1].losses
    assert torch.equal(all_items(one[0], histories()), all_items(same[0], histories()))


def test_a_fit_that_is_resumed_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    given = settings(epochs=5, patience=5)
    whole, expected = fit(histories(), given, Alone())
    fit(histories(), given.model_copy(update={"epochs": 2}), Alone(tmp_path))
    resumed, progress = fit(histories(), given, Alone(), resume=tmp_path)
    assert progress.resumed == [2]
    assert progress.losses == expected.losses
    assert (progress.quality, progress.best, progress.steps) == (expected.quality, expected.best, expected.steps)
    assert torch.equal(all_items(resumed, histories()), all_items(whole, histories()))


def test_it_stops_when_it_gets_no_better_and_keeps_the_best(tmp_path: Path) -> None:
    _, progress = fit(histories(structure=False), settings(epochs=60, patience=2, learning_rate=0.01), Alone())
    assert progress.epochs == progress.best + 3 < 60
    assert progress.quality[progress.best] == max(progress.quality)


def test_without_anybody_to_hold_out_it_runs_all_epochs() -> None:
    few = Histories(np.array([0, 3, 5]), np.array([1, 2, 3, 4, 5], dtype=np.int32), texts())
    _, progress = fit(few, settings(epochs=3, patience=1), Alone())
    assert (progress.epochs, progress.best, progress.quality) == (3, 2, [0.0] * 3)
    assert np.isfinite(progress.losses).all()


def test_a_checkpoint_that_is_damaged_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    fit(histories(), settings(epochs=1), Alone(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be used.*size mismatch"):
        fit(histories(), settings(dim=32), Alone(), resume=tmp_path)
    (tmp_path / TENSORS).write_bytes(b"\x80\x04nonsense")
    with pytest.raises(ConfigError, match="cannot be used"):
        fit(histories(), settings(), Alone(), resume=tmp_path)


def test_what_serves_is_read_as_written_and_refused_when_damaged(tmp_path: Path) -> None:
    encoder = model_of(settings()).encoder()
    encoder.save(tmp_path)
    found = SequenceEncoder.load(tmp_path)
    assert found.shape == encoder.shape
    assert all(np.array_equal(found.weights[name], weight) for name, weight in encoder.weights.items())
    (tmp_path / WEIGHTS).write_bytes(b"x")
    with pytest.raises(SnapshotError, match="build it again"):
        SequenceEncoder.load(tmp_path)


@pytest.mark.parametrize(("wrong", "says"), [({"heads": 3}, "divide"), ({"workers": 33}, "share")])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(**wrong)
