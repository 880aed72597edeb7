"""A development server for the inside of a sandbox: serves a folder, and tells pages over a WebSocket when it changes."""

import base64
import hashlib
import os
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

FOLDER = sys.argv[2] if len(sys.argv) > 2 else "/home/sandbox/site"
CLIENT = b"""<script>
const socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/__reload`)
socket.onopen = () => { document.body.dataset.socket = 'open' }
socket.onmessage = async (event) => {
  const page = new DOMParser().parseFromString(await (await fetch(event.data)).text(), 'text/html')
  document.querySelector('main').replaceWith(page.querySelector('main'))
  window.replaced = (window.replaced ?? 0) + 1
}
</script>"""


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments):
        super().__init__(*arguments, directory=FOLDER)

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/__reload":
            return self.reload()
        if self.path in ("/", "/index.html"):
            with open(f"{FOLDER}/index.html", "rb") as file:
                body = file.read() + CLIENT
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Set-Cookie", "own=1; Path=/; Domain=localhost")
            self.end_headers()
            self.wfile.write(body)
            return None
        return super().do_GET()

    def reload(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        self.wfile.write(head.encode())
        self.wfile.flush()
        self.close_connection = True
        seen = os.stat(f"{FOLDER}/index.html").st_mtime_ns
        while True:
            time.sleep(0.02)
            now = os.stat(f"{FOLDER}/index.html").st_mtime_ns
            if now != seen:
                seen = now
                self.wfile.write(b"\x81\x01/")
                self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
