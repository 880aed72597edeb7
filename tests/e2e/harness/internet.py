"""A small internet for tests: a network namespace on a documentation range, with a DNS server, an authority and servers.

Sandboxes reach it as they reach the real one: through the host's routes. A path outside of the range leads there too, for
private and link-local addresses, so that a sandbox that gets past a fence arrives somewhere and is seen.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import httpx

from . import names
from .authority import TestAuthority
from .waiting import wait_for

#: Addresses no sandbox may reach, one of each range, that lead to the same servers; the last number is the internet's own.
FORBIDDEN = {
    "10/8": "10.213.78",
    "172.16/12": "172.29.78",
    "192.168/16": "192.168.178",
    "shared (CGNAT)": "100.78.78",
    "link-local": "169.254.78",
    "protocol assignments": "192.0.0",
    "slots of others": "198.19.255",
    "reserved": "240.0.0",
}


class Internet:
    """`number` tells those of one machine apart: each has 16 of the 256 addresses. Without `servers` there are only those that are
    added with `listen`."""

    def __init__(self, number=0, servers=True):
        (number, self.claim), self.has_servers = claim(number), servers
        first = 16 * (number % 16)
        self.at = lambda offset: f"198.51.100.{first + offset}"
        self.host, self.dns, self.web, self.other, self.evil = (self.at(each) for each in (1, 2, 3, 4, 5))
        self.namespace, self.link = f"warren-e2e-web{number}", f"we2ew{number}"
        self.forbidden = {name: f"{start}.{100 + number}" for name, start in FORBIDDEN.items()}
        self.folder = Path(tempfile.mkdtemp(prefix="e2e-internet-"))
        self.program = self.names = self.control = None

    def __enter__(self):
        try:
            self._make_network()
            self._make_certificates()
            self._start_names()
            if self.has_servers:
                self._start_servers()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    @property
    def resolver(self):
        return f"{self.dns}:53"

    def listen(self, offset, *ports):
        """Sockets that listen at an address, a further one unless it is there: the address and they."""
        address = self.at(offset)
        if address not in (self.web, self.other, self.evil):
            run("ip", "-n", self.namespace, "addr", "add", f"{address}/28", "dev", f"{self.link}b")
        return address, *(names.listener_in(self.namespace, address, port) for port in ports)

    # --- what arrived

    def records(self, after=0):
        return self.control.get("/records", params={"after": after}).json()

    def now(self):
        """A place in the record, after everything that has been sent before."""
        self.settle()
        return len(self.records())

    def settle(self):
        """Returns when the servers have read what was sent to them before: a request of our own comes through."""
        mark = uuid.uuid4().hex
        with socket.create_connection((self.web, 80), timeout=10) as connection:
            connection.sendall(f"GET /status/200?fence={mark} HTTP/1.1\r\nHost: fence\r\nConnection: close\r\n\r\n".encode())
            while connection.recv(4096):
                pass

    def saw(self, text, after=0):
        """What arrived that holds this text anywhere: in a path, a header, a body, a name."""
        self.settle()
        return [each for each in self.records(after) if text in json.dumps(each)]

    def wait_saw(self, text, after=0, within=10.0):
        return wait_for(lambda: self.saw(text, after), f"the servers see {text}", within)

    def settings(self, **values):
        self.control.put("/settings", json=values)

    # --- how it is made

    def _make_network(self):
        self._remove_network()
        run("ip", "netns", "add", self.namespace)
        inside = lambda *words: run("ip", "-n", self.namespace, *words)
        run("ip", "link", "add", f"{self.link}a", "type", "veth", "peer", "name", f"{self.link}b", "netns", self.namespace)
        run("ip", "addr", "add", f"{self.host}/28", "dev", f"{self.link}a")
        run("ip", "link", "set", f"{self.link}a", "up")
        inside("link", "set", "lo", "up")
        for address in (self.dns, self.web, self.other, self.evil):
            inside("addr", "add", f"{address}/28", "dev", f"{self.link}b")
        inside("link", "set", f"{self.link}b", "up")
        inside("route", "add", "default", "via", self.host)
        for address in self.forbidden.values():
            inside("addr", "add", f"{address}/32", "dev", f"{self.link}b")
            run("ip", "route", "add", f"{address}/32", "dev", f"{self.link}a")

    def _remove_network(self):
        for command in (("ip", "link", "del", f"{self.link}a"), ("ip", "netns", "del", self.namespace)):
            subprocess.run(command, check=False, capture_output=True)

    def _make_certificates(self):
        self.authority = TestAuthority(self.folder / "ca")
        make = self.authority.certificate
        self.contexts = [
            make("*.test.example", "*.pages.example", "*.deep.pages.example", "evil.example", "*.evil.example", self.web),
            make("another.example"),
            make("expired.test.example", days=-1),
            make("selfsigned.test.example", signed=False),
        ]
        self.contexts[1]["names"] = ["wrong.test.example"]
        # The first that fits is taken: the odd ones before the wildcard.
        self.contexts = self.contexts[1:] + self.contexts[:1]

    def _start_names(self):
        udp, tcp = names.sockets_in(self.namespace, self.dns)
        self.names = names.Names(udp, tcp)
        self.names.records = {
            "*.test.example": [self.web],
            "*.pages.example": [self.other],
            "other.test.example": [self.other],
            "evil.example": [self.evil],
            "*.evil.example": [self.evil],
            "use-application-dns.net": [self.evil],
        }

    def _start_servers(self):
        config = {
            "control": str(self.folder / "control"),
            "contexts": self.contexts,
            "folder": str(self.folder),
            "datagrams": self.evil,
        }
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        program = Path(__file__).parent.parent / "egress" / "upstream.mjs"
        self.log = (self.folder / "log").open("w+b")
        self.program = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "node", str(program), str(path)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )
        said = lambda: (self.folder / "log").read_text()
        deadline = time.monotonic() + 30
        while "ready" not in said():
            assert self.program.poll() is None and time.monotonic() < deadline, f"the servers did not start: {said()}"
            time.sleep(0.02)
        self.control = httpx.Client(transport=httpx.HTTPTransport(uds=config["control"]), base_url="http://control", timeout=20)

    def end(self):
        if self.control:
            self.control.close()
        if self.program and self.program.poll() is None:
            self.program.terminate()
            self.program.wait(10)
        if self.names:
            self.names.close()
        self._remove_network()
        self.claim.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def claim(number):
    """That number, or the next that nobody on this machine has, and the socket that keeps it ours until it is closed, also by our end."""
    for each in range(number, 16):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0warren-e2e-web{each}")
            return each, holder
        except OSError:
            holder.close()
    raise AssertionError(f"all of the small internets from {number} to 15 are in use")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


def can_be_made():
    """Whether this machine lets us have one, and has what it is made of; else why not."""
    if os.geteuid() != 0:
        return "needs root to make a network namespace"
    for program in ("ip", "node", "openssl"):
        if not shutil.which(program):
            return f"needs {program}"
    return None
