"""Fixtures of the suite that kills the server."""

import os

import pytest

from harness import log, settings
from harness.server import Server


@pytest.fixture(autouse=True, scope="session")
def _own_servers():
    if os.geteuid() != 0:
        pytest.skip("needs root to start servers")
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")


@pytest.fixture(scope="module")
def one_server():
    with Server() as running:
        yield running
        unexpected = log.unexpected(running.log())
    assert not unexpected, "\n".join(unexpected[:20])


@pytest.fixture
def server(one_server):
    """A server that the tests of a file share, running again whatever the test before did to it."""
    if one_server.process.poll() is not None:
        one_server.start()
    return one_server
