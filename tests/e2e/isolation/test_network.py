"""Sandboxes reach neither each other nor the host; the outside only when the host can."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from harness import host, settings
from harness.namespaces import neighbour
from harness.waiting import wait_for

# Tries all `address port` pairs of its input at once and prints those that were reached.
CONNECT = """
import concurrent.futures as f, socket, sys
def reached(line):
    address, port = line.split()
    try:
        socket.create_connection((address, int(port)), timeout=2).close()
        return line
    except OSError:
        return None
lines = sys.stdin.read().splitlines()
with f.ThreadPoolExecutor(64) as pool:
    print("\\n".join(filter(None, pool.map(reached, lines))))
"""


@pytest.fixture(scope="module")
def pair(api):
    with api.create() as one, api.create() as two:
        for box in (one, two):
            box.write("/tmp/connect.py", CONNECT.encode())
        yield one, two


def reached(box, targets):
    """Those of these `(address, port)` that the sandbox can connect to."""
    box.write("/tmp/targets", "".join(f"{address} {port}\n" for address, port in targets).encode())
    lines = box.out("python3 /tmp/connect.py < /tmp/targets").splitlines()
    return {tuple(line.split()) for line in lines if line}


def connects(box, address, port):
    return bool(reached(box, [(address, port)]))


def addresses_inside(box):
    return [word.split("/")[0] for word in box.out("ip -o -4 addr show | awk '{print $4}'").split() if not word.startswith("127.")]


def host_addresses():
    found = set()
    for line in host.command_lines("ip", "-o", "-4", "addr"):
        found.add(line.split()[3].split("/")[0])
    return found


def test_loopback_works_inside(pair):
    one, _ = pair
    one.out("python3 -m http.server 8099 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 0.1; for i in $(seq 50); do curl -sf 127.0.0.1:8099 >/dev/null && exit 0; sleep 0.1; done; exit 1")


def test_sandboxes_do_not_see_each_other(pair):
    one, two = pair
    two.out("(python3 -m http.server 8098 --bind 0.0.0.0 >/dev/null 2>&1 &) ; for i in $(seq 50); do curl -sf 127.0.0.1:8098 >/dev/null && exit 0; sleep 0.1; done; exit 1")
    # The same addresses inside every sandbox: reaching one's own is not reaching the other's, which listens.
    assert addresses_outside(), "the host gives sandboxes no address of their own"
    addresses = {*addresses_inside(two), *addresses_outside()}
    assert not reached(one, [(address, 8098) for address in addresses])
    if one.run("command -v ping")["exitCode"] == 0:
        for address in sorted(addresses_outside() - set(addresses_inside(one)))[:10]:
            assert one.run(f"ping -c1 -W1 {address}")["exitCode"] != 0, address


def addresses_outside():
    """Addresses between host and sandboxes: of the range set aside for it, as the host's routes and rules have them."""
    lines = host.command_lines("ip", "-4", "route", "show", "table", "all") | host.command_lines("nft", "list", "ruleset")
    return {address for line in lines for address in re.findall(r"\b198\.1[89]\.\d+\.\d+\b", line)}


def test_the_host_is_not_reached(pair):
    one, _ = pair
    port = urlsplit(settings.URL).port
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.settimeout(0.2)
        ours = listener.getsockname()[1]
        gateway = one.out("ip route show default | awk '{print $3}'").split()
        targets = {*host_addresses(), *gateway, "127.0.0.1", "0.0.0.0", "localhost"}
        found = reached(one, [(address, each) for address in targets for each in (port, ours)])
        assert not found, f"a sandbox reached the host at {found}"
        with pytest.raises(TimeoutError):
            listener.accept()


# What listens on port 80 of 169.254.169.254 is the sandbox's own, see test_metadata.
@pytest.mark.parametrize("address", ["169.254.170.2", "100.100.100.200", "10.0.0.1", "172.16.0.1", "192.168.0.1", "192.168.1.1", "fd00:ec2::254", "fe80::1"])
def test_private_and_metadata_addresses_are_not_reached(pair, address):
    one, _ = pair
    assert not connects(one, address, 80)


def test_the_metadata_of_a_cloud_are_not_reached(pair):
    one, _ = pair
    assert not reached(one, [("169.254.169.254", port) for port in (443, 8080, 8775)])
    for path in ("/latest/meta-data/", "/computeMetadata/v1/", "/metadata/instance"):
        assert one.out(f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' -H 'Metadata: true' http://169.254.169.254{path}") == "404"


def test_a_listener_of_another_namespace_of_the_host_is_not_reached(pair):
    """A neighbour on a private range that the host routes to."""
    one, _ = pair
    with neighbour("10.213.77.1", "10.213.77.2") as theirs:
        assert not connects(one, theirs, 8097)


@pytest.mark.parametrize("isolation", ["container", "vm"])
def test_the_outside_is_reached(api, isolation):
    """Of a range that is nobody's own, so that it is there on hosts without a way out too."""
    if isolation == "vm" and not shutil.which("qemu-system-x86_64"):
        pytest.skip("virtual machines need QEMU: apt-get install qemu-system-x86")
    with neighbour("198.51.100.253", "198.51.100.254") as theirs, api.create(isolation=isolation) as box:
        assert "Directory listing" in box.out(f"curl -sS --max-time {int(10 * settings.PATIENCE)} http://{theirs}:8097/")


def test_addresses_cannot_be_forged(pair):
    one, _ = pair
    script = "import socket; s=socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('lo',0))"
    one.write("/tmp/raw.py", script.encode())
    assert one.run("python3 /tmp/raw.py")["exitCode"] != 0
    if not settings.MACHINES:
        assert one.run("sudo -n ip addr add 10.99.0.1/24 dev eth0")["exitCode"] != 0


def test_no_host_listener_answers_on_udp(pair):
    one, _ = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.settimeout(1)
        port = listener.getsockname()[1]
        got = []

        def listen():
            try:
                got.append(listener.recv(100))
            except TimeoutError:
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        for address in host_addresses() | set(one.out("ip route show default | awk '{print $3}'").split()):
            one.run(f"python3 -c \"import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('{address}', {port}))\"")
        thread.join()
    assert not got


# Fetches a page as a sandbox would: with no setting of this machine's own.
FETCH = "import urllib.request as u; u.urlopen('https://pypi.org/simple/iniconfig/', timeout=10).read()"


def outside_is_there():
    plain = {"PATH": os.environ["PATH"]}
    return subprocess.run([sys.executable, "-c", FETCH], env=plain, capture_output=True, timeout=30, check=False).returncode == 0


def test_packages_can_be_installed(api):
    if not outside_is_there():
        pytest.skip("the host itself does not reach pypi.org without settings of its own")
    with api.create() as box:
        if "CERTIFICATE_VERIFY_FAILED" in box.run(f'python3 -c "{FETCH}"')["stderr"]:
            pytest.skip("a TLS-inspecting gateway whose CA the template was not built with")
        install = "python3 -m venv /tmp/v && /tmp/v/bin/pip install -q iniconfig==2.3.1 && /tmp/v/bin/python -c 'import iniconfig'"
        result = box.run(install, timeout=90)
        assert result["exitCode"] == 0, result["stderr"][-2000:]
        result = box.run("cd /tmp && npm install --silent is-number@7.0.0 && node -e 'require(\"is-number\")'", timeout=90)
        assert result["exitCode"] == 0, result["stderr"][-2000:]


def test_names_are_looked_up_if_the_host_can(pair):
    try:
        socket.getaddrinfo("pypi.org", 443)
    except OSError:
        pytest.skip("the host itself looks up no names")
    one, _ = pair
    assert one.out("getent hosts pypi.org").strip()
