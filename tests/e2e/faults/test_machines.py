"""Virtual machines when something goes wrong: killed servers, damaged files, guests that do not write out, another QEMU."""

import json
import os
import random
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest

from harness import host, settings
from harness.server import Server
from harness.waiting import wait_for

from .test_checkpoints import damage, folder_of, journal_is_used, refusal, wait_failed
from .test_room import filled, gives_room_back

LOST = (httpx.TransportError, ConnectionError)
BLOCKS = 100
# Past the caches of the machine, and in memory that it has used before: more of that would take room as well, and want of it
# ends the machine.
WRITER = f"""
import mmap, os, time
block = mmap.mmap(-1, 1 << 20)
block[:] = os.urandom(1 << 20)
file = os.open("big", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.1)
for number in range({BLOCKS}):
    block[:8] = number.to_bytes(8, "big")
    assert os.pwrite(file, block, number << 20) == len(block)
expected, as_written = bytes(block[8:]), 0
for number in range({BLOCKS}):
    os.preadv(file, [block], number << 20)
    as_written += block[:] == number.to_bytes(8, "big") + expected
print(as_written, "as written")
"""
TICK = "i=0; while :; do i=$((i+1)); echo $i > ~/tick.new; mv ~/tick.new ~/tick; sleep 0.1; done"


@pytest.fixture(scope="module")
def one_server():
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("virtual machines need QEMU: apt-get install qemu-system-x86")
    with Server("--runtime", "vm") as running:
        yield running


def ticking(api):
    box = api.create()
    box.start("sh", "-c", TICK)
    wait_for(lambda: box.run("test -s ~/tick")["exitCode"] == 0, "it ticks")
    return box


def goes_on(box):
    before = int(box.out("cat ~/tick"))
    wait_for(lambda: int(box.out("cat ~/tick")) > before, "its processes go on")
    return before


def folder(server, box):
    return Path(server.data_dir, "volume", "sandboxes", box.id)


def test_the_disk_of_a_checkpoint_stays_what_its_memory_believes_it_is(one_server):
    """Nothing on the host puts it in order, which a container's is."""
    with one_server.api(timeout=180) as api, api.create() as box:
        box.write("/home/sandbox/f", b"x")
        one = box.checkpoint("one")
        assert box.find_checkpoint(one)["holds"] == "memory"
        assert journal_is_used(folder_of(one_server, one) / "disk.img")


def test_machines_run_on_and_sleep_on_over_a_killed_server(server):
    with server.api(timeout=180) as api:
        awake, asleep = ticking(api), ticking(api)
        asleep.call("POST", "/hibernate")
        server.kill()
        [pid] = host.sandbox_processes()[awake.id]
        time.sleep(0.5)
        server.start()
        assert host.sandbox_processes()[awake.id] == [pid] and awake.status() == "running"
        goes_on(awake)
        goes_on(asleep)
        assert awake.out("uname -r") != ""
        for box in (awake, asleep):
            box.kill()


@pytest.mark.timeout(300)
def test_a_server_killed_during_hibernations_and_wakes_loses_no_memory(server):
    """At many points. Whatever became of the call: the next use finds the same processes."""
    with server.api(timeout=180) as api:
        box = ticking(api)
        boot = box.out("cat /proc/sys/kernel/random/boot_id")
        chance = random.Random(8)
        for number in range(10):
            verb = ("hibernate", "wake")[number % 2]
            with server.api(strict=False) as rough:
                asking = threading.Thread(target=ask, args=(rough, f"{box.path}/{verb}"), daemon=True)
                asking.start()
                time.sleep(chance.choice((0.002, 0.01, 0.03, 0.06, 0.12, 0.25)) * (0.5 + chance.random()))
                server.kill()
                asking.join(60)
            server.start()
            assert box.status() in ("running", "hibernated")
            if number % 2 or chance.random() < 0.5:
                assert box.out("cat /proc/sys/kernel/random/boot_id") == boot, (number, verb, "it was booted anew")
                goes_on(box)
                assert "warning" not in box.view()
        box.kill()


def ask(api, path):
    try:
        api.http.post(path, json={}, timeout=60)
    except LOST:
        pass


def test_damaged_memory_is_never_run_and_the_generation_before_it_is_offered(server):
    # The other one keeps the volume mounted while there is no server.
    with server.api(timeout=180) as api, api.create(isolation="container"):
        box = ticking(api)
        for number in range(2):
            box.call("POST", "/hibernate")
            measured = lambda: json.loads((folder(server, box) / "record.json").read_text())["disk"]
            wait_for(measured, "its digests are known", 30)
            seen = box.view()["generation"]
            if number == 0:
                goes_on(box)
        # Nor is a checkpoint made of what was damaged.
        state = folder(server, box) / "state"
        content = state.read_bytes()
        state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        box.checkpoint("of a damaged state", ready=False)
        wait_for(lambda: [each["status"] for each in box.checkpoints()] == ["failed"], "it is refused", 30, instead=box.checkpoints)
        state.write_bytes(content)
        server.stop()
        damage(folder(server, box) / "memory")
        server.start()
        for _ in range(2):
            body = refusal(box.call("POST", "/wake", json={}), 409, "not what was written")
            assert body["code"] == "memory_damaged" and '"disk":"previous"' in body["error"] and "reboot it" in body["error"], body
        assert box.status() == "hibernated" and box.view()["generation"] >= seen and not host.sandbox_processes().get(box.id)
        woken = box.call("POST", "/wake", json={"disk": "previous"})
        assert woken.status_code == 200 and woken.json()["processes"] == "kept", woken.text
        goes_on(box)
        box.kill()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.timeout(600)
def test_a_reboot_needs_the_disk_alone(server):
    """Whatever has become of the memory. A damaged disk is not started from either way."""
    with server.api(timeout=180) as api:
        box, other = api.create(), api.create()
        other.call("POST", "/hibernate")
        of_another = lambda path: shutil.copyfile(folder(server, other) / path.name, path)
        cases = [("memory", damage, "reboot"), ("memory", cut, "power-cycle"), ("memory", Path.unlink, "reboot"), ("memory", of_another, "reboot")]
        cases += [("state", cut, "power-cycle"), ("state", of_another, "reboot")]
        for name, harm, verb in cases:
            said = f"{name}, {harm.__name__}, {verb}"
            box.write("/home/sandbox/f", said.encode())
            boot = box.out("cat /proc/sys/kernel/random/boot_id")
            box.call("POST", "/hibernate")
            wait_for(lambda: json.loads((folder(server, box) / "record.json").read_text())["disk"], "its digests are known", 30)
            harm(folder(server, box) / name)
            for call in (lambda: box.call("POST", "/wake", json={}), lambda: box.call("GET", "/files?path=/etc/hostname")):
                body = refusal(call(), 409, "its memory is not what was written when it hibernated")
                assert body["code"] == "memory_damaged" and "reboot it to start it from its disk alone" in body["error"], body
            assert box.call("POST", f"/{verb}").status_code == 204, said
            assert box.read("/home/sandbox/f") == said.encode()
            assert box.out("cat /proc/sys/kernel/random/boot_id") != boot and "warning" not in box.view(), said
        box.call("POST", "/hibernate")
        wait_for(lambda: json.loads((folder(server, box) / "record.json").read_text())["disk"], "its digests are known", 30)
        damage(folder(server, box) / "disk.img")
        for verb in ("reboot", "power-cycle"):
            assert refusal(box.call("POST", f"/{verb}"), 409, "its disk is not what was written")["code"] == "disk_damaged"
        box.kill()
        other.kill()


def template_of(server):
    """Folder of the machine that those of the smallest size are started from; the server keeps one of the usual size too."""
    found = Path(server.data_dir, "volume", "machines").glob("*/machine.json")
    [template] = [each.parent for each in found if json.loads(each.read_text())["made"]["hardware"]["memory_mb"] == 1024]
    return template


def ruin(path):
    """Not just a bit of it: what is started from this does not come up."""
    with open(path, "r+b") as file:
        end, at = path.stat().st_size, 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            os.pwrite(file.fileno(), os.urandom(2048), at)
            at += 1 << 16
        os.fsync(file.fileno())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "running"), [("memory", False), ("memory", True), ("disk.img", False), ("state", False)])
def test_a_damaged_machine_that_others_are_started_from_is_made_anew(server, name, running):
    # The container keeps the volume mounted while there is no server.
    with server.api(timeout=300) as api, api.create(isolation="container"):
        api.create().kill()
        template = template_of(server)
        if not running:
            server.stop()
        ruin(template / name)
        harmed = (template / name).stat().st_ctime_ns
        said = server.log().count("a machine that others are started from is damaged")
        if not running:
            server.start()
        # At first those that wait may be had, which were started before.
        for _ in range(4):
            with api.create() as box:
                assert box.out("echo hello; ls /usr/bin/env") == "hello\n/usr/bin/env\n"
        is_new = lambda: (template / "machine.json").exists() and (template / name).stat().st_ctime_ns != harmed
        wait_for(is_new, "it is made anew", 120)
        assert server.log().count("a machine that others are started from is damaged") == said + 1
        assert template_of(server) == template


@pytest.mark.timeout(600)
def test_a_disk_alone_is_taken_while_nobody_waits_and_outlives_its_memory(server):
    with server.api(timeout=180) as api:
        box = api.create()
        box.out("echo kept > ~/f; sync")
        made = box.call("POST", "/checkpoints", json={"name": "one", "kind": "disk_only"}).json()["id"]
        slowest, deadline = 0, time.monotonic() + 300
        while (found := box.find_checkpoint(made))["status"] == "processing" and time.monotonic() < deadline:
            begun = time.monotonic()
            # It waits for whatever else the sandbox is busy with.
            assert box.call("POST", "/timeout", json={"timeout": 0}).status_code in (200, 204)
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.2)
        assert found["status"] == "ready" and (found["holds"], found["consistency"]) == ("disk", "crash"), found
        assert slowest < settings.patient(6), f"another call waited for {slowest:.1f} s"
        with api.fork(made) as fork:
            assert fork.out("cat ~/f") == "kept\n"
        asleep = box.call("POST", "/hibernate").json()
        assert asleep["keeps"] == "memory"
        wait_for(lambda: json.loads((folder(server, box) / "record.json").read_text())["disk"], "its digests are known", 30)
        damage(folder(server, box) / "memory")
        refusal(box.call("POST", "/wake", json={}), 409, "reboot it to start it from its disk alone")
        assert box.call("POST", "/reboot").status_code == 204
        assert box.out("cat ~/f") == "kept\n"
        box.kill()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["reboot", "power-cycle"])
def test_an_upload_that_a_reboot_cuts_off_leaves_nothing(server, verb):
    with server.api(timeout=180) as api, server.api(timeout=180, strict=False) as rough, api.create() as box:
        under_way, over = threading.Event(), threading.Event()

        def megabytes():
            for number in range(300):
                if over.is_set():
                    return
                if number == 4:
                    under_way.set()
                yield b"x" * (1 << 20)
                time.sleep(0.05)

        def upload():
            try:
                rough.http.put(f"{box.path}/files", params={"path": "/home/sandbox/up"}, content=megabytes())
            except LOST:
                pass

        uploading = threading.Thread(target=upload, daemon=True)
        uploading.start()
        assert under_way.wait(60)
        assert box.call("POST", f"/{verb}").status_code == 204
        over.set()
        uploading.join(120)
        assert box.out("sudo find / -xdev -name '.warren-upload-*'; ls -A /var/lib/warren/unfinished 2>/dev/null | cat; test ! -e ~/up") == ""


def test_damaged_memory_of_a_checkpoint_is_never_used(server):
    with server.api(timeout=180) as api:
        box = ticking(api)
        ids = [box.checkpoint(name) for name in ("memory", "state", "no memory", "good")]
        server.stop()
        place = lambda each: Path(server.data_dir, "volume", "checkpoints", each)
        damage(place(ids[0]) / "memory")
        damage(place(ids[1]) / "state", within=12288)
        (place(ids[2]) / "memory").unlink()
        server.start()
        for each in ids[:3]:
            refusal(api.post(f"/api/sandboxes/from-checkpoint/{each}", json={}), 400, f"newest good one of the same sandbox is {ids[3]}")
            wait_failed(box, each)
        with api.fork(ids[3]) as fork:
            goes_on(fork)
        goes_on(box)
        box.kill()


def test_a_full_volume_ends_a_machine_with_the_reason_and_takes_no_memory(one_server):
    with one_server.api(timeout=180) as api:
        box = ticking(api)
        box.out("echo kept > ~/f; sync")
        box.call("POST", "/hibernate")
        with one_server.api(timeout=180, strict=False) as rough:
            with filled(one_server, 200 << 20):
                for path in ("reboot", "power-cycle", "wake"):
                    refusal(rough.http.post(f"{box.path}/{path}", json={}), 503, "nearly full")
                assert box.view()["hibernationKeeps"] == "memory"
            woken = box.call("POST", "/wake", json={})
            assert woken.json()["processes"] == "kept", "a reboot that was refused took the memory away"
            goes_on(box)
            box.out("pkill -f '[t]ick.new'; sync")
            with filled(one_server, 0):
                rough.http.post(f"{box.path}/exec/run", json={"cmd": "sh", "args": ["-c", "head -c 400M /dev/zero > /dev/shm/x"]})
                box.wait_status("error", 60)
                assert "memory could not be kept on the node's volume" in box.view()["statusReason"]
        assert box.call("POST", "/wake", json={}).status_code == 200
        assert box.out("cat ~/f") == "kept\n"
        box.kill()


def test_a_machine_that_finds_no_room_stands_still_and_goes_on(one_server):
    """Nothing of what it writes is lost, and whoever wants to use it meanwhile is told why that cannot be."""
    with one_server.api(timeout=180) as api, one_server.api(timeout=180, strict=False) as rough:
        for attempt in range(3):
            box = api.create()
            gives_room_back(one_server, box)
            box.write("/home/sandbox/writer.py", WRITER)
            boot = box.out("cat /proc/sys/kernel/random/boot_id")
            box.out("head -c 300M /dev/zero > /dev/shm/x; rm /dev/shm/x", timeout=120)
            box.start("sh", "-c", "python3 ~/writer.py > ~/written 2>&1; touch ~/over")
            wait_for(lambda box=box: box.run("test -e ~/ready")["exitCode"] == 0, "it can begin")
            with filled(one_server, 48 << 20):
                box.write("/home/sandbox/go", b"")
                # Its memory is on the volume too. When that is what finds no room it is ended, which is another test's; and room
                # that others give back may be enough for all of it.
                stands = wait_to_stand_still(box)
                if not stands and attempt < 2:
                    box.kill()
                    continue
                assert stands, box.view()
                answer = rough.http.post(f"{box.path}/exec/run", json={"cmd": "true"})
                refusal(answer, 503, "the sandbox stands still, because the node's volume is full")
                assert box.status() == "running"
            break
        wait_for(lambda: "warning" not in box.view(), "it goes on by itself", 30)
        wait_for(lambda: box.run("test -e ~/over")["exitCode"] == 0, "it has written everything", 90, 0.5)
        assert box.out("cat ~/written; cat /proc/sys/kernel/random/boot_id") == f"{BLOCKS} as written\n{boot}"
        box.kill()


def wait_to_stand_still(box):
    """Whether it does, though nobody uses it: it is only looked at."""
    deadline = time.monotonic() + 20 * settings.PATIENCE
    while time.monotonic() < deadline and (view := box.view())["status"] == "running":
        if "it stands still" in view.get("warning", ""):
            return True
        time.sleep(0.05)
    return False


def waiting_for(server, checkpoint_id):
    """Machines that wait for the next forks of a checkpoint."""
    waiting = Path(server.data_dir, "volume", "machines", "waiting")
    return [each for each in waiting.glob(f"{checkpoint_id}-*") if (each / "agent.sock").exists()]


def folders_for(server, checkpoint_id):
    return list(Path(server.data_dir, "volume", "machines", "waiting").glob(f"{checkpoint_id}-*"))


@pytest.mark.timeout(300)
def test_machines_that_wait_for_forks_go_with_their_checkpoint_and_with_the_server(server):
    with server.api(timeout=180) as api:
        box = ticking(api)
        one, two = box.checkpoint("one"), box.checkpoint("two")
        for each in (one, two):
            with api.fork(each) as fork:
                goes_on(fork)
            wait_for(lambda each=each: waiting_for(server, each), "the next fork is ready", 60)
        assert box.call("DELETE", f"/checkpoints/{one}").status_code == 204
        assert folders_for(server, one) == [], "all of it is gone when the answer comes"
        # While one is being made.
        three = box.checkpoint("three")
        api.fork(three).kill()
        wait_for(lambda: folders_for(server, three), "the next fork is being made", 60)
        assert box.call("DELETE", f"/checkpoints/{three}").status_code == 204
        assert folders_for(server, three) == []
        time.sleep(3)
        assert folders_for(server, three) == [], "nor does it come back"
        server.kill()
        server.start()
        assert folders_for(server, two) == []
        with api.fork(two) as fork:
            goes_on(fork)
        # What waits has good memory, but whether a fork is refused must not depend on that.
        wait_for(lambda: waiting_for(server, two), "the next fork is ready", 60)
        damage(Path(server.data_dir, "volume", "checkpoints", two, "memory"))
        refusal(api.post(f"/api/sandboxes/from-checkpoint/{two}", json={}), 400, "checkpoint is not ready: it failed")
        assert folders_for(server, two) == []
        box.kill()


def test_memory_of_another_qemu_is_not_loaded_and_that_is_said(server):
    # The other one keeps the volume mounted while there is no server.
    with server.api(timeout=180) as api, api.create(isolation="container"):
        box = ticking(api)
        box.write("/home/sandbox/f", b"written")
        boot = box.out("cat /proc/sys/kernel/random/boot_id")
        box.call("POST", "/hibernate")
        server.stop()
        record = folder(server, box) / "record.json"
        text = json.loads(record.read_text())
        text["suspended"]["made"]["emulator_digest"] = "another"
        record.write_text(json.dumps(text))
        server.start()
        assert box.read("/home/sandbox/f") == b"written", "what was written is on the disk"
        assert box.out("cat /proc/sys/kernel/random/boot_id") != boot
        assert "another QEMU" in box.view()["warning"]
        box.kill()
