"""Requests no decent client sends: written byte by byte to the socket."""

import json
import socket
from urllib.parse import urlsplit

from . import settings

#: Headers that ask for a WebSocket.
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class RawAnswer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:200]!r}"


def open_socket(url=None, timeout=settings.patient(15)):
    parts = urlsplit(url or settings.URL)
    return socket.create_connection((parts.hostname, parts.port), timeout=timeout)


def head(method, target, headers, key=None):
    """The bytes of a request's head; `target` and header values are taken as they are."""
    as_bytes = lambda value: value if isinstance(value, bytes) else value.encode()
    lines = [b" ".join([as_bytes(method), as_bytes(target), b"HTTP/1.1"]), b"Host: localhost"]
    if key:
        lines.append(b"X-API-Key: " + key.encode())
    lines += [as_bytes(name) + b": " + as_bytes(value) for name, value in headers.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def raw_request(method, target, headers=None, body=b"", key=None, half_close=False, url=None, timeout=settings.patient(15)):
    """Sends exactly this and reads one answer; None when the server closed without one."""
    fields = {"Connection": "close"} | (headers or {})
    if body and not any(name.lower() in ("content-length", "transfer-encoding") for name in fields):
        fields["Content-Length"] = str(len(body))
    with open_socket(url, timeout) as connection:
        try:
            connection.sendall(head(method, target, fields, settings.KEY if key is None else key) + body)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The server may have answered and closed before it had read all.
        return read_answer(connection)


def read_answer(connection):
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
            if complete(data):
                break
    except ConnectionResetError:
        pass
    if not data:
        return None
    header, _, body = data.partition(b"\r\n\r\n")
    first, *lines = header.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawAnswer(int(first.split()[1]), headers, body)


def complete(data):
    header, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in header.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False
