"""SIGKILL of the server at many points while sandboxes are made, used and deleted.

After each restart: what was acknowledged is there, once, with its files; what was deleted is gone; commands under way
end with their true output and code; nothing half-made is left and nothing runs that the list does not show.
"""

import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness import host, log
from harness.client import SMALL, Box
from harness.server import Server, ids_in
from harness.sockets import ExecSocket
from harness.waiting import wait_for

ROUNDS = int(os.environ.get("WARREN_FAULT_ROUNDS", "32"))
SECONDS = float(os.environ.get("WARREN_FAULT_SECONDS", "130"))
COUNT = 12
COMMAND = f"for i in $(seq 1 {COUNT}); do echo line $i; sleep 0.06; done; exit 7"
OUTPUT = "".join(f"line {n}\n" for n in range(1, COUNT + 1))


class Round:
    """What the clients of one round were told before the server died."""

    def __init__(self, api, group):
        self.api = api
        self.group = group
        self.acknowledged = {}  # id -> the file's content, or None when the write was not acknowledged
        self.asked = {}  # idempotency key -> (body, id or None when not acknowledged)
        self.unnamed = 0  # creates without a key that were not acknowledged
        self.deleted = set()
        self.deleting = set()
        self.commands = []  # (box, exec id, how it was started)
        self.last = {}  # id -> what its client did last, for failures
        self.lock = threading.Lock()
        self.dead = threading.Event()

    def play(self):
        """Clients work until the server is gone."""
        with ThreadPoolExecutor(6) as pool:
            clients = [pool.submit(self.client, n) for n in range(5)]
            for client in clients:
                client.result()

    def client(self, number):
        chance = random.Random(f"{self.group}-{number}")
        while not self.dead.is_set():
            try:
                self.step(chance)
            except httpx.HTTPError:
                return  # The server is gone; what was not acknowledged stays so.

    def step(self, chance):
        box = self.create(chance.random() < 0.6)
        for _ in range(chance.randrange(3)):
            self.command(box, chance.random() < 0.5)
        if chance.random() < 0.3:
            self.forget_commands(box)  # Hibernating ends them.
            self.last[box.id] = "was being hibernated"
            self.post(f"{box.path}/hibernate")
            self.last[box.id] = "was being woken"
            self.post(f"{box.path}/exec/run", {"cmd": "true"})
        if chance.random() < 0.5:
            self.delete(box)

    def post(self, path, body=None, **options):
        answer = self.api.http.post(path, json=body, timeout=20, **options)
        assert answer.status_code < 500 or answer.status_code == 503, (path, answer.status_code, answer.text)
        return answer

    def create(self, with_key):
        body = SMALL | {"tags": {"group": self.group, "one": uuid.uuid4().hex}}
        key = uuid.uuid4().hex if with_key else None
        with self.lock:
            if key:
                self.asked[key] = (body, None)
            else:
                self.unnamed += 1
        answer = self.post("/api/sandboxes", body, headers={"Idempotency-Key": key} if key else {})
        if answer.status_code == 503:
            raise httpx.ConnectError("the server is stopping")
        assert answer.status_code == 201, answer.text
        box = Box(self.api, answer.json())
        with self.lock:
            assert box.id not in self.acknowledged, "one id for two sandboxes"
            self.acknowledged[box.id] = None
            if key:
                self.asked[key] = (body, box.id)
            else:
                self.unnamed -= 1
        content = f"{box.id} {uuid.uuid4()}"
        self.last[box.id] = "was created"
        written = self.api.http.put(f"{box.path}/files", params={"path": "/home/sandbox/own"}, content=content, timeout=20)
        assert written.status_code == 204, written.text
        with self.lock:
            self.acknowledged[box.id] = content
        self.last[box.id] = "was written to"
        return box

    def command(self, box, as_session):
        body = {"cmd": "sh", "args": ["-c", COMMAND]}
        answer = self.post(f"{box.path}/exec" if as_session else f"{box.path}/exec/run-async", body)
        if answer.status_code in (201, 202):
            view = answer.json()
            with self.lock:
                self.commands.append((box, view.get("sessionID") or view["execId"], as_session))

    def delete(self, box):
        self.forget_commands(box)
        with self.lock:
            self.deleting.add(box.id)
            self.last[box.id] = "was being deleted"
        answer = self.api.http.delete(box.path, timeout=20)
        if answer.status_code == 204:
            with self.lock:
                self.deleted.add(box.id)

    def forget_commands(self, box):
        with self.lock:
            self.commands = [each for each in self.commands if each[0].id != box.id]

    # After the restart.

    def check(self):
        listed = self.api.list_all(**{"tag.group": self.group})
        views = {view["sandboxID"]: view for view in listed}
        assert len(views) == len(listed), "a sandbox is listed twice"
        assert set(self.acknowledged) <= set(views), f"lost: {set(self.acknowledged) - set(views)}"
        extra = set(views) - set(self.acknowledged)
        pending = sum(1 for _, made in self.asked.values() if not made)
        assert len(extra) <= pending + self.unnamed, f"{len(extra)} sandboxes nobody asked for"
        self.check_commands()
        for sandbox_id, content in self.acknowledged.items():
            status = views[sandbox_id]["status"]
            if sandbox_id in self.deleted:
                assert status == "stopped", f"{sandbox_id} was deleted and is {status}"
            elif sandbox_id not in self.deleting or status != "stopped":
                reason = f"{views[sandbox_id].get('statusReason')}; it {self.last.get(sandbox_id)} when the server was killed"
                assert status in ("running", "hibernated"), f"{sandbox_id} is {status}: {reason}"
                if content:
                    assert Box(self.api, views[sandbox_id]).out("cat ~/own") == content
        self.check_keys()
        for sandbox_id in extra:
            wait_for(
                lambda sandbox_id=sandbox_id: self.api.get(f"/api/sandboxes/{sandbox_id}").json()["status"] != "creating",
                f"{sandbox_id}, which nobody was told of, was finished or undone",
            )

    def check_keys(self):
        """Asking again with the same key gives the sandbox there was, or makes the one there was not; never two."""
        for key, (body, made) in self.asked.items():
            if made:
                continue
            again = self.api.post("/api/sandboxes", json=body, headers={"Idempotency-Key": key})
            assert again.status_code in (200, 201), again.text
            same = self.api.list_all(**{"tag.one": body["tags"]["one"]})
            usable = [view for view in same if view["status"] in ("running", "hibernated")]
            assert [view["sandboxID"] for view in usable] == [again.json()["sandboxID"]], same

    def check_commands(self):
        for box, exec_id, as_session in self.commands:
            if as_session:
                with ExecSocket(box, exec_id) as socket:
                    code, output = socket.finish(20), socket.bytes_of().decode()
            else:
                finished = lambda box=box, exec_id=exec_id: (
                    (answer := box.call("GET", f"/exec/{exec_id}/result")).status_code == 200
                    and not answer.json()["running"]
                    and answer.json()
                )
                result = wait_for(finished, "the command finished", 20, 0.05)
                code, output = result["exitCode"], result["stdout"]
            assert (code, output) == (7, OUTPUT), f"{box.id}/{exec_id}"

    def clean(self):
        with ThreadPoolExecutor(8) as pool:
            ids = {view["sandboxID"] for view in self.api.list_all(**{"tag.group": self.group})}
            answers = list(pool.map(lambda each: self.api.delete(f"/api/sandboxes/{each}").status_code, ids))
        assert set(answers) <= {204}
        return ids


@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_or_leaked_by_sigkill(record_property):
    deadline = time.monotonic() + SECONDS
    played, restarts = 0, []
    with Server() as server, server.api() as api:
        for number in range(ROUNDS):
            if time.monotonic() > deadline and number >= 10:
                break
            chance = random.Random(number)
            with server.api(strict=False) as rough:
                state = Round(rough, f"round-{number}-{uuid.uuid4().hex[:6]}")
                with ThreadPoolExecutor(1) as pool:
                    playing = pool.submit(state.play)
                    # From the first milliseconds to deep in the work: each point must be survived.
                    time.sleep(chance.choice((0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)) * (0.5 + chance.random()))
                    server.kill()
                    state.dead.set()
                    playing.result(30)
            restarts.append(server.start())
            state.api = api
            for box, _, _ in state.commands:
                box.api = api
            state.check()
            ids = state.clean()
            gone = lambda ids=ids: not (ids & set(host.sandbox_processes())) and not (ids & ids_in(server.data_dir))
            wait_for(gone, f"round {number}: processes and files of deleted sandboxes are gone", 15, 0.1)
            wait_for(lambda: not unlisted(server, api), f"round {number}: nothing runs that the list does not show", 15, 0.1)
            played += 1
        server.stop()
        server.start("--stop-sandboxes")
        server.stop()
        left = server.left_behind()
        assert not left, left
        unexpected = log.unexpected(server.log())
        assert not unexpected, "\n".join(unexpected[:20])
    record_property("rounds", played)
    record_property("slowest restart", max(restarts))
    print(f"{played} rounds; restarts {min(restarts):.2f} to {max(restarts):.2f} s")


def unlisted(server, api):
    """Sandboxes that run on the host and not in the list."""
    return tagged(server) - {view["sandboxID"] for view in api.list_all(status="running")}


def tagged(server):
    """Sandboxes whose cgroup bears this server's tag."""
    tag = host.tag_of(server.data_dir)
    return {
        owner
        for owner, pids in host.sandbox_processes().items()
        if any(tag in host.read(f"/proc/{pid}/cgroup").decode(errors="replace") for pid in pids)
    }
