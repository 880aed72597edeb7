"""A sandbox that misbehaves suffers alone, and says why."""

import os
import signal as signals
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import host, settings
from harness.client import SMALL, Box
from harness.waiting import wait_for


class Neighbour:
    """Watches, while something misbehaves, that others are served."""

    def __init__(self, api):
        self.api = api

    def __enter__(self):
        self.box = self.api.create()
        return self

    def __exit__(self, *_):
        self.box.__exit__()

    def is_served(self, within=15.0):
        start = time.monotonic()
        assert self.box.out("echo ok", timeout=30) == "ok\n"
        with self.api.create() as fresh:
            assert fresh.out("echo ok", timeout=30) == "ok\n"
        assert self.api.get("/health", timeout=10).status_code == 200
        assert time.monotonic() - start < within * settings.PATIENCE, "the neighbours were slowed down too much"


@pytest.fixture
def neighbour(api):
    with Neighbour(api) as found:
        yield found


def ask(box, command, timeout=60, **fields):
    """A command whose outcome may be any honest one: a result, or a 4xx/5xx that says why."""
    body = {"cmd": "sh", "args": ["-c", command], "timeout": timeout} | fields
    return box.api.http.post(f"{box.path}/exec/run", json=body, timeout=timeout + 40)


def is_well_or_says_why(box, within=40.0):
    """It works, or its state is `error` with a reason and its data plane says so; never anything between."""

    def settled():
        view = box.view()
        if view["status"] == "error":
            assert view.get("statusReason"), "an error without a reason"
            answer = box.api.http.post(f"{box.path}/exec/run", json={"cmd": "true"}, timeout=20)
            assert answer.status_code == 410, answer.text
            return view["statusReason"]
        answer = ask(box, "echo well", timeout=10)
        return answer.status_code == 200 and answer.json().get("stdout") == "well\n" and "well"

    return wait_for(settled, f"{box.id} works or says why", within, 0.3)


@pytest.mark.parametrize(("fields", "cpus", "megabytes"), [({"memoryMB": 1024}, 1, 1024), ({"memoryMB": 8192}, 2, 8192), ({"memoryMB": 16384}, 4, 16384)])
def test_a_sandbox_sees_its_own_size(api, fields, cpus, megabytes):
    answer = api.post("/api/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    with Box(api, answer.json()) as box:
        # A machine has processors of its own, however few there are to run them on.
        expected = cpus if settings.MACHINES else min(cpus, os.cpu_count())
        assert int(box.out("nproc")) == expected
        assert int(box.out("python3 -c 'import os; print(len(os.sched_getaffinity(0)))'")) == expected
        total = int(box.out("free -m | awk '/^Mem:/{print $2}'"))
        lxcfs = "lxcfs" in box.out("cat /proc/mounts")
        if not lxcfs and total > megabytes * 1.01:
            pytest.skip("free shows the host's memory: no lxcfs on this host")
        assert megabytes * 0.95 <= total <= megabytes


def test_cpu_time_is_limited(api, on_host):
    with api.create(memoryMB=1024) as box:
        script = "import multiprocessing as m, time\ndef f(_):\n  t=time.process_time; e=time.monotonic()+2\n  while time.monotonic()<e: pass\n  return t()\nif __name__=='__main__': print(sum(m.Pool(4).map(f, range(4))))"
        box.write("/tmp/burn.py", script.encode())
        assert float(box.out("python3 /tmp/burn.py")) < 2 * 1.35, "four busy processes used more than one CPU"


def test_a_memory_bomb_ends_only_itself(api, neighbour):
    with api.create(memoryMB=1024) as box:
        bomb = "python3 -c \"x=[]\nwhile True: x.append(bytearray(64*1024*1024))\""
        with ThreadPoolExecutor(1) as pool:
            exploding = pool.submit(lambda: ask(box, bomb))
            neighbour.is_served()
            answer = exploding.result()
        if answer.status_code == 200 and "exitCode" in answer.json():
            assert answer.json()["exitCode"] not in (0, -1), answer.json()
        assert is_well_or_says_why(box) == "well", "the agent must survive what its guest eats"
        neighbour.is_served()


def test_memory_is_not_lent_beyond_its_size(api):
    with api.create(memoryMB=1024) as box:
        assert box.run("python3 -c \"x=bytearray(1500*1024*1024)\"")["exitCode"] != 0
        assert box.out("python3 -c \"x=bytearray(600*1024*1024); print('fits')\"") == "fits\n"


def test_shared_memory_counts_too(api, neighbour):
    with api.create(memoryMB=1024) as box:
        ask(box, "dd if=/dev/zero of=/dev/shm/x bs=1M count=3000", timeout=30)
        neighbour.is_served()
        ask(box, "rm -f /dev/shm/x")
        is_well_or_says_why(box)


# Takes as many terminals and as much asynchronous I/O as there is, says how many, and holds them.
TAKE_SHARED = """
import ctypes, os, platform, sys, time
io_setup = 206 if platform.machine() == "x86_64" else 0
libc, terminals, contexts = ctypes.CDLL(None), [], 0
try:
    while len(terminals) < 5000:
        terminals.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
except OSError:
    pass
while contexts < 200 and libc.syscall(io_setup, ctypes.c_long(1000), ctypes.byref(ctypes.c_ulong(0))) == 0:
    contexts += 1
print(len(terminals), contexts, flush=True)
time.sleep(float(sys.argv[1]))
"""


def test_what_the_kernel_counts_for_all_is_not_taken_from_others(api):
    with api.create() as greedy, api.create() as other:
        for box in (greedy, other):
            box.write("/tmp/take.py", TAKE_SHARED.encode())
        session = greedy.start("python3", "/tmp/take.py", "60")
        said = lambda: greedy.call("GET", f"/exec/{session}/result").json()["stdout"]
        took = wait_for(said, "it has taken what it can", 20)
        terminals, contexts = (int(word) for word in other.out("python3 /tmp/take.py 0").split())
        assert terminals >= 64 and contexts >= 1, f"after another took {took}"


# Fills the buffers of 2500 sockets that nobody reads, half a megabyte each, and holds them.
FILL_BUFFERS = """
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sender, held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), []
for _ in range(2500):
    each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    each.bind(("127.0.0.1", 0))
    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    held.append(each)
    for _ in range(16):
        try:
            sender.sendto(b"x" * 60000, each.getsockname())
        except OSError:
            pass
open("/tmp/full", "w").close()
time.sleep(60)
"""


def megabytes_of_datagrams():
    """What the host's kernel holds of them, for all its namespaces."""
    with open("/proc/net/sockstat") as lines:
        words = next(line for line in lines if line.startswith("UDP:")).split()
    return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_buffers_of_sockets_are_part_of_its_size(api, neighbour, on_host):
    before = megabytes_of_datagrams()
    with api.create() as box:
        box.write("/tmp/fill.py", FILL_BUFFERS.encode())
        session = box.start("python3", "/tmp/fill.py")
        ended = lambda: not (box.session(session) or {"running": False})["running"]
        wait_for(lambda: ended() or box.run("test -e /tmp/full")["exitCode"] == 0, "its buffers are full, or it was ended", 60)
        assert megabytes_of_datagrams() - before <= 1024
        neighbour.is_served()


def test_a_fork_bomb_ends_at_its_limit(api, neighbour):
    with api.create() as box:
        session = box.start("bash", "-c", "f() { f | f & }; f; sleep 600")
        processes = lambda: len(host.sandbox_processes().get(box.id, []))
        # Those of a machine only its own kernel sees.
        wait_for(lambda: settings.MACHINES or processes() > 500, "the bomb goes off", 30)
        neighbour.is_served(30)
        assert processes() < 40_000
        box.api.http.post(f"{box.path}/exec/{session}/kill", json={"signal": 9}, timeout=30)
        outcome = is_well_or_says_why(box, 60)
        neighbour.is_served()
        if outcome == "well":
            wait_for(lambda: processes() < 100, "killing the session ended all of it", 20)
    wait_for(lambda: not host.sandbox_processes().get(box.id), "deleting ends all of it", 30)


@pytest.mark.containers("groups are their own kernel's")
def test_the_number_of_cgroups_is_limited(api, neighbour):
    with api.create() as box:
        made = box.out("""sudo python3 -c '
import os, sys
for number in range(20000):
    try:
        os.mkdir("/sys/fs/cgroup/%d" % number)
    except BlockingIOError:
        sys.exit(print(number))
' """)
        assert 4000 <= int(made) <= 8192
        assert box.run("cd /sys/fs/cgroup/0 && sudo sh -c 'echo max > ../cgroup.max.descendants'")["exitCode"] != 0, "the limit is the host's"
        neighbour.is_served()
        # The agent has no group left for a command, and says so.
        refused = ask(box, "true")
        assert refused.status_code >= 400 or refused.json()["exitCode"] == 0, refused.text
        assert box.call("POST", "/hibernate").status_code == 200
        assert box.out("echo well") == "well\n"


def test_the_number_of_processes_is_limited(api):
    with api.create() as box:
        script = "import os,time\nn=0\ntry:\n  while n < 60000:\n    if os.fork()==0: time.sleep(30); os._exit(0)\n    n+=1\nexcept OSError: pass\nprint(n)\nos.system('pkill -P %d' % os.getpid())"
        box.write("/tmp/forks.py", script.encode())
        answer = ask(box, "python3 /tmp/forks.py", timeout=60)
        if answer.status_code == 200 and answer.json().get("stdout"):
            assert int(answer.json()["stdout"]) < 50_000
        is_well_or_says_why(box)


def test_a_full_disk_hurts_only_its_own(api, neighbour):
    with api.create() as box:
        result = box.run("fallocate -l 30G /home/sandbox/big", timeout=60)
        assert result["exitCode"] != 0 and "space" in result["stderr"].lower(), result
        box.out("fallocate -l $(($(df --output=avail -B1 / | tail -1) - 1048576)) /home/sandbox/fill || true")
        answer = box.api.http.put(f"{box.path}/files", params={"path": "/home/sandbox/more"}, content=b"x" * 64 * 1024 * 1024)
        assert 400 <= answer.status_code <= 507 and answer.status_code != 500, answer.text
        assert "error" in answer.json()
        assert box.api.http.head(f"{box.path}/files", params={"path": "/home/sandbox/more"}).status_code == 404
        result = box.run("echo still here; seq 1 100000 | tail -1")
        assert result["stdout"] == "still here\n100000\n", "a command's output needs no free disk"
        neighbour.is_served()
        box.out("rm -f ~/fill ~/big")
        box.write("/home/sandbox/after", b"x")


def test_output_without_end_does_not_fill_the_host(api, neighbour):
    with api.create() as box:
        session = box.start("sh", "-c", "yes | head -c 2000000000")
        wait_for(lambda: not box.session(session)["running"], "two gigabytes without a reader went by", 60, 0.2)
        assert box.session(session)["exitCode"] == 0
        assert is_well_or_says_why(box) == "well"
        neighbour.is_served()


def test_a_great_many_files(api, neighbour):
    with api.create() as box:
        script = "import os\nfor d in range(200):\n  os.mkdir(f'/tmp/m{d}')\n  for n in range(1000): os.close(os.open(f'/tmp/m{d}/{n}', os.O_CREAT|os.O_WRONLY))"
        box.write("/tmp/many.py", script.encode())
        box.out("python3 /tmp/many.py", timeout=120)
        neighbour.is_served()
        assert box.out("find /tmp -type f | wc -l").strip() == "200001"
        start = time.monotonic()
        box.kill()
        assert time.monotonic() - start < 60


def test_killing_pid_1_from_inside(api, neighbour):
    with api.create() as box:
        box.write("/home/sandbox/f", b"x")
        ask(box, "sudo -n kill -9 1", timeout=10)
        outcome = is_well_or_says_why(box)
        neighbour.is_served()
        if outcome == "well":
            assert box.read("/home/sandbox/f") == b"x"


def agents(box):
    """Host pids of the sandbox's own programs: what is there before any command."""
    return host.sandbox_processes()[box.id]


@pytest.mark.parametrize("signal", ["KILL", "SEGV", "STOP"])
def test_an_agent_that_dies_or_stops(api, neighbour, signal):
    """As root inside can do to it, and as the host's out-of-memory killer might."""
    with api.create() as box:
        box.write("/home/sandbox/f", b"kept")
        pids = agents(box)
        assert pids
        init, *rest = sorted(pids)
        agent = rest[-1] if rest else init
        os.kill(agent, getattr(signals, f"SIG{signal}"))
        if signal == "STOP":
            answer = box.api.http.post(f"{box.path}/exec/run", json={"cmd": "true", "timeout": 5}, timeout=90)
            assert answer.status_code in (200, 410, 502, 503), answer.text
        neighbour.is_served()
        if signal == "STOP":
            try:
                os.kill(agent, signals.SIGCONT)
            except ProcessLookupError:
                pass
        outcome = is_well_or_says_why(box, 60)
        if outcome == "well":
            assert box.read("/home/sandbox/f") == b"kept"


def test_everything_inside_is_killed(api, neighbour):
    with api.create() as box:
        ask(box, "sudo -n kill -9 -1", timeout=10)
        is_well_or_says_why(box)
        neighbour.is_served()


def test_the_sandbox_s_own_files_are_destroyed(api, neighbour):
    with api.create() as box:
        ask(box, "sudo -n rm -rf --no-preserve-root / 2>/dev/null", timeout=60)
        neighbour.is_served()
        answer = box.api.http.post(f"{box.path}/exec/run", json={"cmd": "true"}, timeout=30)
        assert answer.status_code in (200, 400, 410, 502, 503), answer.text
        # The template is everybody's: it must be whole.
        with api.create() as fresh:
            assert fresh.out("python3 -c 'print(1)'") == "1\n"


def test_a_sandbox_in_error_is_deleted_like_any_other(api):
    box = api.create()
    ask(box, "sudo -n kill -9 1", timeout=10)
    is_well_or_says_why(box)
    box.kill()
    assert box.status() == "stopped"
    wait_for(lambda: not host.sandbox_processes().get(box.id), "nothing of it runs", 10)


def test_many_sandboxes_misbehave_at_once(api, neighbour):
    boxes = [api.create(**SMALL) for _ in range(6)]
    try:
        for n, box in enumerate(boxes):
            box.start("sh", "-c", ["yes > /dev/null", "while :; do :; done", "dd if=/dev/zero of=/tmp/x bs=1M count=2000", "find / -type f -exec cat {} + > /dev/null 2>&1", "while :; do /bin/true; done", "yes"][n])
        neighbour.is_served(30)
    finally:
        for box in boxes:
            box.kill()
