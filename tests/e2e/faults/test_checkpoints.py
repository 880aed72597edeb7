"""Checkpoints, forks, restores and hibernated disks when something goes wrong: a killed server, damaged files."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from harness import host
from harness.client import Box
from harness.server import entries_of
from harness.waiting import wait_for

LOST = (httpx.TransportError, ConnectionError)


def volume(server):
    return Path(server.data_dir, "volume")


def image_of(server, box):
    return volume(server) / "sandboxes" / box.id / "disk.img"


def folder_of(server, checkpoint_id):
    return volume(server) / "checkpoints" / checkpoint_id


def groups_of(box):
    return [path for path in host.cgroup_folders() if box.id in os.path.basename(path) and os.path.exists(f"{path}/cgroup.freeze")]


def is_frozen(box):
    return any(host.read(f"{path}/cgroup.freeze").strip() == b"1" or b"frozen 1" in host.read(f"{path}/cgroup.events") for path in groups_of(box))


def damage(path, within=1 << 20):
    """Changes some bytes of an image that hold something, without changing its length."""
    with open(path, "r+b") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        changed = 0
        while changed < 3:
            file.seek(start)
            block = file.read(4096)
            assert block, "the image holds nothing"
            if any(block):
                file.seek(start)
                file.write(bytes(byte ^ 0x55 for byte in block[:16]))
                changed += 1
            start += within // 3
        os.fsync(file.fileno())


def wait_failed(box, checkpoint_id):
    """The list hears of it a moment after whoever wanted to use it."""
    found = lambda: (found := box.find_checkpoint(checkpoint_id)) and found["status"] == "failed" and found
    return wait_for(found, f"{checkpoint_id} is failed")


def records(api, box, kind):
    """What the audit says, oldest first; it is written a moment later."""
    time.sleep(2)
    answer = api.get(f"{box.path}/audit", params={"kind": kind})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer, status, says):
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"], answer.text
    return answer.json()


# A killed server.


@pytest.mark.timeout(250)
def test_a_server_killed_during_captures_leaves_nobody_standing_still(server):
    """At many points: the sandbox goes on at once, also while there is no server; what was half made is gone after the start."""
    with server.api() as api:
        box = api.create()
        box.write("/home/sandbox/f", b"content")
        box.start("sh", "-c", "while :; do date +%s%N > ~/tick; sleep 0.01; done")
        wait_for(lambda: box.run("test -e ~/tick")["exitCode"] == 0, "it ticks")
        chance = random.Random(5)
        for number in range(12):
            name = f"c{number}"
            if number % 3 == 0:
                box.out("head -c 20000000 /dev/urandom > ~/big")
            with server.api(strict=False) as rough:
                asking = threading.Thread(target=ask, args=(rough, box, name), daemon=True)
                asking.start()
                time.sleep(chance.choice((0.001, 0.003, 0.006, 0.01, 0.02, 0.04, 0.1)) * (0.5 + chance.random()))
                server.kill()
                asking.join(30)
            wait_for(lambda: not is_frozen(box), "the sandbox goes on without a server", 5, 0.01)
            root = f"/proc/{min(host.sandbox_processes()[box.id])}/root"
            tick = lambda root=root: host.read(f"{root}/home/sandbox/tick")
            before = tick()
            wait_for(lambda: tick() != before, "its processes run")
            server.start()
            settled = lambda: all(each["status"] != "processing" for each in box.checkpoints())
            wait_for(settled, "each is ready or failed", 20)
            for each in box.checkpoints():
                assert each["status"] == "ready" or "the server ended" in each["errorMsg"], each
                if each["status"] == "ready" and each["name"] == name:
                    with api.fork(each["id"]) as fork:
                        assert fork.read("/home/sandbox/f") == b"content"
                assert box.call("DELETE", f"/checkpoints/{each['id']}").status_code == 204
            assert os.listdir(volume(server) / "checkpoints") == []
            assert box.read("/home/sandbox/f") == b"content"
        box.kill()


def ask(api, box, name):
    try:
        api.http.post(f"{box.path}/checkpoints", json={"name": name}, timeout=20)
    except LOST:
        pass


@pytest.mark.timeout(250)
def test_a_server_killed_during_restores_has_restored_or_not(server):
    with server.api() as api:
        box = api.create(timeout=3000, envs={"E": "kept"})
        box.write("/home/sandbox/f", b"before")
        one = box.checkpoint("one")
        chance = random.Random(6)
        for number in range(12):
            box.write("/home/sandbox/f", b"after")
            answer = []
            with server.api(strict=False) as rough:
                asking = threading.Thread(target=lambda: answer.append(restore(rough, box, one)), daemon=True)
                asking.start()
                time.sleep(chance.choice((0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06)) * (0.5 + chance.random()))
                server.kill()
                asking.join(30)
            server.start()
            content = box.read("/home/sandbox/f")
            assert content == b"before" if answer[0] == 200 else content in (b"before", b"after"), (number, answer, content)
            assert box.out('echo "$E"') == "kept\n" and box.view()["timeout"] == 3000
            left = set(os.listdir(volume(server) / "sandboxes" / box.id)) - {"record.durable.json"}
            assert left == {"agent.sock", "disk.img", "record.json"}
        box.kill()
        wait_for(lambda: not host.sandbox_processes().get(box.id) and not groups_of(box), "nothing of it runs")


def restore(api, box, checkpoint_id):
    try:
        return api.http.post(f"{box.path}/checkpoints/{checkpoint_id}/restore", timeout=20).status_code
    except LOST:
        return None


@pytest.mark.timeout(250)
def test_a_server_killed_during_forks_loses_and_leaks_none(server):
    with server.api() as api:
        box = api.create()
        box.write("/home/sandbox/f", b"content")
        one = box.checkpoint("one")
        answer = api.post(f"/api/sandboxes/checkpoints/{one}/patches", json={"script": "echo patched >> ~/p; sleep 0.05"})
        assert answer.status_code == 201
        chance = random.Random(7)
        for number in range(10):
            mark = uuid.uuid4().hex
            told = []
            with server.api(strict=False) as rough:
                clients = [threading.Thread(target=fork, args=(rough, one, mark, told), daemon=True) for _ in range(3)]
                for client in clients:
                    client.start()
                time.sleep(chance.choice((0.005, 0.02, 0.05, 0.1, 0.2)) * (0.5 + chance.random()))
                server.kill()
                for client in clients:
                    client.join(30)
            server.start()
            views = {view["sandboxID"]: view for view in api.list_all(**{"metadata.mark": mark}) if view["status"] != "stopped"}
            assert set(told) <= set(views), "a fork that was answered is lost"
            for view in views.values():
                fork_box = Box(api, view)
                assert fork_box.out("cat ~/f ~/p") == "contentpatched\n", "a patch ran twice, or not at all"
                fork_box.kill()
            wait_for(lambda views=views: not any(entries_of(server.data_dir, each) for each in views), "their files are gone")
            living = {view["sandboxID"] for view in api.list_all(status="running,hibernated")}
            assert set(os.listdir(volume(server) / "sandboxes")) == living, number
        box.kill()


def fork(api, checkpoint_id, mark, told):
    try:
        answer = api.http.post(f"/api/sandboxes/from-checkpoint/{checkpoint_id}", json={"metadata": {"mark": mark}}, timeout=20)
        if answer.status_code == 201:
            told.append(answer.json()["sandboxID"])
    except LOST:
        pass


def test_a_patch_goes_on_when_the_server_is_killed_and_runs_once(server):
    with server.api() as api:
        box = api.create()
        one = box.checkpoint("one")
        for script in ("echo one >> ~/log; sleep 3; echo over >> ~/log", "echo two >> ~/log"):
            assert api.post(f"/api/sandboxes/checkpoints/{one}/patches", json={"script": script}).status_code == 201
        mark = uuid.uuid4().hex
        other = api.fork(box.checkpoint("two"))
        # A fork that nobody was told of is undone, so the patches run on a wake.
        with server.api(strict=False) as rough:
            asking = threading.Thread(target=fork, args=(rough, one, mark, []), daemon=True)
            asking.start()
            time.sleep(1)
            server.kill()
            asking.join(30)
        server.start()
        assert not [view for view in api.list_all(**{"metadata.mark": mark}) if view["status"] != "stopped"]
        assert api.delete(f"/api/sandboxes/checkpoints/{one}/patches/{patches(api, one)[0]['id']}").status_code == 204
        forked = api.fork(one)
        assert forked.out("cat ~/log") == "two\n"
        answer = api.post(f"/api/sandboxes/checkpoints/{one}/patches", json={"script": "echo three >> ~/log; sleep 3; echo over >> ~/log"})
        assert answer.status_code == 201
        forked.call("POST", "/hibernate")
        with server.api(strict=False) as rough:
            asking = threading.Thread(target=lambda: use(rough, forked), daemon=True)
            asking.start()
            wait_for(lambda: forked.status() == "running", "it wakes")
            time.sleep(1)
            server.kill()
            asking.join(30)
        server.start()
        assert forked.out("cat ~/log") == "two\nthree\nover\n", "a call got in before its patch was over, or the patch ran twice"
        runs = forked.call("GET", "/patches").json()
        assert [(run["sequence"], run.get("exitCode")) for run in runs] == [(2, 0), (3, 0)]
        for each in (box, other, forked):
            each.kill()


@pytest.mark.timeout(250)
def test_a_patch_that_cannot_be_written_down_is_not_begun_and_runs_once(server):
    """Which patch is to run is in the record before it begins: a server that is killed then could not tell otherwise."""
    with server.api() as api:
        box = api.create()
        forked = api.fork(one := box.checkpoint("one"))
        assert forked.call("POST", "/hibernate").status_code == 200
        for script in ("echo one >> ~/log; sleep 3", "echo two >> ~/log; sleep 3"):
            assert api.post(f"/api/sandboxes/checkpoints/{one}/patches", json={"script": script}).status_code == 201
        in_the_way = volume(server) / "sandboxes" / forked.id / "record.unfinished"
        with server.api(strict=False) as rough:
            asking = threading.Thread(target=lambda: use(rough, forked), daemon=True)
            asking.start()
            wait_for(lambda: forked.status() == "running", "it wakes")
            time.sleep(1)
            in_the_way.mkdir()
            wait_for(lambda: forked.call("GET", "/patches").json(), "the first is over")
            time.sleep(1)
            server.kill()
            asking.join(30)
        in_the_way.rmdir()
        server.start()
        assert forked.out("cat ~/log") == "one\ntwo\n", "a patch ran twice"
        ran = [(run["sequence"], run.get("exitCode"), run.get("error") or "") for run in forked.call("GET", "/patches").json()]
        assert [run[:2] for run in ran] == [(1, 0), (2, None), (2, 0)] and "could not be written down" in ran[1][2], ran
        box.kill()
        forked.kill()


def use(api, box):
    try:
        api.http.post(f"{box.path}/exec/run", json={"cmd": "true"}, timeout=30)
    except LOST:
        pass


def patches(api, checkpoint_id):
    return api.get(f"/api/sandboxes/checkpoints/{checkpoint_id}/patches").json()


# A sandbox that does not come to rest, and processes of the capture that are killed.


@contextmanager
def frozen_disk(server, box):
    """Freezes the sandbox's own file system from the host: whoever writes to it cannot be stopped any more."""
    device = next(name for name, file in host.loop_devices().items() if box.id in file)
    mount = Path(f"{server.data_dir}-mount")
    mount.mkdir()
    subprocess.run(["mount", "-t", "ext4", f"/dev/{device}", mount], check=True)
    try:
        subprocess.run(["fsfreeze", "-f", mount], check=True)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "-u", mount], check=False)
    finally:
        subprocess.run(["umount", mount], check=True)
        mount.rmdir()


def capture_processes(server):
    """The watcher and the worker of a capture: of the launcher's children, which have its name, the one with a child."""
    parents = {pid: host.parent(pid) for pid in host.processes() if host.arguments(pid)[1:2] == [b"launcher"]}
    [launcher] = [pid for pid, its in parents.items() if its == server.process.pid]
    workers = [pid for pid, its in parents.items() if parents.get(its) == launcher]
    return [parents[pid] for pid in workers], workers


def prepared_processes(server):
    """Those that hold a root each for sandboxes to come."""
    [launcher] = [pid for pid in host.processes() if host.arguments(pid)[1:2] == [b"launcher"] and host.parent(pid) == server.process.pid]
    return [pid for pid in host.processes() if host.parent(pid) == launcher and host.arguments(pid)[1:2] == [b"launcher"]]


def journal_is_used(image):
    """Whether who mounts this ext4 has a journal to replay first, as its superblock says."""
    with open(image, "rb") as file:
        file.seek(1024)
        superblock = file.read(1024)
    assert superblock[0x38:0x3A] == b"\x53\xef", "it is no ext4"
    return bool(superblock[0x60] & 4)


def test_a_ready_checkpoint_leaves_nothing_to_put_in_order(server):
    with server.api() as api, api.create() as box:
        box.write("/home/sandbox/f", b"x" * 100_000)
        one = box.checkpoint("one")
        assert journal_is_used(image_of(server, box)) and not journal_is_used(folder_of(server, one) / "disk.img")
        with api.fork(one) as fork:
            assert fork.read("/home/sandbox/f") == b"x" * 100_000


def test_a_sandbox_that_does_not_rest_is_taken_as_it_is_and_that_is_said(server):
    with server.api() as api:
        box = api.create()
        box.write("/home/sandbox/f", b"written before")
        with frozen_disk(server, box):
            box.start("sh", "-c", "echo stuck > ~/stuck")
            time.sleep(0.3)
            begun = time.monotonic()
            found = box.wait_checkpoint(box.checkpoint("one", ready=False))
            assert found["consistency"] == "crash" and 400 < found["pauseMs"] < 8000, found
            assert time.monotonic() - begun < 20 and not is_frozen(box)
        assert box.out("cat ~/f; cat ~/stuck") == "written beforestuck\n", "the sandbox went on"
        with api.fork(found["id"]) as fork:
            assert fork.read("/home/sandbox/f") == b"written before"
        box.kill()


@pytest.mark.parametrize("who", ["worker", "watcher", "both"])
def test_killed_processes_of_a_capture_leave_nobody_standing_still(server, who):
    with server.api() as api:
        box = api.create()
        box.write("/home/sandbox/f", b"x")
        with frozen_disk(server, box):
            box.start("sh", "-c", "echo stuck > ~/stuck")
            time.sleep(0.3)
            with server.api(strict=False) as rough:
                asking = threading.Thread(target=ask, args=(rough, box, "one"), daemon=True)
                asking.start()
                watchers, workers = wait_for(lambda: (found := capture_processes(server)) and all(found) and found, "it is being taken", 5, 0.001)
                for pid in (watchers if who != "worker" else []) + (workers if who != "watcher" else []):
                    os.kill(pid, signal.SIGKILL)
                asking.join(30)
            wait_for(lambda: not is_frozen(box), "it goes on", 8)
        wait_for(lambda: all(each["status"] != "processing" for each in box.checkpoints()), "the checkpoint is settled", 20)
        assert box.out("cat ~/f ~/stuck") == "xstuck\n"
        box.kill()


@pytest.mark.parametrize("what", ["checkpoints", "restores"])
def test_a_sandbox_that_ends_during(server, what):
    """Its agent is killed in the middle, as want of memory would: what was taken is whole, the rest is refused or an error."""
    with server.api() as api:
        chance = random.Random(8)
        for number in range(8):
            box = api.create()
            box.write("/home/sandbox/f", b"content")
            one = box.checkpoint("one")
            box.write("/home/sandbox/f", b"changed")
            agents = host.sandbox_processes()[box.id]
            with server.api(strict=False) as rough:
                during = (lambda: ask(rough, box, "two")) if what == "checkpoints" else (lambda: restore(rough, box, one))
                asking = threading.Thread(target=during, daemon=True)
                asking.start()
                time.sleep(chance.choice((0.001, 0.003, 0.006, 0.012, 0.025)) * (0.5 + chance.random()))
                kill_all(agents)
                asking.join(30)
            assert not asking.is_alive(), "nobody waits for ever"
            wait_for(lambda: all(each["status"] != "processing" for each in box.checkpoints()), "all are settled", 20)
            for each in box.checkpoints():
                if each["status"] == "ready":
                    with api.fork(each["id"]) as fork:
                        assert fork.read("/home/sandbox/f") == (b"content" if each["name"] == "one" else b"changed"), number
            if what == "checkpoints":
                # Noticed a moment later: a process that is killed while it is paused ends when it goes on.
                wait_for(lambda: box.view()["status"] != "running", "the end is noticed", 20)
            view = box.view()
            if view["status"] == "running":
                assert box.read("/home/sandbox/f") == b"content", view
            else:
                assert view["status"] == "error" and "guest agent" in json.dumps(view), view
            box.kill()


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_what_stood_still_goes_on_when_the_server_is_back(server):
    """Whatever stopped it: here everything that takes part in a capture dies at once, as when a whole unit is killed."""
    with server.api() as api:
        box = api.create()
        box.write("/home/sandbox/f", b"x")
        server.kill()
        [group] = groups_of(box)
        Path(group, "cgroup.freeze").write_text("1")
        wait_for(lambda: b"frozen 1" in host.read(f"{group}/cgroup.events"), "it stands still")
        server.start()
        assert not is_frozen(box) and box.read("/home/sandbox/f") == b"x"
        box.kill()


def test_prepared_roots_that_were_killed_harm_nobody(server):
    """Neither creates, which use those with a disk, nor forks and wakes, which use those without."""
    with server.api() as api, api.create() as box:
        box.write("/home/sandbox/f", b"kept")
        one = box.checkpoint("one")
        killed = wait_for(lambda: len(found := prepared_processes(server)) >= 12 and found, "the stock is full")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not set(killed) & set(prepared_processes(server)), "they have ended")
        for _ in range(3):
            with api.create() as fresh, api.fork(one) as fork:
                assert fresh.out("echo hi") == "hi\n" and fork.read("/home/sandbox/f") == b"kept"
        box.restore(one)
        assert box.read("/home/sandbox/f") == b"kept"
        assert box.call("POST", "/hibernate").status_code < 300 and box.read("/home/sandbox/f") == b"kept"


# What is prepared ahead of forks.


def prepared_for(server, checkpoint_id):
    """Images that were made for the next forks of a checkpoint."""
    return [name for name in os.listdir(volume(server) / "stock") if name.startswith(checkpoint_id)]


def attached_for(checkpoint_id):
    return [file for file in host.loop_devices().values() if checkpoint_id in file]


def nothing_is_prepared(server, checkpoint_id):
    return prepared_for(server, checkpoint_id) == [] and attached_for(checkpoint_id) == []


def prepare(server, api, checkpoint_id, count=2):
    """Forks often enough for that many to be prepared, and waits until they are."""
    for _ in range(count):
        with api.fork(checkpoint_id) as fork:
            fork.out("true")
    wait_for(lambda: len(attached_for(checkpoint_id)) >= count, "the next forks are prepared")


def test_what_is_prepared_for_forks_goes_with_their_checkpoint(server):
    with server.api() as api, api.create() as box:
        box.write("/home/sandbox/f", b"kept")
        one = box.checkpoint("one")
        prepare(server, api, one)
        with api.fork(one) as fork:
            assert box.call("DELETE", f"/checkpoints/{one}").status_code == 204
            assert nothing_is_prepared(server, one), "all of it is gone when the answer comes"
            assert fork.read("/home/sandbox/f") == b"kept"


def test_a_checkpoint_deleted_while_its_forks_are_prepared_leaves_nothing(server):
    chance = random.Random(9)
    with server.api() as api, api.create() as box:
        for number in range(12):
            one = box.checkpoint(f"c{number}")
            forks = [api.fork(one) for _ in range(1 + number % 3)]
            time.sleep(0.15 * chance.random())
            assert box.call("DELETE", f"/checkpoints/{one}").status_code == 204
            assert nothing_is_prepared(server, one)
            for fork in forks:
                fork.kill()
            time.sleep(0.1)
            assert nothing_is_prepared(server, one), "nor does it come back"


def test_only_the_checkpoints_lately_forked_have_something_prepared(server):
    with server.api() as api, api.create() as box:
        ids = [box.checkpoint(f"c{number}") for number in range(5)]
        for each in ids:
            prepare(server, api, each, 1)
        kept = wait_for(lambda: len(found := [each for each in ids if not nothing_is_prepared(server, each)]) <= 3 and found, "the others are let go of")
        assert kept == ids[-len(kept) :] and kept, "those asked for last are kept"


def test_a_server_killed_with_forks_prepared_starts_with_none_of_them(server):
    with server.api() as api, api.create() as box:
        one = box.checkpoint("one")
        prepare(server, api, one, 3)
        server.kill()
        wait_for(lambda: attached_for(one) == [], "the kernel takes their disks back", 30)
        server.start()
        assert nothing_is_prepared(server, one)
        prepare(server, api, one, 1)
        server.stop()
        assert attached_for(one) == []
        server.start()
        with api.fork(one) as fork:
            assert fork.out("echo hi") == "hi\n"


# Damaged files.


def test_damaged_checkpoints_are_never_used_and_say_why(server):
    with server.api() as api:
        box = api.create()
        others = set(os.listdir(volume(server) / "checkpoints"))
        box.write("/home/sandbox/f", os.urandom(3_000_000))
        content = box.read("/home/sandbox/f")
        names = ["truncated manifest", "foreign version", "not json", "no manifest", "another's manifest", "truncated image", "no image", "changed image", "swapped image", "good"]
        ids = {}
        for name in names:
            box.write("/home/sandbox/name", name.encode())
            ids[name] = box.checkpoint(name, kind="disk_only")
        server.stop()
        manifest = {name: folder_of(server, each) / "manifest.json" for name, each in ids.items()}
        image = {name: folder_of(server, each) / "disk.img" for name, each in ids.items()}
        text = manifest["truncated manifest"].read_text()
        manifest["truncated manifest"].write_text(text[: len(text) // 2])
        foreign = json.loads(manifest["foreign version"].read_text()) | {"format": 99}
        manifest["foreign version"].write_text(json.dumps(foreign, separators=(",", ":")) + "\n")
        manifest["not json"].write_bytes(os.urandom(3000))
        manifest["no manifest"].unlink()
        shutil.copy(manifest["good"], manifest["another's manifest"])
        os.truncate(image["truncated image"], 5_000_000)
        image["no image"].unlink()
        damage(image["changed image"])
        subprocess.run(["cp", "--reflink=always", image["good"], image["swapped image"]], check=True)
        # What is left of others who were being made or removed.
        for name in (f"{uuid.uuid4()}.unfinished", f"{uuid.uuid4()}.removed", "lost+found"):
            (volume(server) / "checkpoints" / name).mkdir()
        server.start()

        says = {
            "truncated manifest": "its manifest is damaged",
            "foreign version": "format 99",
            "not json": "its manifest is damaged",
            "no manifest": "its manifest cannot be read",
            "another's manifest": "its folder holds another one",
            "truncated image": "its image has 5000000 bytes",
            "no image": "its image cannot be opened",
        }
        listed = {each["name"]: each for each in box.checkpoints()}
        assert {name: listed[name]["status"] for name in names} == {name: "failed" if name in says else "ready" for name in names}
        for name, reason in says.items():
            assert reason in listed[name]["errorMsg"], listed[name]
            for answer in (api.post(f"/api/sandboxes/from-checkpoint/{ids[name]}"), box.call("POST", f"/checkpoints/{ids[name]}/restore")):
                body = refusal(answer, 400, reason)
                assert body["code"] == "checkpoint_damaged" and "the newest good one of the same sandbox is " in body["error"], body
        for name, route in [("changed image", "fork"), ("swapped image", "restore")]:
            path = f"/api/sandboxes/from-checkpoint/{ids[name]}" if route == "fork" else f"{box.path}/checkpoints/{ids[name]}/restore"
            # By whoever finds it, and by who comes after that.
            for _ in range(2):
                body = refusal(api.post(path), 400, "checkpoint is not ready: it failed: its content is not what was written")
                assert body["code"] == "checkpoint_damaged" and "the newest good one of the same sandbox is " in body["error"], body
            assert box.find_checkpoint(ids[name])["status"] == "failed"
        assert ids["good"] in body["error"], "the newest good one is offered"
        told = {each["detail"]["checkpoint"]: each["detail"] for each in records(api, box, "checkpoint.state")}
        assert set(told) == set(ids.values()) - {ids["good"]}, told
        assert told[ids["swapped image"]]["offered"] == ids["good"] and told[ids["swapped image"]]["state"] == "failed"
        assert box.read("/home/sandbox/f") == content and box.read("/home/sandbox/name") == b"good", "the sandbox was not touched"
        with api.fork(ids["good"]) as fork_box:
            assert fork_box.read("/home/sandbox/f") == content and fork_box.read("/home/sandbox/name") == b"good"
        assert set(os.listdir(volume(server) / "checkpoints")) - others == set(ids.values()), "leftovers are removed, damaged ones kept"
        for each in ids.values():
            assert box.call("DELETE", f"/checkpoints/{each}").status_code == 204
        assert set(os.listdir(volume(server) / "checkpoints")) == others
        box.kill()


def test_a_checkpoint_damaged_while_the_server_runs_is_noticed(server):
    with server.api() as api:
        box = api.create()
        one = box.checkpoint("one")
        prepare(server, api, one)
        damage(folder_of(server, one) / "disk.img")
        # What was prepared before is good, but whether a fork is refused must not depend on how many of them there are.
        refusal(api.post(f"/api/sandboxes/from-checkpoint/{one}"), 400, "there is no other good one of the same sandbox")
        assert nothing_is_prepared(server, one)
        wait_failed(box, one)
        box.kill()


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "before its start"])
def test_a_damaged_disk_is_never_run_and_the_generation_before_it_is_offered(server, running):
    with server.api() as api, api.create():  # The other one keeps the volume mounted while there is no server.
        box = api.create()
        box.write("/home/sandbox/f", b"first")
        one = box.checkpoint("one")
        box.call("POST", "/hibernate")
        damage(image_of(server, box))
        body = refusal(box.call("POST", "/wake", json={}), 409, "its disk is not what was written when it hibernated")
        assert body["code"] == "disk_damaged" and one in body["error"], "with no earlier generation a checkpoint is offered"
        refusal(box.call("POST", "/wake", json={"disk": "previous"}), 400, "no previous disk")
        box.restore(one)
        assert box.read("/home/sandbox/f") == b"first"

        box.write("/home/sandbox/f", b"second")
        box.call("POST", "/hibernate")
        assert box.out("cat ~/f") == "second"
        box.write("/home/sandbox/f", b"third")
        box.call("POST", "/hibernate")
        if not running:
            server.stop()
        damage(image_of(server, box))
        if not running:
            server.start()
        for call in (lambda: box.call("POST", "/wake", json={}), lambda: box.call("POST", "/exec/run", json={"cmd": "true"}), lambda: box.call("GET", "/files?path=/etc/hostname")):
            body = refusal(call(), 409, "the sandbox was not started")
            assert body["code"] == "disk_damaged" and '"disk":"previous"' in body["error"], body
        view = box.view()
        assert view["status"] == "hibernated" and "the sandbox was not started" in view["warning"]
        assert "a damaged disk was refused" in server.log()
        found = box.call("POST", "/checkpoints", json={"name": "of a damaged one"})
        if found.status_code == 201:
            failed = box.wait_checkpoint(found.json()["id"], "failed")
            assert "not what was written" in failed["errorMsg"]
        woken = box.call("POST", "/wake", json={"disk": "previous"})
        assert woken.status_code == 200, woken.text
        assert box.read("/home/sandbox/f") == b"second" and "warning" not in box.view()
        box.call("POST", "/hibernate")
        assert box.read("/home/sandbox/f") == b"second"
        box.kill()
