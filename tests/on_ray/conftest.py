"""A real head for the ray tests: its own folder, ports and token, and gone without a trace afterwards."""

from collections.abc import Iterator

import pytest

from raysys.serving.local_head import free_ports
from raysys.serving.session import LocalService, local_service


@pytest.fixture(scope="session")
def service() -> Iterator[LocalService]:
    """One head for all tests that only need one."""
    with local_service(num_cpus=6) as running:
        yield running


@pytest.fixture(scope="session")
def port() -> int:
    return free_ports(1)[0]
