"""SIGKILL of the server in the middle of builds and imports: each is there as a whole or not at all, and nothing else stays."""

import os
import socket
import threading
import time
import uuid
from urllib.parse import quote

import httpx
import pytest

from harness import host, oci, rootfs
from harness.builds import add_file, create, env, manifest, path_of, run
from harness.raw import head
from harness.server import ids_in
from harness.waiting import wait_for


def begin(api, name, image):
    answer = api.post("/api/snapshots?async=1", json={"name": name, "image": image})
    assert answer.status_code == 202, answer.text


def settled(api, name, within=60):
    """The snapshot once it is no longer being built; None when there is none."""

    def seen():
        answer = api.get(path_of(name))
        return (answer.status_code == 404 and "none") or (answer.json()["status"] != "building" and answer.json())

    found = wait_for(seen, f"{name} is built or gone", within, 0.1)
    return None if found == "none" else found


def no_strays(server, api):
    """No sandbox, process or file of one that the list does not show."""
    tag = host.tag_of(server.data_dir)
    known = {view["sandboxID"] for view in api.list_all()}
    running = {owner for owner, pids in host.sandbox_processes().items() if any(tag in host.read(f"/proc/{pid}/cgroup").decode(errors="replace") for pid in pids)}
    return not (running - known) and not ({each for each in ids_in(os.path.join(server.data_dir, "volume", "sandboxes"))} - known)


@pytest.mark.timeout(300)
def test_a_build_goes_on_after_the_server_was_killed(server):
    for number, pause in enumerate((0.05, 0.3, 0.8, 1.5, 2.2, 3.0)):
        name = f"killed-{number}-{uuid.uuid4().hex[:6]}"
        stamp = uuid.uuid4().hex
        image = manifest(
            run(f"date +%s%N > ~/one # {stamp}"), env(A="1"), add_file("/srv/f", b"x" * 3_000_000), run("sleep 1; echo two > ~/two"), run("sleep 0.5; cat ~/one ~/two > ~/three")
        )
        with server.api() as api:
            begin(api, name, image)
            time.sleep(pause)
        server.kill()
        server.start()
        with server.api() as api:
            found = settled(api, name)
            assert found and found["status"] == "ready", (number, found)
            with create(api, snapshot=name) as box:
                one = box.out("cat ~/one")
                assert box.out("cat ~/three; wc -c < /srv/f; echo $A") == f"{one}two\n3000000\n1\n"
            # What was done before is not done again.
            with create(api, image=image) as again:
                assert again.outcome.ran() == [] and again.out("cat ~/one") == one
            wait_for(lambda: no_strays(server, api), f"round {number}: nothing is left of what was killed", 15, 0.2)
            assert api.delete(path_of(name)).status_code == 204
    assert not [each for each in host.find_process("sleep", "0.5")]


@pytest.mark.timeout(200)
def test_an_acknowledged_image_survives_and_a_failed_one_does_not_come_back(server):
    good, bad = f"good-{uuid.uuid4().hex[:6]}", f"bad-{uuid.uuid4().hex[:6]}"
    with server.api() as api:
        answer = api.post("/api/snapshots", json={"name": good, "image": manifest(run(f"echo kept > ~/f # {good}"))}, timeout=60)
        assert answer.status_code == 201, answer.text
        begin(api, bad, manifest(run(f"exit 3 # {bad}")))
        assert settled(api, bad)["status"] == "failed"
    server.kill()
    server.start()
    with server.api() as api:
        assert api.get(path_of(good)).json()["id"] == answer.json()["id"]
        with create(api, snapshot=good) as box:
            assert box.out("cat ~/f") == "kept\n"
        found = settled(api, bad)
        assert found is None or found["status"] == "failed", "what had failed is built again by itself"
        for name in (good, bad):
            api.delete(path_of(name))


@pytest.mark.timeout(200)
def test_a_cancelled_build_stays_cancelled(server):
    name = f"cancelled-{uuid.uuid4().hex[:6]}"
    with server.api() as api:
        begin(api, name, manifest(run(f"sleep 20 # {name}")))
        time.sleep(0.5)
        assert api.delete(path_of(name)).status_code == 204
    server.kill()
    server.start()
    with server.api() as api:
        assert api.get(path_of(name)).status_code == 404
        wait_for(lambda: no_strays(server, api), "nothing of it is left", 15, 0.2)


@pytest.mark.timeout(200)
def test_half_an_archive_is_nothing(server):
    def templates():
        folder = os.path.join(server.data_dir, "volume", "templates")
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()

    before = templates()
    made = oci.Image(rootfs.layer(), [oci.entry("own", os.urandom(8_000_000))])
    archive = made.archive()
    for part in (0.02, 0.5, 0.97, 1.0):
        sent = int(len(archive) * part)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            name = f"half-{uuid.uuid4().hex[:6]}"
            target = f"/api/images/archive?name={quote(name)}"
            connection.sendall(head("POST", target, {"Content-Type": "application/x-tar", "Content-Length": str(len(archive))}, server.key) + archive[:sent])
            time.sleep(0.3)
            server.kill()
        server.start()
        with server.api() as api:
            if part < 1:
                assert api.get(path_of(name)).status_code == 404 or settled(api, name)["status"] == "failed"
                wait_for(lambda: templates() <= before, f"after {part}: nothing of half an archive is left", 15, 0.2, instead=lambda: templates() - before)
            else:
                found = settled(api, name)
                assert found is None or found["status"] in ("ready", "failed")
            api.delete(path_of(name))


@pytest.mark.timeout(200)
def test_clients_that_were_cut_off_ask_again_and_get_the_same(server):
    """A create with a key from an image, whose server dies meanwhile, gives one sandbox."""
    body = {"image": manifest(run(f"sleep 1; echo f > ~/f # {uuid.uuid4()}")), "memoryMB": 1024, "tags": {"cut": "off"}}
    key = {"Idempotency-Key": uuid.uuid4().hex}

    def ask():
        try:
            httpx.post(f"{server.url}/api/sandboxes", json=body, headers=key | {"X-API-Key": server.key}, timeout=30)
        except httpx.HTTPError:
            pass

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.6)
    server.kill()
    asking.join(40)
    server.start()
    with server.api() as api:
        answer = wait_for(lambda: (got := api.post("/api/sandboxes", json=body, headers=key, timeout=60)).status_code in (200, 201) and got, "it is made", 60, 0.3)
        same = [view for view in api.list_all(**{"tag.cut": "off"}) if view["status"] in ("running", "creating")]
        assert [view["sandboxID"] for view in same] == [answer.json()["sandboxID"]], same
        api.delete(f"/api/sandboxes/{answer.json()['sandboxID']}")
        wait_for(lambda: no_strays(server, api), "nothing else is left", 15, 0.2)
