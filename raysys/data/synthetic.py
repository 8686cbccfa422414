"""A made-up world with a dial: with structure a recommender must find it, with the dial at noise it must not."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.events import EVENT_SCHEMA, event_id_of
from raysys.errors import InvalidInput

WORDS_PER_TOPIC = 12
TITLE_WORDS = 5
START_S = 1_700_000_000.0
_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What was made, and the truth behind it.

    items: item_id, title, categories (list), price (float64), year (int64). events: ``EVENT_SCHEMA``, in time order
    for each user. item_topics: [n_items], user_topics: [n_users], both int64 in ``range(n_topics)``; topic t is
    category ``topic-t``.
    """

    items: pa.Table
    events: pa.Table
    item_topics: NDArray[np.int64]
    user_topics: NDArray[np.int64]


def make_world(
    n_items: int, n_users: int, n_topics: int, structure: float, seed: int, events_per_user: int = 20
) -> World:
    """A world that is the same for the same arguments.

    structure: the chance, from 0 to 1, that a word of a title, a category, and an item of a user's history come from
    the topic rather than from anywhere. Nobody meets an item twice, so a history is shorter than ``events_per_user``
    where items run out. Raises InvalidInput for a dial outside 0..1 or fewer items than topics.
    """
    if not 0 <= structure <= 1:
        raise InvalidInput("structure", f"must be from 0 to 1, but is {structure}")
    if not 1 <= n_topics <= n_items:
        raise InvalidInput("n_topics", f"must be from 1 to the number of items ({n_items}), but is {n_topics}")
    random = np.random.default_rng(seed)
    item_topics = random.permutation(np.arange(n_items) % n_topics)
    user_topics = random.integers(n_topics, size=n_users)
    items = _items(item_topics, n_topics, structure, random)
    histories = [_history(topic, item_topics, structure, events_per_user, random) for topic in user_topics]
    return World(items, _events(histories), item_topics, user_topics)


def _items(item_topics: NDArray[np.int64], n_topics: int, structure: float, random: np.random.Generator) -> pa.Table:
    n_items = len(item_topics)
    own = item_topics[:, None] * WORDS_PER_TOPIC + random.integers(WORDS_PER_TOPIC, size=(n_items, TITLE_WORDS))
    any_word = random.integers(n_topics * WORDS_PER_TOPIC, size=own.shape)
    words = np.where(random.random(own.shape) < structure, own, any_word)
    categories = np.where(random.random(n_items) < structure, item_topics, random.integers(n_topics, size=n_items))
    return pa.table(
        {
            "item_id": pa.array([item_id(number) for number in range(n_items)]),
            "title": pa.array([" ".join(map(_word, row)) for row in words.tolist()]),
            "categories": pa.array([[f"topic-{topic}"] for topic in categories], pa.list_(pa.string())),
            "price": pa.array(np.round(random.uniform(1, 100, n_items), 2)),
            "year": pa.array(random.integers(1950, 2026, n_items)),
        }
    )


def item_id(number: int) -> str:
    """The id of the item with this number."""
    return f"item-{number}"


def _word(number: int) -> str:
    """The word with this number: three syllables, different for each number below 60 ** 3."""
    n = len(_SYLLABLES)
    return _SYLLABLES[number % n] + _SYLLABLES[number // n % n] + _SYLLABLES[number // n**2 % n]


def _history(
    topic: int, item_topics: NDArray[np.int64], structure: float, length: int, random: np.random.Generator
) -> list[int]:
    """Item numbers, each once, in the order in which this user meets them."""
    own = random.permutation(np.flatnonzero(item_topics == topic))[:length]
    anything = random.permutation(len(item_topics))[:length]
    from_topic = random.random(length) < structure
    picked = [*own[: from_topic.sum()], *anything[: (~from_topic).sum()]]
    return list(dict.fromkeys(int(item) for item in random.permutation(picked)))


def _events(histories: list[list[int]]) -> pa.Table:
    rows = []
    for user, history in enumerate(histories):
        for step, item in enumerate(history):
            # Users begin a minute apart and act once an hour, so that histories overlap in time.
            user_id, time_s = f"user-{user}", START_S + 60.0 * user + 3_600.0 * step
            event_id = event_id_of(user_id, item_id(item), "view", time_s, None)
            rows.append((event_id, "view", user_id, item_id(item), None, time_s, None))
    columns = zip(*rows, strict=True) if rows else [()] * len(EVENT_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)
