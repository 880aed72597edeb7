"""Section 15: checkpoints, restoring in place, forks, publishing."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from harness.client import Box, marker
from harness.sockets import REPLAY_END, ExecSocket
from harness.waiting import wait_for

NOBODYS = "01234567-89ab-4def-8123-456789abcdef"


def at(text):
    """A moment; as text those with and without zeros at the end cannot be compared."""
    return datetime.fromisoformat(text)


def refusal(answer, status, says=""):
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"], answer.text


def test_a_checkpoint_of_a_running_sandbox(api):
    with api.create(envs={"A": "1"}, metadata={"m": "x"}, timeout=900) as box:
        box.write("/home/sandbox/f", b"before")
        box.out("sudo sh -c 'echo root > /etc/mine'")
        mark = marker()
        session = box.start("sleep", mark)
        answer = box.call("POST", "/checkpoints", json={"name": "one"})
        assert answer.status_code == 201
        new = answer.json()
        assert str(uuid.UUID(new["id"])) == new["id"]
        assert (new["sandboxId"], new["name"], new["kind"], new["status"], new["sizeBytes"]) == (box.id, "one", "full", "processing", 0)
        assert new["captured"] is True and new["durable"] is False and new["holds"] == ("memory" if box.keeps_memory else "disk") and new["consistency"] == "quiesced"
        assert new["sandboxConfig"]["envs"] == {"A": "1"} and new["sandboxConfig"]["metadata"] == {"m": "x"}
        assert new["isPublic"] is False and "errorMsg" not in new
        # What is written after the answer is not in it.
        box.write("/home/sandbox/f", b"after")
        ready = box.wait_checkpoint(new["id"])
        assert 0 < ready["sizeBytes"] < 500_000_000
        assert box.status() == "running" and box.session(session)["running"], "the sandbox went on"
        with api.fork(new["id"]) as fork:
            assert fork.id != box.id and fork.created["fromCheckpointId"] == new["id"]
            assert fork.out('cat ~/f /etc/mine; echo "$A"') == "beforeroot\n1\n"
            assert fork.is_alive(mark) == box.keeps_memory, "processes are in a checkpoint of a machine, and not in one of a container"
            fork.write("/home/sandbox/f", b"fork's own")
            assert box.read("/home/sandbox/f") == b"after"
        box.restore(new["id"])
        assert box.read("/home/sandbox/f") == b"before"


def test_the_pause_is_short_and_nothing_fails_meanwhile(box):
    """A program that writes all the time sees no error and no long gap, and each checkpoint has its file in a whole state."""
    script = r"""
import os, time
last = time.monotonic(); worst = 0; n = 0
while not os.path.exists('/tmp/stop'):
    with open('/home/sandbox/line.new', 'w') as f:
        f.write(f'{n} ' * 1000); f.flush(); os.fsync(f.fileno()) if n % 50 == 0 else None
    os.rename('/home/sandbox/line.new', '/home/sandbox/line')
    now = time.monotonic(); worst = max(worst, now - last); last = now; n += 1
print(n, worst)
"""
    box.write("/tmp/w.py", script.encode())
    session = box.start("python3", "/tmp/w.py")
    wait_for(lambda: box.run("test -e ~/line")["exitCode"] == 0, "it writes")
    ids = []
    for n in range(6):
        before = time.monotonic()
        ids.append(box.checkpoint(f"c{n}", ready=False))
        assert box.out("echo there") == "there\n"
        assert time.monotonic() - before < 10
    for each in ids:
        found = box.wait_checkpoint(each)
        assert found["consistency"] == "quiesced", found
        assert found["pauseMs"] < 500, found
    box.out("touch /tmp/stop")
    with ExecSocket(box, session) as socket:
        assert socket.finish(20) == 0
        count, worst = socket.output().split()
    assert int(count) > 20 and float(worst) < 5, (count, worst)
    for each in ids[::3]:
        with box.api.fork(each) as fork:
            content = fork.read("/home/sandbox/line").decode().split()
            assert len(content) == 1000 and len(set(content)) == 1, "a file that was replaced in one step is there in parts"


def test_a_splice_that_waits_for_ever_holds_up_nobody(box):
    """A write that is under way for as long as a program likes would keep the file system itself from freezing."""
    box.start("python3", "-c", "import os; r, w = os.pipe(); f = open('/home/sandbox/s', 'wb'); os.splice(r, f.fileno(), 100)")
    box.write("/home/sandbox/f", b"x")
    found = box.wait_checkpoint(box.checkpoint("one"))
    assert found["consistency"] == "quiesced" and found["pauseMs"] < 1000
    assert box.out("echo x > ~/g && cat ~/g") == "x\n"


def test_a_checkpoint_of_a_hibernated_sandbox(box):
    box.write("/home/sandbox/f", b"asleep")
    assert box.call("POST", "/hibernate").status_code == 200
    found = box.wait_checkpoint(box.checkpoint("asleep"))
    assert found["consistency"] == "quiesced" and "pauseMs" not in found
    assert box.status() == "hibernated", "a checkpoint woke it"
    with box.api.fork(found["id"]) as fork:
        assert fork.read("/home/sandbox/f") == b"asleep"
    box.restore(found["id"])
    assert box.read("/home/sandbox/f") == b"asleep"


def test_lists_are_newest_first_and_outlive_the_sandbox(api):
    with api.create() as box:
        assert box.checkpoints() == []
        ids = [box.checkpoint(f"c{n}") for n in range(3)]
        assert [each["id"] for each in box.checkpoints()] == ids[::-1]
        box.kill()
        assert [each["status"] for each in box.checkpoints()] == ["ready"] * 3
        with api.fork(ids[0]) as fork:
            assert fork.out("echo lives") == "lives\n"
        for each in ids:
            assert box.call("DELETE", f"/checkpoints/{each}").status_code == 204
        assert box.checkpoints() == []


def test_what_cannot_be_checkpointed(api, other):
    with api.create() as box:
        post = lambda body: box.call("POST", "/checkpoints", json=body)
        for body, says in [
            ({}, "name is required"),
            ({"name": ""}, "name is required"),
            ({"name": "x" * 129}, "at most 128 bytes"),
            ({"name": "a\x00b"}, "control characters"),
            ({"name": "a", "kind": "half"}, "kind must be full or disk_only"),
            ({"name": "a", "promoteToFull": True}, "promoteToFull is only supported for disk_only checkpoints"),
            ({"name": "a", "retentionPolicy": {"mode": "newest"}}, "unsupported checkpoint retention policy"),
            ({"name": "a", "retentionPolicy": {"mode": "delete_oldest", "maxCount": 11}}, "between 1 and 10 for full checkpoints"),
            ({"name": 5}, "name"),
            ({"name": "a", "retentionPolicy": "x"}, "retentionPolicy"),
        ]:
            refusal(post(body), 400, says)
        assert box.checkpoints() == []
        refusal(api.post("/api/sandboxes/sb-00000000/checkpoints", json={"name": "a"}), 404)
        refusal(other.post(f"{box.path}/checkpoints", json={"name": "a"}), 404)
        box.checkpoint("a", kind="disk_only", promoteToFull=True)
        refusal(post({"name": "a"}), 409, "checkpoint name already exists for this sandbox")
        box.kill()
        refusal(post({"name": "b"}), 400, "sandbox must be running to create a checkpoint")


def test_limits_and_retention(box):
    ids = [box.checkpoint(f"c{n}") for n in range(10)]
    refusal(box.call("POST", "/checkpoints", json={"name": "more"}), 400, "maximum 10 full checkpoints per sandbox")
    box.checkpoint("disk", kind="disk_only")
    new = box.checkpoint("new", retentionPolicy={"mode": "delete_oldest", "maxCount": 3})
    left = lambda: [each["id"] for each in box.checkpoints() if each["kind"] == "full"]
    wait_for(lambda: left() == [new, ids[9], ids[8]], "only the newest three are left", instead=left)
    with box.api.fork(ids[8]) as fork:
        box.checkpoint("newer", retentionPolicy={"mode": "delete_oldest", "maxCount": 1})
        wait_for(lambda: len(left()) == 2, "what a living sandbox came from stays", instead=left)
        assert ids[8] in left()
        assert fork.out("echo lives") == "lives\n"


def test_a_deleted_checkpoint_leaves_its_forks(box):
    box.write("/home/sandbox/f", b"x" * 1_000_000)
    one, two = box.checkpoint("one"), box.checkpoint("two")
    with box.api.fork(one) as fork, box.api.create() as stranger:
        assert box.call("DELETE", f"/checkpoints/{one}").status_code == 204
        refusal(box.call("DELETE", f"/checkpoints/{one}"), 404)
        assert fork.read("/home/sandbox/f") == b"x" * 1_000_000
        fork.call("POST", "/hibernate")
        assert fork.read("/home/sandbox/f") == b"x" * 1_000_000
        again = fork.checkpoint("mine")
        with box.api.fork(again) as grandchild:
            assert grandchild.read("/home/sandbox/f") == b"x" * 1_000_000
        refusal(box.api.post(f"/api/sandboxes/from-checkpoint/{one}", json={}), 404)
        refusal(box.call("POST", f"/checkpoints/{one}/restore"), 404)
        refusal(stranger.call("DELETE", f"/checkpoints/{two}"), 400, "another sandbox")
        refusal(box.call("DELETE", "/checkpoints/nope"), 400, "invalid checkpoint ID")
        assert box.checkpoint("one")


def test_every_rule_of_a_fork(api):
    with api.create(envs={"A": "1", "B": "1"}, metadata={"m": "1", "n": "1"}, timeout=600, memoryMB=4096, tags={"t": "1"}) as box:
        one = box.checkpoint("one")
        with api.fork(one, envs={"B": "2"}, metadata={"n": "2"}, timeout=2, memoryMB=1024) as fork:
            view = fork.created
            assert (view["status"], view["memoryMB"], view["timeout"]) == ("running", 4096, 2)
            assert view["token"] and view["connectURL"] and view["fromCheckpointId"] == one
            assert view["metadata"] == {"m": "1", "n": "2"} and view["tags"] == {}
            assert fork.out('echo "$A $B"') == "1 2\n"
            fork.wait_status("hibernated", 20)
            assert fork.out('echo "$A $B"') == "1 2\n", "a fork hibernates and wakes like any other"
        with api.fork(one, memoryMB=8192) as fork:
            assert (fork.created["memoryMB"], fork.created["cpuCount"], fork.created["timeout"]) == (8192, 2, 0)
        answer = api.post(f"/api/sandboxes/from-checkpoint/{one}")
        assert answer.status_code == 201, "without a body"
        Box(api, answer.json()).kill()
        fork = lambda body: api.post(f"/api/sandboxes/from-checkpoint/{one}", json=body)
        refusal(fork({"secretStore": "no such store"}), 400, "secret store not found: no such store")
        refusal(fork({"envs": {"A=B": "1"}}), 400, "envs")
        refusal(fork({"timeout": "x"}), 400, "timeout")
        refusal(api.post(f"/api/sandboxes/from-checkpoint/{NOBODYS}"), 404, "checkpoint not found")
        for bad in ("x", "sb-01234567", f"{one}0"):
            refusal(api.post(f"/api/sandboxes/from-checkpoint/{bad}"), 400, "invalid checkpoint ID")


def test_a_fork_asked_for_at_once_waits_until_it_is_ready(box):
    box.out("head -c 60000000 /dev/urandom > ~/big")
    one = box.checkpoint("one", ready=False)
    with box.api.fork(one) as fork:
        assert fork.out("wc -c < ~/big").strip() == "60000000"


def test_many_forks_at_once(box):
    box.write("/home/sandbox/f", b"common")
    one = box.checkpoint("one")
    with ThreadPoolExecutor(10) as pool:
        forks = list(pool.map(lambda n: box.api.fork(one, envs={"N": str(n)}), range(10)))
        try:
            wrote = list(pool.map(lambda fork: fork.out('cat ~/f; echo "$N" >> ~/f; cat ~/f'), forks))
            assert wrote == [f"commoncommon{n}\n" for n in range(10)]
            assert box.read("/home/sandbox/f") == b"common"
        finally:
            list(pool.map(lambda fork: fork.kill(), forks))


def test_forks_one_after_the_other_hold_each_its_own_checkpoint_and_nothing_else(box):
    """What is prepared ahead of a fork is of that checkpoint, as it was taken, however often and in whatever order they are asked for."""
    ids = []
    for n in range(4):
        box.write("/home/sandbox/f", f"of {n}".encode())
        ids.append(box.checkpoint(f"c{n}"))
    for turn in (0, 0, 1, 0, 2, 1, 3, 3, 2, 0, 1):
        with box.api.fork(ids[turn]) as fork:
            assert fork.out("cat ~/f; ls ~") == f"of {turn}f\n"
            fork.out("echo changed > ~/f; echo more > ~/g")
        # Time for the next one to be prepared.
        time.sleep(0.3)
    # A disk that is larger than what is kept ready for creates, and a fork with more memory than its checkpoint.
    with box.api.fork(ids[0], memoryMB=4096) as fork:
        assert fork.read("/home/sandbox/f") == b"of 0" and fork.view()["memoryMB"] == 4096


def test_a_repeated_key_is_one_checkpoint_and_one_fork(box):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: box.call("POST", "/checkpoints", json={"name": "k"}, headers=headers), range(4)))
    assert {answer.status_code for answer in answers} == {201} and len({answer.json()["id"] for answer in answers}) == 1
    refusal(box.call("POST", "/checkpoints", json={"name": "l"}, headers=headers), 409)
    one = answers[0].json()["id"]
    fork = lambda _=0, **body: box.api.post(f"/api/sandboxes/from-checkpoint/{one}", json=body, headers={"Idempotency-Key": one})
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(fork, range(4)))
    assert {answer.status_code for answer in answers} == {201} and len({answer.json()["sandboxID"] for answer in answers}) == 1
    refusal(fork(timeout=5), 409)
    Box(box.api, answers[0].json()).kill()


@pytest.mark.containers("they cannot grow, and processes come back")
def test_a_restore_keeps_id_and_settings_and_ends_processes(api):
    with api.create(timeout=700, envs={"E": "kept"}, tags={"t": "1"}, memoryMB=1024) as box, api.create() as stranger:
        box.write("/home/sandbox/f", b"before")
        one = box.checkpoint("one")
        box.write("/home/sandbox/f", b"after")
        box.out("touch ~/new")
        assert box.call("POST", "/scale", json={"memoryMB": 4096}).status_code == 200
        mark = marker()
        session = box.start("sleep", mark)
        before = box.view()
        with ExecSocket(box, session) as socket:
            socket.until(REPLAY_END)
            box.restore(one)
            while socket.next(10):
                pass
            assert socket.exit_code in (None, 137, 143), "an invented exit"
        assert box.out('cat ~/f; test ! -e ~/new; echo " $E"') == "before kept\n"
        after = box.view()
        same = ("sandboxID", "status", "timeout", "tags", "metadata", "memoryMB", "cpuCount", "startedAt", "token", "connectURL")
        assert {key: before[key] for key in same} == {key: after[key] for key in same}
        assert after["generation"] > before["generation"] and at(after["processesSince"]) > at(before["processesSince"])
        assert box.session(session)["exitCode"] == 137 and not box.is_alive(mark)
        assert int(box.out("free -m | awk '/Mem/ {print $2}'")) == 4096, "the size is a setting too"

        refusal(stranger.call("POST", f"/checkpoints/{one}/restore"), 400, "another sandbox")
        refusal(box.call("POST", f"/checkpoints/{NOBODYS}/restore"), 404, "checkpoint not found")
        refusal(box.call("POST", "/checkpoints/x/restore"), 400, "invalid checkpoint ID")
        box.kill()
        refusal(box.call("POST", f"/checkpoints/{one}/restore"), 400, "sandbox must be running")


def test_calls_that_arrive_during_a_restore_wait_for_its_end(box):
    box.write("/home/sandbox/f", b"before")
    one = box.checkpoint("one")
    for _ in range(3):
        box.write("/home/sandbox/f", b"after")
        box.restore(one)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: box.out("cat ~/f") if n % 2 else box.read("/home/sandbox/f").decode(), range(8)))
        assert answers == ["before"] * 8


def test_a_published_checkpoint_can_be_forked_by_anybody(api, other):
    with api.create() as box, other.create() as theirs:
        box.write("/home/sandbox/f", b"shared")
        one = box.checkpoint("one")
        of = lambda who, verb: who.post(f"/api/sandboxes/checkpoints/{one}/{verb}")
        refusal(other.post(f"/api/sandboxes/from-checkpoint/{one}"), 403)
        for verb in ("publish", "unpublish"):
            refusal(of(other, verb), 403)
        refusal(other.post(f"{theirs.path}/checkpoints/{one}/restore"), 403)
        refusal(other.delete(f"{theirs.path}/checkpoints/{one}"), 403)
        for _ in range(2):
            answer = of(api, "publish")
            assert answer.status_code == 200 and answer.json()["isPublic"] is True
        with other.fork(one) as fork:
            assert fork.read("/home/sandbox/f") == b"shared"
            assert api.get(fork.path).status_code == 404, "what they make of it is theirs"
        refusal(other.post(f"/api/sandboxes/checkpoints/{one}/patches", json={"script": "true"}), 403)
        refusal(other.get(f"/api/sandboxes/checkpoints/{one}/patches"), 403)
        refusal(other.delete(f"{box.path}/checkpoints/{one}"), 404)
        assert of(api, "unpublish").json()["isPublic"] is False
        refusal(other.post(f"/api/sandboxes/from-checkpoint/{one}"), 403)
        for verb in ("publish", "unpublish"):
            refusal(api.post(f"/api/sandboxes/checkpoints/{NOBODYS}/{verb}"), 404)
            refusal(api.post(f"/api/sandboxes/checkpoints/x/{verb}"), 400)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_reboot_keeps_the_disk_and_the_settings(api, asleep):
    with api.create(timeout=800, envs={"E": "kept"}) as box:
        box.write("/home/sandbox/f", b"x")
        mark = marker()
        box.start("sleep", mark)
        for verb in ("reboot", "power-cycle"):
            before = box.view()["processesSince"]
            if asleep:
                box.call("POST", "/hibernate")
            assert box.call("POST", f"/{verb}").status_code == 204
            view = box.view()
            assert (view["status"], view["timeout"]) == ("running", 800) and at(view["processesSince"]) > at(before)
            assert box.out('cat ~/f; echo " $E"') == "x kept\n" and not box.is_alive(mark)
        box.kill()
        refusal(box.call("POST", "/reboot"), 410)
        refusal(api.post("/api/sandboxes/sb-00000000/reboot"), 404)


def test_two_operations_on_one_sandbox_do_not_mix(box):
    box.start("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    box.write("/home/sandbox/f", b"x")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: box.call("POST", "/reboot"))
        time.sleep(0.3)
        second = pool.submit(lambda: box.call("POST", "/power-cycle"))
        assert first.result().status_code == 204
        refusal(second.result(), 409, "another operation is in progress")
    assert box.read("/home/sandbox/f") == b"x"


def test_operations_in_turn_are_never_refused(box):
    """A restore is answered before its end; what is asked for then waits for that. What was refused holds up nothing."""
    box.write("/home/sandbox/f", b"x")
    one = box.checkpoint("one")
    box.write("/home/sandbox/f", b"y")
    for _ in range(2):
        for path in (f"/checkpoints/{one}/restore", "/power-cycle", f"/checkpoints/{one}/restore", f"/checkpoints/{one}/restore"):
            answer = box.call("POST", path)
            assert answer.status_code in (200, 204), (path, answer.text)
    assert box.call("POST", "/hibernate").status_code == 200
    assert box.read("/home/sandbox/f") == b"x"


@pytest.mark.containers("their processes are kept")
def test_start_commands_run_whenever_it_begins_to_run(api):
    commands = ["echo started >> ~/starts; exec sleep 7000", "echo second >> ~/seconds"]
    with api.create(startCommands=commands) as box:
        starts = lambda: (box.run("cat ~/starts ~/seconds")["stdout"]).split()
        has = lambda n: wait_for(lambda: sorted(starts()) == ["second"] * n + ["started"] * n, f"{n} starts", instead=starts)
        has(1)
        assert [each for each in box.call("GET", "/exec").json() if each["running"]], "they are listed like any command"
        answer = box.call("POST", "/hibernate").json()
        assert answer["keeps"] == "disk"
        woken = box.call("POST", "/wake", json={}).json()
        assert woken["processes"] == "restarted" and woken["hibernationKeeps"] == "disk"
        has(2)
        assert box.call("POST", "/wake", json={}).json()["processes"] == "running"
        box.call("POST", "/reboot")
        has(3)
        one = box.checkpoint("one")
        with api.fork(one) as fork:
            wait_for(lambda: fork.run("wc -l < ~/starts")["stdout"].strip() == "4", "a fork starts them too")
        box.restore(one)
        wait_for(lambda: box.run("wc -l < ~/starts")["stdout"].strip() == "4", "so does a restore")
    for bad in ([""], ["a\x00b"], ["x"] * 33, ["x" * 20000], "x", [1]):
        refusal(api.post("/api/sandboxes", json={"startCommands": bad}), 400)


def test_no_answer_waits_for_start_commands(api):
    begun = time.monotonic()
    with api.create(startCommands=["sleep 30; touch ~/late"]) as box:
        assert box.out("echo at once") == "at once\n"
        assert time.monotonic() - begun < 10
