"""Fixtures of the suite that tries to get out."""

import pytest

from harness import host, settings
from harness.client import marker
from harness.waiting import wait_for


@pytest.fixture(autouse=True)
def _on_host(on_host):
    """All of this suite looks at the host's side too."""


@pytest.fixture(scope="module")
def prisoner(api):
    """A sandbox that the tests of a file share, with network."""
    with api.create() as box:
        yield box


@pytest.fixture(scope="module")
def inmate(prisoner):
    """Host pid of an ordinary process of the prisoner's. Of a machine the host sees its QEMU and nothing else."""
    if settings.MACHINES:
        return host.sandbox_processes()[prisoner.id][0]
    mark = marker()
    prisoner.start("sleep", mark)
    return wait_for(lambda: host.find_process(mark), "the process is seen from the host")[0]


@pytest.fixture(scope="module")
def jailed_root(prisoner):
    """Host pid of a process that is root inside."""
    if settings.MACHINES:
        return host.sandbox_processes()[prisoner.id][0]
    mark = marker()
    prisoner.start("sudo", "-n", "sleep", mark)
    found = lambda: [pid for pid in host.find_process("sleep", mark) if host.arguments(pid)[0] == b"sleep"]
    return wait_for(found, "the process is seen from the host")[0]
