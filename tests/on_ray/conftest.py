"""A real head for the ray tests: its own folder, ports and token, and gone without a trace afterwards."""

from collections.abc import Iterator
from dataclasses import astuple

import pytest
from doors import processes_of, that_know

from raysys.serving.local_head import alive, free_ports, is_free
from raysys.serving.session import LocalService, local_service


@pytest.fixture(scope="session")
def service(port: int) -> Iterator[LocalService]:
    """One head for all tests that only need one. Of all that it has started nothing is left in the end."""
    with local_service(num_cpus=6) as running:
        head = running.head
        yield running
        processes = processes_of(head)
    assert not [process.pid for process in processes if alive(process.pid)]
    assert not that_know(head.folder)
    assert all(is_free(number) for number in (port, *astuple(head.ports)))
    assert not head.folder.exists()


@pytest.fixture(scope="session")
def port() -> int:
    return free_ports(1)[0]
