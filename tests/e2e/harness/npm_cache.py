"""npm's registry as tests see it: what was fetched once is kept on this machine, so that agents are installed in seconds and
without a network the next time.

Packages stay where npm keeps them, in a folder of this machine alone; nothing of them is part of this repository.
"""

import hashlib
import json
import os
import socketserver
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx

REGISTRY = subprocess.run(["npm", "config", "get", "registry"], capture_output=True, text=True, check=True, timeout=30).stdout.strip().rstrip("/")
FOLDER = Path(os.environ.get("WARREN_E2E_CACHE", "/var/cache/warren-e2e")) / "npm"
#: What a package has of versions is looked up again after a day; archives never change.
FRESH = 24 * 3600


class NpmCache:
    """Serves on a listener until closed."""

    def __init__(self, listener):
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.http = httpx.Client(base_url=REGISTRY, timeout=60, follow_redirects=True)
        self.server = Serving(listener.getsockname(), Handler, bind_and_activate=False)
        self.server.socket.close()
        self.server.socket, self.server.cache = listener, self
        #: Requests, and bytes that came from the registry itself.
        self.asked, self.fetched = [], 0
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.http.close()

    def get(self, path, accept):
        """Status and body, from the folder or the registry."""
        self.asked.append(path)
        kept = FOLDER / hashlib.sha256(f"{path}\n{accept}".encode()).hexdigest()
        is_archive = "/-/" in path
        if kept.exists() and (is_archive or time.time() - kept.stat().st_mtime < FRESH):
            return 200, kept.read_bytes()
        try:
            answer = self.http.get(path, headers={"accept": accept} if accept else {})
        except httpx.HTTPError as error:
            if kept.exists():
                return 200, kept.read_bytes()
            return 502, json.dumps({"error": f"the registry cannot be reached: {error}"}).encode()
        self.fetched += len(answer.content)
        if answer.status_code == 200:
            made = kept.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            made.write_bytes(answer.content)
            made.rename(kept)
        return answer.status_code, answer.content


class Serving(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        status, body = self.server.cache.get(self.path, self.headers.get("accept", ""))
        self.send_response(status)
        self.send_header("content-type", "application/octet-stream" if "/-/" in self.path else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def why_not(packages):
    """None when these can be installed, from the folder or the registry; else why not."""
    if FOLDER.exists() and any(FOLDER.iterdir()):
        return None
    try:
        httpx.get(f"{REGISTRY}/{packages[0]}", timeout=10, headers={"accept": "application/vnd.npm.install-v1+json"}).raise_for_status()
    except httpx.HTTPError as error:
        return f"npm's registry is not there and {FOLDER} is empty: {error}"
    return None
