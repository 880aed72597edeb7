"""Previews of a sandbox, asked for by their host name at the server's own address."""

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from websockets.sync.client import connect

from . import settings
from .waiting import wait_for

PROGRAM = Path(__file__).with_name("program.py").read_text()


def serve(box, *addresses):
    """Starts the test's program inside; addresses are `host,port`."""
    box.write("/home/sandbox/program.py", PROGRAM.encode())
    box.start("python3", "/home/sandbox/program.py", *(addresses or ("127.0.0.1,8000",)))
    ports = [address.rsplit(",", 1)[1] for address in addresses or ("127.0.0.1,8000",)]
    for port in ports:
        # A shell's own way: a Python per look keeps an emulated processor from starting the program.
        check = f"bash -c ': </dev/tcp/127.0.0.1/{port}'"
        wait_for(lambda c=check: box.run(c)["exitCode"] == 0, f"port {port} listens", 15, 0.1)


class Preview:
    """One port."""

    def __init__(self, box, port=8000, headers=None, url=None, **options):
        self.server = urlsplit(url or box.api.url)
        self.id = box.id
        self.port = port
        self.host = f"{box.id}-p{port}.{box.created['sandboxDomain']}"
        sent = {"Host": self.host} | (headers or {})
        self.http = httpx.Client(base_url=f"{self.server.scheme}://{self.server.netloc}", headers=sent, timeout=60, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def get(self, path="/", **options):
        return self.http.get(path, **options)

    def seen(self, path="/", method="GET", **options):
        """What arrived inside."""
        answer = self.http.request(method, path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def header(self, name, path="/", **options):
        """The values of a header inside."""
        return [value for found, value in self.seen(path, **options)["headers"] if found == name]

    def socket(self, path="/ws", **options):
        """A WebSocket."""
        connection = socket.create_connection((self.server.hostname, self.server.port), timeout=15)
        return connect(f"ws://{self.host}{path}", sock=connection, compression=None, max_size=1 << 26, **options)


def memory_mb(pid=None):
    """Resident memory of the server now, in MiB."""
    for line in Path(f"/proc/{pid or settings.SERVER_PID}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def error_of(answer):
    return json.loads(answer.text)["error"]
