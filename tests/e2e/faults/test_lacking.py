"""What a server does when something of its host is scarce, ends, or is taken away while it runs, and comes back."""

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from harness import host, settings
from harness.server import Server
from harness.waiting import wait_for


@pytest.fixture(scope="module")
def one_server():
    # Each test looks for what it expects in the log.
    with Server("--runtime", "container") as running:
        yield running


def limits(pid):
    """How many files a process may have open, and may allow itself."""
    (line,) = (line for line in host.read(f"/proc/{pid}/limits").decode().splitlines() if line.startswith("Max open files"))
    return [int(number) for number in line.split()[3:5]]


def test_a_server_may_have_as_many_files_open_as_it_can(server):
    server.stop()
    # Where people log in it is this, and nobody but root may have more than that in the end.
    server.start(through=["prlimit", "--nofile=1024:4096", "setpriv", "--bounding-set=-sys_resource"])
    assert limits(server.process.pid) == [4096, 4096]
    assert "some will be refused" in server.log()
    server.stop()
    server.start()
    allowed, most = limits(server.process.pid)
    assert allowed == min(most, 1 << 20), "no less than it can"


def test_a_sandbox_does_not_end_because_its_server_may_open_too_few_files(server):
    # Enough of them that there are too few files somewhere in between.
    with server.api() as api, ExitStack() as stack:
        boxes = [stack.enter_context(api.create(memoryMB=1024)) for _ in range(12)]
        before = {box.id: host.sandbox_processes()[box.id] for box in boxes}
        server.stop()
        refusals = []
        for few in range(60, 180, 20):
            told = len(server.log())
            try:
                server.start(through=["prlimit", f"--nofile={few}:{few}", "setpriv", "--bounding-set=-sys_resource"])
            except (AssertionError, httpx.HTTPError):
                refusals.append(server.log()[told:])
            if server.process.poll() is None:
                server.kill()
        assert refusals and all("error: " in refusal for refusal in refusals), refusals
        server.start()
        for box in boxes:
            assert box.status() == "running", refusals
            assert host.sandbox_processes()[box.id] == before[box.id], refusals
            assert box.out("echo here") == "here\n"


def memory_of(box):
    """Megabytes of it, as programs in it are told."""
    told = re.search(r"^MemTotal: +(\d+) kB", box.out("cat /proc/meminfo"), re.MULTILINE)
    return told and int(told.group(1)) >> 10


@pytest.mark.skipif(not shutil.which("lxcfs"), reason="lxcfs is not installed")
def test_another_lxcfs_takes_the_place_of_one_that_ended(server):
    def kill():
        pid = int(Path(server.data_dir, "run", "lxcfs.pid").read_text())
        os.kill(pid, 9)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "it has ended")

    with server.api() as api, api.create(memoryMB=1024, cpuCount=1) as box:
        assert memory_of(box) == 1024
        kill()
        # Those that were prepared with the one before among them.
        for _ in range(10):
            api.create(memoryMB=1024, cpuCount=1).kill()
        wait_for(lambda: memory_of(box) == 1024, "it is told its own memory again", 30)
        with api.create(memoryMB=1024, cpuCount=1) as new:
            wait_for(lambda: memory_of(new) == 1024, "a new one is told its own", 30)
        assert box.out("mount | grep -c ' /proc/meminfo '") == "1\n", "nothing of the one before is left"
        assert "lxcfs has ended" in server.log()
        server.stop()
        kill()
        server.start()
        wait_for(lambda: memory_of(box) == 1024, "one that ended while there was no server is replaced too", 30)


@pytest.mark.skipif(not shutil.which("lxcfs"), reason="lxcfs is not installed")
def test_an_lxcfs_that_stands_still_is_replaced(server):
    def stop():
        pid = int(Path(server.data_dir, "run", "lxcfs.pid").read_text())
        os.kill(pid, 19)
        return pid

    with server.api() as api, api.create(memoryMB=1024, cpuCount=1) as box:
        assert memory_of(box) == 1024
        stopped = stop()
        for _ in range(10):
            api.create(memoryMB=1024, cpuCount=1).kill()
        wait_for(lambda: not os.path.exists(f"/proc/{stopped}"), "it is ended", 60)
        # Between its end and the next one there is nobody to tell.
        wait_for(lambda: box.run("cat /proc/meminfo")["exitCode"] == 0 and memory_of(box) == 1024, "it is told its own memory again", 60)
        assert "lxcfs does not answer" in server.log()
        server.stop()
        stopped = stop()
        doctor = subprocess.run([settings.PROGRAM, "doctor", "--data-dir", server.data_dir], capture_output=True, text=True)
        assert f"kill -9 {stopped}" in doctor.stdout, doctor.stdout
        server.start()
        wait_for(lambda: not os.path.exists(f"/proc/{stopped}"), "it is ended, and collected by whoever has it")
        wait_for(lambda: memory_of(box) == 1024, "one that stood still while there was no server is replaced too", 30)


def test_a_log_that_cannot_be_written_takes_nothing_with_it(server):
    server.stop()
    server.start(log="/dev/full", env={**os.environ, "RUST_LOG": "debug"})
    with server.api() as api, api.create() as box:
        assert box.out("echo here") == "here\n"
        assert box.call("GET", "/files", params={"path": "/no/such/file"}).status_code == 404
    server.stop()


def test_programs_for_administration_are_found_wherever_it_is_started_from(server):
    server.stop()
    server.start(env={"PATH": "/usr/bin:/bin"})
    with server.api() as api, api.create() as box:
        assert box.out("echo here") == "here\n"
    server.stop()
    server.start(env={})
