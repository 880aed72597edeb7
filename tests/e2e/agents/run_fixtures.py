"""Fixtures of the tests of `agent run`: they need a server and nothing of a real agent."""

import pytest

from harness import log, settings
from harness.agent_runs import Folder
from harness.server import Server


@pytest.fixture(scope="session", autouse=True)
def _own_server():
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")


@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running
        said = running.log()
    unexpected = log.unexpected(said)
    assert not unexpected, "\n".join(unexpected[:20])


@pytest.fixture(scope="session")
def api(server):
    with server.api() as client:
        yield client


@pytest.fixture
def folder(server, tmp_path):
    """A folder with a few files, under git; its sandboxes are ended after the test."""
    made = make(server, tmp_path / "project")
    yield made
    for sandbox in made.agents():
        made.warren("agent", "rm", sandbox, code=None)


def make(server, path, **environment):
    made = Folder(path, server, **environment)
    made.put({
        "README": "hello\n", "src/a.txt": "1\n2\n3\n4\n5\n", "src/b.txt": "b\n", ".gitignore": "build/\n*.log\n",
        "build/out": "built\n", "picture": bytes(range(256)),
    })
    return made.commit()
