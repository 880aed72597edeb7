"""A foreign id answers 404 on every route, data plane and WebSockets included, and nothing happens."""

from harness.sockets import refused, ws_url

PATH = "path=/tmp/foreign"


CHECKPOINT = "01234567-89ab-4def-8123-456789abcdef"


def routes(base, exec_id, pty_id):
    control_only = [
        ("POST", f"{base}/reboot", None),
        ("POST", f"{base}/power-cycle", None),
        ("POST", f"{base}/scale", {"memoryMB": 4096}),
        ("GET", f"{base}/autoscale", None),
        ("PUT", f"{base}/autoscale", {"enabled": True}),
        ("GET", f"{base}/scaling-lock", None),
        ("PUT", f"{base}/scaling-lock", {"locked": True}),
        ("POST", f"{base}/checkpoints", {"name": "stolen"}),
        ("GET", f"{base}/checkpoints", None),
        ("POST", f"{base}/checkpoints/{CHECKPOINT}/restore", None),
        ("DELETE", f"{base}/checkpoints/{CHECKPOINT}", None),
        ("GET", f"{base}/patches", None),
        ("GET", f"{base}/allowed-hosts", None),
        ("GET", f"{base}/egress", None),
        ("PUT", f"{base}/egress", {"mode": "none"}),
    ]
    return control_only + [
        ("GET", base, None),
        ("POST", f"{base}/timeout", {"timeout": 1}),
        ("POST", f"{base}/hibernate", None),
        ("POST", f"{base}/wake", {}),
        ("GET", f"{base}/tags", None),
        ("GET", f"{base}/logs", None),
        ("PUT", f"{base}/tags", {"stolen": "yes"}),
        ("POST", f"{base}/exec/run", {"cmd": "touch /tmp/foreign"}),
        ("POST", f"{base}/exec/run-async", {"cmd": "touch /tmp/foreign"}),
        ("POST", f"{base}/exec", {"cmd": "touch", "args": ["/tmp/foreign"]}),
        ("GET", f"{base}/exec", None),
        ("GET", f"{base}/exec/{exec_id}/result", None),
        ("POST", f"{base}/exec/{exec_id}/kill", {}),
        ("POST", f"{base}/pty", {}),
        ("POST", f"{base}/pty/{pty_id}/resize", {"cols": 10, "rows": 10}),
        ("DELETE", f"{base}/pty/{pty_id}", None),
        ("GET", f"{base}/files?path=/etc/hostname", None),
        ("HEAD", f"{base}/files?path=/etc/hostname", None),
        ("PUT", f"{base}/files?{PATH}", {}),
        ("GET", f"{base}/files/list?path=/", None),
        ("GET", f"{base}/files/stat?path=/etc", None),
        ("POST", f"{base}/files/mkdir?{PATH}", None),
        ("POST", f"{base}/files/move", {"from": "/etc/hostname", "to": "/tmp/foreign"}),
        ("POST", f"{base}/files/chmod", {"path": "/home/sandbox", "mode": "0777"}),
        ("GET", f"{base}/files/archive?path=/etc", None),
        ("PUT", f"{base}/files/archive?{PATH}", {}),
        ("DELETE", f"{base}/files?path=/etc/hostname", None),
        ("DELETE", base, None),
    ]


def test_a_foreign_sandbox_is_unknown_on_every_route(box, other):
    exec_id, pty_id = box.start("sleep", "600"), box.call("POST", "/pty", json={}).json()["sessionID"]
    before = box.view()
    for prefix in ("/api", ""):
        for method, path, body in routes(f"{prefix}/sandboxes/{box.id}", exec_id, pty_id):
            answer = other.call(method, path, json=body)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
        for path in (f"{prefix}/sandboxes/{box.id}/exec/{exec_id}", f"{prefix}/sandboxes/{box.id}/pty/{pty_id}"):
            status, body = refused(ws_url(other, path))
            assert status == 404 and body["error"], (path, status, body)
    assert box.id not in {view["sandboxID"] for view in other.list_all()}
    after = box.view()
    assert {**before, "token": ""} == {**after, "token": ""}
    assert box.session(exec_id)["running"]
    assert box.run("test ! -e /tmp/foreign && test -e /etc/hostname")["exitCode"] == 0


def test_an_unknown_sandbox_is_unknown_on_every_route(api):
    for prefix in ("/api", ""):
        for method, path, body in routes(f"{prefix}/sandboxes/sb-00000000", "00000000", "00000000"):
            answer = api.call(method, path, json=body)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
        for kind in ("exec", "pty"):
            status, body = refused(ws_url(api, f"{prefix}/sandboxes/sb-00000000/{kind}/00000000"))
            assert status == 404 and body["error"], (kind, status, body)


def test_sessions_of_another_sandbox_are_unknown_here(api, box, shared):
    """Both sandboxes are ours; a session still belongs to one of them."""
    exec_id, pty_id = shared.start("sleep", "600"), shared.call("POST", "/pty", json={}).json()["sessionID"]
    assert box.call("GET", f"/exec/{exec_id}/result").status_code == 404
    assert box.call("POST", f"/exec/{exec_id}/kill", json={}).status_code == 404
    assert box.call("POST", f"/pty/{pty_id}/resize", json={"cols": 9, "rows": 9}).status_code == 404
    assert box.call("DELETE", f"/pty/{pty_id}").status_code == 404
    assert refused(ws_url(api, f"{box.path}/exec/{exec_id}"))[0] == 404
    assert refused(ws_url(api, f"{box.path}/pty/{pty_id}"))[0] == 404
    assert shared.session(exec_id)["running"]


def test_tag_keys_count_only_our_own(api, other, box):
    assert box.call("PUT", "/tags", json={"only-ours": "1"}).status_code == 200
    assert "only-ours" in {key["key"] for key in api.get("/api/tags").json()["keys"]}
    assert "only-ours" not in {key["key"] for key in other.get("/api/tags").json()["keys"]}
