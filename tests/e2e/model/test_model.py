"""Sandboxes against a model of what each of them must contain.

A random walk: create, write, remove, checkpoint, fork, restore, hibernate, wake, idle, reboot, scale, delete; the server ended
in order and killed, also in the middle of each of these, and while several go on at once; its launcher and the agents of
sandboxes killed. After a step the sandbox it touched must contain exactly what the model
says; in the end all of them, and then nothing may be left on the machine.

A call that was cut off has happened or has not: the model then holds both, until a look at the sandbox decides.

    tests/e2e/run model                                      about 30 s with containers, and as long with virtual machines
    MODEL_STEPS=10000 tests/e2e/run model -k container       the long one
    MODEL_SEED=7 tests/e2e/run model                         a walk again; servers are killed at other moments, though
"""

import hashlib
import os
import random
import shutil
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness import host, log
from harness.client import SMALL, Api, Box
from harness.server import Server, ids_in
from harness.waiting import wait_for

STEPS = int(os.environ.get("MODEL_STEPS", "0"))
SECONDS = 25
SEED = int(os.environ.get("MODEL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
#: Of each: as many as this machine can have without being slow.
SANDBOXES = {"container": 6, "vm": 3}
CHECKPOINTS = {"container": 8, "vm": 4}
FOLDER = "/home/sandbox/m"
NAMES = [f"f{n}" for n in range(8)]
ABSENT = None
LOST = (httpx.TransportError, ConnectionError)


def digest(content):
    return hashlib.sha256(content).hexdigest()


class Content:
    """Files by name, each with what it may be: one digest, or several while it is not known which."""

    def __init__(self, files=()):
        self.files = {name: set(may) for name, may in dict(files).items()}

    def copy(self):
        return Content(self.files)

    def set(self, name, value, certain=True):
        before = self.files.get(name, {ABSENT})
        self.files[name] = {value} if certain else before | {value}

    def merge(self, other):
        """One of the two, file by file; good enough to catch what is neither."""
        names = set(self.files) | set(other.files)
        return Content({name: self.files.get(name, {ABSENT}) | other.files.get(name, {ABSENT}) for name in names})

    def check(self, actual, what):
        wrong = {
            name: (actual.get(name), self.files.get(name, {ABSENT}))
            for name in set(actual) | set(self.files)
            if actual.get(name) not in self.files.get(name, {ABSENT})
        }
        assert not wrong, f"{what}: {wrong}"
        self.files = {name: {value} for name, value in actual.items()}


class Sandbox:
    def __init__(self, box, content, memory=1024):
        self.box, self.content, self.memory = box, content, memory
        self.unsure = None  # A second whole content it may have, after a restore that was cut off.


class Checkpoint:
    def __init__(self, identity, owner, content):
        self.id, self.owner, self.content = identity, owner, content


class Patient(Api):
    """Asks again when the server died before it answered: for what may be asked twice."""

    def __init__(self, server):
        super().__init__(server.url, server.key, timeout=60, strict=False)

    def call(self, method, path, **options):
        deadline = time.monotonic() + 120
        while True:
            try:
                return super().call(method, path, **options)
            except LOST:
                assert time.monotonic() < deadline, (method, path)
                time.sleep(0.02)


class Walk:
    def __init__(self, server, seed, isolation):
        self.server, self.own = server, threading.local()
        self.machines = isolation == "vm"
        # With memory, where there is any: what is in it and not on the disk yet counts as well.
        self.kind = "full" if self.machines else "disk_only"
        self.most, self.most_checkpoints = SANDBOXES[isolation], CHECKPOINTS[isolation]
        self.own.chance = random.Random(seed)
        self.api = Patient(server)
        self.sandboxes, self.checkpoints = [], []
        self.counts, self.history, self.gone = {}, [], set()
        self.noting = threading.Lock()
        self.kill_after = None  # Seconds into the next call after which the server is killed.
        self.killed = False  # Whether it was, in this step.
        self.storm_over = None  # While several things go on at once: set when the server is there to stay.

    @property
    def chance(self):
        """This thread's own, so that a walk can be repeated although threads do not run in the same order."""
        return self.own.chance

    # Calls, with the server killed meanwhile where that is due.

    def call(self, method, path, **options):
        """The answer, or None when the server died before it came."""
        if self.storm_over:
            try:
                answer = self.api.http.request(method, path, **options)
            except LOST:
                self.storm_over.wait(60)
                self.note("killed")
                return None
            return None if answer.status_code >= 500 and self.killed else answer
        if self.kill_after is None:
            answer = self.api.http.request(method, path, **options)
            assert answer.status_code < 500, (method, path, answer.status_code, answer.text)
            return answer
        delay, self.kill_after = self.kill_after, None
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(self.api.http.request, method, path, **options)
            time.sleep(delay)
            self.kill()
            try:
                answer = calling.result(60)
            except LOST:
                answer = None
        self.note("killed" if answer is None else "killed after the answer")
        self.restart()
        if answer is not None and answer.status_code >= 500:
            return None
        return answer

    def kill(self):
        self.killed = True
        self.server.kill()

    def restart(self):
        self.server.start()

    def note(self, what):
        with self.noting:
            self.history.append(what)
            self.counts[what] = self.counts.get(what, 0) + 1

    # Steps.

    def create(self):
        one = uuid.uuid4().hex
        answer = self.call("POST", "/api/sandboxes", json=SMALL | {"metadata": {"one": one}})
        self.made(answer, one, Content())

    def made(self, answer, one, content):
        if answer is None:
            # It was made to the end, or is nowhere.
            found = [view for view in self.api.list_all(**{"metadata.one": one}) if view["status"] not in ("creating", "stopped")]
            assert len(found) <= 1, found
            for view in found:
                self.sandboxes.append(Sandbox(Box(self.api, view), content, view["memoryMB"]))
            return
        assert answer.status_code == 201, answer.text
        self.sandboxes.append(Sandbox(Box(self.api, answer.json()), content, answer.json()["memoryMB"]))

    def write(self, sandbox):
        name = self.chance.choice(NAMES)
        size = self.chance.choice((0, 10, 5000, 60_000, 300_000, 3_000_000) if self.chance.random() < 0.3 else (10, 5000))
        content = self.chance.randbytes(size)
        answer = self.call("PUT", f"{sandbox.box.path}/files", params={"path": f"{FOLDER}/{name}"}, content=content)
        sandbox.content.set(name, digest(content), certain=answer is not None and answer.status_code == 204)
        assert answer is None or answer.status_code == 204, answer.text

    def write_by_command(self, sandbox):
        """Several files at once, in place and not through a temporary one."""
        word = f"{self.chance.random()}"
        names = self.chance.sample(NAMES, 3)
        script = f"mkdir -p {FOLDER} && cd {FOLDER} && for f in {' '.join(names)}; do echo {word} $f > $f; done"
        answer = self.call("POST", f"{sandbox.box.path}/exec/run", json={"cmd": script})
        done = answer is not None and answer.status_code == 200 and answer.json().get("exitCode") == 0
        assert answer is None or done, answer.text
        for name in names:
            sandbox.content.set(name, digest(f"{word} {name}\n".encode()), certain=done)
            if not done:
                sandbox.content.set(name, digest(b""), certain=False)
        if not done:
            # The command runs on although nobody heard of its end.
            self.api.post(f"{sandbox.box.path}/exec/run", json={"cmd": "while pgrep -f '[m]kdir -p' > /dev/null; do sleep 0.05; done"})

    def remove(self, sandbox):
        name = self.chance.choice(NAMES)
        answer = self.call("DELETE", f"{sandbox.box.path}/files", params={"path": f"{FOLDER}/{name}"})
        assert answer is None or answer.status_code in (204, 404), answer.text
        sandbox.content.set(name, ABSENT, certain=answer is not None)

    def checkpoint(self, sandbox):
        name = uuid.uuid4().hex
        content = sandbox.content.copy()
        answer = self.call("POST", f"{sandbox.box.path}/checkpoints", json={"name": name, "kind": self.kind})
        assert answer is None or answer.status_code == 201, answer.text
        self.take_checkpoint(sandbox, name, content, certain=answer is not None)

    def take_checkpoint(self, sandbox, name, content, certain=True):
        """What was acknowledged is listed; whatever is listed becomes ready or failed, and only what a server did not live to finish may fail."""
        settled = lambda: [each for each in sandbox.box.checkpoints() if each["name"] == name]
        wait_for(lambda: all(each["status"] != "processing" for each in settled()), "the checkpoint is settled", 30)
        found = settled()
        assert len(found) == 1 or not (found or certain), (found, self.history[-3:])
        for each in found:
            if each["status"] == "ready":
                assert each["consistency"] == "quiesced" or self.storm_over, each
                self.checkpoints.append(Checkpoint(each["id"], sandbox.box, content))
            else:
                assert self.killed, each
                assert "the server ended" in each["errorMsg"], each
                self.api.delete(f"{sandbox.box.path}/checkpoints/{each['id']}")

    def checkpoint_while_written_to(self, sandbox):
        name, file, content = uuid.uuid4().hex, self.chance.choice(NAMES), self.chance.randbytes(200_000)
        with ThreadPoolExecutor(1) as pool:
            put = lambda: self.api.put(f"{sandbox.box.path}/files", params={"path": f"{FOLDER}/{file}"}, content=content)
            writing = pool.submit(put)
            time.sleep(self.chance.random() * 0.01)
            answer = self.api.http.post(f"{sandbox.box.path}/checkpoints", json={"name": name, "kind": self.kind})
            assert answer.status_code == 201, answer.text
            assert writing.result(30).status_code == 204
        taken = sandbox.content.copy()
        taken.set(file, digest(content), certain=False)
        sandbox.content.set(file, digest(content))
        self.take_checkpoint(sandbox, name, taken)

    def fork(self):
        checkpoint, one = self.chance.choice(self.checkpoints), uuid.uuid4().hex
        answer = self.call("POST", f"/api/sandboxes/from-checkpoint/{checkpoint.id}", json={"metadata": {"one": one}})
        before = len(self.sandboxes)
        self.made(answer, one, checkpoint.content.copy())
        for sandbox in self.sandboxes[before:]:
            self.look(sandbox)
            # What was not known of the checkpoint is known now.
            checkpoint.content = sandbox.content.copy()

    def restore(self, sandbox):
        own = [each for each in self.checkpoints if each.owner.id == sandbox.box.id]
        if not own:
            return self.checkpoint(sandbox)
        checkpoint = self.chance.choice(own)
        answer = self.call("POST", f"{sandbox.box.path}/checkpoints/{checkpoint.id}/restore")
        if answer is None:
            sandbox.unsure = checkpoint.content.copy()
            return None
        assert answer.status_code == 200, answer.text
        sandbox.content = checkpoint.content.copy()
        return None

    def delete_checkpoint(self):
        checkpoint = self.checkpoints.pop(self.chance.randrange(len(self.checkpoints)))
        path = f"{checkpoint.owner.path}/checkpoints/{checkpoint.id}"
        answer = self.call("DELETE", path)
        assert answer is None or answer.status_code == 204, answer.text
        if answer is None:
            assert self.api.delete(path).status_code in (204, 404)
        self.gone.add(checkpoint.id)

    def hibernate(self, sandbox):
        answer = self.call("POST", f"{sandbox.box.path}/hibernate")
        assert answer is None or answer.status_code == 200, answer.text

    def wake(self, sandbox):
        answer = self.call("POST", f"{sandbox.box.path}/wake", json={})
        assert answer is None or answer.status_code == 200, answer.text

    def reboot(self, sandbox):
        verb = self.chance.choice(("reboot", "power-cycle"))
        answer = self.call("POST", f"{sandbox.box.path}/{verb}")
        assert answer is None or answer.status_code == 204, answer.text

    def scale(self, sandbox):
        memory = self.chance.choice((1024, 4096, 8192))
        answer = self.call("POST", f"{sandbox.box.path}/scale", json={"memoryMB": memory})
        if answer is not None and answer.status_code == 200:
            sandbox.memory = memory
        else:
            assert answer is None or (answer.status_code == 400 and "not running" in answer.text), answer.text
            sandbox.memory = sandbox.box.view()["memoryMB"]

    def delete(self, sandbox):
        self.sandboxes.remove(sandbox)
        answer = self.call("DELETE", sandbox.box.path)
        assert answer is None or answer.status_code == 204, answer.text
        assert self.api.delete(sandbox.box.path).status_code == 204
        self.gone.add(sandbox.box.id)

    def idle(self, sandbox):
        """It hibernates by itself, and keeps its settings when it wakes."""
        for seconds in (1, 0):
            answer = self.call("POST", f"{sandbox.box.path}/timeout", json={"timeout": seconds})
            assert answer is None or answer.status_code in (200, 204), answer.text
            if seconds == 1 and answer is not None:
                sandbox.box.wait_status("hibernated", 20)
        assert self.api.post(f"{sandbox.box.path}/timeout", json={"timeout": 0}).status_code < 300

    def kill_agent(self, sandbox):
        """From the host, as want of memory would. The sandbox is over, and says why; its checkpoints are not."""
        self.look(sandbox)
        # One from before a restore may still be ending; an agent has no arguments any more then.
        is_agent = lambda pid: host.read(f"/proc/{pid}/comm") == b"warren-agent\n" and any(host.arguments(pid))
        processes = lambda: host.sandbox_processes().get(sandbox.box.id, [])
        if self.machines:
            ours = wait_for(lambda: len(found := processes()) == 1 and found, "one QEMU is left", 20, 0.1)
        else:
            ours = sorted(pid for pid in processes() if is_agent(pid))
        assert len(ours) == (1 if self.machines else 2), "PID 1 and the agent, or QEMU"
        os.kill(self.chance.choice(ours), signal.SIGKILL)
        sandbox.box.wait_status("error")
        self.delete(sandbox)

    def kill_launcher(self):
        children = lambda: [pid for pid in host.processes() if host.arguments(pid)[1:2] == [b"launcher"] and host.parent(pid) == self.server.process.pid]
        for pid in children():
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: pid not in children(), "the launcher has ended")

    def end_server(self):
        self.server.stop()
        self.restart()

    def kill_server(self):
        self.kill()
        self.restart()

    def storm(self):
        """Several sandboxes are changed at the same moment, and perhaps the server is killed meanwhile."""
        chosen = self.chance.sample(self.sandboxes, min(4, len(self.sandboxes)))
        actions = (self.write, self.write_by_command, self.remove, self.restore, self.hibernate, self.wake, self.reboot, *(() if self.machines else (self.scale,)))
        if len(self.checkpoints) < self.most_checkpoints:
            actions += (self.checkpoint, self.checkpoint)
        kill_after = self.chance.choice((0.002, 0.005, 0.01, 0.02, 0.04, 0.08)) if self.chance.random() < 0.4 else None
        self.storm_over = threading.Event()
        with ThreadPoolExecutor(len(chosen)) as pool:
            going_on = [pool.submit(self.several, sandbox, actions, self.chance.random()) for sandbox in chosen]
            if kill_after:
                time.sleep(kill_after)
                self.kill()
                self.restart()
            self.storm_over.set()
            for one in going_on:
                one.result(120)
        self.storm_over = None
        for sandbox in chosen:
            self.look(sandbox)

    def several(self, sandbox, actions, seed):
        self.own.chance = random.Random(seed)
        for _ in range(2):
            action = self.chance.choice(actions)
            self.note(f"storm: {action.__name__}")
            action(sandbox)
            if sandbox.unsure:
                return  # Only a look can tell what it has now.

    # The walk.

    def step(self):
        self.killed = False
        weights = {
            self.create: 3 if len(self.sandboxes) < self.most else 0,
            self.write: 10,
            self.write_by_command: 5,
            self.remove: 2,
            self.checkpoint: 5 if len(self.checkpoints) < self.most_checkpoints else 0,
            self.checkpoint_while_written_to: 2 if len(self.checkpoints) < self.most_checkpoints else 0,
            self.fork: 4 if self.checkpoints and len(self.sandboxes) < self.most else 0,
            self.restore: 4,
            self.delete_checkpoint: 3 if len(self.checkpoints) > 3 else 0,
            self.hibernate: 4,
            self.wake: 2,
            self.reboot: 2,
            self.scale: 0 if self.machines else 1,
            self.delete: 2 if len(self.sandboxes) > 2 else 0,
            self.idle: 0.2,
            self.kill_agent: 0.4 if len(self.sandboxes) > 2 else 0,
            self.kill_launcher: 0.2,
            self.end_server: 0.2,
            self.kill_server: 0.4,
            self.storm: 3,
        }
        action = self.chance.choices(list(weights), list(weights.values()))[0] if self.sandboxes else self.create
        others = (self.kill_launcher, self.end_server, self.kill_server, self.storm)
        alone = action in (self.create, self.fork, self.delete_checkpoint, *others)
        if action not in (self.checkpoint_while_written_to, self.kill_agent, *others) and self.chance.random() < 0.03:
            self.kill_after = self.chance.choice((0.001, 0.004, 0.01, 0.02, 0.05))
        self.note(action.__name__)
        if alone:
            action()
            if action in others and self.sandboxes:
                self.look(self.chance.choice(self.sandboxes))
        else:
            sandbox = self.chance.choice(self.sandboxes)
            action(sandbox)
            if sandbox in self.sandboxes and (sandbox.unsure or self.chance.random() < 0.6):
                self.look(sandbox)
        self.kill_after = None

    def look(self, sandbox):
        """Compares what is in a sandbox with what must be; whatever state it is in, the look wakes it."""
        script = f"mkdir -p {FOLDER} && cd {FOLDER} && find . -type f -printf '%P\\n' | xargs -r sha256sum"
        answer = self.api.http.post(f"{sandbox.box.path}/exec/run", json={"cmd": script})
        assert answer.status_code == 200 and answer.json().get("exitCode") == 0, (sandbox.box.id, answer.text, self.history[-8:])
        lines = (line.split() for line in answer.json()["stdout"].splitlines())
        # A write that was cut off may have left its temporary file.
        actual = {name: value for value, name in lines if name in NAMES}
        if sandbox.unsure:
            other, sandbox.unsure = sandbox.unsure, None
            try:
                other.check(actual, "restored")
                sandbox.content = other
                return
            except AssertionError:
                pass
        sandbox.content.check(actual, f"{sandbox.box.id} after {self.history[-8:]}")
        view = sandbox.box.view()
        assert (view["status"], view["memoryMB"]) == ("running", sandbox.memory), (view, self.history[-8:])
        assert "warning" not in view, view

    def settle(self):
        """Everything is as the model says: contents, lists, files on the volume."""
        for sandbox in self.sandboxes:
            self.look(sandbox)
        for checkpoint in self.checkpoints:
            with self.api.fork(checkpoint.id) as fork:
                self.look(Sandbox(fork, checkpoint.content, fork.created["memoryMB"]))
            self.gone.add(fork.id)
        living = {sandbox.box.id for sandbox in self.sandboxes}
        listed = {view["sandboxID"] for status in ("running", "hibernated", "creating", "error") for view in self.api.list_all(status=status)}
        assert listed == living, (listed - living, living - listed)
        kept = {checkpoint.id for checkpoint in self.checkpoints}
        folder = os.path.join(self.server.data_dir, "volume", "checkpoints")
        on_disk = lambda: set(os.listdir(folder))
        wait_for(lambda: on_disk() == kept, "the volume has the checkpoints of the list", 40, 0.2, lambda: on_disk() ^ kept)
        wait_for(lambda: ids_in(os.path.join(self.server.data_dir, "volume", "sandboxes")) <= living, "and the sandboxes", 15, 0.2)
        frozen = [path for path in host.cgroup_folders() if b"frozen 1" in host.read(f"{path}/cgroup.events")]
        assert not frozen, frozen


def used_space(server):
    stat = os.statvfs(os.path.join(server.data_dir, "volume"))
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


@pytest.mark.timeout(0 if STEPS else 400)
@pytest.mark.parametrize("isolation", ["container", "vm"])
def test_whatever_happens_each_sandbox_contains_what_it_must(isolation):
    if isolation == "vm" and not shutil.which("qemu-system-x86_64"):
        pytest.skip("virtual machines need QEMU: apt-get install qemu-system-x86")
    print(f"MODEL_SEED={SEED}")
    with Server("--runtime", isolation) as server:
        walk = Walk(server, SEED, isolation)
        empty = used_space(server)
        begun, steps = time.monotonic(), 0
        try:
            while steps < STEPS if STEPS else time.monotonic() - begun < SECONDS:
                walk.step()
                steps += 1
                if steps % 500 == 0:
                    walk.settle()
                    print(f"{steps} steps, {time.monotonic() - begun:.0f} s", flush=True)
            walk.settle()
        except BaseException as error:
            raise AssertionError(f"MODEL_SEED={SEED}, step {steps}, after {walk.history[-12:]}: {error}") from error
        for sandbox in list(walk.sandboxes):
            walk.delete(sandbox)
        while walk.checkpoints:
            walk.delete_checkpoint()
        wait_for(lambda: not ids_in(os.path.join(server.data_dir, "volume")), "nothing is left on the volume", 20)
        # Space comes back when the last user is gone; the file system takes it back a little later.
        wait_for(lambda: used_space(server) < empty + (800_000_000 if walk.machines else 150_000_000), "the space came back", 60, 0.5, lambda: used_space(server) - empty)
        walk.api.http.close()
        server.stop()
        server.start("--stop-sandboxes")
        server.stop()
        left = server.left_behind()
        assert not left, left
        unexpected = log.unexpected(server.log())
        assert not unexpected, "\n".join(unexpected[:20])
    print(f"{steps} steps in {time.monotonic() - begun:.0f} s: {dict(sorted(walk.counts.items()))}")
