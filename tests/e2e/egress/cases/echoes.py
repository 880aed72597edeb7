"""A server that says the value back: on purpose, or in what it quotes of the request."""

import base64
import gzip
import re
import urllib.parse
import zlib

from egress.conftest import python
from egress.table import attack

REFLECT = {"X-Reflect": "KEY"}


def readings(text):
    """A text in all the ways the sandbox could read it."""
    found = {text}
    for _ in range(2):
        for each in list(found):
            found.add(urllib.parse.unquote(each))
            for run in re.findall(r"[A-Za-z0-9+/_=-]{12,}", each):
                for cut in range(4):
                    try:
                        found.add(base64.urlsafe_b64decode(run[cut:].replace("+", "-").replace("/", "_") + "==").decode("latin-1"))
                    except ValueError:
                        pass
            raw = each.encode("latin-1", "replace")
            for unpack in (gzip.decompress, zlib.decompress, lambda data: zlib.decompress(data, -15)):
                try:
                    found.add(unpack(raw).decode("latin-1"))
                except (OSError, zlib.error, EOFError):
                    pass
    return found


def check(w, answer, mark, box=None):
    """The server got the value; the sandbox cannot read it out of what it got."""
    arrived = [each for each in w.arrived(mark) if each["kind"] in ("h1", "h2", "ws")]
    assert arrived and any(w.value in str(each["headers"]) or base64.b64encode(f"me:{w.value}".encode()).decode() in str(each["headers"]) for each in arrived), f"the server did not get the value: {arrived}"
    for text in readings(str(answer)) | readings(str(answer.get("body", ""))) | {part for value in _values(answer) for part in readings(value)}:
        w.no_value_in(text)


def _values(answer):
    values = [value for _, value in answer.get("headers", [])] + list(answer.get("trailers", [])) + list(answer.get("messages", []))
    values += [value for early in answer.get("early", []) for _, value in early["headers"]]
    return [*values, answer.get("block", ""), answer.get("reason", ""), answer.get("tail", "")]


def echo(name, way, tries, stops="replies are read as they pass, and the token is put back", sealed=True, statuses=(200, 206, 302, 500), host="h1.test.example", headers=(), more="", via="get"):
    @attack(name, tries, stops)
    def _(w):
        mark = w.mark()
        target = f"/echo?as={way}&{mark}{more}"
        code = f"""
headers = [(name, value.replace('KEY', KEY).replace('BASIC', basic('me', KEY))) for name, value in headers]
if via == 'curl2':
    import subprocess
    said = subprocess.run(['curl', '-sS', '-i', '--http2', '-m', '8', *[word for name, value in headers for word in ('-H', name + ': ' + value)], 'https://' + host + target], capture_output=True, text=True)
    answer = {{'status': int((said.stdout.split() or ['', '0'])[1]), 'body': said.stdout, 'error': said.stderr}}
elif via == 'get':
    answer = attempt(get, host, target, headers)
else:
    answer = attempt(get2, host, pseudo(host, target) + [(name.lower(), value) for name, value in headers])
say([answer, KEY])
"""
        box = w.fenced
        answer, token = python(box, code, target=target, host=host, headers=list(headers) or list(REFLECT.items()), via=via)
        check(w, answer, mark)
        assert answer.get("status") in statuses or (502 in statuses and "error" in answer), answer
        if sealed:
            assert token in str(answer) or token in "".join(readings(str(answer.get("body", "")))), f"the token is not there: {answer}"
        return (f"{answer.get('status')} " + ("with the token" if sealed else str(answer.get("body") or answer.get("error"))))[:150]


echo("echo-in-a-header", "header", "the value in a header of the reply")
echo("echo-in-cookies-and-links", "headers", "the value in Set-Cookie, Location and Link headers")
echo("echo-in-the-reason", "reason", "the value in the words behind the status", "the words are not passed on where a secret is used", sealed=False)
echo("echo-in-the-body", "body", "the value in the body")
echo("echo-twice", "twice", "the value twice without anything between")
echo("echo-at-the-end-of-a-long-body", "long", "the value across the places where buffers end")
echo("echo-byte-by-byte", "bytes", "the value in packets of one byte")
echo("echo-over-chunks", "chunked", "a chunk boundary with an extension between any two bytes of the value")
echo("echo-in-events", "events", "the value in server-sent events")
echo("echo-in-a-part", "range", "the value in a partial reply (206)", sealed=True)
echo("echo-in-an-error", "error", "the value in the text of a 500")
echo("echo-in-a-redirect", "redirect", "the value, percent-encoded, in the Location of a redirect to the attacker's host")
echo("echo-in-a-trailer", "trailer", "the value in a trailer", sealed=False)
echo("echo-in-early-hints", "early", "the value in a 103 before the reply", "what comes before the reply is read too or left out", sealed=False)
echo("echo-in-gzip", "gzip", "the value in a gzip body, though none was asked for", "compressed bodies are unpacked, read and passed on unpacked")
echo("echo-in-deflate", "deflate", "the value in a zlib body", "compressed bodies are unpacked, read and passed on unpacked")
echo("echo-in-raw-deflate", "rawdeflate", "the value in a deflate body without a header", "compressed bodies are unpacked, read and passed on unpacked")
echo("echo-in-flushed-gzip", "flushed", "a gzip body with a flush after each byte of the value", "compressed bodies are unpacked, read and passed on unpacked")
echo("echo-in-brotli", "br", "the value in an encoding the gateway cannot read", "a reply that cannot be read is refused", sealed=False, statuses=(502,))
echo("echo-in-two-encodings", "double", "one encoding inside another", "a reply that cannot be read is refused", sealed=False, statuses=(502,))
echo("echo-in-a-wrong-encoding", "lie", "a body that says it is gzip and is plain", "what cannot be unpacked ends the reply", sealed=False, statuses=(200, 502))
echo("echo-asked-to-be-brotli", "br", "Accept-Encoding that allows only brotli", "the server is asked for no encoding; one it uses all the same is refused", sealed=False, statuses=(502,), headers=[("X-Reflect", "KEY"), ("Accept-Encoding", "br;q=1, identity;q=0")])
echo("echo-in-base64", "base64", "the value in base64")
echo("echo-in-percent-signs", "percent", "the value as an address has it: `/`, `+` and `=` in percent signs")
echo("echo-of-basic-authentication", "body", "basic authentication quoted as it came: user and value in base64 together", headers=[("Authorization", "BASIC")], sealed=False)
echo("echo-in-a-header-over-http2", "header", "the value in a header, over HTTP/2", host="h2.test.example", via="curl2")
echo("echo-in-a-body-over-http2", "body", "the value in the body, over HTTP/2", host="h2.test.example", via="get2")
echo("echo-byte-by-byte-over-http2", "bytes", "the value in frames of one byte", host="h2.test.example", via="get2")
echo("echo-in-a-trailer-over-http2", "trailer", "the value in a trailer, over HTTP/2", host="h2.test.example", via="curl2", sealed=False)
echo("echo-in-gzip-over-http2", "gzip", "the value in gzip, over HTTP/2", "compressed bodies are unpacked, read and passed on unpacked", host="h2.test.example", via="get2")


@attack("echo-cut-at-every-place", "the body cut in two at every byte of the value, with a pause between", "what could be the beginning of a value is held back until it is clear")
def _(w):
    mark = w.mark()
    code = """
found = []
with tls('h1.test.example') as stream:
    for at in range(1, length):
        stream.sendall(request(f'/echo?as=split&at={at}&{mark}', 'h1.test.example', headers={'X-Reflect': KEY}))
        found.append(read_response(stream)['body'])
say([found, KEY])
"""
    bodies, token = python(w.fenced, code, mark=mark, length=len(w.value))
    assert w.arrived(mark) and all(body == f"before {token} after" for body in bodies), bodies[:3]
    w.no_value_in(bodies)
    return f"{len(bodies)} cuts, the token each time"


@attack("echo-in-a-websocket", "the value in a message, and in the answer to the upgrade", "messages are read; one that holds a value ends the connection, as its length cannot be changed")
def _(w):
    for target in ("/ws?as=body", "/ws?as=header"):
        mark = w.mark()
        answer = python(w.fenced, "say(attempt(websocket, 'h1.test.example', target, {'X-Reflect': KEY}, ['hello'], replies=2))", target=f"{target}&{mark}")
        check(w, answer, mark)
    return f"{answer.get('status')}, {answer.get('messages')} {answer.get('ended', '')}"


@attack("echo-of-another-hosts-secret", "two secrets: one host says the value of its own back beside the token of the other", "each host's own values are looked for in its replies")
def _(w):
    mark = w.mark()
    code = "say([get('other.test.example', '/echo?as=body&' + mark, {'X-Reflect': f'{OTHER_KEY} {KEY}'}), OTHER_KEY, KEY])"
    answer, token, other = python(w.fenced, code, mark=mark)
    assert w.other_value in str(w.arrived(mark)), "the server should have got it"
    w.no_value_in(answer)
    assert token in answer["body"] and other in answer["body"], answer
    return "both tokens came back"


@attack("echo-of-a-body", "a value put into a body, said back", "the same as for headers")
def _(w):
    mark = w.mark()
    code = "say([get('h1.test.example', '/echo?as=body&' + mark, {'X-Dummy': '1'}, 'POST', WIDE_KEY.encode()), WIDE_KEY])"
    answer, token = python(w.fenced, code, mark=mark)
    assert w.wide_value in str(w.arrived(mark)), w.arrived(mark)
    w.no_value_in(answer)
    assert token in answer["body"], answer
    return "the token came back"
