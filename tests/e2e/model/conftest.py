"""The randomised suite starts servers of its own."""

import os

import pytest

from harness import settings


@pytest.fixture(autouse=True, scope="session")
def _own_servers():
    if os.geteuid() != 0:
        pytest.skip("needs root to start servers")
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")
