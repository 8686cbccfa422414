"""One small shop for the whole session: with structure, and one of pure noise."""

import pytest
from hypothesis import settings
from support import FITTED, Shop

# How long an example takes says something about the machine, which others may share.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), behaviour=FITTED)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("noise"), structure=0.0)
