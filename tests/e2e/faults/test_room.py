"""Room on the volume: where there is none, and where it comes back."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import host
from harness.server import Server
from harness.waiting import wait_for

from .test_checkpoints import attached_for, image_of, refusal, volume


@contextlib.contextmanager
def filled(server, leave, meanwhile=lambda: None):
    """Fills the volume until about `leave` bytes are free; does something in between, as that can take a while."""
    path = volume(server) / "filler"
    stat = os.statvfs(volume(server))
    with open(path, "wb") as file:
        # The file system keeps some of what it says is free to itself.
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - (leave or 32 << 20))
        for size in (1 << 20, 1 << 16, 1 << 12, 0) if leave == 0 else ():
            try:
                while True:
                    meanwhile()
                    end = os.fstat(file.fileno()).st_size
                    if size:
                        os.posix_fallocate(file.fileno(), end, size)
                    else:
                        os.pwrite(file.fileno(), b"\1" * 4096, end)
                        os.fsync(file.fileno())
            except OSError:
                pass

    try:
        yield
    finally:
        path.unlink()
        # The file system gives it back in its own time.
        wait_for(lambda: (now := os.statvfs(volume(server))) and now.f_bavail >= stat.f_bavail // 2, "the volume has room again", 20)


@pytest.mark.timeout(200)
def test_writes_that_found_no_room_are_told_of_whoever_noticed_them():
    """The kernel tells once. That may be a checkpoint, and what is made of the disk after that is not whole either."""
    lost = "some of what it wrote could not be brought to its disk"
    # The node tells it on its own, a moment after it has answered.
    told = lambda box: wait_for(lambda: lost in box.view().get("warning", ""), "it is told", 10)
    with Server("--volume-size=9") as server, server.api() as api, server.api(strict=False) as rough:
        box = api.create()
        with filled(server, 0):
            box.run("head -c 20000000 /dev/urandom > ~/lost; sync")
        refusal(rough.http.post(f"{box.path}/checkpoints", json={"name": "one"}), 503, "could not all be brought to its disk")
        told(box)
        # Its file system may take nothing any more until it is mounted again.
        assert box.call("POST", "/reboot").status_code == 204
        told(box)
        two = box.checkpoint("two")
        with api.fork(two) as fork:
            told(fork)
        box.restore(two)
        assert box.out("true") == ""
        told(box)


@pytest.mark.containers("a machine stands still before such a write")
@pytest.mark.parametrize("restarted", [False, True], ids=["by a server that saw it", "by a server that came after"])
@pytest.mark.timeout(200)
def test_writes_that_found_no_room_are_told_of_when_the_sandbox_ends_before_anybody_asks(restarted):
    lost = "some of what it wrote could not be brought to its disk"
    with Server("--volume-size=9") as server, server.api() as api:
        box = api.create()
        with filled(server, 0):
            box.run("head -c 20000000 /dev/urandom > ~/lost; sync")
        if restarted:
            server.kill()
            server.start()
        os.kill(min(host.sandbox_processes()[box.id]), signal.SIGKILL)
        box.wait_status("error")
        assert lost in box.view().get("warning", ""), box.view()
        # Who goes on with that disk is to know it as well.
        assert box.call("POST", "/wake", json={}).status_code == 200
        assert box.out("echo in") == "in\n" and lost in box.view().get("warning", ""), box.view()


@pytest.mark.timeout(200)
def test_a_full_volume_refuses_and_harms_nothing():
    with Server("--volume-size=9") as server, server.api() as api:
        box = api.create()
        box.write("/home/sandbox/f", b"kept")
        one = box.checkpoint("one")
        with server.api(strict=False) as rough:
            with filled(server, 200 << 20):
                answer = rough.http.post(f"{box.path}/checkpoints", json={"name": "two"})
                refusal(answer, 503, "nearly full")
                refusal(rough.http.post(f"/api/sandboxes/from-checkpoint/{one}"), 503, "nearly full")
                refusal(rough.http.post(f"{box.path}/checkpoints/{one}/restore"), 503, "nearly full")
                assert [each["name"] for each in box.checkpoints()] == ["one"], "nothing is left of what was refused"
                assert os.listdir(volume(server) / "checkpoints") == [one]
                assert box.out("cat ~/f") == "kept"
            assert box.call("POST", "/timeout", json={"timeout": 2}).status_code == 204
            # Without any room at all not even its record can be written: it runs on, says so and is tried again.
            with filled(server, 0, lambda: box.out("true")):
                view = wait_for(lambda: (view := box.view()).get("warning") and view, "it says that it cannot hibernate", 20)
                assert view["status"] == "running" and "could not be hibernated" in view["warning"], view
                assert box.out("cat ~/f") == "kept"
            box.wait_status("hibernated", 40)
            # Its file system may have had something to write at that time.
            assert "some of what it wrote" in box.view().get("warning", "some of what it wrote")
            # What is written has no room beside what else its disk needs, whether it is there yet or not.
            content = os.urandom(80 << 20)
            full = api.create()
            with filled(server, 100 << 20):
                full.write("/home/sandbox/big", content)
                for path in ("hibernate", "reboot", "power-cycle"):
                    refusal(rough.http.post(f"{full.path}/{path}"), 503, "not on its disk yet")
                assert full.status() == "running"
            assert full.call("POST", "/hibernate").status_code == 200
            assert full.read("/home/sandbox/big") == content
            full.kill()
        assert box.out("cat ~/f") == "kept"
        box.checkpoint("two")
        assert box.call("POST", f"/checkpoints/{one}/restore").status_code == 200
        assert box.out("cat ~/f") == "kept"


@pytest.mark.timeout(200)
def test_what_was_prepared_while_there_was_no_room_is_usable():
    """Disks wait for their sandboxes. One that could not write what it had to is not given to anybody."""
    with Server("--volume-size=9") as server, server.api() as api:
        one = api.create().checkpoint("one")
        api.fork(one)
        with filled(server, 0):
            # Longer than a file system puts off what it has to write.
            time.sleep(15)
        # More than there are prepared.
        for box in [*(api.create() for _ in range(10)), *(api.fork(one) for _ in range(5))]:
            box.write("/home/sandbox/f", b"1" * 1_000_000)
            assert box.out("sync; wc -c < ~/f") == "1000000\n"
            assert "warning" not in box.view()


@pytest.mark.timeout(200)
def test_a_volume_is_as_full_as_the_file_system_below_it():
    """It is a sparse file. What has no place there cannot be kept, whatever the volume itself has free."""
    server = Server("--volume-size=9")
    below = Path(f"{server.data_dir}.below")
    try:
        with below.open("wb") as file:
            file.truncate(5 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", below], check=True)
        subprocess.run(["mount", "-o", "loop", below, server.data_dir], check=True)
        with server, server.api() as api, server.api(strict=False) as rough:
            box = api.create()
            one = box.checkpoint("one")
            filler = Path(server.data_dir, "filler")
            with filler.open("wb") as file:
                stat = os.statvfs(server.data_dir)
                os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - (300 << 20))
            assert os.statvfs(volume(server)).f_bavail * os.statvfs(volume(server)).f_frsize > 2 << 30
            refusal(rough.http.post("/api/sandboxes", json={}), 503, "nearly full")
            refusal(rough.http.post(f"/api/sandboxes/from-checkpoint/{one}"), 503, "nearly full")
            assert box.out("echo here") == "here\n"
            filler.unlink()
            api.create().kill()
    finally:
        below.unlink(missing_ok=True)


def gives_room_back(server, box):
    """What is deleted inside is free for others, without an end of the sandbox."""
    taken = lambda: os.stat(image_of(server, box)).st_blocks * 512
    before = taken()
    box.out("head -c 20000000 /dev/urandom > ~/gone; sync")
    wait_for(lambda: taken() > before + 18_000_000, "it takes room", 20, instead=taken)
    box.out("rm ~/gone; sync")
    wait_for(lambda: taken() < before + 8_000_000, "its room came back", 30, instead=taken)


def test_what_is_deleted_inside_comes_back(server):
    with server.api() as api, api.create() as box:
        gives_room_back(server, box)


def test_space_comes_back_when_the_last_user_is_gone():
    used = lambda server: (stat := os.statvfs(volume(server))) and (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    with Server() as server, server.api() as api:
        box = api.create()
        empty = used(server)
        box.out("head -c 300000000 /dev/urandom > ~/big; sync")
        wait_for(lambda: used(server) > empty + 280_000_000, "it takes room", 20)
        one = box.checkpoint("one")
        forks = [api.fork(one) for _ in range(3)]
        wait_for(lambda: attached_for(one), "the next fork is prepared")
        assert used(server) < empty + 420_000_000, "copies share their blocks"
        assert box.find_checkpoint(one)["sizeBytes"] > 300_000_000
        box.kill()
        assert box.call("DELETE", f"/checkpoints/{one}").status_code == 204
        for each in forks[1:]:
            each.kill()
        assert forks[0].out("head -c 300000000 ~/big | wc -c").strip() == "300000000"
        assert used(server) > empty + 280_000_000
        forks[0].kill()
        wait_for(lambda: used(server) < empty + 60_000_000, "all of it came back", 30, 0.3, lambda: used(server) - empty)
