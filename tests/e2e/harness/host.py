"""The host's side: which processes, cgroups, mounts and files belong to sandboxes, and what is left of them.

Knows nothing of how the runtime is built: a sandbox's id appears in the path of its cgroup and of its files, and a
command is found by arguments that no other process has.

    python -m harness.host snapshot FILE        remember what is there now
    python -m harness.host compare FILE DIR…    say what is there now and was not then; DIR = the server's own folders
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from . import settings

SANDBOX_ID = re.compile(r"\bsb-[0-9a-f]{8}\b")
OURS = re.compile(r"\bwarren[-_][0-9a-f]{6}\b|\bsb-[0-9a-f]{8}\b")


def sync(place):
    """Has everything of a file system written to what it is on."""
    subprocess.run(["sync", "--file-system", place], check=True, timeout=60)


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(path):
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def arguments(pid):
    return read(f"/proc/{pid}/cmdline").split(b"\0")


def parent(pid):
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def find_process(*words):
    """Host pids whose arguments hold all these words."""
    wanted = [word.encode() for word in words]
    return [pid for pid in processes() if all(word in arguments(pid) for word in wanted)]


def namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def ids_of(pid):
    """Real uid and gid, as the host counts."""
    status = dict(line.split(":\t", 1) for line in read(f"/proc/{pid}/status").decode().splitlines() if ":\t" in line)
    return int(status["Uid"].split()[0]), int(status["Gid"].split()[0])


def sandbox_processes():
    """Host pids by the id of the sandbox whose cgroup they are in."""
    found = {}
    for pid in processes():
        match = SANDBOX_ID.search(read(f"/proc/{pid}/cgroup").decode(errors="replace"))
        if match:
            found.setdefault(match.group(), []).append(pid)
    return found


def cgroup_folders():
    """Folders of all cgroup trees that look like ours."""
    found = set()
    for folder, subfolders, _ in os.walk("/sys/fs/cgroup"):
        for name in subfolders:
            path = os.path.join(folder, name)
            if OURS.search(path):
                found.add(path)
    return found


def loop_devices():
    """Backing files by loop device."""
    found = {}
    for folder in Path("/sys/block").glob("loop*"):
        backing = folder / "loop" / "backing_file"
        if backing.exists():
            found[folder.name] = read(backing).decode(errors="replace").strip()
    return found


def mounts():
    return [line.split()[4] + " " + line.split(" - ", 1)[1] for line in read("/proc/self/mountinfo").decode().splitlines()]


def named_network_namespaces():
    """Those that a mount keeps without a process."""
    named = set()
    for folder in ("/run/netns", "/var/run/netns"):
        if os.path.isdir(folder):
            named |= {f"{folder}/{name}" for name in os.listdir(folder)}
    named |= {line for line in mounts() if " nsfs " in f" {line} "}
    return named


def command_lines(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return set()
    return set(done.stdout.splitlines())


def network_links():
    return {line.split(": ")[1].split("@")[0] for line in command_lines("ip", "-o", "link") if ": " in line}


def program_processes():
    """Processes of the program and of sandboxes, with what tells whose they are."""
    found = set()
    for pid in processes():
        words, group = arguments(pid), read(f"/proc/{pid}/cgroup").decode(errors="replace")
        if SANDBOX_ID.search(group) or words[1:2] == [b"launcher"] or b"--data-dir" in words or b"lxcfs" in words[0]:
            found.add(f"{pid} {b' '.join(words).decode(errors='replace')} {' '.join(sorted(set(group.split())))}")
    return found


def snapshot():
    return {
        "mounts": sorted(set(mounts())),
        "loop devices": sorted(f"{name} of {file}" for name, file in loop_devices().items()),
        "cgroups": sorted(cgroup_folders()),
        "network namespaces": sorted(named_network_namespaces()),
        "network links": sorted(network_links()),
        "nftables tables": sorted(command_lines("nft", "list", "tables")),
        "processes": sorted(program_processes()),
    }


def tag_of(folder):
    """How a server tells its cgroups, links and tables from another's: by its data directory."""
    return hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:6]


def leaked(before, folders=()):
    """What is there now, was not before, and belongs to the servers of these data directories.

    While another server runs on this machine, what cannot be told apart is left out.
    """
    words = [word for folder in folders for word in (os.path.realpath(folder), tag_of(folder))]
    alone = not find_process("serve", "--data-dir")
    found = []
    for kind, items in snapshot().items():
        for item in sorted(set(items) - set(before.get(kind, []))):
            if any(word in item for word in words) or (alone and OURS.search(item)):
                found.append(f"{kind}: {item}")
    return found


def wait_nothing_leaked(before, folders=(), within=15.0):
    deadline = time.monotonic() + settings.patient(within)
    while (found := leaked(before, folders)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def main():
    action, file, *folders = sys.argv[1:]
    if action == "snapshot":
        Path(file).write_text(json.dumps(snapshot()))
        return 0
    found = wait_nothing_leaked(json.loads(Path(file).read_text()), folders)
    for line in found:
        print(f"left behind: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
