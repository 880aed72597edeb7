"""Section 8: scaling a running sandbox."""

import pytest

from .test_checkpoints import refusal


def scale(box, memory):
    return box.call("POST", "/scale", json={"memoryMB": memory})


def inside(box):
    return int(box.out("free -m | awk '/Mem/ {print $2}'")), int(box.out("nproc"))


@pytest.mark.containers("they cannot grow")
def test_a_sandbox_grows_and_shrinks_while_it_runs(box):
    session = box.start("sleep", "600")
    cores = lambda count: min(count, int(box.api.get("/readyz") and __import__("os").cpu_count()))
    for memory, cpus in [(4096, 1), (8192, 2), (16384, 4), (1024, 1)]:
        answer = scale(box, memory)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["sandboxID"], body["memoryMB"], body["cpuPercent"], body["ok"], body["migrated"]) == (box.id, memory, cpus * 100, True, False)
        view = box.view()
        assert (view["memoryMB"], view["cpuCount"]) == (memory, cpus)
        assert inside(box) == (memory, cores(cpus))
    assert box.session(session)["running"], "scaling ended a process"
    assert scale(box, 4096).status_code == 200
    box.call("POST", "/hibernate")
    refusal(scale(box, 1024), 400, "not running")
    assert inside(box)[0] == 4096 and box.view()["memoryMB"] == 4096, "a wake lost the size"


@pytest.mark.containers("a guest gives what it can")
def test_it_does_not_shrink_below_what_is_in_use(api):
    with api.create(memoryMB=4096) as box:
        session = box.start("python3", "-c", "import time; b = bytearray(1500 << 20); print('has', flush=True); time.sleep(600)")
        from harness.sockets import ExecSocket

        with ExecSocket(box, session) as socket:
            socket.until_text("has")
        answer = scale(box, 1024)
        assert answer.status_code == 409 and answer.json()["code"] == "oom_floor", answer.text
        details = answer.json()["details"]
        assert 1500 << 20 <= details["usedBytes"] < 2 << 30 and details["limitBytes"] == 1 << 30
        assert box.view()["memoryMB"] == 4096 and inside(box)[0] == 4096 and box.session(session)["running"]
        # Caches of files are not in use.
        box.call("POST", f"/exec/{session}/kill", json={})
        box.out("head -c 1500000000 /dev/zero > ~/big; cat ~/big > /dev/null")
        assert scale(box, 1024).status_code == 200 and inside(box)[0] == 1024


def test_what_cannot_be_asked_for(api, box):
    for memory, says in [(None, "required"), (0, "required"), (-5, "required"), (2048, "must be one of"), (32768, "exceeds"), ("1024", "memoryMB"), (1.5, "memoryMB")]:
        refusal(box.call("POST", "/scale", json={} if memory is None else {"memoryMB": memory}), 400, says)
    assert box.view()["memoryMB"] == 1024
    refusal(api.post("/api/sandboxes/sb-00000000/scale", json={"memoryMB": 1024}), 404)


@pytest.mark.containers("they cannot grow")
def test_the_lock(box):
    lock = lambda locked: box.call("PUT", "/scaling-lock", json={"locked": locked})
    assert box.call("GET", "/scaling-lock").json() == {"sandboxID": box.id, "locked": False}
    auto = box.call("PUT", "/autoscale", json={"enabled": True, "minMemoryMB": 1024, "maxMemoryMB": 8192})
    assert auto.json() == {"sandboxID": box.id, "enabled": True, "minMemoryMB": 1024, "maxMemoryMB": 8192}
    assert lock(True).json() == {"sandboxID": box.id, "locked": True}
    assert box.call("GET", "/autoscale").json()["enabled"] is False
    for answer in (scale(box, 4096), box.call("PUT", "/autoscale", json={"enabled": True})):
        assert answer.status_code == 403 and answer.json()["code"] == "scaling_locked"
    assert box.view()["memoryMB"] == 1024
    assert lock(False).json()["locked"] is False
    assert box.call("GET", "/autoscale").json()["enabled"] is False
    box.call("PUT", "/autoscale", json={"enabled": True})
    assert scale(box, 4096).json()["autoscaleDisabled"] is True
    assert box.call("GET", "/autoscale").json()["enabled"] is False


@pytest.mark.parametrize(
    "body", [{}, {"enabled": "yes"}, {"enabled": True, "minMemoryMB": 3000}, {"enabled": True, "minMemoryMB": 8192, "maxMemoryMB": 4096}]
)
def test_bounds_that_cannot_be(shared, body):
    refusal(shared.call("PUT", "/autoscale", json=body), 400)
    assert shared.call("GET", "/autoscale").json()["enabled"] is False
