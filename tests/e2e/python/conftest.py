"""Fixtures of the Python SDK's suite: the published package, unmodified."""

import os

import pytest
from opencomputer import Sandbox

from harness import settings

# The SDK's own default; with and without `/api` are both tested.
os.environ["OPENCOMPUTER_API_URL"] = settings.URL
os.environ["OPENCOMPUTER_API_KEY"] = settings.KEY


@pytest.fixture
async def sandbox():
    async with await Sandbox.create(memory_mb=1024) as created:
        yield created
