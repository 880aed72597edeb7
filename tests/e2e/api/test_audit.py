"""Audit records of real sandboxes: who did what, what is never in them, and what is left after a kill."""

import json
import subprocess
import threading
import uuid

import httpx
import pytest

from harness import settings
from harness.client import Api
from harness.server import Server
from harness.waiting import wait_for

#: Looks like nothing else, so that it can be searched for.
VALUE = f"value-{uuid.uuid4().hex}"


def records(box, **query):
    """All records of a sandbox, through all pages."""
    found, after = [], 0
    while True:
        page = box.call("GET", "/audit", params={"after": after, "limit": 1000} | query)
        assert page.status_code == 200, page.text
        found += page.json()
        after = page.headers.get("x-next-cursor")
        if not after:
            return found


def one(records, kind, **detail):
    """The one record of that kind with those facts."""
    found = [r for r in records if r["kind"] == kind and detail.items() <= r["detail"].items()]
    assert len(found) == 1, (kind, detail, found or records)
    return found[0]


def outcome_of(records, begun):
    """What came of something that was begun."""
    found = [r for r in records if r["detail"].get("of") == begun["seq"]]
    assert len(found) == 1, (begun, records)
    return found[0]["detail"]


def test_commands_files_and_terminals_are_recorded_with_who_did_them(api, box):
    box.run("exit 7", envs={"NAMED": VALUE}, cwd="/tmp")
    box.write("/tmp/a", b"12345")
    for method, path, body in (
        ("POST", "/files/mkdir?path=/tmp/d", None),
        ("POST", "/files/move", {"from": "/tmp/a", "to": "/tmp/b"}),
        ("POST", "/files/chmod", {"path": "/tmp/b", "mode": "0600"}),
        ("DELETE", "/files?path=/tmp/b", None),
    ):
        answer = box.call(method, path, **({"json": body} if body else {}))
        assert answer.status_code == 204, answer.text
    box.call("GET", "/files?path=/etc/hostname")
    terminal = box.call("POST", "/pty", json={}).json()["sessionID"]
    assert box.call("DELETE", f"/pty/{terminal}").status_code == 204
    token = {"Authorization": f"Bearer {box.created['token']}"}
    with Api(key="", headers=token) as inside:
        answer = inside.post(f"{box.path}/exec/run", json={"cmd": "true"}, headers={"X-Request-Id": "by-token"})
        assert answer.status_code == 200
        assert inside.get(f"{box.path}/audit").status_code == 403
    upload = box.call("POST", "/files/upload-url", json={"path": "/tmp/signed"}).json()["url"]
    assert httpx.put(upload, content=b"xyz").status_code == 204
    assert httpx.put(upload.replace("signature=", "signature=00"), content=b"x").status_code == 403

    told = records(box)
    key = told[0]["actor"]
    assert key.startswith("key:")
    run = one(told, "exec", cmd="sh", outcome="begun")
    assert run["detail"]["args"] == ["-c", "exit 7"] and run["detail"]["cwd"] == "/tmp"
    assert run["detail"]["envNames"] == ["NAMED"] and run["actor"] == key and run["requestID"]
    assert outcome_of(told, run)["exitCode"] == 7
    write = one(told, "file.write", path="/tmp/a")
    assert outcome_of(told, write) == {"of": write["seq"], "outcome": "done", "bytes": 5}
    one(told, "file.mkdir", path="/tmp/d")
    one(told, "file.move", **{"from": "/tmp/a", "to": "/tmp/b"})
    one(told, "file.chmod", path="/tmp/b", mode="0600")
    one(told, "file.delete", path="/tmp/b")
    assert not [r for r in told if r["kind"] == "file.read"], "reads are not recorded unless asked for"
    one(told, "pty", outcome="done", pty=terminal)
    one(told, "pty.close", pty=terminal)
    by_token = one(told, "exec", cmd="true")
    assert (by_token["actor"], by_token["requestID"]) == ("sandbox_token", "by-token")
    one(told, "signed_url", use="upload", path="/tmp/signed")
    signed = one(told, "file.write", path="/tmp/signed")
    assert signed["actor"] == "signed_url" and outcome_of(told, signed)["bytes"] == 3
    refused = one(told, "access", outcome="refused")
    assert refused["actor"] == "signed_url"
    text = json.dumps(told)
    assert VALUE not in text and "12345" not in text
    for signature in (upload.split("signature=")[1], box.created["token"]):
        assert signature not in text


def test_what_changes_a_sandbox_is_recorded_and_outlasts_it(api, other):
    with api.create(previewAuth={"scheme": "bearer", "token": "auto"}) as box:
        path = box.path
        box.out("true")
        checkpoint = box.call("POST", "/checkpoints", json={"name": "c"}).json()["id"]
        wait_for(lambda: box.call("GET", "/checkpoints").json()[0]["status"] == "ready", "the checkpoint is ready", 60)
        with api.fork(checkpoint) as fork:
            made = one(records(fork), "sandbox.create", outcome="begun")
            assert made["detail"]["fromCheckpoint"] == checkpoint
        assert box.call("POST", "/hibernate").status_code == 200
        box.out("true")
        assert box.call("POST", f"/checkpoints/{checkpoint}/restore").status_code < 300
        policy = {"mode": "allowlist", "allow": [{"host": "example.com"}]}
        assert box.call("PUT", "/egress", json=policy).status_code == 200
        assert box.call("POST", "/timeout", json={"timeout": 900}).status_code == 204
        # The size that it has: a machine cannot grow.
        assert box.call("POST", "/scale", json={"memoryMB": 1024}).status_code == 200
        assert box.call("POST", "/scale", json={"memoryMB": 4097}).status_code == 400
        assert box.call("PUT", "/tags", json={"team": "a"}).status_code == 200
        assert box.call("POST", "/preview", json={"port": 3000}).status_code < 300
        host = f"{box.id}-p3000.localhost"
        assert httpx.get(f"{api.url}/", headers={"Host": host}).status_code == 401
    told = api.get(f"{path}/audit?limit=1000").json()
    kinds = [r["kind"] for r in told]
    for kind in ("sandbox.create", "checkpoint.create", "sandbox.hibernate", "sandbox.wake", "checkpoint.restore",
                 "policy", "sandbox.timeout", "sandbox.scale", "sandbox.tags", "preview", "sandbox.kill"):
        assert kind in kinds, (kind, kinds)
    assert outcome_of(told, one(told, "checkpoint.create", name="c"))["checkpoint"] == checkpoint
    assert one(told, "sandbox.wake", by="use")["actor"] == told[0]["actor"]
    assert one(told, "policy", mode="allowlist")["detail"]["allow"] == ["example.com"]
    assert one(told, "access", outcome="refused", port=3000)["actor"] == "preview:refused"
    assert all(a["seq"] < b["seq"] for a, b in zip(told, told[1:]))
    assert other.get(f"{path}/audit").status_code == 404
    assert api.get(f"{path}/audit?kind=policy").json()[0]["kind"] == "policy"


def test_secrets_and_refused_hosts_are_recorded_without_their_values(api):
    store = api.post("/api/secret-stores", json={"name": f"audit-{uuid.uuid4().hex}"}).json()
    try:
        set_ = api.put(f"/api/secret-stores/{store['id']}/secrets/KEY", json={"value": VALUE})
        assert set_.status_code == 200
        egress = {"mode": "allowlist", "allow": [{"host": "allowed.example"}]}
        with api.create(secretStore=store["name"], egress=egress) as box:
            sealed = box.out("printenv KEY").strip()
            assert sealed.startswith("osb_sealed_")
            box.run("getent hosts refused.example; getent hosts refused.example; curl -s http://192.0.2.1/ -m 5")
            refused = wait_for(
                lambda: [r for r in records(box, kind="network") if r["detail"].get("host") == "refused.example"],
                "the refusal is recorded",
                20,
            )
            assert refused[0]["actor"] == "sandbox" and refused[0]["detail"]["decision"] == "refused"
            assert refused[0]["detail"]["question"] and refused[0]["detail"]["rule"]
            made = one(records(box), "sandbox.create", outcome="begun")
            assert made["detail"]["secretNames"] == ["KEY"] and made["detail"]["egress"] == "allowlist"
    finally:
        api.delete(f"/api/secret-stores/{store['id']}")
    told = api.get("/api/audit?newest=true&limit=1000")
    assert VALUE not in told.text
    one(told.json(), "secret", name="KEY", store=store["id"], outcome="begun")


def test_new_records_follow(api, box):
    seen, ready = [], threading.Event()

    def follow():
        with httpx.stream("GET", f"{api.url}{box.path}/audit?follow=true&kind=exec", timeout=30,
                          headers={"X-API-Key": api.key}) as lines:
            assert lines.headers["content-type"] == "application/x-ndjson"
            ready.set()
            for line in lines.iter_lines():
                if line.strip():
                    seen.append(json.loads(line))
                if len(seen) >= 6:
                    return

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    assert ready.wait(10)
    for code in range(3):
        box.run(f"exit {code}")
    reader.join(20)
    assert not reader.is_alive(), seen
    assert [r["detail"]["exitCode"] for r in seen if "exitCode" in r["detail"]] == [0, 1, 2]


@pytest.fixture
def server(on_host):
    if not settings.PROGRAM:
        pytest.skip("WARREN_BIN does not say which program to start")
    with Server() as running:
        yield running


def warren(server, *arguments, check=True):
    ran = subprocess.run([settings.PROGRAM, *arguments], capture_output=True, text=True, timeout=60,
                         env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OPENCOMPUTER_API_KEY": server.key,
                              "OPENCOMPUTER_API_URL": server.url})
    assert not check or ran.returncode == 0, (arguments, ran.stdout, ran.stderr)
    return ran


def test_a_kill_in_the_middle_leaves_a_whole_chain_with_everything_that_was_answered(server, tmp_path):
    answered, stop = [], threading.Event()

    def run_on(box_path, worker):
        with httpx.Client(base_url=server.url, headers={"X-API-Key": server.key}, timeout=20) as http:
            for turn in range(10_000):
                mark = f"mark-{worker}-{turn}"
                try:
                    answer = http.post(f"{box_path}/exec/run", json={"cmd": "echo", "args": [mark]})
                except httpx.HTTPError:
                    return
                if answer.status_code == 200 and "exitCode" in answer.json():
                    answered.append(mark)
                if stop.is_set():
                    return

    with server.api() as api:
        box = api.create()
        workers = [threading.Thread(target=run_on, args=(box.path, worker)) for worker in range(4)]
        for worker in workers:
            worker.start()
        wait_for(lambda: len(answered) > 60, "commands run", 60)
        server.kill()
        stop.set()
        for worker in workers:
            worker.join(30)
        # Before any server has looked at it again.
        assert "whole" in warren(server, "audit", "verify", "--data-dir", server.data_dir).stdout
        server.start()
        told = records(box, kind="exec")
        asked = {r["detail"]["args"][0] for r in told if r["detail"].get("args")}
        assert not set(answered) - asked
        for restart in range(2):
            server.stop()
            server.start()
            box.out("true")
        exported = tmp_path / "audit.jsonl"
        exported.write_text(warren(server, "audit", "export").stdout)
        checked = warren(server, "audit", "verify", "--file", str(exported), "--data-dir", server.data_dir)
        assert ": whole" in checked.stdout
        lines = exported.read_text().splitlines()
        exported.write_text("\n".join(lines[:5] + lines[6:]))
        checked = warren(server, "audit", "verify", "--file", str(exported), check=False)
        assert checked.returncode != 0 and "record 5 missing" in checked.stdout
        table = warren(server, "audit", box.id, "--kind", "exec", "--limit", "3").stdout
        assert table.splitlines()[0].split()[:3] == ["SEQ", "TIME", "SANDBOX"] and len(table.splitlines()) == 4
        warren(server, "kill", box.id)
    server.stop()
    assert "NOT" not in warren(server, "audit", "verify", "--data-dir", server.data_dir).stdout
