"""Runs inside the machine that tests/cgroup2/run boots: Warren for real on a host with cgroup version 2 alone.

    inside.py HOW      HOW is how the server is kept: `bare`, `service` or `namespace`

bare        a tiny init; the server starts in the root of the tree, where no limit applies and processes may stay
service     systemd owns the tree; the server is a service of it, in a cgroup of its own
namespace   the tree's root as the server sees it is a cgroup like any other, with processes in it: a container's view

Prints a line per check, `PASS` or `FAIL` first, and `TOTAL` at the end. Standard library alone: nothing is installed for it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HOW = sys.argv[1]
WARREN = "/payload/warren"
DATA = "/var/lib/warren"
URL = "http://127.0.0.1:7070"
# Everything is emulated: what takes a second on a machine takes ten here.
LONG = 300
TREE = Path("/sys/fs/cgroup")

passed = failed = 0
key = ""
begun_with = []


def say(line):
    print(line, flush=True)


def check(name, good, detail=""):
    global passed, failed
    if good:
        passed += 1
    else:
        failed += 1
    say(f"{'PASS' if good else 'FAIL'} {name}{': ' if str(detail) else ''}{detail}")
    return good


def part(function):
    """A part that breaks is a failure, and the others are tried all the same."""
    begun = time.monotonic()
    say(f"---- {function.__doc__ or function.__name__}")
    try:
        function()
    except Exception:
        check(function.__name__, False, traceback.format_exc(limit=3).replace("\n", " | "))
        show_log(30)
        delete_all()
    say(f"     {time.monotonic() - begun:.0f} s")


def delete_all():
    """What a part that broke has left, so that it is not found by the next ones."""
    try:
        for view in call("GET", "/api/sandboxes")[1]:
            call("DELETE", f"/api/sandboxes/{view['sandboxID']}")
    except (OSError, TypeError, KeyError):
        say("     nobody to delete sandboxes")


def sh(command, timeout=LONG):
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=timeout, check=False)


def wait_for(condition, within=LONG, every=0.2):
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(every)


def call(method, path, body=None, timeout=LONG, raw=False):
    """Status and body of a request; a refusal is an answer like any other."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    if raw:
        return status, text
    return status, json.loads(text) if text else None


class Box:
    def __init__(self, view):
        self.id = view["sandboxID"]
        self.path = f"/api/sandboxes/{self.id}"

    def run(self, command, timeout=120):
        status, answer = call("POST", f"{self.path}/exec/run", {"cmd": "sh", "args": ["-c", command], "timeout": timeout})
        assert status == 200, (status, answer)
        return answer

    def out(self, command, timeout=120):
        answer = self.run(command, timeout)
        assert answer["exitCode"] == 0, answer
        return answer["stdout"].strip()

    def start(self, command, **fields):
        status, answer = call("POST", f"{self.path}/exec", {"cmd": "sh", "args": ["-c", command]} | fields)
        assert status == 201, (status, answer)
        return answer["sessionID"]

    def call(self, method, path, body=None):
        return call(method, self.path + path, body)

    def view(self):
        return self.call("GET", "")[1]

    def kill(self):
        status, answer = self.call("DELETE", "")
        assert status == 204, (status, answer)

    def group(self):
        """The folder of its cgroup on this host."""
        found = [path for path in TREE.glob("**/warren-*/*") if path.name.split(".")[0] == self.id]
        assert len(found) == 1, found
        return found[0]

    def read(self, file):
        return (self.group() / file).read_text().strip()


def create(**fields):
    status, answer = call("POST", "/api/sandboxes", {"memoryMB": 1024} | fields)
    assert status == 201, (status, answer)
    return Box(answer)


def groups():
    """Cgroups that are Warren's, and not those of its own service."""
    return sorted(
        str(path.relative_to(TREE))
        for path in TREE.glob("**/")
        if any(re.match(r"warren-[0-9a-f]{6}$|warren-doctor-|warren-helpers", each) for each in path.relative_to(TREE).parts)
    )


def show_log(lines=200):
    text = Path("/var/log/warren.log").read_text(errors="replace") if Path("/var/log/warren.log").exists() else ""
    lines_of = [line for line in text.splitlines() if "making the base template" not in line]
    for line in lines_of[-lines:]:
        say(f"     log: {line[:600]}")


# How the server is started and ended.


class Bare:
    process = None

    def start(self):
        log = open("/var/log/warren.log", "ab")
        self.process = subprocess.Popen(
            [WARREN, "serve", "--data-dir", DATA, "--runtime", "container"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def pid(self):
        return self.process.pid

    def ended(self):
        return self.process.poll() is not None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, sandboxes):
        if sandboxes:
            # The argument is read at the start.
            self.end()
            self.process = subprocess.Popen(
                [WARREN, "serve", "--data-dir", DATA, "--runtime", "container", "--stop-sandboxes"],
                stdout=open("/var/log/warren.log", "ab"),
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            ready()
        self.end()

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=LONG)


class Service:
    unit = Path("/run/systemd/system/warren.service")

    def write(self, more=""):
        self.unit.parent.mkdir(parents=True, exist_ok=True)
        # As little as somebody would write by themselves.
        self.unit.write_text(
            "[Unit]\nDescription=Warren\n[Service]\n"
            f"ExecStart={WARREN} serve --data-dir {DATA} --runtime container {more}\n"
            "Environment=WARREN_TEMPLATE_CACHE=/payload/templates\nTimeoutStopSec=300\n"
            "StandardOutput=append:/var/log/warren.log\nStandardError=append:/var/log/warren.log\n"
        )
        sh("systemctl daemon-reload")

    def start(self):
        if not self.unit.exists():
            self.write()
        done = sh("systemctl start warren")
        assert done.returncode == 0, done.stderr

    def pid(self):
        return int(sh("systemctl show -p MainPID --value warren").stdout)

    def ended(self):
        return sh("systemctl is-active warren").stdout.strip() not in ("active", "activating")

    def kill(self):
        os.kill(self.pid(), signal.SIGKILL)
        wait_for(self.ended)
        sh("systemctl reset-failed warren")

    def stop(self, sandboxes):
        if sandboxes:
            self.end()
            self.write("--stop-sandboxes")
            self.start()
            ready()
        self.end()

    def end(self):
        done = sh("systemctl stop warren")
        assert done.returncode == 0, done.stderr


server = Service() if HOW == "service" else Bare()


def ready():
    def answers():
        assert not server.ended(), "the server has ended"
        try:
            return call("GET", "/readyz", timeout=10)[0] == 200
        except OSError:
            return False

    assert wait_for(answers, 900), "the server does not get ready"


def options():
    """The options of the version 2 tree: one set for the whole host."""
    lines = [line.split(" - ")[1].split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    return sorted({option for line in lines for option in line[2].split(",")} - {"rw", "ro"})


def check_options(when):
    """What the host's owner chose stays. In a namespace nobody can change it, nor is it seen there in full."""
    if HOW != "namespace":
        check(f"{when}, the tree has the options it had", set(begun_with) <= set(options()), f"{begun_with}, now {options()}")


def the_host():
    """the host"""
    kind = sh("stat -fc %T /sys/fs/cgroup").stdout.strip()
    check("the tree is version 2", kind == "cgroup2fs", kind)
    older = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup " in line]
    check("nothing of version 1 is mounted", not older, older or "")
    begun_with[:] = options()
    say(f"     mounted with: {begun_with}")
    say(f"     kernel {os.uname().release}, {os.cpu_count()} CPUs, here {Path('/proc/self/cgroup').read_text().strip()}")
    say(f"     controllers: {(TREE / 'cgroup.controllers').read_text().strip()}")
    say(f"     given on before Warren runs: {(TREE / 'cgroup.subtree_control').read_text().strip() or 'none'}")


def doctor():
    """warren doctor"""
    done = sh(f"{WARREN} doctor --data-dir {DATA} 2>&1")
    for line in done.stdout.splitlines():
        say(f"     {line}")
    check("doctor ends with 0", done.returncode == 0, done.returncode)
    for name, status in re.findall(r"^(cgroup \w+) +(\w+)", done.stdout, re.M):
        check(f"doctor: {name}", status == "ok", status)
    check("doctor leaves no cgroup", not groups(), groups() or "")
    check_options("after doctor")


def serving():
    """warren serve, create, exec"""
    global key
    begun = time.monotonic()
    server.start()
    ready()
    say(f"     ready after {time.monotonic() - begun:.0f} s")
    made = sh(f"{WARREN} keys create --org acme --data-dir {DATA}")
    key = made.stdout.strip()
    assert key, made.stderr
    check("serve is ready", True)
    check_options("with a server")
    say(f"     mounted with: {options()}")
    begun = time.monotonic()
    box = create()
    check("create", True, f"{time.monotonic() - begun:.1f} s")
    codes = [box.run(command)["exitCode"] for command in ("true", "exit 7", "kill -9 $$", "kill -TERM $$")]
    check("exit codes are the commands' own", codes == [0, 7, 137, 143], codes)
    check("nproc says 1", box.out("nproc") == "1", box.out("nproc"))
    total = int(box.out("free -m | awk '/^Mem:/{print $2}'"))
    check("free says 1024 MB", 970 <= total <= 1024, total)
    limits = {file: box.read(file) for file in ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpuset.cpus", "io.max") if (box.group() / file).exists()}
    say(f"     {box.group()}: {limits}")
    check("memory.max is its size", limits.get("memory.max") == str(1 << 30))
    check("cpu.max is one CPU", limits.get("cpu.max") == "100000 100000")
    check("pids.max is set", limits.get("pids.max", "max") != "max", limits.get("pids.max"))
    check("io.max names its disk", re.match(r"7:\d+ rbps=\d+ wbps=\d+ riops=\d+ wiops=\d+$", limits.get("io.max", "")), limits.get("io.max"))
    inside = box.run("cat /proc/self/cgroup; ls -ld /sys/fs/cgroup; stat -fc %T /sys/fs/cgroup")["stdout"]
    say(f"     inside: {inside.split()}")
    check("inside, the tree is version 2 alone", "cgroup2fs" in inside and inside.startswith("0::/") and inside.count("::") == 1)
    for file, value in [("memory.max", "max"), ("pids.max", "max"), ("cpu.max", "max"), ("cgroup.freeze", "1")]:
        done = box.run(f"echo {value} | sudo -n tee /sys/fs/cgroup/{file}", 30)
        check(f"root inside cannot write {file}", done["exitCode"] != 0, done["stderr"].strip()[-80:])
    box.kill()


def memory():
    """memory"""
    box = create()
    done = box.run('python3 -c "x=bytearray(1500*1024*1024)"', 240)
    check("a process that takes more than the limit is killed", done["exitCode"] == 137, done["exitCode"])
    check("the kernel counted it", "oom_kill 0" not in box.read("memory.events"), box.read("memory.events").split("\n")[-3:])
    check("the sandbox goes on", box.out("echo well") == "well", box.view()["status"])
    check("what fits is given", box.out("python3 -c \"x=bytearray(500*1024*1024); print('fits')\"", 240) == "fits")
    done = box.run("dd if=/dev/zero of=/home/sandbox/big bs=1M count=1400 2>&1; sync", 600)
    check("writing a file larger than its memory ends well", done["exitCode"] == 0, done["stdout"].strip().split("\n")[-1])
    check("and ended nobody", box.read("memory.events").split("oom_kill ")[1].split()[0] == "1", box.read("memory.events").replace("\n", ", "))
    box.kill()


def processes():
    """processes"""
    box = create()
    limit = int(box.read("pids.max"))
    # The limit is made small from outside: thousands of forks take minutes in an emulated machine.
    (box.group() / "pids.max").write_text("200")
    session = box.start("f() { f | f & }; f; sleep 600")
    wait_for(lambda: "max 0" not in box.read("pids.events"), 120)
    current = int(box.read("pids.current"))
    check("a fork bomb stops at the limit", current <= 200 and "max 0" not in box.read("pids.events"), f"{current} of {limit}, then of 200; {box.read('pids.events')}")
    box.call("POST", f"/exec/{session}/kill", {"signal": 9})
    gone = wait_for(lambda: int(box.read("pids.current")) < 30, 120)
    check("killing its session ends all of it", gone, box.read("pids.current"))
    check("the sandbox goes on", box.out("echo well") == "well")
    box.kill()


def processor():
    """processor time"""
    box = create()
    script = "import os,time\\nfor _ in range(1): os.fork()\\ne=time.monotonic()+20\\nwhile time.monotonic()<e: pass"
    before = usage(box)
    begun = time.monotonic()
    box.out(f"printf '{script}' >/tmp/burn.py && python3 /tmp/burn.py; sleep 1", 240)
    took = time.monotonic() - begun
    share = (usage(box) - before) / took
    check("two busy loops get about one CPU", 0.5 <= share <= 1.1, f"{share:.2f} over {took:.0f} s, {box.read('cpu.stat').split()[-10:]}")
    box.kill()


def usage(box):
    return int(re.search(r"usage_usec (\d+)", box.read("cpu.stat"))[1]) / 1e6


def commands():
    """a group for each command"""
    box = create()
    other = box.start("sleep 4000")
    below = lambda: {str(path.relative_to(box.group())): (path / "cgroup.procs").read_text().split() for path in box.group().glob("*/")}
    say(f"     groups below with a command that runs: {below()}")
    check("a command has a group of its own", len(below()) >= 1)
    done = box.run("sleep 4001 & setsid sleep 4002 & (setsid sleep 4003 &) ; sleep 4004", 15)
    check("a time limit ends the command", done["exitCode"] == -1, done["exitCode"])
    left = wait_for(lambda: box.run("pgrep -f '[s]leep 400[1-4]'", 60)["exitCode"] == 1, 60)
    check("and all it started", left, box.run("ps ax -o pid,args")["stdout"] if not left else "")
    check("and nothing else", box.run("pgrep -x sleep", 60)["stdout"].strip() != "")
    box.call("POST", f"/exec/{other}/kill", {"signal": 9})
    check("groups of ended commands go", wait_for(lambda: not below(), 60, 1) or wait_for(lambda: (box.run("true"), not [n for n, p in below().items() if p])[1], 60, 1), below())
    box.kill()


def checkpoints():
    """checkpoint, fork, restore"""
    box = create()
    box.out("echo before > /home/sandbox/f; sync")
    box.start("i=0; while :; do i=$((i+1)); echo $i >> /home/sandbox/ticks; done")
    time.sleep(3)
    status, answer = box.call("POST", "/checkpoints", {"name": "one"})
    check("checkpoint", status == 201, answer)
    one = answer["id"]
    find = lambda: next(each for each in box.call("GET", "/checkpoints")[1] if each["id"] == one)
    wait_for(lambda: find()["status"] != "processing", LONG)
    found = find()
    shown = {name: found.get(name) for name in ("status", "holds", "quiesced", "consistency", "pauseMs", "pauseUs", "pauseMicros") if name in found}
    say(f"     {found}")
    check("it is ready and was quiesced", found["status"] == "ready" and found.get("quiesced", True) is not False, shown)
    check("everything goes on afterwards", box.read("cgroup.freeze") == "0" and "frozen 0" in box.read("cgroup.events"))
    first = int(box.out("tail -n1 /home/sandbox/ticks"))
    time.sleep(2)
    second = int(box.out("tail -n1 /home/sandbox/ticks"))
    check("the command runs on", second > first, (first, second))
    box.out("echo after > /home/sandbox/f")
    begun = time.monotonic()
    status, answer = call("POST", f"/api/sandboxes/from-checkpoint/{one}", {})
    check("fork", status == 201, f"{time.monotonic() - begun:.1f} s" if status == 201 else answer)
    fork = Box(answer)
    check("the fork has what was there", fork.out("cat /home/sandbox/f") == "before")
    check("the fork has limits too", fork.read("memory.max") == str(1 << 30) and fork.read("io.max") != "", fork.read("io.max"))
    status, answer = box.call("POST", f"/checkpoints/{one}/restore")
    check("restore", status == 200, answer)
    back = wait_for(lambda: box.view()["status"] == "running" and box.run("cat /home/sandbox/f")["stdout"].strip() == "before", LONG)
    check("restored in place", back, box.group())
    fork.kill()
    box.kill()


def sleeping():
    """hibernate, wake"""
    box = create()
    box.out("echo kept > /home/sandbox/f")
    box.start("sleep 4005")
    status, answer = box.call("POST", "/hibernate")
    check("hibernate", status == 200, answer if status != 200 else "")
    check("hibernated, it has no cgroup", not [each for each in groups() if box.id in each], groups())
    status, answer = box.call("POST", "/wake", {})
    check("wake", status == 200, answer if status != 200 else "")
    check("its disk is as it was", box.out("cat /home/sandbox/f") == "kept")
    check("it has its limits again", box.read("memory.max") == str(1 << 30))
    box.kill()


def scaling():
    """scale up and down"""
    box = create()
    status, answer = box.call("POST", "/scale", {"memoryMB": 4096})
    check("scale up", status == 200, answer)
    check("memory.max follows", box.read("memory.max") == str(4 << 30), box.read("memory.max"))
    check("free follows", 3900 <= int(box.out("free -m | awk '/^Mem:/{print $2}'")) <= 4096)
    say(f"     cpu.max {box.read('cpu.max')}, cpuset.cpus {box.read('cpuset.cpus')!r}")
    # Held, more than the small size has: scaling down must be refused and end nobody.
    box.start("exec python3 -c \"import time; x=bytearray(1300*1024*1024); open('/tmp/held','w').close(); time.sleep(4006)\"")
    assert wait_for(lambda: box.run("test -e /tmp/held")["exitCode"] == 0, LONG, 2)
    status, answer = box.call("POST", "/scale", {"memoryMB": 1024})
    check("scaling below what is in use is refused", 400 <= status < 500, (status, answer))
    check("and changes nothing", box.read("memory.max") == str(4 << 30) and box.run("pgrep -f '[t]ime.sleep.4006'")["exitCode"] == 0)
    box.run("pkill -f '[t]ime.sleep.4006'")
    # Caches of files are in the way, and are taken back.
    box.out("dd if=/dev/zero of=/home/sandbox/cached bs=1M count=1300 2>/dev/null; sync; cat /home/sandbox/cached >/dev/null", 600)
    say(f"     memory.current before: {box.read('memory.current')}")
    status, answer = box.call("POST", "/scale", {"memoryMB": 1024})
    check("scale down", status == 200, answer)
    check("memory.max follows down", box.read("memory.max") == str(1 << 30), f"memory.current {box.read('memory.current')}")
    check("nobody was killed for it", "oom_kill 0" in box.read("memory.events"), box.read("memory.events").replace("\n", ", "))
    box.kill()


def all_processors():
    """as many processors as the host has"""
    box = create(memoryMB=8192)
    check("one as large as the host has all of its processors", box.out("nproc") == str(os.cpu_count()), f"cpuset.cpus {box.read('cpuset.cpus')!r}")
    status, answer = box.call("POST", "/scale", {"memoryMB": 1024})
    assert status == 200, answer
    check("scaled down, it has one", box.out("nproc") == "1" and box.read("cpu.max") == "100000 100000", f"cpuset.cpus {box.read('cpuset.cpus')!r}")
    box.kill()


def killed():
    """kill -9 of the server"""
    box, asleep = create(), create()
    asleep.call("POST", "/hibernate")
    box.out("echo kept > /home/sandbox/f")
    session = box.start("for i in $(seq 1 40); do echo $i; sleep 1; done; exit 7")
    before = sh("pgrep -f '[s]eq 1 40'").stdout
    server.kill()
    check("the command outlives the server", before and sh("pgrep -f '[s]eq 1 40'").stdout == before, before.split())
    begun = time.monotonic()
    server.start()
    ready()
    check("the server starts again", True, f"{time.monotonic() - begun:.1f} s")
    check("the sandbox is taken over", box.view()["status"] == "running" and box.out("cat /home/sandbox/f") == "kept")
    total = box.run("free -m | awk '/^Mem:/{print $2}'")
    check("free still tells its size", total["stdout"].strip().isdigit() and 970 <= int(total["stdout"]) <= 1024, total)
    check("the other sleeps", asleep.view()["status"] == "hibernated")
    ended = wait_for(lambda: next((each for each in box.call("GET", "/exec")[1] if each["sessionID"] == session and not each["running"]), None), 200, 1)
    check("the command's code is its own", ended and ended["exitCode"] == 7, ended)
    check("it can be limited still", box.call("POST", "/scale", {"memoryMB": 4096})[0] == 200 and box.read("memory.max") == str(4 << 30))
    box.kill()
    asleep.kill()
    fresh = create()
    check("new ones can be made", fresh.out("echo new") == "new")
    fresh.kill()


def restarted():
    """an orderly restart"""
    box = create()
    box.out("echo kept > /home/sandbox/f")
    box.start("sleep 4007")
    before = sh("pgrep -f '[s]leep 4007'").stdout
    if HOW == "service":
        sh("systemctl restart warren")
    else:
        server.end()
        server.start()
    ready()
    check("what runs in a sandbox runs on over a restart", before and sh("pgrep -f '[s]leep 4007'").stdout == before, before.split())
    check("the sandbox is there", box.view()["status"] == "running" and box.out("cat /home/sandbox/f") == "kept")
    total = box.run("free -m | awk '/^Mem:/{print $2}'")
    check("free still tells its size", total["stdout"].strip().isdigit() and 970 <= int(total["stdout"]) <= 1024, total)
    if HOW == "service":
        # systemd looks over the controllers it has handed out when units come and go.
        Path("/run/systemd/system/other.service").write_text("[Service]\nExecStart=sleep 5000\nMemoryMax=100M\nCPUQuota=50%\nAllowedCPUs=0\nTasksMax=50\nIOWeight=50\n")
        sh("systemctl daemon-reload; systemctl start other; systemctl stop other; rm /run/systemd/system/other.service; systemctl daemon-reload")
        say(f"     given on by the root: {(TREE / 'cgroup.subtree_control').read_text().strip()}")
        files = {file: box.read(file) for file in ("memory.max", "cpu.max", "pids.max", "cpuset.cpus", "io.max")}
        check("limits outlast systemd's own changes", files["memory.max"] == str(1 << 30) and files["cpu.max"] == "100000 100000", files)
    box.kill()


def the_end():
    """deletes and the end of the server"""
    left = [each for each in groups() if "sb-" in each]
    check("deletes leave no cgroup", wait_for(lambda: not [each for each in groups() if "sb-" in each], 60), left or "")
    box = create()
    box.start("sleep 4008")
    server.stop(sandboxes=True)
    check("the server ended", server.ended())
    check("no cgroup of it is left", wait_for(lambda: not groups(), 60, 1), groups() or "")
    # The distribution's own lxcfs is none of ours.
    left = sh("pgrep -af '/payload/[w]arren|[l]xcfs' | grep -v ' /var/lib/lxcfs'").stdout.strip()
    check("no process of it is left", not left, left)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if DATA in line]
    check("no mount of it is left", not mounts, mounts or "")
    loops = sh("losetup -a").stdout.strip()
    check("no loop device of it is left", not [line for line in loops.splitlines() if DATA in line], loops)
    say(f"     given on by the root afterwards: {(TREE / 'cgroup.subtree_control').read_text().strip()}")


def the_log():
    """the log"""
    text = Path("/var/log/warren.log").read_text(errors="replace")
    # That the database took a second says that the machine is emulated.
    bad = [line for line in text.splitlines() if re.search(r"\b(ERROR|WARN)\b|panicked", line) and " sqlx::" not in line]
    check("nothing unexpected in the log", not bad, len(bad))
    for line in bad[:40]:
        say(f"     log: {line}")


def main():
    os.environ["WARREN_TEMPLATE_CACHE"] = "/payload/templates"
    os.environ["HOME"] = "/root"
    for each in (the_host, doctor, serving):
        part(each)
    if key:
        for each in (commands, processes, processor, memory, checkpoints, sleeping, scaling, all_processors, killed, restarted, the_end):
            part(each)
    part(the_log)
    if failed:
        show_log(60)
    say(f"TOTAL {HOW}: {passed} passed, {failed} failed")


main()
