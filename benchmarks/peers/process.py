"""One recommender of others, fitted and asked in its own environment: files in, files out, nothing of Raysys here.

    .venv-peers/bin/python benchmarks/peers/process.py FOLDER

FOLDER holds ask.json (model, settings, n_items, length, threads, seed) and, as starts and items of sequences,
oldest first, train.npz and histories.npz. Written is lists.npz: items and scores, [n_users, length], -1 and -inf where
there is nothing. What the histories hold is left out by the evaluator's rule, so lists never show it.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

Arrays = dict[str, np.ndarray]


def matrix(sequences: Arrays, n_items: int) -> sparse.csr_matrix:
    """[n_users, n_items] float32, 1 where the user met the item."""
    ones = np.ones(len(sequences["items"]), dtype=np.float32)
    return sparse.csr_matrix((ones, sequences["items"], sequences["starts"]), (len(sequences["starts"]) - 1, n_items))


def frame(sequences: Arrays, first_user: int = 0) -> pd.DataFrame:
    """One row an event, in order; equal times keep it because each step has a time of its own."""
    lengths = np.diff(sequences["starts"])
    return pd.DataFrame({
        "user_id": first_user + np.repeat(np.arange(len(lengths)), lengths),
        "item_id": sequences["items"],
        "weight": 1.0,
        "datetime": pd.to_datetime(np.arange(len(sequences["items"])), unit="s"),
    })  # fmt: skip


def rectools(ask: dict[str, Any], train: Arrays, histories: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """SASRec, BERT4Rec and EASE of RecTools. Who is asked is known by the history given."""
    from rectools import models
    from rectools.dataset import Dataset, IdMap, Interactions

    model, fitted = getattr(models, ask["model"])(**ask["settings"]), Dataset.construct(frame(train))
    model.fit(fitted)
    rows = frame(histories)[np.isin(histories["items"], train["items"])]
    lists = empty(len(histories["starts"]) - 1, ask["length"])
    users = rows["user_id"].unique()
    if len(users):
        # Matrices are as wide as the last item that anybody met, so the people of train stand beside those asked.
        everybody = pd.concat([rows, frame(train, first_user=len(lists[0]))])
        people = IdMap.from_values(everybody["user_id"])
        met = Interactions.from_raw(everybody, people, fitted.item_id_map)
        found = model.recommend(users, Dataset(people, fitted.item_id_map, met), k=ask["length"], filter_viewed=True)
        place = found["rank"].to_numpy() - 1
        lists[0][found["user_id"], place] = found["item_id"]
        lists[1][found["user_id"], place] = found["score"]
    return lists


def ials(ask: dict[str, Any], train: Arrays, histories: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Weighted matrix factorisation of ``implicit``; people are folded in by the history given."""
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(**ask["settings"], num_threads=ask["threads"], random_state=ask["seed"])
    model.fit(matrix(train, ask["n_items"]), show_progress=False)
    met = matrix(histories, ask["n_items"])
    return only_known(*model.recommend(
        np.arange(met.shape[0]), met, N=ask["length"], filter_already_liked_items=True, recalculate_user=True
    ), met)  # fmt: skip


def lenskit_knn(ask: dict[str, Any], train: Arrays, histories: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Item-based nearest neighbours of LensKit with implicit feedback."""
    from lenskit.data import ItemList, RecQuery, from_interactions_df
    from lenskit.knn import ItemKNNScorer
    from lenskit.pipeline import topn_pipeline

    data = from_interactions_df(frame(train)[["user_id", "item_id"]])
    pipeline = topn_pipeline(ItemKNNScorer(**ask["settings"], feedback="implicit"), n=ask["length"])
    pipeline.train(data)
    lists = empty(len(histories["starts"]) - 1, ask["length"])
    for user in range(len(lists[0])):
        items = histories["items"][histories["starts"][user] : histories["starts"][user + 1]]
        items = items[np.isin(items, train["items"])]
        if len(items):
            query = RecQuery(user_items=ItemList(item_ids=items))
            found = pipeline.run("recommender", query=query)
            scores = found.scores()
            usable = np.isfinite(scores)
            n = int(usable.sum())
            lists[0][user, :n], lists[1][user, :n] = found.ids()[usable], scores[usable]
    return lists


def empty(n_users: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n_users, length), -1, dtype=np.int64), np.full((n_users, length), -np.inf)


def only_known(items: np.ndarray, scores: np.ndarray, met: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Nothing for people of whom nothing is known, and no filtered item at the end of a list."""
    nothing = (np.diff(met.indptr) == 0)[:, None] | (scores < -1e30)
    return np.where(nothing, -1, items).astype(np.int64), np.where(nothing, -np.inf, scores.astype(np.float64))


MODELS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "SASRecModel": rectools,
    "BERT4RecModel": rectools,
    "EASEModel": rectools,
    "iALS": ials,
    "ItemKNN": lenskit_knn,
}


def main(folder: Path) -> None:
    ask = json.loads((folder / "ask.json").read_text())
    train, histories = (dict(np.load(folder / f"{name}.npz")) for name in ("train", "histories"))
    seed_all(ask["seed"], ask["threads"])
    items, scores = MODELS[ask["model"]](ask, train, histories)
    np.savez(folder / "lists.npz", items=items, scores=scores)


def seed_all(seed: int, threads: int) -> None:
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
