"""A server for the inside of a sandbox: echoes, streams, counts, speaks WebSocket. Standard library alone."""

import base64
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BLOCK = bytes(range(256)) * 256


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def read_body(self):
        """Yields what is sent, in pieces."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def answer(self, body, kind="application/json", status=200, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def chunked(self, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, piece):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()

    def handle_one(self):
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if self.headers.get("Upgrade") == "websocket":
            return self.websocket()
        if parts.path == "/events":
            self.chunked("text/event-stream")
            for number in range(int(query.get("count", 3))):
                self.chunk(b"data: %d\n\n" % number)
                time.sleep(float(query.get("every", 0)))
            return self.chunk(b"")
        if parts.path == "/big":
            length, digest = int(query["bytes"]), hashlib.sha256()
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            while length:
                piece = BLOCK[: min(length, len(BLOCK))]
                self.wfile.write(piece)
                length -= len(piece)
            return None
        if parts.path == "/slow":
            time.sleep(float(query["seconds"]))
        if parts.path == "/status":
            for _ in self.read_body():
                pass
            return self.answer(b"", status=int(query["status"]))
        digest, length = hashlib.sha256(), 0
        for piece in self.read_body():
            digest.update(piece)
            length += len(piece)
        seen = {
            "method": self.command,
            "target": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "length": length,
            "sha256": digest.hexdigest(),
        }
        return self.answer(json.dumps(seen).encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = handle_one

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.wfile.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self.close_connection = True
        send_frame(self.wfile, 1, self.headers["Host"].encode())
        while True:
            frame = read_frame(self.rfile)
            if frame is None or frame[0] == 8:
                send_frame(self.wfile, 8, b"\x03\xe8")
                return
            send_frame(self.wfile, *frame)


def send_frame(file, kind, payload):
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | kind, length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | kind, 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | kind, 127, length)
    file.write(head + payload)
    file.flush()


def read_frame(file):
    head = file.read(2)
    if len(head) < 2:
        return None
    length = head[1] & 127
    if length == 126:
        length = struct.unpack("!H", file.read(2))[0]
    elif length == 127:
        length = struct.unpack("!Q", file.read(8))[0]
    mask = file.read(4)
    payload = file.read(length)
    if any(mask):
        whole = (mask * (length // 4 + 1))[:length]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(length, "big") if length else b""
    return head[0] & 15, payload


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host, port):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)


if __name__ == "__main__":
    servers = [Server(*address.rsplit(",", 1)[:1], int(address.rsplit(",", 1)[1])) for address in sys.argv[1:]]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()
