"""Fixtures of the suite of images that come from elsewhere: registries of its own, and a server that may go to them."""

import os

import pytest

from harness import log, registry, settings
from harness.server import Server, free_port
from images.liar import Liar


@pytest.fixture(scope="session", autouse=True)
def _own_servers():
    if os.geteuid() != 0:
        pytest.skip("needs root to start servers")
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")
    if not registry.PROGRAM:
        pytest.skip("there is no registry; on Debian: apt-get install docker-registry")


@pytest.fixture(scope="session")
def open_registry():
    with registry.Registry() as running:
        yield running


@pytest.fixture(scope="session")
def closed_registry():
    """One that asks who is there."""
    with registry.Registry(closed=True) as running:
        yield running


@pytest.fixture(scope="session")
def liar():
    """Something that is not what a registry should be."""
    with Liar(free_port()) as running:
        yield running


@pytest.fixture(scope="session")
def server(open_registry, closed_registry, liar):
    flags = [f"--insecure-registry={each.address}" for each in (open_registry, closed_registry, liar)]
    with Server(*flags) as running:
        running.other_key = running.make_key("e2e-other")
        yield running
        said = running.log()
    unexpected = log.unexpected(said)
    assert not unexpected, "\n".join(unexpected[:20])


@pytest.fixture(scope="session")
def api(server):
    with server.api() as client:
        yield client
