"""What separates a sandbox from the host: namespaces, ids, devices, the kernel's doors."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import host, settings
from harness.client import marker
from harness.waiting import holds_for, wait_for

PYTHON = "sudo -n python3 -c"
#: QEMU is an ordinary nobody of the host's, without a user namespace.
NAMESPACES = ["pid", "net", "mnt", "ipc", "uts", "cgroup"] + ([] if settings.MACHINES else ["user"])

own_kernel = pytest.mark.containers("what root does to a kernel of its own is its own affair")


@pytest.mark.parametrize("kind", NAMESPACES)
def test_every_namespace_is_its_own(inmate, jailed_root, api, kind):
    for pid in (inmate, jailed_root):
        assert host.namespace(pid, kind) != host.namespace("self", kind)
        assert host.namespace(pid, kind) != host.namespace(settings.SERVER_PID, kind)


def test_two_sandboxes_share_no_namespace(api, inmate):
    with api.create() as other:
        mark = marker()
        other.start("sleep", mark)
        seen = lambda: host.sandbox_processes()[other.id] if settings.MACHINES else host.find_process(mark)
        theirs = wait_for(seen, "it runs")[0]
        for kind in NAMESPACES:
            assert host.namespace(theirs, kind) != host.namespace(inmate, kind), kind
        assert host.ids_of(theirs) != host.ids_of(inmate), "two sandboxes share host users"


def test_root_inside_is_nobody_outside(inmate, jailed_root):
    for pid in (inmate, jailed_root):
        uid, gid = host.ids_of(pid)
        assert uid >= 100_000 and gid >= 100_000, (uid, gid)


def test_every_process_of_a_sandbox_is_confined(prisoner, inmate):
    """Not only the commands: the agent and PID 1 too."""
    for pid in host.sandbox_processes()[prisoner.id]:
        assert host.ids_of(pid)[0] >= 100_000, host.arguments(pid)
        status = host.read(f"/proc/{pid}/status").decode()
        assert re.search(r"^Seccomp:\t2$", status, re.M), host.arguments(pid)
        if not settings.MACHINES:
            assert host.namespace(pid, "user") != host.namespace("self", "user")


def test_sudo_works_inside(prisoner):
    assert prisoner.out("sudo -n id -u && sudo -n touch /root/x && sudo -n ls -A /root | grep -c x") == "0\n1\n"
    assert prisoner.run("sudo -n apt-get --version")["exitCode"] == 0
    prisoner.out("sudo -n useradd -m someone && sudo -n -u someone id -un && sudo -n chown someone /tmp && sudo -n chown root /tmp")


def test_no_host_process_is_seen(prisoner, inmate):
    # Threads of a machine's own kernel do not count.
    assert int(prisoner.out("ps -o pid= --ppid 2 -p 2 --deselect | wc -l")) < 40
    assert not any(str(settings.SERVER_PID) == line.strip() for line in prisoner.out("ps -eo pid=").split("\n"))
    assert "warren serve" not in prisoner.out("ps -eo args= | grep -v grep")
    result = prisoner.run(f"sudo -n kill -0 {settings.SERVER_PID}")
    assert result["exitCode"] != 0


def test_host_files_are_not_seen(prisoner, tmp_path):
    secret = Path("/root/.warren-isolation-test")
    secret.write_text("host secret")
    try:
        for path in (secret, f"/proc/1/root{secret}", f"/proc/self/root{secret}", f"/../../..{secret}"):
            assert "host secret" not in prisoner.run(f"sudo -n cat {path}")["stdout"]
        data = os.environ.get("WARREN_DATA_DIR", "")
        if data:
            assert prisoner.run(f"sudo -n ls {data}")["exitCode"] != 0
    finally:
        secret.unlink()


def test_no_descriptor_of_the_daemon_is_inherited(prisoner):
    listing = prisoner.out("sudo -n sh -c 'for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null; done'")
    for word in ("sqlite", "warren.db", "disk.img", "/dev/loop"):
        assert word not in listing, word
    assert prisoner.out("ls /proc/self/fd | wc -l").strip() in ("3", "4")


@own_kernel
def test_only_harmless_devices_are_there(prisoner):
    names = set(prisoner.out("find /dev -type b -o -type c | sort").split())
    allowed = re.compile(r"/dev/(null|zero|full|random|urandom|tty|console|ptmx|fuse|net/tun|pts/.*)$")
    assert not {name for name in names if not allowed.match(name)}, names
    assert prisoner.run("ls /dev/loop* /dev/sd* /dev/vd* /dev/nvme* /dev/mem /dev/kmsg /dev/kvm 2>/dev/null | grep .")["exitCode"] != 0


@own_kernel
def test_devices_cannot_be_made(prisoner):
    for kind, major, minor in (("b", 7, 0), ("c", 1, 1), ("b", 254, 0), ("c", 10, 237), ("c", 1, 11)):
        result = prisoner.run(f"cd /tmp && sudo -n mknod dev {kind} {major} {minor} && sudo -n head -c1 dev")
        assert result["exitCode"] != 0, (kind, major, minor)
        prisoner.run("sudo -n rm -f /tmp/dev")


@own_kernel
@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /mnt",
        "mount -t proc proc /mnt",
        "mount -t sysfs sys /mnt",
        "mount -t cgroup2 none /mnt",
        "mount -t overlay overlay -o lowerdir=/etc,upperdir=/tmp,workdir=/var/tmp /mnt",
        "mount -t debugfs none /mnt",
        "mount --bind /etc /mnt",
        "mount -o remount,rw /proc/sys",
        "mount -o remount,rw /sys",
        "umount /proc/sys",
        "umount -l /proc",
        "umount -l /sys",
        "unshare -m true",
        "unshare -U true",
        "unshare -Ur mount -t tmpfs none /mnt",
        "unshare -n true",
        "unshare -p -f true",
        "chroot / mount -t tmpfs none /mnt",
        "nsenter -t 1 -m -n true && mount -t tmpfs none /mnt",
        "losetup -f /etc/hostname",
        "swapon /tmp/x",
        "insmod /tmp/x.ko",
        "modprobe dummy",
        "dmesg",
        "reboot -f",
        "hwclock -w",
        "date -s 2001-01-01",
        "sysctl -w kernel.core_pattern=/tmp/x",
        "iptables -P OUTPUT DROP 2>/dev/null || nft flush ruleset",
        "ip link set lo down",
        "ip addr add 10.99.99.99/24 dev lo",
        "ip link add dummy0 type dummy",
    ],
)
def test_root_inside_may_not(prisoner, command):
    result = prisoner.run(f"sudo -n sh -c '{command}'", timeout=20)
    assert result["exitCode"] != 0, result
    assert prisoner.out("echo ok") == "ok\n"


@own_kernel
@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/proc/irq/0/smp_affinity",
        "/proc/1/oom_score_adj",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/block/loop0/queue/scheduler",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/pids.max",
        "/sys/fs/cgroup/cpu.max",
        "/sys/module/kernel/parameters/panic",
    ],
)
def test_the_kernel_s_knobs_cannot_be_turned(prisoner, path):
    if path == "/proc/1/oom_score_adj":
        assert prisoner.run(f"sudo -n sh -c 'echo -1000 > {path}'")["exitCode"] != 0, "it would make itself immortal"
        return
    script = f"import os,sys; fd=os.open({path!r}, os.O_WRONLY); os.write(fd, open({path!r}).read().strip().encode() or b'0' if os.access({path!r}, os.R_OK) else b'h')"
    assert prisoner.run(f'{PYTHON} "{script}"')["exitCode"] != 0, path


@own_kernel
def test_a_crash_runs_nothing_on_the_host(prisoner):
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    folder = Path(tempfile.mkdtemp(prefix="we2e-core-", dir="/tmp"))
    seen, handler = folder / "seen", folder / "handler"
    handler.write_text(f"#!/bin/sh\necho $1 >> {seen}\n")
    handler.chmod(0o755)
    try:
        pattern.write_text(f"|{handler} %e")
        # A copy under a name of our own: others may crash meanwhile too.
        crash = "cp /bin/sleep /tmp/we2e-crasher; for limit in 1 0 unlimited; do (ulimit -c $limit; /tmp/we2e-crasher 100 & sleep 0.1; kill -SEGV $!; wait $!) 2>/dev/null; done; rm /tmp/we2e-crasher"
        subprocess.run(["bash", "-c", crash], check=False)
        wait_for(lambda: seen.exists() and seen.read_text().count("we2e-crasher") == 3, "the handler is run for those of the host", 10)
        seen.write_text("")
        prisoner.run(f"bash -c '{crash}'")
        assert prisoner.run("prlimit --core --pid $$ --noheadings -o SOFT,HARD")["stdout"].split() == ["1", "1"] or settings.MACHINES
        holds_for(lambda: "we2e-crasher" not in seen.read_text(), "nothing is run for a crash inside", 0.5)
    finally:
        pattern.write_text(before)
        shutil.rmtree(folder)


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware", "/proc/acpi", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security"])
def test_the_kernel_s_secrets_cannot_be_read(prisoner, path):
    result = prisoner.run(f"sudo -n sh -c 'if test -d {path}; then ls -A {path} | head -5; else timeout 2 head -c 4096 {path}; fi'")
    output = result["stdout"]
    if path == "/proc/kallsyms":
        assert all(set(line.split()[0]) == {"0"} for line in output.splitlines()[:20] if line), "kernel addresses are shown"
    else:
        assert not output.strip("\0\n"), output[:200]


# System calls, tried from C's side through Python's ctypes as root.

CALLS = {
    "bpf": "c.syscall(321, 0, b'\\0'*128, 128)",
    "perf_event_open": "c.syscall(298, b'\\x01\\0\\0\\0\\x70\\0\\0\\0' + b'\\0'*104, 0, -1, -1, 0)",
    "keyctl": "c.syscall(250, 0, -3, 1)",
    "add_key": "c.syscall(248, b'user', b'x', b'y', 1, -3)",
    "kexec_load": "c.syscall(246, 0, 0, 0, 0)",
    "init_module": "c.syscall(175, b'x', 1, b'')",
    "unshare-user": "c.unshare(0x10000000)",
    "unshare-mount": "c.unshare(0x00020000)",
    "clone-new-user": "c.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "clone3-new-user": "c.syscall(435, (0x10000000).to_bytes(8, 'little') + b'\\0'*24 + (17).to_bytes(8, 'little') + b'\\0'*24, 64)",
    "userfaultfd": "c.syscall(323, 0)",
    "open_by_handle_at": "c.syscall(304, -100, b'\\x08\\0\\0\\0\\x01\\0\\0\\0' + b'\\0'*8, 0)",
    "io_uring_setup": "c.syscall(425, 4, b'\\0'*120)",
    "settimeofday": "c.syscall(164, b'\\0'*16, 0)",
    "clock_settime": "c.syscall(227, 0, b'\\0'*16)",
    "quotactl": "c.syscall(179, 0x80000100, b'/dev/loop0', 0, 0)",
    "acct": "c.syscall(163, b'/tmp/acct')",
    "iopl": "c.syscall(172, 3)",
    "syslog": "c.syscall(103, 3, b'\\0'*4096, 4096)",
    "move_mount": "c.syscall(429, -100, b'/etc', -100, b'/mnt', 0)",
    "fsopen": "c.syscall(430, b'tmpfs', 0)",
    "open_tree": "c.syscall(428, -100, b'/', 1)",
    "pivot_root": "c.syscall(155, b'/mnt', b'/mnt')",
    "swapon": "c.syscall(167, b'/tmp/x', 0)",
    "reboot": "c.syscall(169, 0xfee1dead, 672274793, 0x01234567, 0)",
    "setns": "c.syscall(308, __import__('os').open('/proc/1/ns/user', 0), 0)",
    "fanotify_init": "c.syscall(300, 0, 0)",
    "lookup_dcookie": "c.syscall(212, 0, b'\\0'*64, 64)",
    "TIOCSTI": "__import__('fcntl').ioctl(__import__('pty').openpty()[1], 0x5412, b'x') or 0",
}


@own_kernel
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
@pytest.mark.parametrize("call", CALLS)
def test_dangerous_system_calls_are_refused(prisoner, call):
    prisoner.write(
        "/tmp/call.py",
        f"import ctypes, sys\nc = ctypes.CDLL(None, use_errno=True)\n"
        f"try:\n    result = {CALLS[call]}\nexcept OSError:\n    result = -1\n"
        "print(result, ctypes.get_errno())\nsys.exit(0 if result == -1 else 1)\n".encode(),
    )
    for prefix in ("", "sudo -n "):
        result = prisoner.run(f"{prefix}python3 /tmp/call.py", timeout=20)
        # Ended by a signal is as refused as an error.
        assert result["exitCode"] == 0 or result["exitCode"] > 128, (prefix, result)


def test_nothing_outside_can_be_traced(prisoner):
    script = (
        "import ctypes,sys; c=ctypes.CDLL(None,use_errno=True); "
        f"sys.exit(0 if c.ptrace(16, {settings.SERVER_PID}, 0, 0) == -1 else 1)"
    )
    prisoner.write("/tmp/trace.py", script.encode())
    assert prisoner.run("sudo -n python3 /tmp/trace.py")["exitCode"] == 0


def test_ordinary_tracing_inside_works(prisoner):
    if prisoner.run("command -v strace gdb")["exitCode"] != 0:
        pytest.skip("the base template has neither strace nor gdb")
    assert prisoner.run("strace -f true")["exitCode"] == 0


def test_no_new_privileges_come_from_a_set_uid_file_of_another_sandbox(prisoner):
    """Set-uid root inside means root inside, never more."""
    prisoner.out("sudo -n cp /usr/bin/id /tmp/suid-id && sudo -n chmod 4755 /tmp/suid-id")
    assert "euid=0" in prisoner.out("/tmp/suid-id")
    files = [pid for pid in host.sandbox_processes()[prisoner.id] if host.ids_of(pid)[0] < 100_000]
    assert not files


@pytest.mark.containers("QEMU has no capability at all: test_qemu_is_nobody")
def test_capabilities_do_not_reach_outside(jailed_root):
    status = host.read(f"/proc/{jailed_root}/status").decode()
    assert "0000000000000000" not in re.search(r"CapBnd:\t(\w+)", status)[1], "root inside keeps its everyday rights"
    bounding = int(re.search(r"CapBnd:\t(\w+)", status)[1], 16)
    for name, bit in {"SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_BOOT": 22, "SYS_TIME": 25, "MKNOD": 27, "MAC_ADMIN": 33, "SYSLOG": 34, "BPF": 39}.items():
        assert not bounding >> bit & 1, f"CAP_{name} is in the bounding set"


def test_the_agent_s_socket_is_not_reachable_from_inside(prisoner):
    assert prisoner.run("sudo -n find / -xdev -name agent.sock 2>/dev/null | grep .")["exitCode"] != 0


def test_secrets_of_the_server_are_not_in_any_environment(prisoner):
    everything = prisoner.out("sudo -n sh -c 'cat /proc/[0-9]*/environ 2>/dev/null' | tr '\\0' '\\n'")
    assert settings.KEY not in everything and "OPENCOMPUTER" not in everything


