"""Fixtures of the suite of real agents: a scripted model where theirs would be, npm's registry, a server that finds both, and
snapshots the agents are installed in.

`api.anthropic.com` and `api.openai.com` lead to the model, with certificates the gateway trusts, so that an agent with a sealed key
needs neither a redirect nor anything else that it would not have. `model.test.example` is the same, also over plain HTTP;
`evil.example` is where nothing should arrive, and what does is among the model's requests.
"""

import json
import os
import subprocess
import uuid

import pytest

from egress.conftest import Store
from harness import internet, log, npm_cache, settings
from harness.client import Box
from harness.model import Model
from harness.server import Server

KINDS = ("claude-code", "codex", "opencode")
PROVIDERS = ("api.anthropic.com", "api.openai.com")
#: Of a sandbox with an agent in it.
ROOM = {"memoryMB": 2048}


@pytest.fixture(scope="session", autouse=True)
def _own_server():
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")
    why = internet.can_be_made() or npm_cache.why_not(["opencode-ai"])
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def net():
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    # Apart from those of the egress suite, which may run beside.
    with internet.Internet(8 + int(worker.removeprefix("gw")), servers=False) as made:
        yield made


@pytest.fixture(scope="session")
def model(net):
    """The scripted model (harness/model.py)."""
    import ssl

    with Model() as running:
        made = net.authority.certificate(*PROVIDERS, "model.test.example", "evil.example", "*.evil.example")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made["cert"], made["key"])
        context.set_alpn_protocols(["http/1.1"])
        running.address, *model_sockets = net.listen(6, 80, 443)
        _, *evil_sockets = net.listen(5, 80, 443)
        for plain, secure in (model_sockets, evil_sockets):
            running.listen(plain)
            running.listen(secure, context)
        for name in (*PROVIDERS, "model.test.example"):
            net.names.records[name] = [running.address]
        yield running


@pytest.fixture(scope="session")
def registry(net):
    """Address of npm's registry, by way of what this machine has kept of it."""
    address, listener = net.listen(7, 80)
    net.names.records["npm.test.example"] = [address]
    cache = npm_cache.NpmCache(listener)
    yield "http://npm.test.example"
    cache.close()


@pytest.fixture(scope="session")
def server(net, model):
    with Server("--resolver", net.resolver, "--upstream-ca", str(net.authority.pem)) as running:
        yield running
        said = running.log()
    unexpected = log.unexpected(said)
    assert not unexpected, "\n".join(unexpected[:20])


@pytest.fixture(scope="session")
def api(server):
    with server.api() as client:
        yield client


@pytest.fixture(scope="session")
def snapshot(server, registry):
    """Name of the snapshot an agent of a kind is installed in: `snapshot("codex")`. Made when first asked for, as users do."""
    made = {}

    def get(kind):
        if kind not in made:
            variables = {"PATH": os.environ["PATH"], "OPENCOMPUTER_API_URL": server.url, "OPENCOMPUTER_API_KEY": server.key}
            done = subprocess.run(
                [settings.PROGRAM, "agent", "install", kind, "--registry", registry], env=variables, capture_output=True, text=True,
                timeout=200 * settings.PATIENCE, stdin=subprocess.DEVNULL, check=False,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            made[kind] = done.stdout.strip()
            assert made[kind] == f"agent-{kind}@1", done
        return made[kind].split("@")[0]

    yield get


class Keys:
    """The two providers' keys, in a store of their own."""

    def __init__(self, api):
        self.anthropic, self.openai = f"sk-ant-{uuid.uuid4().hex}{uuid.uuid4().hex}", f"sk-proj-{uuid.uuid4().hex}{uuid.uuid4().hex}"
        self.store = Store(api)
        self.store.set("ANTHROPIC_API_KEY", self.anthropic, ["api.anthropic.com"])
        self.store.set("OPENAI_API_KEY", self.openai, ["api.openai.com"])

    @property
    def values(self):
        return [self.anthropic, self.openai]

    def of(self, kind):
        return self.anthropic if kind == "claude-code" else self.openai


@pytest.fixture(scope="session")
def keys(api):
    return Keys(api)


@pytest.fixture
def box(api, snapshot, keys):
    """Makes sandboxes with an agent in them and the keys sealed: `box("codex")`. They are gone after the test."""
    made = []

    def make(kind, **fields):
        answer = api.post("/api/sandboxes", json=ROOM | {"snapshot": snapshot(kind), "secretStore": keys.store.name} | fields)
        assert answer.status_code == 201, answer.text
        made.append(Box(api, answer.json()))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()


@pytest.fixture
def warren(server, tmp_path):
    """Runs the program as a user would: `warren("agent", "run", …)`, in a home of its own; gives what `subprocess.run` gives."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)

    def call(*arguments, cwd=None, env=None, within=120.0, input=None, check=True):
        variables = {"PATH": os.environ["PATH"], "HOME": str(home), "OPENCOMPUTER_API_URL": server.url, "OPENCOMPUTER_API_KEY": server.key}
        variables["NO_COLOR"] = "1"
        done = subprocess.run(
            [settings.PROGRAM, *map(str, arguments)], cwd=cwd or tmp_path, env=variables | (env or {}), capture_output=True, text=True,
            timeout=within * settings.PATIENCE, input=input, stdin=subprocess.DEVNULL if input is None else None, check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    return call


@pytest.fixture
def warren_sees_model(model):
    """Variables of a user's machine on which agents find the model, and a key for it."""
    base = f"http://{model.address}"
    return {
        "ANTHROPIC_BASE_URL": base, "OPENAI_BASE_URL": f"{base}/v1",
        "ANTHROPIC_API_KEY": f"sk-ant-{uuid.uuid4().hex}", "OPENAI_API_KEY": f"sk-proj-{uuid.uuid4().hex}",
    }


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
