"""Fixtures of the Python suites. `tests/e2e/run` sets the environment they read."""

import os

import pytest

from harness import settings
from harness.client import Api


def pytest_collection_modifyitems(items):
    if settings.MACHINES:
        for item in items:
            for mark in item.iter_markers("containers"):
                item.add_marker(pytest.mark.skip(reason=f"sandboxes are virtual machines: {mark.args[0]}"))


@pytest.fixture(scope="session")
def api():
    """The raw API with our key."""
    with Api() as client:
        yield client


@pytest.fixture(scope="session")
def other():
    """The raw API with the key of another organisation."""
    with Api(key=settings.OTHER_KEY) as client:
        yield client


@pytest.fixture(scope="session")
def anonymous():
    """The raw API without a credential."""
    with Api(key="") as client:
        yield client


@pytest.fixture
def box(api):
    """A sandbox of this test's own."""
    with api.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def shared(api):
    """A sandbox that the tests of a file share; they leave it usable."""
    with api.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def on_host():
    """For tests that look at the host's side."""
    if os.geteuid() != 0:
        pytest.skip("needs root to look at the host's side")
    if not settings.SERVER_PID:
        pytest.skip("the server is not on this machine, or was not started by tests/e2e/run")
