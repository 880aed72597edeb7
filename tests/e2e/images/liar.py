"""A registry that lies, stalls, sends elsewhere and asks for credentials without end. What it does stands in the name of the
repository it is asked for."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from harness import oci

GOOD = oci.Image([oci.entry("f", "x" * 100_000)])
#: Longer than anybody should wait.
FOR_EVER = 120


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        liar = self.server.liar
        liar.requests.append((self.path, dict(self.headers)))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "token":
            return self.token(liar, parts)
        if parts[:1] != ["v2"]:
            return self.say(404, b"{}")
        if len(parts) < 4:
            return self.say(200, b"{}")
        how, kind, what = parts[1], parts[-2], parts[-1]
        try:
            getattr(self, how.replace("-", "_"), self.good)(kind, what)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def say(self, status, body=b"", media="application/json", length=None, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    # --- what a registry does

    def good(self, kind, what, image=GOOD):
        if kind == "manifests":
            return self.say(200, image.manifest, image.media, headers=[("Docker-Content-Digest", image.digest)])
        blob = image.blobs().get(what)
        return self.say(404, b"{}") if blob is None else self.say(200, blob, "application/octet-stream")

    def is_layer(self, kind, what):
        return kind == "blobs" and what == GOOD.layers[0].digest

    # --- and what it should not

    def stall_at_once(self, kind, what):
        self.server.liar.wait()

    def stall_in_the_manifest(self, kind, what):
        if kind != "manifests":
            return self.good(kind, what)
        self.say(200, GOOD.manifest[:20], GOOD.media, length=len(GOOD.manifest))
        self.server.liar.wait()

    def stall_in_a_layer(self, kind, what):
        if not self.is_layer(kind, what):
            return self.good(kind, what)
        blob = GOOD.layers[0].blob
        self.say(200, blob[: len(blob) // 2], length=len(blob))
        self.server.liar.wait()

    def cut_off(self, kind, what):
        if not self.is_layer(kind, what):
            return self.good(kind, what)
        blob = GOOD.layers[0].blob
        self.say(200, blob[: len(blob) // 2], length=len(blob))
        self.close_connection = True

    def too_short(self, kind, what):
        return self.say(200, GOOD.layers[0].blob[:-3]) if self.is_layer(kind, what) else self.good(kind, what)

    def too_long(self, kind, what):
        return self.say(200, GOOD.layers[0].blob + b"more") if self.is_layer(kind, what) else self.good(kind, what)

    def other_bytes(self, kind, what):
        blob = GOOD.layers[0].blob
        return self.say(200, blob[:-20] + bytes(20)) if self.is_layer(kind, what) else self.good(kind, what)

    def other_config(self, kind, what):
        return self.say(200, b"{}") if kind == "blobs" and not self.is_layer(kind, what) else self.good(kind, what)

    def endless_layer(self, kind, what):
        if not self.is_layer(kind, what):
            return self.good(kind, what)
        self.chunks(b"x" * 65536)

    def endless_manifest(self, kind, what):
        self.chunks(b" " * 65536)

    def huge_manifest(self, kind, what):
        self.say(200, b"{", GOOD.media, length=1 << 40)
        self.close_connection = True

    def chunks(self, piece):
        self.send_response(200)
        self.send_header("Content-Type", GOOD.media)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + FOR_EVER
        while time.monotonic() < end and not self.server.liar.ended.is_set():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def nonsense(self, kind, what):
        self.say(200, b"<html>no registry</html>", "text/html")

    def deep_json(self, kind, what):
        self.say(200, b"[" * 1_000_000, GOOD.media)

    def old_schema(self, kind, what):
        self.say(200, json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(), "application/vnd.docker.distribution.manifest.v1+json")

    def no_layers(self, kind, what):
        self.say(200, json.dumps({"schemaVersion": 2, "mediaType": GOOD.media}).encode(), GOOD.media)

    def many_layers(self, kind, what):
        manifest = json.loads(GOOD.manifest)
        manifest["layers"] *= 500
        self.say(200, json.dumps(manifest).encode(), GOOD.media)

    def negative_size(self, kind, what):
        manifest = json.loads(GOOD.manifest)
        manifest["layers"][0]["size"] = -1
        self.say(200, json.dumps(manifest).encode(), GOOD.media)

    def absurd_size(self, kind, what):
        manifest = json.loads(GOOD.manifest)
        manifest["layers"][0]["size"] = 1 << 60
        self.say(200, json.dumps(manifest).encode(), GOOD.media)

    def bad_digest(self, kind, what):
        manifest = json.loads(GOOD.manifest)
        manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd"
        self.say(200, json.dumps(manifest).encode(), GOOD.media)

    def other_platform(self, kind, what):
        listed = [{"mediaType": GOOD.media, "digest": GOOD.digest, "size": len(GOOD.manifest), "platform": {"architecture": "mips", "os": "plan9"}}]
        self.say(200, json.dumps({"schemaVersion": 2, "manifests": listed}).encode(), f"{oci.MEDIA}index.v1+json")

    def index_of_itself(self, kind, what):
        listed = [{"mediaType": f"{oci.MEDIA}index.v1+json", "digest": GOOD.digest, "size": 10, "platform": {"architecture": "amd64", "os": "linux"}}] * 3
        self.say(200, json.dumps({"schemaVersion": 2, "manifests": listed}).encode(), f"{oci.MEDIA}index.v1+json")

    def busy(self, kind, what):
        self.say(429, b'{"errors": [{"code": "TOOMANYREQUESTS"}]}', headers=[("Retry-After", "3600")])

    def broken(self, kind, what):
        self.say(500, b"oops \x1b[2J")

    def redirect_to_metadata(self, kind, what):
        self.go("http://169.254.169.254/latest/meta-data/", kind, what)

    def redirect_to_loopback(self, kind, what):
        self.go(f"http://127.0.0.1:{self.server.liar.trap.server_port}/secret", kind, what)

    def redirect_to_a_file(self, kind, what):
        self.go("file:///etc/passwd", kind, what)

    def redirect_for_ever(self, kind, what):
        self.say(307, headers=[("Location", self.path)])

    def go(self, where, kind, what):
        if self.is_layer(kind, what):
            return self.say(307, headers=[("Location", where)])
        return self.good(kind, what)

    # --- credentials

    def ask(self, realm):
        self.say(401, b"{}", headers=[("WWW-Authenticate", f'Bearer realm="{realm}",service="liar",scope="repository:x:pull"')])

    def always_asks(self, kind, what):
        self.ask(f"http://{self.server.liar.address}/token/good")

    def token_never_suits(self, kind, what):
        self.ask(f"http://{self.server.liar.address}/token/asks-too")

    def token_from_metadata(self, kind, what):
        self.ask("http://169.254.169.254/token")

    def token_from_loopback(self, kind, what):
        self.ask(f"http://127.0.0.1:{self.server.liar.trap.server_port}/token")

    def token_is_huge(self, kind, what):
        self.ask(f"http://{self.server.liar.address}/token/huge")

    def basic_for_ever(self, kind, what):
        self.say(401, b"{}", headers=[("WWW-Authenticate", 'Basic realm="liar"')])

    def garbled_challenge(self, kind, what):
        self.say(401, b"{}", headers=[("WWW-Authenticate", 'Bearer realm="' + "x" * 5000)])

    def token(self, liar, parts):
        if parts[-1] == "asks-too":
            return self.ask(f"http://{liar.address}/token/asks-too")
        if parts[-1] == "huge":
            return self.say(200, json.dumps({"token": "x" * (8 << 20)}).encode())
        self.say(200, b'{"token": "abc"}')


class Trap(BaseHTTPRequestHandler):
    """Where nobody should come."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.caught.append((self.path, dict(self.headers)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET


class Liar:
    auth = None

    def __init__(self, port):
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self.requests, self.ended = [], threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.liar, self.server.daemon_threads = self, True
        self.trap = ThreadingHTTPServer(("127.0.0.1", 0), Trap)
        self.trap.caught, self.trap.daemon_threads = [], True

    def __enter__(self):
        for each in (self.server, self.trap):
            threading.Thread(target=each.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for each in (self.server, self.trap):
            each.shutdown()
            each.server_close()

    def wait(self):
        self.ended.wait(FOR_EVER)
