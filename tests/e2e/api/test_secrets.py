"""Secret stores, secrets and policies on the wire: shapes, bad input, foreign ids."""

import re
import uuid

import pytest

from harness.raw import raw_request

STORES = "/api/secret-stores"
TOKEN = re.compile(r"osb_sealed_[0-9a-f]{32}")
#: Looks like nothing else, so that it can be searched for.
VALUE = f"value-{uuid.uuid4().hex}"


class Store:
    def __init__(self, api, **fields):
        answer = api.post(STORES, json={"name": f"api-{uuid.uuid4().hex}"} | fields)
        assert answer.status_code == 201, answer.text
        self.api, self.view = api, answer.json()
        self.id, self.name = self.view["id"], self.view["name"]
        self.path = f"{STORES}/{self.id}"

    def set(self, name, value=VALUE, **fields):
        answer = self.api.put(f"{self.path}/secrets/{name}", json={"value": value} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(self):
        return [one["name"] for one in self.api.get(f"{self.path}/secrets").json()]


@pytest.fixture
def store(api):
    made = Store(api)
    yield made
    assert api.delete(made.path).status_code in (204, 404)


def test_an_answer_to_a_secret_is_strings_only(store):
    assert store.set("KEY") == {"name": "KEY", "status": "set", "refreshed": "0"}
    for answer in (store.api.get(store.path), store.api.get(STORES), store.api.get(f"{store.path}/secrets")):
        assert answer.status_code == 200 and VALUE not in answer.text
    assert store.api.get(f"{store.path}/secrets/KEY/uses").json() == []
    assert store.api.get(f"{store.path}/secrets/NONE/uses").status_code == 404


STORE_WRONG = [
    {},
    {"name": ""},
    {"name": None},
    {"name": 7},
    {"name": "a\0b"},
    {"name": "x" * 129},
    {"name": "x", "egressAllowlist": "a.com"},
    {"name": "x", "egressAllowlist": [7]},
    {"name": "x", "egressAllowlist": [""]},
    {"name": "x", "egressAllowlist": ["https://a.com"]},
    {"name": "x", "egressAllowlist": ["a.com:443"]},
    {"name": "x", "egressAllowlist": ["*a.com"]},
    {"name": "x", "egressAllowlist": ["exämple.com"]},
    {"name": "x", "egressAllowlist": ["127.1"]},
    {"name": "x", "egressAllowlist": ["a.com"] * 101},
]


@pytest.mark.parametrize("body", STORE_WRONG, ids=lambda body: ascii(body)[:50])
def test_a_store_that_is_refused_is_not_made(api, store, body):
    before = api.get(STORES).json()
    assert api.post(STORES, json=body).status_code == 400
    if body not in ({}, {"name": ""}, {"name": None}):
        assert api.put(store.path, json=body).status_code == 400
    assert api.get(STORES).json() == before


SECRET_WRONG = [
    ("KEY", {}),
    ("KEY", {"value": ""}),
    ("KEY", {"value": None}),
    ("KEY", {"value": 7}),
    ("KEY", {"value": ["x"]}),
    ("KEY", {"value": "a\0b"}),
    ("KEY", {"value": "x" * 65537}),
    ("KEY", {"value": "x", "allowedHosts": "a.com"}),
    ("KEY", {"value": "x", "allowedHosts": [""]}),
    ("KEY", {"value": "x", "allowedHosts": ["a b"]}),
    ("KEY", {"value": "x", "places": []}),
    ("KEY", {"value": "x", "places": ["cookie"]}),
    ("KEY", {"value": "x", "places": "header"}),
    ("1KEY", {"value": "x"}),
    ("KEY-2", {"value": "x"}),
    ("K.EY", {"value": "x"}),
    ("K%00", {"value": "x"}),
    ("K%3D1", {"value": "x"}),
    ("K%2F1", {"value": "x"}),
    ("%C3%A9", {"value": "x"}),
    ("K" * 129, {"value": "x"}),
]


@pytest.mark.parametrize(("name", "body"), SECRET_WRONG, ids=lambda value: ascii(value)[:40])
def test_a_secret_that_is_refused_is_not_set(store, name, body):
    answer = store.api.put(f"{store.path}/secrets/{name}", json=body)
    assert answer.status_code in (400, 404), (answer.status_code, answer.text)
    assert store.names() == []


@pytest.mark.parametrize("store_id", ["..", "%2e%2e", "%00", "x", "0" * 5000, "'%20OR%20'1'='1", "*"])
def test_ids_that_are_none(store_id):
    for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/secrets"), ("PUT", "/secrets/K"), ("DELETE", "/secrets/K")):
        answer = raw_request(method, f"{STORES}/{store_id}{rest}", {"Content-Type": "application/json"}, b'{"value":"x"}')
        assert answer is not None and 400 <= answer.status < 500, answer


def test_a_foreign_store_is_unknown_on_every_route(store, other, api):
    store.set("KEY")
    before = api.get(store.path).json(), api.get(f"{store.path}/secrets").json()
    for method, path, body in [
        ("GET", store.path, None),
        ("PUT", store.path, {"name": "stolen", "egressAllowlist": []}),
        ("DELETE", store.path, None),
        ("GET", f"{store.path}/secrets", None),
        ("PUT", f"{store.path}/secrets/KEY", {"value": "theirs"}),
        ("DELETE", f"{store.path}/secrets/KEY", None),
        ("GET", f"{store.path}/secrets/KEY/uses", None),
    ]:
        assert other.call(method, path, json=body).status_code == 404, (method, path)
    assert store.id not in {one["id"] for one in other.get(STORES).json()}
    assert other.post("/api/sandboxes", json={"secretStore": store.name}).status_code == 400
    assert before == (api.get(store.path).json(), api.get(f"{store.path}/secrets").json())


CREATE_WRONG = [
    {"secretStore": "no such store"},
    {"secretStore": 7},
    {"secretAllowedHosts": {"KEY": ["a.com"]}},
    {"secretAllowedHosts": ["a.com"]},
    {"egressAllowlist": "a.com"},
    {"egressAllowlist": ["a b"]},
    {"egressAllowlist": [""]},
    {"networkEnabled": False, "egressAllowlist": ["a.com"]},
    {"egress": {"mode": "none"}, "egressAllowlist": ["a.com"]},
    {"egress": {"mode": "open"}, "egressAllowlist": ["a.com"]},
    {"egress": {"mode": "some"}},
    {"egress": "none"},
    {"egress": {"mode": "allowlist", "allow": [{"host": "a.com", "port": 443}]}},
    {"egress": {"mode": "allowlist", "allow": [{"host": "a.com", "ports": [70000]}]}},
    {"egress": {"mode": "allowlist", "allow": [{"host": "a.com", "methods": ["get"]}]}},
    {"egress": {"mode": "allowlist", "allow": [{"host": "a.com", "paths": ["x"]}]}},
]


@pytest.mark.parametrize("fields", CREATE_WRONG, ids=lambda fields: ascii(fields)[:60])
def test_a_create_that_is_refused_makes_nothing(api, fields):
    mark = uuid.uuid4().hex
    answer = api.post("/api/sandboxes", json={"memoryMB": 1024, "metadata": {"m": mark}} | fields)
    assert answer.status_code == 400, (answer.status_code, answer.text)
    assert not api.list_all(**{"metadata.m": mark})


def test_the_environment_of_a_sandbox_with_secrets(api, store):
    store.set("KEY")
    with api.create(secretStore=store.name, envs={"HTTPS_PROXY": "http://mine"}) as box:
        envs = dict(line.split("=", 1) for line in box.out("env").splitlines() if "=" in line)
        assert TOKEN.fullmatch(envs["KEY"])
        assert (envs["HTTPS_PROXY"], envs["HTTP_PROXY"]) == ("http://mine", "http://169.254.169.253:3128")
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"):
            assert envs[name] == "/etc/ssl/certs/ca-certificates.crt"
        assert VALUE not in box.out("cat /proc/*/environ 2>/dev/null || true")
        config = box.find_checkpoint(box.checkpoint("one"))["sandboxConfig"]
        assert config["envs"] == {"HTTPS_PROXY": "http://mine"}, "what it was given is not what was asked for"
        assert config["secretStore"] == store.name
        for path in ("", "/allowed-hosts", "/egress", "/checkpoints"):
            assert VALUE not in box.call("GET", path).text


def test_a_policy_changes_while_the_sandbox_runs(api, store):
    with api.create(secretStore=store.name, egressAllowlist=["b.example.com"]) as box:
        assert box.call("GET", "/allowed-hosts").json()["egressAllowlist"] == ["b.example.com"]
        api.put(store.path, json={"egressAllowlist": ["a.example.com"]})
        assert box.call("GET", "/allowed-hosts").json()["egressAllowlist"] == ["b.example.com", "a.example.com"]
        answer = box.call("PUT", "/egress", json={"mode": "none"})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"sandboxID": box.id, "policy": {"mode": "none"}, "effective": {"mode": "none"}}
        for bad in ({}, {"mode": "x"}, {"mode": "open", "allow": [{"host": "a.com"}]}, {"allow": []}, []):
            assert box.call("PUT", "/egress", json=bad).status_code == 400, bad
        assert box.call("GET", "/egress").json()["effective"] == {"mode": "none"}
        # What a store kept from it stays so when the store goes.
        assert box.call("PUT", "/egress", json={"mode": "open"}).status_code == 200
        assert api.delete(store.path).status_code == 204
        shown = box.call("GET", "/allowed-hosts").json()
        assert shown["egressAllowlist"] == ["a.example.com"] and "secretStore" not in shown
