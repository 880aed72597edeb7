"""Network namespaces of a test: a neighbour of the host, and a host of one's own."""

import contextlib
import ctypes
import os
import socket
import subprocess
import uuid

import pytest

from .waiting import wait_for

PORT = 8097


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def namespace(prefix):
    """A network namespace with a name of its own, whose loopback is up."""
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    try:
        run("ip", "netns", "add", name)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("this host lets us make no network namespace")
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def neighbour(ours, theirs):
    """Another network namespace at the other end of a link from this one, which routes to it and whose PORT listens."""
    with namespace("warren-e2e-net") as name:
        link = f"we{name[-8:]}"
        listener = None
        try:
            run("ip", "link", "add", f"{link}a", "type", "veth", "peer", "name", f"{link}b", "netns", name)
            run("ip", "addr", "add", f"{ours}/30", "dev", f"{link}a")
            run("ip", "link", "set", f"{link}a", "up")
            run("ip", "-n", name, "addr", "add", f"{theirs}/30", "dev", f"{link}b")
            run("ip", "-n", name, "link", "set", f"{link}b", "up")
            run("ip", "-n", name, "route", "add", "default", "via", ours)
            listener = subprocess.Popen(["ip", "netns", "exec", name, "python3", "-m", "http.server", str(PORT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(lambda: connects(theirs, PORT), "the host reaches its neighbour", 10)
            yield theirs
        finally:
            if listener:
                listener.kill()
                listener.wait()
            subprocess.run(["ip", "link", "del", f"{link}a"], check=False, capture_output=True)


def connects(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
        return True
    except OSError:
        return False


@contextlib.contextmanager
def host_of_its_own():
    """This thread, and what it starts, in a network namespace without anybody else's links and rules."""
    with namespace("warren-e2e-host") as name:
        with open("/proc/thread-self/ns/net") as before:
            enter(f"/run/netns/{name}")
            try:
                yield name
            finally:
                enter(before.fileno())


def enter(which):
    """Joins a network namespace: a path, or a descriptor."""
    handle = os.open(which, os.O_RDONLY) if isinstance(which, str) else which
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        if isinstance(which, str):
            os.close(handle)
