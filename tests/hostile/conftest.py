"""One gateway for everything that a module sends."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from gateway import Gateway
from support import Shop, serve_here


@pytest.fixture(scope="module")
def gateway(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    starting = serve_here(shop.store(2), tmp_path_factory.mktemp("hostile") / "state.sqlite3")
    made = Gateway(asyncio.run_coroutine_threadsafe(starting, loop).result(60), loop)
    yield made
    made.run(made.served.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()
