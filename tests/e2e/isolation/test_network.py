"""Sandboxes reach neither each other nor the host; the outside only when the host can."""

import ipaddress
import re
import socket
import subprocess
import threading
from urllib.parse import urlsplit

import pytest

from harness import host, settings

CONNECT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as s:
        print('connected'); sys.exit(0)
except OSError as error:
    print(error); sys.exit(1)
"""


@pytest.fixture(scope="module")
def pair(api):
    with api.create() as one, api.create() as two:
        for box in (one, two):
            box.write("/tmp/connect.py", CONNECT.encode())
        yield one, two


def connects(box, address, port):
    return box.run(f"python3 /tmp/connect.py {address} {port}")["exitCode"] == 0


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
    inside = addresses_inside(two)
    outside = addresses_outside(two)
    for address in {*inside, *outside} - set(addresses_inside(one)):
        assert not connects(one, address, 8098), f"one reached two at {address}"
    # The same addresses inside every sandbox: reaching one's own is not reaching the other's.
    for address in set(inside) & set(addresses_inside(one)):
        assert not connects(one, address, 8098)
    if one.run("command -v ping")["exitCode"] == 0:
        for address in outside:
            assert one.run(f"ping -c1 -W1 {address}")["exitCode"] != 0, address


def addresses_outside(box):
    """Addresses of the host's ends and of the networks between, found on the host."""
    found = set()
    for line in host.command_lines("ip", "-o", "-4", "route"):
        for word in line.split():
            try:
                network = ipaddress.ip_network(word, strict=False)
            except ValueError:
                continue
            if network.num_addresses <= 8 and not network.is_loopback:
                found |= {str(address) for address in network}
    for line in host.command_lines("nft", "list", "ruleset"):
        found |= set(re.findall(r"\b198\.1[89]\.\d+\.\d+\b", line))
    return found - {"0.0.0.0"}


def test_the_host_is_not_reached(pair):
    one, _ = pair
    port = urlsplit(settings.URL).port
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.settimeout(0.2)
        ours = listener.getsockname()[1]
        gateway = one.out("ip route show default | awk '{print $3}'").split()
        targets = {*host_addresses(), *gateway, "127.0.0.1", "0.0.0.0", "localhost"}
        reached = {(address, each) for address in targets for each in (port, ours) if connects(one, address, each)}
        assert not reached, f"a sandbox reached the host at {reached}"
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.170.2", "100.100.100.200", "10.0.0.1", "172.16.0.1", "192.168.0.1", "192.168.1.1", "fd00:ec2::254", "fe80::1"])
def test_private_and_metadata_addresses_are_not_reached(pair, address):
    one, _ = pair
    assert not connects(one, address, 80)


def test_a_listener_of_another_namespace_of_the_host_is_not_reached(pair):
    """A neighbour on a private range that the host routes to."""
    name, addresses = "warren-e2e-net", ("10.213.77.1", "10.213.77.2")
    run = lambda *command: subprocess.run(command, check=True, capture_output=True)
    try:
        run("ip", "netns", "add", name)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("this host lets us make no network namespace")
    listener = None
    try:
        run("ip", "link", "add", "we2e0", "type", "veth", "peer", "name", "we2e1", "netns", name)
        run("ip", "addr", "add", f"{addresses[0]}/30", "dev", "we2e0")
        run("ip", "link", "set", "we2e0", "up")
        run("ip", "-n", name, "addr", "add", f"{addresses[1]}/30", "dev", "we2e1")
        run("ip", "-n", name, "link", "set", "we2e1", "up")
        run("ip", "-n", name, "route", "add", "default", "via", addresses[0])
        listener = subprocess.Popen(["ip", "netns", "exec", name, "python3", "-m", "http.server", "8097"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reachable = lambda: host_connects(addresses[1], 8097)
        from harness.waiting import wait_for

        wait_for(reachable, "the host reaches its neighbour", 10)
        one, _ = pair
        assert not connects(one, addresses[1], 8097)
    finally:
        if listener:
            listener.kill()
            listener.wait()
        subprocess.run(["ip", "link", "del", "we2e0"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def host_connects(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
        return True
    except OSError:
        return False


def test_addresses_cannot_be_forged(pair):
    one, _ = pair
    script = "import socket; s=socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('lo',0))"
    one.write("/tmp/raw.py", script.encode())
    assert one.run("python3 /tmp/raw.py")["exitCode"] != 0
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


def outside_is_there():
    """Whether the host itself reaches a package registry, and how it does."""
    probe = subprocess.run(["pip", "download", "--no-deps", "--no-binary", ":none:", "-d", "/tmp/warren-e2e-probe", "iniconfig==2.3.1"], capture_output=True, timeout=60, check=False)
    return probe.returncode == 0


def test_packages_can_be_installed(api):
    if not outside_is_there():
        pytest.skip("the host itself reaches no package registry")
    with api.create() as box:
        if not box.run("getent hosts pypi.org")["stdout"]:
            pytest.skip("the registry the host uses is set up on the host only: its name is not looked up in a sandbox")
        result = box.run("python3 -m venv /tmp/v && /tmp/v/bin/pip install -q iniconfig==2.3.1 && /tmp/v/bin/python -c 'import iniconfig; print(1)'", timeout=120)
        if "CERTIFICATE_VERIFY_FAILED" in result["stderr"]:
            pytest.skip("a TLS-inspecting gateway whose CA the template was not built with")
        assert result["exitCode"] == 0, result["stderr"][-2000:]
