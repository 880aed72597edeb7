"""What a sandbox asks about itself at 169.254.169.254: answered here and nowhere else, whatever it may reach, and for nearly nothing."""

import json

import pytest

from harness.waiting import wait_for

AT = "http://169.254.169.254"
POLICIES = {
    "open": {},
    "no network": {"networkEnabled": False},
    "allowlist": {"egress": {"mode": "allowlist", "allow": [{"host": "example.com"}]}},
}
# Holds 60 connections open in every idle way, and says when one that asks properly is heard again.
HOLD = """
import socket, time
def connect():
    s = socket.socket(); s.settimeout(2); s.connect(("169.254.169.254", 80)); return s
def ask():
    try:
        s = connect(); s.sendall(b"GET /v1/status HTTP/1.1\\r\\n\\r\\n"); return s.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
held = []
for said in [b"", b"GET / HT", b"POST /v1/scale HTTP/1.1\\r\\ncontent-length: 900\\r\\n\\r\\n{", b"GET / HTTP/1.1\\r\\n\\r\\n"] * 15:
    try:
        held.append(connect()); held[-1].sendall(said)
    except OSError:
        pass
print(len(held), flush=True)
open("/tmp/held", "w").close()
while not ask():
    time.sleep(0.2)
"""


def ask(box, path, *options):
    """Status and body."""
    result = box.out(f"curl -sS -m 20 --noproxy '*' -w '\\n%{{http_code}}' {' '.join(options)} {AT}{path}")
    body, _, status = result.rpartition("\n")
    return int(status), json.loads(body) if body else None


def scale(box, body):
    return ask(box, "/v1/scale", "-X POST", f"-d '{body}'")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sandbox_is_told_what_it_is_whatever_it_may_reach(api, policy):
    with api.create(**POLICIES[policy]) as box:
        status, index = ask(box, "/")
        assert status == 200 and "POST /v1/scale" in index["endpoints"]
        status, state = ask(box, "/v1/status")
        assert status == 200 and state["sandboxId"] == box.id and 0 <= state["uptime"] < 600
        status, limits = ask(box, "/v1/limits")
        view = box.view()
        assert status == 200 and limits["memLimit"] == view["memoryMB"] << 20 and limits["cpuPercent"] == 100 * view["cpuCount"]
        assert 0 < limits["memUsage"] < limits["memLimit"] and 0 < limits["pids"] < 4096
        assert limits["netInput"] > 0 and limits["netOutput"] > 0
        status, about = ask(box, "/v1/metadata")
        assert (status, about) == (200, {"region": view["region"], "template": view["templateID"]})


def test_a_sandbox_scales_itself_under_the_conditions_of_the_api(api):
    with api.create(memoryMB=4096) as box:
        status, scaled = scale(box, '{"memoryMB": 1024}')
        assert (status, scaled) == (200, {"ok": True, "memoryMB": 1024, "cpuPercent": 100 * box.view()["cpuCount"]})
        assert box.view()["memoryMB"] == 1024 and ask(box, "/v1/limits")[1]["memLimit"] == 1024 << 20
        for body, says in [("", "memoryMB is required"), ('{"memoryMB": 2048}', "one of"), ('{"memoryMB": "1024"}', "must be like"), ("[]", "must be like"), ('{"memoryMB": 99999999999999999999}', "must be like")]:
            status, refused = scale(box, body)
            assert status == 400 and says in refused["error"], (body, refused)
        status, _ = ask(box, "/v1/scale", "-X POST", "-d @/usr/bin/env")
        assert status == 413
        assert box.call("PUT", "/scaling-lock", json={"locked": True}).status_code == 200
        status, refused = scale(box, '{"memoryMB": 4096}')
        assert (status, refused["code"]) == (403, "scaling_locked") and box.view()["memoryMB"] == 1024


def test_only_this_is_there(prisoner):
    for path, options, wanted in [
        ("/latest/meta-data/", [], 404),
        ("/computeMetadata/v1/", ["-H 'Metadata-Flavor: Google'"], 404),
        ("/v1/scale", [], 405),
        ("/v1/status", ["-X DELETE"], 405),
        ("/v1/status", ["-H 'Host: rebound.example'"], 403),
        ("/v1/status", ["-H 'Origin: http://page.example'"], 403),
    ]:
        status, body = ask(prisoner, path, *options)
        assert status == wanted and len(body["error"]) > 8, (path, options, body)
    tries = "".join(f"timeout 2 bash -c '</dev/tcp/169.254.169.254/{port}' 2>/dev/null && echo {port};" for port in (22, 53, 81, 443, 3128, 8080))
    assert prisoner.run(f"{tries} true")["stdout"] == ""
    # What is served here takes no port from the sandbox.
    assert prisoner.out("sudo timeout 20 python3 -m http.server 80 --bind 0.0.0.0 >/dev/null 2>&1 & for i in $(seq 100); do curl -sf --noproxy '*' 127.0.0.1 >/dev/null && echo served && exit; sleep 0.1; done").strip() == "served"


def test_who_holds_connections_open_holds_up_nobody_and_not_for_long(prisoner, api):
    prisoner.write("/tmp/hold.py", HOLD.encode())
    session = prisoner.start("timeout", "100", "python3", "/tmp/hold.py")
    wait_for(lambda: prisoner.run("test -e /tmp/held")["exitCode"] == 0, "it holds what it can", 20)
    with api.create() as other:
        assert ask(other, "/v1/status")[0] == 200
    wait_for(lambda: not prisoner.session(session)["running"], "it is heard again while it still holds the others", 60)
    assert prisoner.session(session)["exitCode"] == 0
    held = int(prisoner.call("GET", f"/exec/{session}/result").json()["stdout"])
    assert 4 <= held <= 60
