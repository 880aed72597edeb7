"""Figures of the egress gateway, for `bench/run --only gateway`: one JSON array of lines on standard output.

    WARREN_BIN=… python -m egress.measure [--quick] [--mitmdump PROGRAM]

A server of its own, the suite's small internet, one client in a sandbox. Each figure is taken in turns: through the gateway
with a secret, through it without, directly, and through mitmproxy with the same substitution.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import uuid

from egress.conftest import PRELUDE, Store, prepared, python
from harness.internet import Internet
from harness.server import Server

HOSTS = ["api.test.example", "other.test.example"]
#: Made on one kept-alive connection; times in milliseconds.
REQUESTS = """
import time
context = ssl.create_default_context()
context.load_verify_locations('/etc/ssl/certs/ca-certificates.crt')
for extra in authorities:
    context.load_verify_locations(extra)
context.set_alpn_protocols(['http/1.1'])
raw_stream = tcp(*proxy) if proxy else tcp(host, 443)
raw_stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if proxy:
    raw_stream.sendall(f'CONNECT {host}:443 HTTP/1.1\\r\\nHost: {host}:443\\r\\n\\r\\n'.encode())
    read_response(raw_stream, no_body=True)
stream = context.wrap_socket(raw_stream, server_hostname=host)
raw = request('/status/200', host, headers={'Authorization': 'Bearer ' + KEY})
times = []
for i in range(count + warm):
    begun = time.perf_counter()
    stream.sendall(raw)
    data = b''
    while b'\\r\\n\\r\\n' not in data:
        data += stream.recv(65536)
    taken = time.perf_counter() - begun
    assert data.startswith(b'HTTP/1.1 200'), data[:300]
    if i >= warm:
        times.append(taken * 1e3)
say(times)
"""
ADDON = """
from mitmproxy import http
def request(flow: http.HTTPFlow):
    for name, value in flow.request.headers.items():
        if TOKEN in value:
            flow.request.headers[name] = value.replace(TOKEN, VALUE)
def response(flow: http.HTTPFlow):
    if flow.response.content and VALUE.encode() in flow.response.content:
        flow.response.content = flow.response.content.replace(VALUE.encode(), TOKEN.encode())
"""


def line(figure, system, unit, values, *notes):
    return {"figure": figure, "system": system, "unit": unit, "values": values, "notes": list(notes)}


class Mitmproxy:
    """mitmdump in the small internet, with an addon that does what the gateway does to headers and bodies."""

    port = 8888

    def __init__(self, net, program, value):
        self.net, self.token = net, "osb_sealed_" + uuid.uuid4().hex
        folder = net.folder / "mitm"
        folder.mkdir()
        (folder / "addon.py").write_text(f"TOKEN = {self.token!r}\nVALUE = {value!r}\n{ADDON}")
        hosts = folder / "resolv"
        hosts.write_text(f"nameserver {net.dns}\n")
        command = f"mount --bind {hosts} /etc/resolv.conf && exec {program} -q --listen-host {net.evil} --listen-port {self.port} --set confdir={folder} --set ssl_verify_upstream_trusted_ca={net.authority.pem} -s {folder}/addon.py"
        self.process = subprocess.Popen(["ip", "netns", "exec", net.namespace, "sh", "-c", command], stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr, start_new_session=True)
        self.authority = folder / "mitmproxy-ca-cert.pem"
        deadline = time.monotonic() + 30
        while not self.authority.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, "mitmdump did not start"
            time.sleep(0.1)
        time.sleep(1)

    def end(self):
        self.process.terminate()
        self.process.wait(10)


def measure(net, server, options):
    api = server.api()
    value = "bench" + uuid.uuid4().hex
    store = Store(api)
    store.set("API_KEY", value, ["api.test.example"])
    policy = {"mode": "allowlist", "allow": [{"host": host} for host in HOSTS]}
    mitm = Mitmproxy(net, options.mitmdump, value) if options.mitmdump else None
    lines = []
    try:
        with prepared(api.create(egress=policy, secretStore=store.name)) as through, prepared(api.create(envs={"API_KEY": mitm.token if mitm else "plain"})) as direct:
            direct.write("/tmp/ca.pem", net.authority.pem.read_bytes())
            if mitm:
                direct.write("/tmp/mitm.pem", mitm.authority.read_bytes())
            lines += latency(through, direct, net, mitm, options)
            lines += bulk(through, direct, net, mitm, options)
            lines += memory(through, server)
        lines += changes(api, options)
    finally:
        if mitm:
            mitm.end()
        api.__exit__()
    return lines


def latency(through, direct, net, mitm, options):
    count, rounds = (200, 5) if options.quick else (500, 10)
    ways = {
        "Warren": (through, "api.test.example", None, []),
        "Warren, without a secret": (through, "other.test.example", None, []),
        "direct": (direct, "api.test.example", None, ["/tmp/ca.pem"]),
    }
    if mitm:
        ways["mitmproxy"] = (direct, "api.test.example", (net.evil, mitm.port), ["/tmp/mitm.pem"])
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (box, host, proxy, authorities) in ways.items():
            found[name] += python(box, REQUESTS, host=host, proxy=proxy, authorities=authorities, count=count, warm=50)
    figure = "HTTPS request with a secret, kept-alive"
    return [line(figure, name, "ms", values) for name, values in found.items()]


def bulk(through, direct, net, mitm, options):
    size, rounds = (200_000_000, 2) if options.quick else (1_000_000_000, 3)
    fetch = lambda host, more: f"curl -sSf -o /dev/null -w '%{{speed_download}}' {more} -H \"Authorization: Bearer $API_KEY\" --http1.1 --noproxy '*' 'https://{host}/large?bytes={size}'"
    ways = {
        "Warren": (through, fetch("api.test.example", "")),
        "Warren, without a secret": (through, fetch("other.test.example", "")),
        "direct": (direct, fetch("api.test.example", "--cacert /tmp/ca.pem")),
    }
    if mitm:
        ways["mitmproxy"] = (direct, fetch("api.test.example", f"--cacert /tmp/mitm.pem").replace("--noproxy '*'", f"-x http://{net.evil}:{mitm.port}").replace(str(size), str(size // 10)))
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (box, command) in ways.items():
            found[name].append(float(box.out(command, timeout=200)) / 1e6)
    return [line("download through the gateway", name, "MB/s", values) for name, values in found.items()]


def memory(through, server):
    """What 100 open connections add to the server, most of it the gateway's."""
    code = PRELUDE + """
context = ssl.create_default_context()
context.set_alpn_protocols(['http/1.1'])
streams = []
for _ in range(100):
    stream = context.wrap_socket(tcp('api.test.example', 443), server_hostname='api.test.example')
    stream.sendall(request('/status/200', 'api.test.example', headers={'Authorization': KEY}))
    read_response(stream)
    streams.append(stream)
open('/tmp/opened', 'w')
time.sleep(4)
"""
    resident = lambda: next(int(each.split()[1]) / 1e3 for each in open(f"/proc/{server.process.pid}/status") if each.startswith("VmRSS"))
    before = resident()
    through.start("python3", "-c", code)
    while through.run("test -e /tmp/opened")["exitCode"]:
        time.sleep(0.1)
    return [line("100 open connections with a secret", "Warren", "MB", [max(0.0, resident() - before)])]


def changes(api, options):
    """Policies of 100 hosts applied to a running sandbox, as the API's client sees it."""
    times = []
    with api.create() as box:
        for i in range(20 if options.quick else 100):
            policy = {"mode": "allowlist", "allow": [{"host": f"h{j}.r{i}.example"} for j in range(100)]}
            begun = time.perf_counter()
            answer = box.call("PUT", "/egress", json=policy)
            times.append((time.perf_counter() - begun) * 1e3)
            assert answer.status_code == 200, answer.text
    return [line("policy of 100 hosts on a running sandbox", "Warren", "ms", times, "the whole call: checked, written down, firewall and gateway changed")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--mitmdump")
    options = parser.parse_args()
    os.environ.pop("WARREN_SERVE_ARGS", None)
    with Internet(15) as net, Server("--resolver", net.resolver, "--upstream-ca", str(net.authority.pem), "--runtime", "container") as server:
        print(json.dumps(measure(net, server, options)))


if __name__ == "__main__":
    main()
