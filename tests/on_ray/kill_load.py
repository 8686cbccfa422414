"""Clients that write without pause, try again what was not acknowledged, and remember what was."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import httpx
import orjson
from redis import Redis
from redis.exceptions import RedisError

USERS = 20
KINDS = ("view", "like", "click")
PACE_S, RETRY_S, GIVE_UP_S = 0.02, 0.1, 90.0


class Load(ABC):
    """A thread that writes until it is told to stop; what it has begun is then brought to its end.

    acknowledged: how many writes were. is_under_way: whether one waits.
    """

    def __init__(self) -> None:
        self.acknowledged = 0
        self.is_under_way = False
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing is under way any more. Raises what went wrong in the thread."""
        self._done.set()
        self._thread.join()
        self.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        number = 0
        try:
            while not self._done.wait(PACE_S):
                self.write(number)
                number += 1
        except BaseException as error:
            self._error = error

    def insist(self, attempt: Callable[[], Any]) -> Any:
        """What the attempt returns as soon as that is not None, the same again each time."""
        end_s = time.monotonic() + GIVE_UP_S
        self.is_under_way = True
        while (answer := attempt()) is None:
            assert time.monotonic() < end_s, f"not acknowledged within {GIVE_UP_S:.0f} s"
            self._done.wait(RETRY_S)
        self.is_under_way = False
        self.acknowledged += 1
        return answer

    @abstractmethod
    def close(self) -> None:
        """Let go of the connections."""

    @abstractmethod
    def write(self, number: int) -> None:
        """The next thing to write."""


class HttpLoad(Load):
    """Writes over HTTP."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=20.0)
        super().__init__()

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.insist(lambda: self._attempt(path, body))

    def _attempt(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = self._http.post(path, json=body)
        except httpx.TransportError:
            return None
        assert answer.status_code in {200, 429, 500, 503}, answer.text
        return answer.json() if answer.status_code == 200 else None


def event(event_id: str, number: int) -> dict[str, Any]:
    kind, user = KINDS[number % len(KINDS)], f"u{number % USERS}"
    return {"event_id": event_id, "type": kind, "user_id": user, "item_id": f"item-{number % 50}"}


class EventLoad(HttpLoad):
    """Three events at a time. ``events``: those that were acknowledged, id to user."""

    def __init__(self, url: str) -> None:
        self.events: dict[str, str] = {}
        super().__init__(url)

    def write(self, number: int) -> None:
        batch = [event(f"http-{3 * number + i}", 3 * number + i) for i in range(3)]
        answer = self.post("/v1/events", {"events": batch})
        assert answer["accepted"] + answer["duplicates"] == 3, answer
        self.events |= {each["event_id"]: each["user_id"] for each in batch}


class StreamLoad(Load):
    """One event at a time into a Redis stream. ``events``: those that Redis has acknowledged, id to user."""

    def __init__(self, url: str, stream: str) -> None:
        self.events: dict[str, str] = {}
        self._redis, self._stream = Redis.from_url(url), stream
        super().__init__()

    def close(self) -> None:
        self._redis.close()

    def write(self, number: int) -> None:
        one = event(f"stream-{number}", number)
        self.insist(lambda: self._attempt(one))
        self.events[one["event_id"]] = one["user_id"]

    def _attempt(self, one: dict[str, Any]) -> Any:
        try:
            return self._redis.xadd(self._stream, {"event": orjson.dumps(one)})
        except RedisError:
            return None


class ItemLoad(HttpLoad):
    """Adds two items, changes one of them, deletes the other, and now and then changes or deletes one of the snapshot.

    ``items``: the latest acknowledged state by id. ``deleted``: the title of each item whose deletion was acknowledged.
    """

    def __init__(self, url: str, snapshot: list[dict[str, Any]]) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.deleted: dict[str, str] = {}
        self._snapshot = snapshot
        super().__init__(url)

    def write(self, number: int) -> None:
        kept, gone = (_new_item(2 * number + i) for i in range(2))
        answer = self.post("/v1/items", {"items": [kept, gone]})
        assert answer["rejected"] == [], answer
        self.items |= {item["item_id"]: item for item in (kept, gone)}
        self._patch(kept, {"price": float(number)})
        self._delete(gone)
        if number % 5 == 0 and self._snapshot:
            self._patch(self._snapshot.pop(), {"title": f"renamed zq{number}"})
        elif number % 5 == 1 and self._snapshot:
            self._delete(self._snapshot.pop())

    def _patch(self, item: dict[str, Any], fields: dict[str, Any]) -> None:
        answer = self.post("/v1/items:patch", {"items": [{"item_id": item["item_id"], **fields}]})
        assert answer["accepted"] == [item["item_id"]], answer
        self.items[item["item_id"]] = item | fields

    def _delete(self, item: dict[str, Any]) -> None:
        answer = self.post("/v1/items:delete", {"item_ids": [item["item_id"]]})
        # Tried again after it was done, it does not know the item any more.
        assert [*answer["accepted"], *answer["unknown_items"]] == [item["item_id"]], answer
        self.items.pop(item["item_id"], None)
        self.deleted[item["item_id"]] = item["title"]


def _new_item(number: int) -> dict[str, Any]:
    return {"item_id": f"live-{number}", "title": f"novelty zx{number} qy{number}", "year": 1950 + number % 70}
