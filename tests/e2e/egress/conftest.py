"""Fixtures of the suite that goes through the egress gateway: a small internet, a server that resolves there, sandboxes."""

import json
import os
import uuid
from pathlib import Path

import pytest

from egress import table
from harness import internet, log, settings
from harness.client import Api
from harness.server import Server

PROBE = Path(__file__).parent / "probe.py"
PRELUDE = "import sys; sys.path.insert(0, '/tmp'); sys.dont_write_bytecode = True\nfrom probe import *\n"
#: What no header, address or text should change: with signs that are written otherwise in percent signs and base64.
VALUE = "sk-live+" + uuid.uuid4().hex + "/=Z"


def pytest_addoption(parser):
    parser.addoption("--attacks-table", metavar="FILE", help="write the table of attacks as Markdown")
    parser.addoption("--long", action="store_true", help="also clients that have to be installed first (Java, Go, Deno)")


def pytest_terminal_summary(terminalreporter, config):
    table.show(terminalreporter)
    path = config.getoption("--attacks-table")
    if path:
        table.write(Path(path))


@pytest.fixture(scope="session", autouse=True)
def _own_server():
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")
    why = internet.can_be_made()
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def net():
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    with internet.Internet(int(worker.removeprefix("gw"))) as made:
        yield made


@pytest.fixture(scope="session")
def server(net):
    with Server("--resolver", net.resolver, "--upstream-ca", str(net.authority.pem)) as running:
        running.other_key = running.make_key("e2e-other")
        yield running
        said = running.log()
    unexpected = log.unexpected(said)
    assert not unexpected, "\n".join(unexpected[:20])


@pytest.fixture(scope="session")
def api(server):
    with server.api() as client:
        yield client


@pytest.fixture(scope="session")
def other(server):
    """The key of another organisation."""
    with Api(server.url, server.other_key) as client:
        yield client


class Store:
    """A secret store."""

    def __init__(self, api, name=None, **fields):
        self.api, self.name = api, name or f"store-{uuid.uuid4().hex[:8]}"
        answer = api.post("/api/secret-stores", json={"name": self.name} | fields)
        assert answer.status_code == 201, answer.text
        self.id = answer.json()["id"]
        self.path = f"/api/secret-stores/{self.id}"

    def set(self, name, value, hosts=None, places=None):
        body = {"value": value}
        if hosts is not None:
            body["allowedHosts"] = hosts
        if places is not None:
            body["places"] = places
        answer = self.api.put(f"{self.path}/secrets/{name}", json=body)
        assert answer.status_code == 200, answer.text
        assert value not in answer.text
        return answer.json()

    def remove(self, name):
        assert self.api.delete(f"{self.path}/secrets/{name}").status_code == 204

    def uses(self, name):
        answer = self.api.get(f"{self.path}/secrets/{name}/uses")
        assert answer.status_code == 200, answer.text
        return answer.json()


def python(box, code, timeout=60, **values):
    """Runs a program inside that uses `probe` and ends with `say(…)`; what it said. `values` are names in it."""
    names = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    body = {"cmd": "python3", "args": ["-c", PRELUDE + names + code], "timeout": int(timeout * settings.PATIENCE)}
    answer = box.call("POST", "/exec/run", json=body, timeout=timeout * settings.PATIENCE + 30)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["exitCode"] == 0 and result["stdout"].strip(), result
    return json.loads(result["stdout"].strip().splitlines()[-1])


def prepared(box):
    """With the probe in it."""
    box.write("/tmp/probe.py", PROBE.read_bytes())
    return box


def blocked(box):
    answer = box.call("GET", "/allowed-hosts")
    assert answer.status_code == 200, answer.text
    return answer.json()["blocked"]


class World:
    """The sandboxes that attack, made when first asked for, and what they share."""

    def __init__(self, net, server, api, other):
        self.net, self.server, self.api, self.other_api = net, server, api, other
        self.value, self.wide_value, self.other_value = VALUE, "wide-" + uuid.uuid4().hex, "other-" + uuid.uuid4().hex
        self.made = {}
        self.store = Store(api, "attacked")
        keyed = ["api.test.example", "h1.test.example", "h2.test.example"]
        self.store.set("API_KEY", self.value, keyed)
        self.store.set("WIDE_KEY", self.wide_value, keyed, ["header", "query", "body"])
        self.store.set("OTHER_KEY", self.other_value, ["other.test.example"])
        self.values = [self.value, self.wide_value, self.other_value]
        self.policy = {
            "mode": "allowlist",
            "allow": [
                *({"host": host} for host in keyed),
                {"host": "other.test.example"},
                {"host": "*.pages.example"},
                *({"host": f"{name}.test.example"} for name in ("rebind", "private", "wrong", "expired", "selfsigned", "alias", "empty", "here")),
                {"host": "paths.test.example", "methods": ["GET"], "paths": ["/v1/"]},
                {"host": "ports.test.example", "ports": [8443]},
                {"host": "raw.test.example", "ports": [2525]},
            ],
        }

    def box(self, name, api=None, **fields):
        if name not in self.made:
            self.made[name] = prepared((api or self.api).create(**fields))
        return self.made[name]

    @property
    def fenced(self):
        """An allowlist and secrets."""
        return self.box("fenced", egress=self.policy, secretStore=self.store.name)

    @property
    def sealed(self):
        """Secrets, and everything open."""
        return self.box("sealed", secretStore=self.store.name)

    @property
    def listed(self):
        """An allowlist without secrets."""
        return self.box("listed", egress=self.policy)

    @property
    def closed(self):
        return self.box("closed", egress={"mode": "none"})

    @property
    def open(self):
        """Neither list nor secrets."""
        return self.box("open")

    @property
    def foreign(self):
        """Another organisation's, with a store of the same name and the same hosts."""
        if "foreign" not in self.made:
            store = Store(self.other_api, "attacked")
            store.set("API_KEY", "foreign-" + uuid.uuid4().hex, ["api.test.example"])
        return self.box("foreign", self.other_api, egress=self.policy, secretStore="attacked")

    def end(self):
        for box in self.made.values():
            box.__exit__()

    # --- what a case says

    def mark(self):
        return "m" + uuid.uuid4().hex[:16]

    def arrived(self, mark):
        """Requests and other things that arrived with this mark in them."""
        return self.net.saw(mark)

    def nothing_arrived(self, mark):
        found = self.net.saw(mark)
        assert not found, f"it arrived: {found}"

    def no_value_in(self, *things):
        """None of the real values is in what a sandbox saw, or in what arrived where it should not."""
        text = json.dumps(things, default=str)
        for value in self.values:
            assert value not in text and value[3:30] not in text, f"a real value is in {text[:2000]}"

    def was_blocked(self, box, host, reason=""):
        """The entry of the sandbox's report about that host."""
        found = [each for each in blocked(box) if each["host"] == host and reason in each["reason"]]
        assert found, f"no report of {host} {reason!r} in {blocked(box)}"
        return found[0]["reason"]


@pytest.fixture(scope="session")
def world(net, server, api, other):
    made = World(net, server, api, other)
    yield made
    made.end()
