"""What has to work through the gateway."""

import hashlib
import json
import os
import subprocess
import threading
import time
import uuid

import pytest

from egress.conftest import Store, blocked, prepared, python
from harness.waiting import wait_for

ALLOWED = ["api.test.example", "h1.test.example", "h2.test.example", "other.test.example"]
LIST = {"mode": "allowlist", "allow": [{"host": host} for host in ALLOWED]}


@pytest.fixture
def own(api):
    """A store of this test's own with one secret for all places, and its value."""
    store = Store(api)
    store.value = "own+" + uuid.uuid4().hex + "/="
    store.set("API_KEY", store.value, ["api.test.example", "h1.test.example", "h2.test.example"], ["header", "query", "body"])
    return store


@pytest.fixture
def box(api, own):
    with prepared(api.create(egress=LIST, secretStore=own.name)) as made:
        yield made


def mark():
    return "g" + uuid.uuid4().hex[:16]


def headers(record, name):
    return [value for each, value in record["headers"] if each.lower() == name.lower()]


def only(net, text):
    found = [each for each in net.saw(text) if each["kind"] in ("h1", "h2", "ws")]
    assert len(found) == 1, found
    return found[0]


USE = "say(attempt(get, 'api.test.example', '/headers?' + mark, {'Authorization': 'Bearer ' + KEY}))"


def used_value(net, box, code=USE):
    """What arrives for the token now: the value of the Authorization header, or the answer when nothing did."""
    this = mark()
    answer = python(box, code, mark=this)
    found = net.saw(this)
    return headers(found[0], "authorization")[0].removeprefix("Bearer ") if found else answer


# --- where a secret is put in


def test_headers_and_several_secrets(net, world):
    this = mark()
    code = "say([get('api.test.example', '/headers?' + mark, {'Authorization': 'Bearer ' + KEY, 'X-Both': f'{WIDE_KEY};{KEY};{WIDE_KEY}', 'X-Other': OTHER_KEY}), OTHER_KEY])"
    answer, other = python(world.fenced, code, mark=this)
    record = only(net, this)
    assert headers(record, "authorization") == [f"Bearer {world.value}"]
    assert headers(record, "x-both") == [f"{world.wide_value};{world.value};{world.wide_value}"]
    assert headers(record, "x-other") == [other]
    assert answer["status"] == 200
    world.no_value_in(answer)


def test_basic_authentication(net, world):
    this = mark()
    python(world.fenced, "say(get('api.test.example', '/headers?' + mark, {'Authorization': basic('me', KEY)}))", mark=this)
    import base64

    [sent] = headers(only(net, this), "authorization")
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == f"me:{world.value}"


def test_query_and_body(net, box, own):
    from urllib.parse import parse_qs, urlsplit

    this = mark()
    code = """
body = f'{{"key": "{KEY}"}}'.encode()
big = body + b' ' * 3000000
say([get('h1.test.example', f'/headers?{mark}=1&key={KEY}&x=y', {'Content-Type': 'application/json'}, 'POST', body)['status'],
     get('h1.test.example', f'/headers?{mark}=2', {}, 'POST', big)['status']])
"""
    assert python(box, code, mark=this) == [200, 200]
    small, big = sorted((each for each in net.saw(this) if each["kind"] == "h1"), key=lambda each: each["n"])
    assert parse_qs(urlsplit(small["path"]).query)["key"] == [own.value]
    assert small["body"] == f'{{"key": "{own.value}"}}' and headers(small, "content-length") == [str(len(small["body"]))]
    assert big["body"].startswith(f'{{"key": "{own.value}"}}') and big["bytes"] == 3_000_000 + len(small["body"])


def test_a_body_in_chunks_that_cut_the_token(net, box, own):
    this = mark()
    code = """
raw = request(f'/headers?{mark}', 'h1.test.example', 'POST', headers=[('Transfer-Encoding', 'chunked')])
say(https('h1.test.example', raw + b''.join(b'1\\r\\n' + bytes([byte]) + b'\\r\\n' for byte in f'<{KEY}>'.encode()) + b'0\\r\\n\\r\\n'))
"""
    python(box, code, mark=this)
    assert only(net, this)["body"] == f"<{own.value}>"


def test_http2_to_both_kinds_of_servers(net, box, own):
    this = mark()
    code = """
fields = [('authorization', 'Bearer ' + KEY)]
say([get2('h2.test.example', pseudo('h2.test.example', '/headers?' + mark) + fields), get('h1.test.example', '/headers?' + mark, {'Authorization': 'Bearer ' + KEY})])
"""
    two, one = python(box, code, mark=this)
    assert two["status"] == one["status"] == 200
    found = net.saw(this)
    assert [each["kind"] for each in found] == ["h2", "h1"], found
    assert found[0]["alpn"] == "h2" and all(headers(each, "authorization") == [f"Bearer {own.value}"] for each in found)


def test_many_streams_at_once(net, box):
    this = mark()
    code = """
with tls('h2.test.example', alpn=('h2',)) as stream:
    found = http2(stream, [(pseudo('h2.test.example', f'/headers?{mark}&{i}') + [('authorization', KEY)], b'') for i in range(60)], wait=20)
say([each['status'] for each in found['streams'].values() if each['status']])
"""
    assert python(box, code, mark=this) == [200] * 60
    assert len(net.saw(this)) == 60


def test_websockets(net, box, own):
    this = mark()
    code = "say(websocket('h1.test.example', '/ws?' + mark, {'Authorization': 'Bearer ' + KEY}, ['hello', 'x' * 5000, 'bye']))"
    answer = python(box, code, mark=this)
    assert answer["status"] == 101 and answer["messages"] == ["hello", "x" * 5000, "bye"], answer
    record = only(net, this)
    assert headers(record, "authorization") == [f"Bearer {own.value}"] and len(record["messages"]) == 3


def test_events_come_as_they_are_sent(box):
    code = """
with tls('api.test.example') as stream:
    stream.sendall(request('/stream?times=5', 'api.test.example', headers={'Authorization': KEY}))
    times = []
    while len(times) < 6:
        data = stream.recv(65536)
        if not data:
            break
        times += [time.monotonic()] * max(1, data.count(b'data:'))
say(times[-1] - times[0])
"""
    spread = python(box, code)
    assert spread > 0.25, f"they came together: {spread} s"


def test_expect_100(net, box):
    this = mark()
    code = """
with tls('h1.test.example') as stream:
    stream.sendall(request('/sink?' + mark, 'h1.test.example', 'POST', headers=[('Expect', '100-continue'), ('Content-Length', '5'), ('Authorization', KEY)]))
    stream.settimeout(5)
    first = stream.recv(1000)
    stream.sendall(b'hello')
    say([first, read_response(stream)])
"""
    first, answer = python(box, code, mark=this)
    assert first.startswith("HTTP/1.1 100"), first
    assert answer["status"] == 200 and only(net, this)["body"] == "hello"


def test_other_things_of_http(net, box):
    code = """
found = {}
with tls('h1.test.example') as stream:
    stream.sendall(request('/large?bytes=100', 'h1.test.example', 'HEAD'))
    found['head'] = read_response(stream, no_body=True)['status']
found['no content'] = get('h1.test.example', '/status/204')['status']
found['options'] = get('h1.test.example', '/status/200', method='OPTIONS')['status']
found['delete'] = get('h1.test.example', '/status/200', method='DELETE')['status']
found['early answer'] = attempt(get, 'h1.test.example', '/early-answer', {}, 'POST', b'x' * 3000000)
with tls('h1.test.example') as stream:
    kept = []
    for i in range(50):
        stream.sendall(request(f'/status/{200 + i % 3}', 'h1.test.example', headers={'Authorization': KEY}))
        kept.append(read_response(stream, no_body=i % 3 == 4)['status'])
found['kept'] = kept
say(found)
"""
    found = python(box, code)
    assert found["no content"] == 204 and found["head"] == found["options"] == found["delete"] == 200
    assert found["kept"] == [200 + i % 3 for i in range(50)]
    assert found["early answer"].get("status") == 413 or "error" in found["early answer"]


# --- large things


def server_memory(server):
    fields = dict(line.split(":", 1) for line in open(f"/proc/{server.process.pid}/status") if ":" in line)
    return int(fields["VmHWM"].split()[0]) // 1024


def reset_peak(server):
    with open(f"/proc/{server.process.pid}/clear_refs", "w") as file:
        file.write("5")


@pytest.mark.parametrize("seal", [False, True], ids=["another host", "the secret's host"])
def test_large_bodies_stream_in_little_memory(net, server, world, seal):
    host = "h1.test.example" if seal else "other.test.example"
    size = 200_000_000
    box = world.fenced
    reset_peak(server)
    before = server_memory(server)
    down = f"curl -sS -m 60 -H \"Authorization: Bearer $API_KEY\" 'https://{host}/large?bytes={size}' | sha256sum"
    expected = hashlib.sha256(b"0123456789abcdef" * (size // 16)).hexdigest()
    assert box.out(down, timeout=90).split()[0] == expected
    up = f"head -c {size} /dev/zero | curl -sS -m 60 -T - -H \"Authorization: Bearer $API_KEY\" 'https://{host}/sink'"
    said = json.loads(box.out(up, timeout=90))
    assert said == {"bytes": size, "sha256": hashlib.sha256(bytes(size)).hexdigest()}
    grown = server_memory(server) - before
    assert grown < 60, f"the server grew by {grown} MiB"


# --- changes while it runs

KEPT = """
import select
with tls('h1.test.example') as stream:
    for line in iter(sys.stdin.readline, ''):
        try:
            stream.sendall(request('/headers?' + line.strip(), 'h1.test.example', headers={'Authorization': KEY}))
            answer = read_response(stream)
            print(answer.get('status') or answer['error'], flush=True)
        except Exception as error:
            print('error', type(error).__name__, flush=True)
            break
"""


class Kept:
    """A program inside that holds a connection open and makes a request on it when told."""

    def __init__(self, net, box):
        self.net, self.box, self.count = net, box, 0
        box.write("/tmp/kept.py", f"import sys; sys.path.insert(0, '/tmp')\nfrom probe import *\n{KEPT}".encode())
        box.run("rm -f /tmp/in /tmp/out; mkfifo /tmp/in; touch /tmp/out")
        box.start("sh", "-c", "exec 3<>/tmp/in; python3 /tmp/kept.py </tmp/in >/tmp/out 2>&1")

    def ask(self):
        """The answer to one more request, and what the server got with it."""
        this = mark()
        self.box.run(f"echo {this} >> /tmp/in")
        self.count += 1
        lines = lambda: self.box.out("cat /tmp/out").splitlines()
        said = wait_for(lambda: len(lines()) >= self.count and lines(), "an answer on the open connection", 15)[self.count - 1]
        found = self.net.saw(this)
        return said, headers(found[0], "authorization")[0] if found else None


def test_rotation_narrowing_and_deletion_reach_open_connections(net, box, own):
    kept = Kept(net, box)
    token = box.out("echo $API_KEY").strip()
    assert kept.ask() == ("200", own.value)
    rotated = "rotated-" + uuid.uuid4().hex
    own.set("API_KEY", rotated)
    assert kept.ask() == ("200", rotated), "a rotated value counts at once, behind the same token"
    assert box.out("echo $API_KEY").strip() == token
    own.set("API_KEY", rotated, hosts=["api.test.example"])
    said, arrived = kept.ask()
    assert arrived in (token, None), "a narrowed secret goes nowhere else"
    assert used_value(net, box) == rotated, "where it still may go it does"
    own.remove("API_KEY")
    assert used_value(net, box) == token, "a deleted secret is a token that means nothing"


def test_policy_changes_reach_open_connections(net, box):
    kept = Kept(net, box)
    assert kept.ask()[0] == "200"
    narrower = {"mode": "allowlist", "allow": [{"host": "api.test.example"}]}
    answer = box.call("PUT", "/egress", json=narrower)
    assert answer.status_code == 200, answer.text
    said, arrived = kept.ask()
    assert said != "200" and arrived is None, said
    assert python(box, "say(attempt(get, 'other.test.example', '/'))").get("status") != 200
    assert python(box, "say(get('api.test.example', '/status/200'))")["status"] == 200
    for policy, status in (({"mode": "none"}, None), ({"mode": "open"}, 200), (LIST, 200), ({"mode": "allowlist", "allow": []}, None)):
        assert box.call("PUT", "/egress", json=policy).status_code == 200
        assert python(box, "say(attempt(plain, at, request('/status/200', 'other.test.example')))", at=net.other).get("status") in ((status,) if status else (None, 403)), policy


def test_allowed_hosts_tells_lists_and_what_was_blocked(net, api):
    store = Store(api, egressAllowlist=["api.test.example", "*.pages.example"])
    store.set("K", "k-" + uuid.uuid4().hex, ["api.test.example"])
    with prepared(api.create(secretStore=store.name, egressAllowlist=["other.test.example"])) as box:
        said = box.call("GET", "/allowed-hosts").json()
        assert said["sandboxID"] == box.id and said["secretStore"] == store.name
        assert sorted(said["egressAllowlist"]) == ["*.pages.example", "api.test.example", "other.test.example"]
        assert said["perSecretAllowedHosts"] == {"K": ["api.test.example"]} and said["blocked"] == []
        code = "say([attempt(get, host, '/status/200', at=at).get('status') for host, at in (('api.test.example', None), ('other.test.example', None), ('a.pages.example', None), ('pages.example', evil), ('evil.example', evil), ('evil.example', evil))])"
        python(box, "say(ask('nowhere.example'))")
        assert python(box, code, evil=net.evil) == [200, 200, 200, 403, 403, 403]
        entries = {(each["host"], each["port"]): each for each in blocked(box)}
        assert entries["evil.example", 443]["count"] == 2 and "allowlist" in entries["evil.example", 443]["reason"]
        assert ("nowhere.example", 0) in entries


def test_uses_are_logged(net, box, own):
    python(box, "say([get('api.test.example', '/status/200', {'Authorization': KEY})['status'] for _ in range(3)])")
    python(box, "say(get('h1.test.example', '/status/200', {'Authorization': basic('me', KEY)})['status'])")
    python(box, "say(get('other.test.example', '/status/200', {'Authorization': KEY})['status'])")

    def told():
        uses = own.uses("API_KEY")
        by_host = {}
        for each in uses:
            assert each["sandboxID"] == box.id and each["at"]
            by_host[each["host"]] = by_host.get(each["host"], 0) + each["count"]
        return by_host if sum(by_host.values()) >= 4 else None

    assert wait_for(told, "the uses are in the log", 20) == {"api.test.example": 3, "h1.test.example": 1}


# --- what the sandbox is given


def test_variables_and_certificates(api, box, own):
    env = dict(line.split("=", 1) for line in box.out("env").splitlines() if "=" in line)
    assert len(env["API_KEY"]) == 43 and env["API_KEY"].startswith("osb_sealed_")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        assert env[name] == "http://169.254.169.253:3128"
    assert env["NO_PROXY"] == env["no_proxy"] == "localhost,127.0.0.1,::1,169.254.169.254"
    for name in ("NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        assert "PROXY CA" in box.out(f"openssl storeutl -noout -certs -text {env[name]} | grep -i 'OpenSandbox Proxy CA' | head -1").upper(), name
    assert int(box.out(f"grep -c BEGIN {env['SSL_CERT_FILE']}")) > 50, "the bundle has the system's too"
    assert own.value not in json.dumps(env)


def test_a_plain_variable_wins(net, api, own):
    with prepared(api.create(egress=LIST, secretStore=own.name, envs={"API_KEY": "mine"})) as box:
        assert box.out("echo $API_KEY").strip() == "mine"
        assert used_value(net, box) == "mine"


def test_nothing_is_added_without_list_and_secrets(api, box):
    with api.create() as plain:
        env = plain.out("env")
        assert "PROXY" not in env.upper() and "CA_BUNDLE" not in env


def test_an_open_sandbox_with_secrets_reaches_the_rest_untouched(net, world):
    """Hosts without a secret see the client's own TLS; addresses, UDP and other protocols go as without secrets."""
    code = """
def issuer(host):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(tcp(host, 443), server_hostname=host) as stream:
        return b'OpenSandbox Proxy CA' in stream.getpeercert(True)
say([issuer('evil.example'), issuer('api.test.example'), attempt(plain, 'evil.example', request('/status/200', 'evil.example'))['status'],
     reaches('evil.example', 9000, b'raw\\r\\n'), over_udp(evil, 9000, b'raw'), ask('evil.example', 16)['code']])
"""
    ours, read, http, raw, udp, text = python(world.sealed, code, evil=net.evil)
    assert not ours and read
    assert http == 200 and raw == {"got": "raw\r\n"} and udp == {"got": "raw"} and text == 0


def test_the_proxy_that_is_asked_for(net, world):
    code = """
def inside(host):
    stream, answer = connect(host + ':443')
    with tls(host, stream=stream) as secure:
        secure.sendall(request('/headers?' + mark, host, headers={'Authorization': 'Bearer ' + KEY, 'Connection': 'close'}))
        return [answer['status'], read_response(secure)['status']]
whole = request('http://other.test.example/headers?' + mark, 'other.test.example', headers={'Proxy-Authorization': 'x', 'Proxy-Connection': 'keep-alive', 'Connection': 'close'})
say([inside('api.test.example'), plain(PROXY[0], whole, PROXY[1])['status'], through('evil.example:443'), attempt(plain, PROXY[0], request('http://evil.example/', 'evil.example'), PROXY[1])])
"""
    this = mark()
    tunnel, http, refused, refused_http = python(world.fenced, code, mark=this)
    assert tunnel == [200, 200] and http == 200
    assert refused["status"] == refused_http["status"] == 403
    told = json.loads(refused["body"])
    assert told["host"] == "evil.example" and told["error"].startswith("host not in allowlist"), told
    secure, plain = net.saw(this)
    assert headers(secure, "authorization") == [f"Bearer {world.value}"]
    assert not [name for name, _ in plain["headers"] if name.lower().startswith("proxy-")] and plain["path"].startswith("/headers")


def test_refusals_can_be_read(world):
    for answer in python(world.fenced, "say([get('evil.example', '/', at=evil), plain(evil, request('/', 'evil.example')), get('paths.test.example', '/v2/')])", evil=world.net.evil):
        told = json.loads(answer["body"])
        assert answer["status"] == 403 and told["host"] in ("evil.example", "paths.test.example") and told["rule"] and len(told["error"]) > 20
        assert int(answer["fields"]["content-length"]) == len(answer["body"]) < 500


# --- over time


def test_secrets_outlive_hibernation(net, box, own):
    token = box.out("echo $API_KEY").strip()
    assert used_value(net, box) == own.value
    assert box.call("POST", "/hibernate").status_code in (200, 204)
    box.wait_status("hibernated", 30)
    rotated = "slept-" + uuid.uuid4().hex
    own.set("API_KEY", rotated)
    assert box.out("echo $API_KEY", timeout=90).strip() == token
    assert used_value(net, prepared(box)) == rotated
    assert python(box, "say(attempt(get, 'evil.example', '/', at=evil))", evil=net.evil).get("status") == 403


def test_forks_resolve_by_store(net, api, box, own):
    checkpoint = box.checkpoint("c-" + uuid.uuid4().hex[:6])
    rotated = "forked-" + uuid.uuid4().hex
    own.set("API_KEY", rotated)
    with api.fork(checkpoint) as fork:
        assert fork.out("echo $API_KEY").strip() not in ("", box.out("echo $API_KEY").strip())
        assert used_value(net, prepared(fork)) == rotated
        assert python(fork, "say(attempt(get, 'evil.example', '/', at=evil))", evil=net.evil).get("status") == 403
        own.remove("API_KEY")
        assert used_value(net, fork).startswith("osb_sealed_")


def test_secrets_and_policy_outlive_the_servers_death(net, server, api, box, own):
    assert used_value(net, box) == own.value
    server.kill()
    # While it is gone nothing is let past it.
    server.start()
    assert wait_for(lambda: used_value(net, box) == own.value, "the secret works again", 20)
    assert python(box, "say(attempt(get, 'evil.example', '/', at=evil))", evil=net.evil).get("status") == 403
    answer = python(box, "say([over_udp(evil, 9000, b'x', 1), reaches(at, 9000, b'x')])", evil=net.evil, at=net.forbidden["10/8"])
    assert not any(each.get("got") for each in answer), answer


def test_what_a_secret_was_is_sealed_after_sleep_and_death(net, server, box, own):
    former, token = own.value, box.out("echo $API_KEY").strip()
    assert used_value(net, box) == former
    own.set("API_KEY", "rotated-" + uuid.uuid4().hex)
    echoed = lambda: python(box, "say(attempt(get, 'api.test.example', '/?as=body', {'X-Reflect': text}))", text=former).get("body")
    assert echoed() == f"before {token} after"
    assert box.call("POST", "/hibernate").status_code in (200, 204)
    assert box.out("echo $API_KEY", timeout=90).strip() == token
    assert echoed() == f"before {token} after"
    own.remove("API_KEY")
    server.kill()
    server.start()
    assert echoed() == f"before {token} after"


def test_a_use_is_logged_and_recorded_though_the_server_is_killed_right_after(net, server, api, box, own):
    for _ in range(3):
        assert used_value(net, box) == own.value
    server.kill()
    server.start()
    count = lambda: sum(each["count"] for each in own.uses("API_KEY"))
    assert wait_for(lambda: count() >= 3 and count(), "the uses are in the log", 20) == 3
    records = lambda: box.call("GET", "/audit?kind=secret.use").json()
    recorded = lambda: sum(each["detail"]["count"] for each in records())
    assert wait_for(lambda: recorded() >= 3 and recorded(), "the uses are in the audit", 20) == 3


def test_while_the_server_is_dead_nothing_gets_out(net, server, box):
    this = mark()
    code = """
time.sleep(1)
deadline, found = time.monotonic() + 4, []
while time.monotonic() < deadline:
    found.append(attempt(get, 'evil.example', '/' + mark, at=evil))
    found.append(attempt(reaches, evil, 9000, mark.encode(), 1))
    found.append(over_udp(evil, 9000, mark.encode(), 0.2))
say(found)
"""
    # A command's session outlives the server.
    box.write("/tmp/while.py", f"import sys; sys.path.insert(0, '/tmp')\nfrom probe import *\nmark = {this!r}; evil = {net.evil!r}\n{code}".encode())
    box.start("sh", "-c", "python3 /tmp/while.py > /tmp/while.out 2>&1")
    server.kill()
    time.sleep(3)
    server.start()
    wait_for(lambda: box.run("test -s /tmp/while.out")["exitCode"] == 0, "the program inside has ended", 30)
    assert not net.saw(this)


# --- where values must never be


def test_values_are_nowhere_but_at_the_server_they_are_for(net, server, api, box, own):
    assert used_value(net, box) == own.value, "it was used"
    python(box, "say(get('h1.test.example', f'/echo?as=body&key={KEY}', {'X-Reflect': KEY}, 'POST', KEY.encode()))")
    checkpoint = box.checkpoint("c-" + uuid.uuid4().hex[:6])
    box.call("POST", "/hibernate")
    box.wait_status("hibernated", 30)
    subprocess.run(["sync", "-f", server.data_dir], check=False)
    needle = own.value[4:30].encode()
    found = [path for path in files_below(server.data_dir) if holds(path, needle)]
    assert not found, found
    assert needle.decode() not in server.log()
    token = prepared(box).out("echo $API_KEY", timeout=90).strip()
    assert any(holds(path, token[:30].encode()) for path in files_below(server.data_dir)), "the search finds tokens, so it would find values"
    for pid in [int(each) for each in os.listdir("/proc") if each.isdigit()]:
        for name in ("cmdline", "environ"):
            try:
                data = open(f"/proc/{pid}/{name}", "rb").read()
            except OSError:
                continue
            assert pid == os.getpid() or needle not in data, f"/proc/{pid}/{name}"
    box.call("DELETE", f"/checkpoints/{checkpoint}")


def files_below(folder):
    """Files that are not of the template; images of sandboxes, databases, memory, checkpoints among them."""
    for here, folders, names in os.walk(folder):
        # What it mounts for sandboxes' /proc is no disk.
        folders[:] = [name for name in folders if name != "lxcfs"]
        for name in names:
            path = os.path.join(here, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def holds(path, needle):
    """Whether a file, which may be sparse and large, has these bytes."""
    with open(path, "rb") as file:
        at, end, rest = 0, os.fstat(file.fileno()).st_size, b""
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError:
                return False
            file.seek(start)
            rest, left = b"", stop - start
            while left > 0:
                block = file.read(min(left, 4 << 20))
                if not block:
                    break
                if needle in rest + block:
                    return True
                rest, left = block[-len(needle) :], left - len(block)
            at = stop
    return False


def test_many_connections_in_little_memory(net, server, world):
    """100 open ones, each with a request made, cost less than 20 MB for all of the gateway."""
    code = """
import threading
context = ssl.create_default_context()
context.set_alpn_protocols(['http/1.1'])
streams = []
for _ in range(100):
    stream = context.wrap_socket(tcp('h1.test.example', 443), server_hostname='h1.test.example')
    stream.sendall(request('/status/200', 'h1.test.example', headers={'Authorization': KEY}))
    read_response(stream)
    streams.append(stream)
print('open', flush=True)
time.sleep(5)
say(len(streams))
"""
    resident = lambda: int(next(line for line in open(f"/proc/{server.process.pid}/status") if line.startswith("VmRSS")).split()[1]) // 1024
    python(world.fenced, "say(get('h1.test.example', '/status/200', {'Authorization': KEY})['status'])")
    before, most = resident(), 0
    done = []
    thread = threading.Thread(target=lambda: done.append(python(world.fenced, code)))
    thread.start()
    while thread.is_alive():
        most = max(most, resident())
        time.sleep(0.05)
    thread.join()
    assert done == [100]
    print(f"100 connections: {most - before} MiB")
    assert most - before <= 20, f"the server grew by {most - before} MiB"


def test_replies_that_nobody_reads_cost_little_each(server, world):
    """200 of them, each with more to come than anybody keeps."""
    code = """
import socket
context = ssl.create_default_context()
context.set_alpn_protocols(['http/1.1'])
streams = []
for _ in range(200):
    raw = tcp('h1.test.example', 443)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream = context.wrap_socket(raw, server_hostname='h1.test.example')
    stream.sendall(request('/large?bytes=4000000', 'h1.test.example', headers={'Authorization': KEY}))
    streams.append(stream)
time.sleep(1)
say(len(streams))
"""
    reset_peak(server)
    before = server_memory(server)
    assert python(world.fenced, code) == 200
    grown = server_memory(server) - before
    # A megabyte each without a limit.
    assert grown < 130, f"the server grew by {grown} MiB"
