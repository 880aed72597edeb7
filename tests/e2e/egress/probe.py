"""What attack programs inside a sandbox are written with: sockets, TLS, DNS and HTTP as bytes. Python's own library only.

Everything that goes wrong is told, not raised: `attempt(f)` gives `{"error": …}`.
"""

import base64
import json
import os
import socket
import ssl
import struct
import sys
import time

RESOLVER = ("169.254.169.253", 53)
PROXY = ("169.254.169.253", 3128)
PATIENCE = float(os.environ.get("WARREN_PATIENCE", "1"))
TIMEOUT = 6 * PATIENCE
KEY = os.environ.get("API_KEY", "")
WIDE_KEY = os.environ.get("WIDE_KEY", "")
OTHER_KEY = os.environ.get("OTHER_KEY", "")


def say(value):
    print(json.dumps(value, default=lambda each: each.decode("latin-1") if isinstance(each, bytes) else str(each)))


def attempt(what, *arguments, **options):
    try:
        return what(*arguments, **options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


# --- names


def question(name, kind=1, number=4711, flags=0x0100, labels=None):
    labels = [label.encode("latin-1") for label in name.split(".") if label] if labels is None else labels
    body = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!HHHHHH", number, flags, 1, 0, 0, 0) + body + struct.pack("!HH", kind, 1)


def ask(name, kind=1, server=RESOLVER, tcp=False, raw=None, timeout=None):
    """The answer's code and addresses; `"silence"` when none came."""
    message = question(name, kind) if raw is None else raw
    timeout = timeout or TIMEOUT
    try:
        if tcp:
            with socket.create_connection(server, timeout) as stream:
                stream.sendall(struct.pack("!H", len(message)) + message)
                head = read_exactly(stream, 2)
                answer = read_exactly(stream, struct.unpack("!H", head)[0])
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.settimeout(timeout)
                asker.connect(server)
                asker.send(message)
                answer = asker.recv(4096)
    except (TimeoutError, OSError, EOFError) as error:
        return {"code": "silence", "addresses": [], "why": str(error)}
    flags, count = struct.unpack("!HH", answer[2:4] + answer[6:8])
    # Only addresses are looked for: the last bytes of records that are four long.
    addresses, at = [], 12
    while answer[at]:
        at += 1 + answer[at]
    at += 5
    kinds = []
    for _ in range(count):
        while answer[at] and answer[at] < 192:
            at += 1 + answer[at]
        at += 2 if answer[at] >= 192 else 1
        found, _, _, length = struct.unpack("!HHIH", answer[at : at + 10])
        kinds.append(found)
        if found == 1:
            addresses.append(socket.inet_ntoa(answer[at + 10 : at + 14]))
        at += 10 + length
    return {"code": flags & 15, "addresses": addresses, "kinds": kinds}


def address(host):
    return socket.gethostbyname(host)


def read_exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise EOFError("the connection ended")
        data += more
    return data


# --- connections


def tcp(host, port, timeout=None):
    return socket.create_connection((host, port), timeout or TIMEOUT)


def reaches(host, port, send=b"hello\n", timeout=None):
    """What came back over TCP: `"echo"`, bytes, or why nothing did. A connection alone says nothing: the gateway takes it."""
    try:
        with tcp(host, port, timeout) as stream:
            stream.sendall(send)
            data = stream.recv(4096)
            return {"got": data}
    except OSError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def over_udp(host, port, send, timeout=1.5):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(timeout * PATIENCE)
        try:
            sender.connect((host, port))
            sender.send(send)
            return {"got": sender.recv(4096)}
        except OSError as error:
            return {"error": f"{type(error).__name__}: {error}"}


def tls(host, port=443, sni=None, alpn=("http/1.1",), at=None, stream=None, versions=None):
    """TLS that trusts what the system trusts. `sni`: None for the host's name, "" for none."""
    context = ssl.create_default_context()
    context.load_verify_locations("/etc/ssl/certs/ca-certificates.crt")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if versions:
        context.maximum_version = versions
    name = host if sni is None else sni
    if not name or name != host:
        context.check_hostname = False
    stream = stream or tcp(at or host, port)
    return context.wrap_socket(stream, server_hostname=name or None)


def request(target="/", host="", method="GET", headers=(), body=b"", length=True):
    lines = [f"{method} {target} HTTP/1.1"]
    if host:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in (headers.items() if isinstance(headers, dict) else headers)]
    if body and length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def read_response(stream, no_body=False, tunnel=False):
    """One response of HTTP/1.1: status, reason, headers, body; what came before it as 1xx in `early`."""
    data, early = b"", []
    while True:
        while b"\r\n\r\n" not in data:
            more = stream.recv(65536)
            if not more:
                return {"error": "the connection ended", "data": data}
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        _, status, *reason = first.split(" ", 2)
        headers = [[name.strip().lower(), value.strip()] for name, _, value in (line.partition(":") for line in lines)]
        answer = {"status": int(status), "reason": " ".join(reason), "headers": headers}
        if 100 <= answer["status"] < 200 and answer["status"] != 101:
            early.append(answer)
            continue
        break
    fields = dict(headers)
    if no_body or (tunnel and answer["status"] == 200) or answer["status"] in (101, 204, 304):
        body = b""
        answer["rest"] = data
    elif "chunked" in fields.get("transfer-encoding", ""):
        body, trailers = b"", []
        while True:
            while b"\r\n" not in data:
                data += need(stream)
            line, _, data = data.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            if not size:
                while True:
                    while b"\r\n" not in data:
                        data += need(stream)
                    line, _, data = data.partition(b"\r\n")
                    if not line:
                        break
                    trailers.append(line)
                break
            while len(data) < size + 2:
                data += need(stream)
            body += data[:size]
            data = data[size + 2 :]
        answer["trailers"] = trailers
    elif "content-length" in fields:
        body = data
        while len(body) < int(fields["content-length"]):
            body += need(stream)
    else:
        body = data
        while more := stream.recv(65536):
            body += more
    return answer | {"body": body.decode("latin-1"), "early": early, "fields": fields}


def need(stream):
    more = stream.recv(65536)
    if not more:
        raise EOFError("the connection ended inside a body")
    return more


def https(host, raw, port=443, **options):
    """One request as bytes over TLS, one response."""
    with tls(host, port, **options) as stream:
        stream.sendall(raw)
        return read_response(stream)


def get(host, target="/", headers=(), method="GET", body=b"", port=443, **options):
    headers = list(headers.items() if isinstance(headers, dict) else headers)
    return https(host, request(target, host, method, [*headers, ("Connection", "close")], body), port, **options)


def plain(host, raw, port=80, at=None):
    with tcp(at or host, port) as stream:
        stream.sendall(raw)
        return read_response(stream)


def several(stream, count):
    """That many responses, or fewer when the connection ends."""
    found = []
    for _ in range(count):
        answer = attempt(read_response, stream)
        found.append(answer)
        if "error" in answer:
            break
    return found


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- HTTP/2, as frames


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def field(name, value):
    """A header field that is put in no table, its texts as they are."""
    texts = [each.encode("latin-1") if isinstance(each, str) else each for each in (name, value)]
    out = b"\0"
    for text in texts:
        if len(text) < 127:
            out += bytes([len(text)])
        else:
            rest = len(text) - 127
            out += b"\x7f"
            while rest >= 128:
                out += bytes([rest % 128 + 128])
                rest //= 128
            out += bytes([rest])
        out += text
    return out


DIGITS = {0: "0", 1: "1", 2: "2", 25: "3", 26: "4", 27: "5", 28: "6", 29: "7", 30: "8", 31: "9"}
INDEXED = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}


def status_of(block):
    """The `:status` at the beginning of a header block."""
    while block and block[0] & 0xE0 == 0x20:
        block = block[1:]
    if not block:
        return None
    if block[0] & 0x80:
        return INDEXED.get(block[0] & 0x7F)
    length, text = block[1] & 0x7F, block[2:]
    if not block[1] & 0x80:
        return int(text[:length])
    bits, digits = "".join(f"{byte:08b}" for byte in text[:length]), ""
    while len(digits) < 3:
        for size in (5, 6):
            if (code := int(bits[:size], 2)) in DIGITS and (size == 5) == (code < 3):
                digits, bits = digits + DIGITS[code], bits[size:]
                break
        else:
            return None
    return int(digits)


def http2(stream, requests, wait=3.0):
    """Sends header blocks, each `(fields, body)`, and tells by stream what came: status, body, reset; and `goaway`."""
    stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
    for i, (fields, body) in enumerate(requests):
        block = b"".join(field(name, value) for name, value in fields)
        stream.sendall(frame(1, 4 | (0 if body else 1), 2 * i + 1, block))
        if body:
            stream.sendall(frame(0, 1, 2 * i + 1, body))
    found = {"streams": {}, "goaway": None, "closed": False}
    data, open_streams = b"", {2 * i + 1 for i in range(len(requests))}
    deadline = time.monotonic() + wait * PATIENCE
    while open_streams and time.monotonic() < deadline:
        stream.settimeout(max(0.05, deadline - time.monotonic()))
        try:
            more = stream.recv(65536)
        except (TimeoutError, ssl.SSLError, OSError) as error:
            found["why"] = str(error)
            break
        if not more:
            found["closed"] = True
            break
        data += more
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            kind, flags, number = data[3], data[4], int.from_bytes(data[5:9], "big") & 0x7FFFFFFF
            payload, data = data[9 : 9 + size], data[9 + size :]
            one = found["streams"].setdefault(str(number), {"status": None, "body": "", "reset": None})
            if kind == 4 and not flags & 1:
                stream.sendall(frame(4, 1, 0))
            elif kind == 1 and one["status"] in (None, 100, 103):
                one["status"] = status_of(payload)
                one["block"] = payload.decode("latin-1")
            elif kind == 0:
                one["body"] += payload.decode("latin-1")
            elif kind == 3:
                one["reset"] = int.from_bytes(payload, "big")
                open_streams.discard(number)
            elif kind == 7:
                found["goaway"] = int.from_bytes(payload[4:8], "big")
                open_streams = set()
            if kind in (0, 1) and flags & 1:
                open_streams.discard(number)
    return found


def get2(host, fields, body=b"", **options):
    """One request over HTTP/2; the fields of the answer at its top."""
    with tls(host, alpn=("h2",), **options) as stream:
        found = http2(stream, [(fields, body)])
    return found | found["streams"].get("1", {})


def pseudo(authority, path="/", method="GET", scheme="https"):
    return [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]


# --- the proxy that is asked for


def connect(target, host=None):
    """A CONNECT to the proxy; the stream and its answer."""
    stream = tcp(*PROXY)
    stream.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {host or target}\r\n\r\n".encode("latin-1"))
    return stream, read_response(stream, tunnel=True)


def through(target, host=None):
    """What comes of a CONNECT: its answer when it is refused, else what a request inside is answered."""
    stream, answer = connect(target, host)
    if answer.get("status") != 200:
        return answer
    name, _, port = target.rpartition(":")
    inside = tls(name, stream=stream) if port == "443" else stream
    inside.sendall(request("/", name, headers=[("Connection", "close")]))
    return read_response(inside)


# --- WebSockets


def websocket(host, target="/ws", headers=(), messages=(), port=443, replies=None):
    """Opens one, sends text messages, reads as many back."""
    fields = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]
    with tls(host, port) as stream:
        stream.sendall(request(target, host, headers=[*fields, *(headers.items() if isinstance(headers, dict) else headers)]))
        answer = read_response(stream)
        got, data = [], answer.pop("rest", "")
        data = data if isinstance(data, bytes) else data.encode("latin-1")
        if answer.get("status") == 101:
            for message in messages:
                text = message.encode("latin-1")
                mask = b"\x01\x02\x03\x04"
                size = bytes([0x80 | len(text)]) if len(text) < 126 else bytes([0x80 | 126]) + struct.pack("!H", len(text))
                stream.sendall(b"\x81" + size + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(text)))
            wanted = len(messages) if replies is None else replies
            try:
                while len(got) < wanted:
                    while len(data) < 2 or len(data) < (need_bytes := frame_length(data)):
                        data += need(stream)
                    got.append(data[frame_head(data) : need_bytes].decode("latin-1"))
                    data = data[need_bytes:]
            except (OSError, EOFError) as error:
                answer["ended"] = str(error)
        return answer | {"messages": got, "tail": data.decode("latin-1")}


def frame_head(data):
    return {126: 4, 127: 10}.get(data[1] & 127, 2)


def frame_length(data):
    size = data[1] & 127
    if size < 126:
        return 2 + size
    head = 4 if size == 126 else 10
    return head + int.from_bytes(data[2:head], "big") if len(data) >= head else 1 << 40


# --- TLS, by hand


def extension(kind, data):
    return struct.pack("!HH", kind, len(data)) + data


def server_names(*names):
    entries = b"".join(b"\0" + struct.pack("!H", len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


def protocols(*names):
    entries = b"".join(bytes([len(name)]) + name for name in names)
    return extension(16, struct.pack("!H", len(entries)) + entries)


def client_hello(*extensions, records=1):
    """The first message of TLS 1.2, in one record or as many as its bytes allow."""
    usual = extension(10, b"\0\4\0\x17\0\x1d") + extension(11, b"\1\0") + extension(13, b"\0\6\4\3\x08\4\4\1")
    all_of_them = b"".join(extensions) + usual
    body = b"\3\3" + os.urandom(32) + b"\0" + b"\0\6\xc0\x2b\xc0\x2f\0\xff" + b"\1\0" + struct.pack("!H", len(all_of_them)) + all_of_them
    message = b"\1" + struct.pack("!I", len(body))[1:] + body
    size = max(1, len(message) // records)
    pieces = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + struct.pack("!H", len(piece)) + piece for piece in pieces)


def hello(at, data, port=443, pieces=1, pause=0.0, wait=3.0):
    """What comes back to it: `server hello`, an alert, or why nothing."""
    with tcp(at, port) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = max(1, len(data) // pieces)
        try:
            for i in range(0, len(data), size):
                stream.sendall(data[i : i + size])
                if pause:
                    time.sleep(pause)
            stream.settimeout(wait * PATIENCE)
            answer = stream.recv(4096)
        except OSError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        if not answer:
            return {"error": "closed"}
        if answer[0] == 22 and answer[5] == 2:
            return {"hello": True}
        return {"alert": answer[6]} if answer[0] == 21 else {"got": answer}
