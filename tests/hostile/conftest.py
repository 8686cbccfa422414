"""One gateway for everything that a module sends."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from gateway import Gateway
from snapshot_shelf import A, copy_of
from support import Shop, serve_here

from raysys.index.store import SnapshotStore


@pytest.fixture(scope="module")
def gateway(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    folder = tmp_path_factory.mktemp("hostile")
    store = SnapshotStore(folder / "index")  # of its own: there are routes that move the pointer
    copy_of(shop.snapshot(2), store, A)
    store.publish(A)
    starting = serve_here(store, folder / "state.sqlite3")
    made = Gateway(asyncio.run_coroutine_threadsafe(starting, loop).result(60), loop)
    yield made
    made.run(made.served.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()
