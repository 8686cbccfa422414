"""A gateway of the test's own, and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from support import Served, Shop, serve_here


@pytest_asyncio.fixture
async def served(shop: Shop, tmp_path: Path) -> AsyncIterator[Served]:
    made = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    yield made
    await made.stop()


@pytest.fixture
def client(served: Served) -> httpx.AsyncClient:
    return served.client()
