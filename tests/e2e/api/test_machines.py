"""Sandboxes that are virtual machines: what travels with their memory. Skipped where the server has none."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import host, previews
from harness.client import Box, marker
from harness.sockets import ExecSocket
from harness.waiting import wait_for

TICK = "i=0; while :; do i=$((i+1)); echo $i > ~/tick.new; mv ~/tick.new ~/tick; echo tick $i; sleep 0.1; done"


@pytest.fixture(scope="module")
def create(api):
    """Makes a virtual machine, or skips."""

    def create(**fields):
        answer = api.http.post("/api/sandboxes", json={"memoryMB": 1024, "isolation": "vm"} | fields, timeout=120)
        if answer.status_code == 501:
            pytest.skip(f"the server has no virtual machines: {answer.json()['error']}")
        assert answer.status_code == 201, answer.text
        return Box(api, answer.json())

    return create


@pytest.fixture
def machine(create):
    with create() as box:
        yield box


def ticks(box):
    return int(box.out("cat ~/tick"))


def goes_on(box):
    before = ticks(box)
    wait_for(lambda: ticks(box) > before, "the loop goes on")
    return before


def test_a_machine_has_a_kernel_of_its_own_and_says_so(machine):
    view = machine.view()
    assert (view["isolation"], view["hibernationKeeps"], view["memoryMB"]) == ("vm", "memory", 1024)
    assert machine.out("uname -r").strip() != os.uname().release
    assert machine.out("id -un; hostname; pwd; nproc") == "sandbox\nsandbox\n/home/sandbox\n1\n"
    # What a container has no right to.
    assert machine.out("sudo mount -t tmpfs x /mnt && findmnt -no FSTYPE /mnt") == "tmpfs\n"
    overlay = "cd /var/lib/docker && sudo mkdir -p l u w m && sudo mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m && findmnt -no FSTYPE m"
    assert machine.out(overlay) == "overlay\n", "programs that make overlays need a place that is none"
    assert abs(int(machine.out("date +%s")) - time.time()) < 3


def test_what_the_server_does_not_offer_is_refused(api):
    answer = api.post("/api/sandboxes", json={"memoryMB": 1024, "isolation": "unikernel"})
    assert answer.status_code == 400 and "container and vm" in answer.json()["error"]


def test_a_command_outlives_a_hibernation_and_its_client_comes_back(machine):
    session = machine.start("sh", "-c", TICK)
    with ExecSocket(machine, session) as socket:
        socket.until_text("tick 3")
    identity = machine.out("cat /etc/machine-id")
    answer = machine.call("POST", "/hibernate").json()
    assert answer["keeps"] == "memory" and machine.status() == "hibernated"
    assert not host.sandbox_processes().get(machine.id), "a hibernated machine uses nothing"
    time.sleep(1.5)
    woken = machine.call("POST", "/wake", json={}).json()
    assert (woken["status"], woken["processes"]) == ("running", "kept")
    seen = goes_on(machine)
    assert machine.session(session)["running"] and machine.out("cat /etc/machine-id") == identity
    assert abs(int(machine.out("date +%s")) - time.time()) < 3, "its clock stood still"
    with ExecSocket(machine, session) as socket:
        # From its beginning, without a gap, and on.
        socket.until_text(f"tick {seen + 3}\n")
        text = b"".join(payload for kind, payload in socket.frames if kind == 1).decode()
        lines = [line for line in text.split("\n") if line][: seen + 3]
        assert lines == [f"tick {n}" for n in range(1, seen + 4)]


def test_a_run_that_is_asleep_is_not_offered_for_another_try(machine):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: machine.api.http.post(f"{machine.path}/exec/run", json={"cmd": "touch ~/begun; sleep 4; echo done"}))
        wait_for(lambda: machine.run("test -e ~/begun")["exitCode"] == 0, "it runs")
        assert machine.call("POST", "/hibernate").status_code == 200
        answer = running.result(30)
    assert answer.status_code == 409, answer.text
    assert answer.json()["code"] == "command_goes_on" and not answer.json().get("retryable"), answer.text
    assert machine.status() == "hibernated", "it was woken for a command that can wait"
    session = answer.json()["error"].split()[-1]
    wait_for(lambda: not machine.session(session)["running"], "it goes on to its end", 30)
    assert machine.session(session)["exitCode"] == 0


def test_a_preview_that_is_asked_for_while_it_goes_to_sleep_is_answered(machine):
    previews.serve(machine)
    with previews.Preview(machine) as preview, ThreadPoolExecutor(1) as pool:
        assert preview.get("/").status_code == 200
        asking = pool.submit(preview.get, "/slow?seconds=3")
        time.sleep(1)
        assert machine.call("POST", "/hibernate").status_code == 200
        assert asking.result(60).status_code == 200


def test_a_use_wakes_it_with_everything(machine):
    machine.start("sh", "-c", TICK)
    wait_for(lambda: machine.run("test -s ~/tick")["exitCode"] == 0, "it ticks")
    for _ in range(2):
        machine.call("POST", "/hibernate")
        goes_on(machine)
    assert machine.view()["hibernationKeeps"] == "memory"


def test_one_that_is_stopped_in_the_middle_of_an_upload_can_be_gone_on_with(api, machine):
    """Its agent has half a message then, and whoever talks to it next must not be taken for the other half."""

    def uploading(during):
        under_way, over = threading.Event(), threading.Event()

        def megabytes():
            for number in range(300):
                if over.is_set():
                    return
                if number == 4:
                    under_way.set()
                yield b"x" * (1 << 20)

        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(lambda: api.http.put(f"{machine.path}/files", params={"path": "/home/sandbox/up"}, content=megabytes()))
            try:
                assert under_way.wait(60), "some of it is taken"
                return during()
            finally:
                over.set()
                # It may be told that its sandbox sleeps now, or be cut off.
                upload.exception(120)

    one = uploading(lambda: machine.checkpoint("one"))
    with api.fork(one) as fork:
        assert fork.out("echo hello; ls ~") == "hello\n", "nor is it there by half"
    machine.restore(one)
    assert machine.out("echo hello; ls ~") == "hello\n"
    assert uploading(lambda: machine.call("POST", "/hibernate")).json()["keeps"] == "memory"
    assert machine.out("echo hello") == "hello\n" and "warning" not in machine.view()


def test_forks_go_on_each_for_itself(api, create):
    with create(envs={"A": "1"}) as origin:
        origin.start("sh", "-c", TICK)
        wait_for(lambda: origin.run("test -s ~/tick")["exitCode"] == 0, "it ticks")
        origin.write("/home/sandbox/f", b"before")
        one = origin.checkpoint("one")
        found = origin.find_checkpoint(one)
        assert (found["holds"], found["consistency"]) == ("memory", "quiesced") and found["pauseMs"] > 0
        assert found["sizeBytes"] > 20 << 20, "memory counts"
        origin.write("/home/sandbox/f", b"after")
        seen = {origin.out("cat /etc/machine-id")}
        random = {origin.out("head -c 16 /dev/urandom | od -An -tx1")}
        with api.fork(one) as first, api.fork(one, envs={"A": "2"}) as second:
            for fork, value in ((first, "1"), (second, "2")):
                assert fork.view()["isolation"] == "vm"
                goes_on(fork)
                assert fork.read("/home/sandbox/f") == b"before" and fork.out("echo $A") == f"{value}\n"
                seen.add(fork.out("cat /etc/machine-id"))
                random.add(fork.out("head -c 16 /dev/urandom | od -An -tx1"))
                assert abs(int(fork.out("date +%s")) - time.time()) < 3
            assert len(seen) == 3 and len(random) == 3, (seen, random)
            assert origin.call("DELETE", f"/checkpoints/{one}").status_code == 204
            first.write("/home/sandbox/f", b"first")
            goes_on(first)
            assert second.read("/home/sandbox/f") == b"before" and origin.read("/home/sandbox/f") == b"after"


def test_forks_of_a_checkpoint_lately_forked_are_like_the_first(api, create):
    """Those are restored ahead of the fork, and no time passes in them until then."""
    with create() as origin:
        origin.start("sh", "-c", TICK)
        wait_for(lambda: origin.run("test -s ~/tick")["exitCode"] == 0, "it ticks")
        origin.out("mkdir /dev/shm/d; echo in memory > /dev/shm/d/f")
        # The kernel makes it up when it is first asked for.
        boot = "cat /proc/sys/kernel/random/boot_id"
        origin.out(boot)
        origin.write("/home/sandbox/f", b"just written")
        one = origin.checkpoint("one")
        at_most = ticks(origin)
        seen, random = {origin.out("cat /etc/machine-id")}, set()
        for number in range(3):
            with api.fork(one, envs={"N": str(number)}) as fork:
                assert fork.out("cat /dev/shm/d/f; echo $N") == f"in memory\n{number}\n"
                assert ticks(fork) <= at_most + 50, "it went on where the checkpoint was taken"
                goes_on(fork)
                assert abs(float(fork.out("date +%s.%N")) - time.time()) < 3
                assert fork.out(boot) == origin.out(boot) and fork.is_alive("echo tick")
                seen.add(fork.out("cat /etc/machine-id"))
                random.add(fork.out("head -c 16 /dev/urandom | od -An -tx1"))
                assert fork.view()["isolation"] == "vm" and fork.view()["memoryMB"] == 1024
                fork.out("rm -r /dev/shm/d; sudo touch /mine")
            # Long enough for the next ones to be ready and to run on, if they would.
            time.sleep(8)
        assert len(seen) == 4 and len(random) == 3, (seen, random)
        with api.fork(one, memoryMB=4096) as larger:
            assert larger.view()["memoryMB"] == 4096 and not larger.is_alive("echo tick"), "memory of another size is of no use"
            assert "cannot be given 4096 MB" in larger.view()["warning"], "its processes are gone, and that is said"
            assert larger.read("/home/sandbox/f") == b"just written", "what it had written is on its disk"
        assert origin.call("DELETE", f"/checkpoints/{one}").status_code == 204


def test_a_restore_brings_processes_back(machine):
    session = machine.start("sh", "-c", TICK)
    wait_for(lambda: machine.run("test -s ~/tick")["exitCode"] == 0, "it ticks")
    machine.out("mkdir /dev/shm/d; echo in memory > /dev/shm/d/f")
    one = machine.checkpoint("one")
    at_most = ticks(machine)
    machine.call("POST", f"/exec/{session}/kill", json={})
    identity = machine.out("cat /etc/machine-id; rm -r /dev/shm/d; echo other > ~/other")
    assert machine.run("cat /dev/shm/d/f")["exitCode"] != 0
    machine.restore(one)
    assert machine.out("cat /dev/shm/d/f") == "in memory\n" and machine.run("test -e ~/other")["exitCode"] == 1
    assert goes_on(machine) <= at_most + 100
    assert machine.out("cat /etc/machine-id") == identity, "it is the same sandbox"


def test_without_memory_it_is_booted(api, machine):
    machine.start("sh", "-c", TICK)
    machine.write("/home/sandbox/f", b"on disk")
    one = machine.checkpoint("one", kind="disk_only")
    found = machine.find_checkpoint(one)
    assert (found["holds"], found["consistency"]) == ("disk", "crash"), "what came after the guest's last write-out is not in it"
    with api.fork(one) as fork:
        assert fork.read("/home/sandbox/f") == b"on disk" and not fork.is_alive("echo tick")
        assert fork.out("cut -d. -f1 /proc/uptime | awk '{ print ($1 < 120) }'") == "1\n"


@pytest.mark.parametrize("verb", ["reboot", "power-cycle"])
def test_a_reboot_is_one(machine, verb):
    mark = marker()
    machine.start("sleep", mark)
    machine.write("/home/sandbox/f", b"written")
    boot = machine.out("cat /proc/sys/kernel/random/boot_id")
    assert machine.call("POST", f"/{verb}").status_code == 204
    assert machine.out("cat /proc/sys/kernel/random/boot_id") != boot
    assert machine.read("/home/sandbox/f") == b"written" and not machine.is_alive(mark)


def test_memory_is_given_back_and_taken_again(create):
    total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo"
    with create(memoryMB=4096) as machine:
        scale = lambda memory: machine.call("POST", "/scale", json={"memoryMB": memory})
        whole = int(machine.out(total))
        assert 3700 < whole <= 4096
        machine.out("head -c 1200M /dev/zero > /dev/shm/x")
        full = machine.checkpoint("full")
        machine.out("rm /dev/shm/x")
        # A guest that is slow to give memory back on a busy machine is refused, and asked again.
        wait_for(lambda: scale(1024).status_code == 200, "the guest gives memory back", 60)
        assert machine.view()["memoryMB"] == 1024
        small = int(machine.out(total))
        assert small <= 1024
        # Memory that does not fit is worth more than the size.
        machine.restore(full)
        assert machine.out("stat -c %s /dev/shm/x") == f"{1200 << 20}\n"
        assert machine.view()["memoryMB"] == 4096 and "because what runs in it needs that" in machine.view()["warning"]
        machine.out("rm /dev/shm/x")
        wait_for(lambda: scale(1024).status_code == 200, "the guest gives memory back", 60)
        machine.call("POST", "/hibernate")
        assert int(machine.out(total)) == small, "a wake lost the size"
        assert scale(4096).status_code == 200 and int(machine.out(total)) == whole
        answer = scale(8192)
        assert answer.status_code == 409 and "started with 4096 MB" in answer.json()["error"], answer.text
        assert machine.view()["memoryMB"] == 4096


def test_a_machine_that_ends_says_so(machine, on_host):
    [pid] = host.sandbox_processes()[machine.id]
    os.kill(pid, signal.SIGKILL)
    machine.wait_status("error")
    reason = machine.view()["statusReason"]
    assert "virtual machine ended by signal 9" in reason and "its disk is kept" in reason


def test_a_machine_that_has_failed_is_brought_back_by_who_asks_for_it(machine, on_host):
    machine.start("sh", "-c", TICK)
    wait_for(lambda: machine.run("test -s ~/tick")["exitCode"] == 0, "it ticks")
    machine.out("echo kept > ~/f; sync")
    one = machine.checkpoint("one")

    def fail():
        [pid] = host.sandbox_processes()[machine.id]
        os.kill(pid, signal.SIGKILL)
        machine.wait_status("error")

    fail()
    answer = machine.api.http.post(f"{machine.path}/exec/run", json={"cmd": "true"})
    assert answer.status_code == 410 and "wake or reboot it" in answer.json()["error"], "a mere use does not start it"
    machine.restore(one)
    goes_on(machine)
    fail()
    woken = machine.call("POST", "/wake", json={})
    assert woken.status_code == 200 and woken.json()["processes"] == "restarted", woken.text
    assert machine.out("cat ~/f") == "kept\n" and "statusReason" not in machine.view()
    fail()
    assert machine.call("POST", "/power-cycle").status_code == 204
    assert machine.out("cat ~/f") == "kept\n"


def test_a_patch_goes_on_with_its_memory_and_runs_once(api, create):
    with create() as origin:
        one = origin.checkpoint("one")
        script = {"script": "echo begun >> ~/log; sleep 3; echo done >> ~/log"}
        assert api.post(f"/api/sandboxes/checkpoints/{one}/patches", json=script).status_code == 201
        with ThreadPoolExecutor(1) as pool:
            forking = pool.submit(lambda: api.http.post(f"/api/sandboxes/from-checkpoint/{one}", json={"metadata": {"of": one}}, timeout=90))
            found = wait_for(lambda: api.list_all(**{"metadata.of": one}), "it is listed")[0]
            path = f"/api/sandboxes/{found['sandboxID']}"
            wait_for(lambda: api.get(path).json()["status"] == "running", "its patch runs")
            time.sleep(1)
            assert api.post(f"{path}/hibernate").status_code == 200
            # Who asked for the fork is told to try again; the sandbox is there.
            forking.result(60)
        with Box(api, api.get(path).json()) as fork:
            assert fork.out("cat ~/log") == "begun\ndone\n"
            assert [(run["sequence"], run["exitCode"]) for run in fork.call("GET", "/patches").json()] == [(1, 0)]


def test_qemu_is_nobody(machine, on_host):
    [pid] = host.sandbox_processes()[machine.id]
    status = host.read(f"/proc/{pid}/status").decode()
    field = lambda name: next(line.split()[1:] for line in status.splitlines() if line.startswith(f"{name}:"))
    assert all(int(uid) > 65535 for uid in field("Uid")) and field("CapEff") == ["0000000000000000"]
    assert (field("NoNewPrivs"), field("Seccomp")) == (["1"], ["2"])
    files = {"dev", "etc", "initramfs", "kernel", "lib", "lib64", "memory", "usr"}
    assert set(os.listdir(f"/proc/{pid}/root")) <= files, "it sees more of the host than itself"
