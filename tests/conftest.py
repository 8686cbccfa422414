"""One small shop for the whole session: with structure, and one of pure noise. A gateway of the test's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from hypothesis import settings
from support import FITTED, Served, Shop, serve_here

# How long an example takes says something about the machine, which others may share.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), behaviour=FITTED)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("noise"), structure=0.0)


@pytest_asyncio.fixture
async def served(shop: Shop, tmp_path: Path) -> AsyncIterator[Served]:
    made = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    yield made
    await made.stop()


@pytest.fixture
def client(served: Served) -> httpx.AsyncClient:
    return served.client()
