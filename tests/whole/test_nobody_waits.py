"""Work that nobody waits for any more: what has not begun is not done, and no place and no memory is held for it."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from snapshot_shelf import A, B, copy_of
from starlette.types import Message
from support import DIM, Served, Shop, plain_query, serve_here

from raysys.config import ServeSettings
from raysys.encoder.hashing import HashEncoder
from raysys.index.store import SnapshotStore
from raysys.recall.shard import Shard
from raysys.serving.alone import Alone
from raysys.serving.shard_host import ShardHost, recall_thread
from raysys.state.sqlite import SqliteState

SEARCH, LIST = "/v1/search", "/v1/recommendations"


class Stuck(HashEncoder):
    """Encodes nothing until it is let go, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.may_go = threading.Event()
        self.asked: list[str] = []

    def encode(self, texts: Any, role: Any) -> Any:
        self.asked.extend(texts)
        assert self.may_go.wait(30)
        return super().encode(texts, role)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def call(
    served: Served, path: str, body: bytes, send: Callable[[Message], Awaitable[None]] | None = None
) -> "asyncio.Task[None]":
    """A request whose task can be cancelled, as Serve does where the caller hangs up."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def take(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}
    return asyncio.create_task(served.app(scope | {"raw_path": path.encode()}, receive, take if send is None else send))


async def test_a_query_whose_caller_hung_up_is_not_encoded(shop: Shop, tmp_path: Path) -> None:
    model = Stuck()
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", model=model, deadline_s=60.0)
    first = call(served, SEARCH, b'{"query": "first"}')
    await until(lambda: model.asked == ["first"])
    gone, kept = (call(served, SEARCH, b'{"query": "%b"}' % text) for text in (b"gone", b"kept"))
    await until(lambda: served.front.admission.now()[0] == 3)
    for _ in range(20):  # turns of the loop, in which they come to the encoder
        await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert served.front.admission.now()[0] == 2
    model.may_go.set()
    await asyncio.gather(first, kept)
    assert model.asked == ["first", "kept"]
    assert served.front.admission.now()[0] == 0
    await served.stop()


async def test_a_list_whose_deadline_has_passed_is_not_looked_for(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, asked = threading.Event(), []
    recall = Shard.recall

    def stuck(shard: Shard, queries: Any) -> Any:
        asked.append(len(queries))
        assert may_go.wait(30)
        return recall(shard, queries)

    served = await serve_here(shop.store(1), tmp_path / "state.sqlite3", deadline_s=0.05)
    monkeypatch.setattr(Shard, "recall", stuck)
    async with served.client() as client:
        answers = [await client.post(LIST, json={"limit": 3}) for _ in range(3)]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "unavailable")}
        may_go.set()
        await until(lambda: served.front.admission.now()[0] == 0)
        monkeypatch.setattr(Shard, "recall", recall)
        answer = await client.post(LIST, json={"limit": 3})
        while answer.status_code == 503:
            answer = await client.post(LIST, json={"limit": 3})
    await served.stop()
    assert asked == [1]


async def test_a_shard_does_not_begin_what_its_gateway_gave_up(shop: Shop, tmp_path: Path) -> None:
    """Serve cancels the call to a replica where the gateway does; its thread is busy with another until then."""
    state, thread = SqliteState(tmp_path / "state.sqlite3"), recall_thread(1)
    store = shop.store(2)
    snapshot_id, busy = store.current_id(), threading.Event()
    host = ShardHost(0, 2, store, thread, state)
    await host.prepare(snapshot_id)
    asked: list[Any] = []
    answer = host.answer
    host.answer = lambda batch, missing: asked.append(batch) or answer(batch, missing)  # type: ignore[method-assign]
    held = thread.submit(busy.wait, 30)
    gone, kept = (asyncio.create_task(host.recall([(snapshot_id, plain_query(k=k))])) for k in (1, 2))
    await until(lambda: thread._work_queue.qsize() == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    busy.set()
    found = await kept
    assert held.result(10)
    assert [query.k for batch in asked for _, query in batch] == [2]
    assert len(found.answers) == 1
    await host.stop()
    await state.close()


async def test_who_does_not_read_the_answer_holds_no_place(shop: Shop, tmp_path: Path) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    begun, may_go = asyncio.Event(), asyncio.Event()

    async def send(message: Message) -> None:
        begun.set()
        await may_go.wait()

    deaf = call(served, LIST, b"{}", send)
    await begun.wait()
    assert served.front.admission.now()[0] == 0
    may_go.set()
    await deaf
    assert served.front.admission.now()[0] == 0
    await served.stop()


async def test_a_gateway_lets_go_of_the_snapshot_before_at_once(shop: Shop, tmp_path: Path) -> None:
    """Without the garbage collector, which may not come for minutes: an index can be most of the memory."""
    store = SnapshotStore(tmp_path / "index")
    for name in (A, B):
        copy_of(shop.snapshot(2), store, name)
    store.publish(A)
    settings = ServeSettings(
        index_root=str(store.root), state=str(tmp_path / "state.sqlite3"), impressions={"folder": None}
    )
    gateway = Alone(settings, store.manifest(A).encoder)
    await gateway.follow("current")
    gc.collect()
    old = [
        weakref.ref(one)
        for one in gc.get_objects()
        if type(one) is Shard and one.files.folder.is_relative_to(store.folder(A))
    ]
    assert len(old) == 2
    gc.disable()
    try:
        store.publish(B)
        await until(lambda: gateway._follower.taken == B)
        await until(lambda: not any(ref() for ref in old))
    finally:
        gc.enable()
    await gateway.close()
