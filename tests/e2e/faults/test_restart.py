"""What a restart keeps and what it ends, by SIGTERM and by SIGKILL."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from harness import host, settings
from harness.client import marker
from harness.server import Server, entries_of, free_port
from harness.sockets import REPLAY_END, ExecSocket, PtySocket
from harness.waiting import wait_for


def poll(box, exec_id):
    def finished():
        answer = box.call("GET", f"/exec/{exec_id}/result")
        assert answer.status_code == 200, answer.text
        return not answer.json()["running"] and answer.json()

    return wait_for(finished, "the command finished", 30, 0.05)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_sandboxes_run_on_over_a_restart(server, how):
    with server.api() as api:
        running, asleep, gone = api.create(tags={"n": "1"}, timeout=3000, envs={"E": "kept"}), api.create(), api.create()
        for box in (running, asleep):
            box.write("/home/sandbox/f", box.id.encode())
        asleep.call("POST", "/hibernate")
        gone.kill()
        mark = marker()
        background = running.start("sleep", mark)
        handle = running.call("POST", "/exec/run-async", json={"cmd": "for i in $(seq 1 30); do echo $i; sleep 0.1; done; exit 7"}).json()
        session = running.start("sh", "-c", "for i in $(seq 1 30); do echo s$i; sleep 0.1; done; exit 8")
        pty = running.call("POST", "/pty", json={}).json()["sessionID"]
        with PtySocket(running, pty) as terminal:
            terminal.send("X=kept-in-shell\necho re''ady\n")
            terminal.until("ready")
        with ExecSocket(running, session) as attached:
            attached.until_text("s3\n")
            seen = attached.output()
        before = running.view()
        pids = host.find_process(mark)
        server.stop() if how == "SIGTERM" else server.kill()
        assert host.find_process(mark) == pids, "the command ended with the server"
        took = server.start()
        assert took < 20, f"a restart took {took:.1f} s"
        after = running.view()
        assert {**after, "token": 0} == {**before, "token": 0}
        assert running.out('cat ~/f; echo " $E"') == f"{running.id} kept\n"
        about = json.loads(running.out("curl -s -m 20 http://169.254.169.254/v1/status"))
        assert about["sandboxId"] == running.id and about["uptime"] + 1 >= took, "who asks what it is in is answered as before"
        assert host.find_process(mark) == pids and running.session(background)["running"]
        result = poll(running, handle["execId"])
        assert (result["exitCode"], result["stdout"]) == (7, "".join(f"{n}\n" for n in range(1, 31)))
        whole = "".join(f"s{n}\n" for n in range(1, 31)).encode()
        with ExecSocket(running, session) as attached:
            assert (attached.finish(), attached.output()) == (8, whole)
        with ExecSocket(running, session, offset=len(seen)) as attached:
            assert (attached.finish(), seen + attached.output()) == (8, whole)
        with PtySocket(running, pty) as terminal:
            terminal.send("echo $X\n")
            terminal.until("kept-in-shell")
        assert asleep.status() == "hibernated" and asleep.read("/home/sandbox/f") == asleep.id.encode()
        assert gone.status() == "stopped"
        for box in (running, asleep):
            box.kill()
            wait_for(lambda box=box: not host.sandbox_processes().get(box.id), "nothing of it runs")
            assert not entries_of(server.data_dir, box.id)


def test_tokens_survive_a_restart(server):
    with server.api() as api:
        box = api.create()
        token = box.created["token"]
        server.kill()
        server.start()
        answer = httpx.post(f"{server.url}{box.path}/exec/run", json={"cmd": "echo hi"}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text


def test_a_client_that_is_attached_is_told_of_the_end_not_of_an_exit(server):
    with server.api() as api:
        box = api.create()
        session = box.start("sleep", "600")
        with ExecSocket(box, session) as attached:
            attached.until(REPLAY_END)
            server.stop()
            while attached.next(10):
                pass
            assert attached.exit_code is None, "an invented exit"
        server.start()
        assert box.session(session)["running"] and box.session(session)["attachedClients"] == 0


def test_stopping_does_not_wait_for_idle_clients(server):
    with server.api() as api:
        box = api.create()
        with ExecSocket(box, box.start("sleep", "600")), ExecSocket(box, box.start("cat")):
            begun = time.monotonic()
            server.stop(within=12)
            assert time.monotonic() - begun < 10
        server.start()


def test_stop_sandboxes_ends_them_and_leaves_nothing():
    with Server("--stop-sandboxes") as server, server.api() as api:
        boxes = [api.create() for _ in range(4)]
        boxes[0].write("/home/sandbox/f", b"kept")
        boxes[1].call("POST", "/hibernate")
        mark = marker()
        boxes[0].start("sleep", mark)
        server.stop()
        assert not host.find_process(mark)
        assert not [pid for box in boxes for pid in host.sandbox_processes().get(box.id, [])]
        assert not server.left_behind()
        server.start()
        # Their disks are theirs until they are deleted.
        assert boxes[0].status() in ("hibernated", "running") and boxes[0].read("/home/sandbox/f") == b"kept"


def test_a_copy_of_its_mounts_does_not_keep_a_server_from_ending():
    with Server("--stop-sandboxes") as server, server.api() as api:
        box = api.create()
        # What lxcfs shows, and nothing else: a volume that is held takes its time in any case.
        others = f"awk -v of={server.data_dir} 'index($2, of) == 1 && $2 !~ /lxcfs/ {{ print $2 }}' /proc/self/mounts"
        script = f"umount -l $({others} | sort -r); echo ready; exec sleep 60"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout.readline() == b"ready\n"
                begun = time.monotonic()
                server.stop()
                assert time.monotonic() - begun < 5
                assert not re.search("WARN.*lxcfs", server.log())
            finally:
                holder.kill()
        assert not server.left_behind() and box.id


def test_the_second_start_is_quick(server):
    server.stop()
    assert server.start() < 2


def test_two_servers_never_share_a_data_directory(server):
    second = subprocess.run(
        [settings.PROGRAM, "serve", "--listen", f"127.0.0.1:{free_port()}", "--data-dir", server.data_dir],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode != 0 and server.data_dir in second.stderr
    with server.api() as api:
        assert api.get("/health").status_code == 200


def test_keys_are_made_listed_and_revoked_beside_a_running_server(server):
    run = lambda *words: subprocess.run(
        [settings.PROGRAM, "keys", *words, "--data-dir", server.data_dir], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    key = run("create", "--org", "beside").strip()
    assert re.fullmatch(r"osb_[0-9a-f]{64}", key)
    call = lambda: httpx.get(f"{server.url}/api/whoami", headers={"X-API-Key": key})
    assert call().status_code == 200 and call().json()["org_name"] == "beside"
    listing = run("list")
    assert key not in listing and key[:8] in listing
    everything = b"".join(path.read_bytes() for path in map(Path, all_files(server.data_dir)) if path.stat().st_size < 50_000_000)
    assert key.encode() not in everything, "the key is stored in clear"
    identifiers = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", json.dumps(listing))
    line = next(line for line in listing.splitlines() if "beside" in line)
    target = next((identifier for identifier in identifiers if identifier in line), line.split()[0])
    run("revoke", target)
    assert wait_for(lambda: call().status_code == 401, "the key is refused", 5)
    assert key not in server.log()


def all_files(folder):
    for path, _, names in os.walk(folder):
        yield from (os.path.join(path, name) for name in names if name.endswith((".sqlite", ".db", ".sqlite-wal", ".db-wal", ".json", ".log")))


def test_a_record_that_is_of_no_use_costs_nobody_their_work(server):
    """A loss of power can leave an empty one, and another version one that is not understood."""
    with server.api() as api, api.create():  # That one keeps the volume mounted while there is no server.
        cut, foreign = api.create(), api.create()
        folder = lambda box: Path(server.data_dir, "volume", "sandboxes", box.id)
        for box in (cut, foreign):
            box.write("/home/sandbox/f", b"work")
            assert box.call("POST", "/hibernate").status_code == 200
        # As if it had been written some time ago, and another just before the end.
        os.utime(folder(cut) / "record.json", (0, 0))
        assert cut.call("POST", "/timeout", json={"timeout": 77}).status_code == 204
        server.stop()
        (folder(cut) / "record.json").write_bytes(b"")
        (folder(foreign) / "record.json").write_text('{"format": 9000}')
        server.start()
        assert cut.read("/home/sandbox/f") == b"work"
        cut.call("POST", "/hibernate")
        assert cut.wait_status("hibernated") and cut.out("cat ~/f") == "work", "what it does from here on is believed"
        assert (folder(foreign) / "disk.img").exists() and "a sandbox is left alone" in server.log()
        wait_for(lambda: foreign.status() == "error", "its owner is told")
        assert foreign.call("DELETE", "").status_code == 204
        wait_for(lambda: not folder(foreign).exists(), "its owner wants it gone")
        cut.kill()


def test_a_sandbox_that_dies_while_the_server_is_away_says_so(server):
    with server.api() as api:
        box, well = api.create(), api.create()
        box.write("/home/sandbox/f", b"x")
        server.kill()
        for pid in host.sandbox_processes()[box.id]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        server.start()
        view = wait_for(lambda: (now := box.view())["status"] != "running" and now, "its end is noticed", 15)
        assert view["status"] in ("error", "hibernated", "stopped")
        assert view["status"] != "error" or view["statusReason"]
        assert well.out("echo well") == "well\n"
        box.kill()


def test_a_request_cut_off_by_the_end_is_not_half_done(server):
    """Uploads under way when the server is killed leave the old file."""
    with server.api(strict=False) as api:
        box = api.create()
        box.write("/home/sandbox/f", b"old")
        started = threading.Event()

        def slow():
            yield b"x" * 100_000
            started.set()
            for _ in range(200):
                time.sleep(0.05)
                yield b"x" * 1000

        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(lambda: api.http.put(f"{box.path}/files", params={"path": "/home/sandbox/f"}, content=slow()))
            assert started.wait(10)
            server.kill()
            with pytest.raises(httpx.HTTPError):
                upload.result(30)
        server.start()
        assert box.read("/home/sandbox/f") == b"old"
        assert box.out("ls -A ~ | grep -v '^\\.' || true") == "f\n"




# What a hostile agent may say to whoever connects, after it has read something and before it closes or falls silent.
HANDSHAKE = b"WARRENGA\x00\x01\x00\x00"
NONSENSE = {
    "noise": lambda hello: os.urandom(100_000),
    "silence": lambda hello: b"",
    "http/1.1": lambda hello: b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{",
    "another's nonce": lambda hello: HANDSHAKE + bytes(4),
    "noise after a good handshake": lambda hello: HANDSHAKE + hello[12:16] + os.urandom(100_000),
    "silence after a good handshake": lambda hello: HANDSHAKE + hello[12:16],
    "endless frames": lambda hello: HANDSHAKE + hello[12:16] + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x40\x00\x00\x00\x00\x00\x00\x01" * 5000,
}


def speak(path, answer):
    """Listens in an agent's place; the socket to close in the end."""
    os.rename(path, f"{path}.real")
    listener = socket.socket(socket.AF_UNIX)
    # A path may be longer than a socket's address can be.
    folder = os.open(os.path.dirname(path), os.O_PATH)
    listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    os.close(folder)
    listener.listen(64)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                connection.sendall(answer(connection.recv(16)))
            except OSError:
                pass
            kept.append(connection)

    kept = []
    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_agents_that_speak_nonsense_harm_only_their_own(server):
    """Nothing an agent says stops the server, and the sandbox's state says why it cannot be used."""
    with server.api() as api:
        well = api.create()
        boxes = {name: api.create() for name in NONSENSE}
        server.kill()
        sockets = {box.id: agent_socket(server.data_dir, box.id) for box in boxes.values()}
        if not all(sockets.values()):
            server.start()
            pytest.skip("agents of this runtime are not reached through a socket file")
        listeners = [speak(sockets[box.id], NONSENSE[name]) for name, box in boxes.items()]
        took = server.start()
        assert took < 30, f"hostile agents held up the start for {took:.1f} s"
        assert well.out("echo well") == "well\n"
        with ThreadPoolExecutor(len(boxes)) as pool:
            answers = list(pool.map(lambda box: api.http.post(f"{box.path}/exec/run", json={"cmd": "true"}, timeout=60), boxes.values()))
        for name, answer in zip(boxes, answers, strict=True):
            late = answer.status_code == 200 and "error" in answer.json()  # The head was out before it was known.
            assert late or answer.status_code in (410, 502, 503), (name, answer.status_code, answer.text)

        def unsaid():
            views = {name: box.view() for name, box in boxes.items()}
            return {name: view["status"] for name, view in views.items() if view["status"] != "error" or not view["statusReason"]}

        wait_for(lambda: not unsaid(), "all states say why", 20, 0.2, unsaid)
        assert well.out("echo well") == "well\n"
        for listener in listeners:
            listener.close()
        for box in [well, *boxes.values()]:
            box.kill()
        wait_for(lambda: not any(host.sandbox_processes().get(box.id) for box in boxes.values()), "nothing of them runs")


def agent_socket(data_dir, sandbox_id):
    for folder, _, names in os.walk(data_dir):
        for name in names:
            if name == "agent.sock" and sandbox_id in folder:
                return os.path.join(folder, name)
    return None
