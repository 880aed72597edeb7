"""A server of one's own, to be killed and started again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from . import host, settings
from .client import Api


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """`warren serve` on a data directory of its own; keeps its address over restarts."""

    def __init__(self, *arguments):
        # Like the server of the other suites, unless the test chooses.
        usual = [] if "--runtime" in arguments else os.environ.get("WARREN_SERVE_ARGS", "").split()
        self.arguments = [*usual, *arguments]
        self.data_dir = tempfile.mkdtemp(prefix="e2e-")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = Path(f"{self.data_dir}.log")
        self.before = host.snapshot()
        self.process = None
        self.key = None

    def __enter__(self):
        try:
            self.start()
            self.key = self.make_key("e2e")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, failed, *_):
        self.end(keep_log=bool(failed))

    def start(self, *more, within=60.0, through=(), env=None, log=None):
        """Starts it, by way of the command `through`, and waits until it is ready; the seconds that took."""
        begun = time.monotonic()
        flags = dict.fromkeys([*self.arguments, *more])
        log = open(log, "ab") if log else self.log_path.open("ab")
        self.process = subprocess.Popen(
            [*through, settings.PROGRAM, "serve", "--listen", f"127.0.0.1:{self.port}", "--data-dir", self.data_dir, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )
        log.close()
        while True:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}: {self.log()[-3000:]}"
            assert time.monotonic() - begun < settings.patient(within), f"not ready: {self.log()[-3000:]}"
            try:
                if self.is_ready():
                    return time.monotonic() - begun
            except httpx.HTTPError:
                pass
            time.sleep(0.01)

    def is_ready(self):
        return httpx.get(f"{self.url}/readyz", timeout=settings.patient(2)).status_code == 200

    def make_key(self, org):
        return subprocess.run(
            [settings.PROGRAM, "keys", "create", "--org", org, "--data-dir", self.data_dir],
            capture_output=True,
            text=True,
            check=True,
            timeout=settings.patient(20),
        ).stdout.strip()

    def api(self, **options):
        return Api(self.url, self.key, **options)

    def kill(self):
        """SIGKILL: no chance to tidy up."""
        self.process.kill()
        self.process.wait(settings.patient(10))

    def stop(self, within=20.0):
        """SIGTERM; fails when it takes too long or ends badly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(settings.patient(within)) == 0, self.log()[-3000:]

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def left_behind(self, within=15.0):
        """What is still there though it should not be."""
        return host.wait_nothing_leaked(self.before, [self.data_dir], within)

    def end(self, keep_log=False):
        """Ends the server and its sandboxes, whatever state it is in."""
        if self.process and self.process.poll() is None:
            self.kill()
        try:
            if self.process:
                self.start("--stop-sandboxes")
                self.stop(30)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            keep_log = True
            if self.process.poll() is None:
                self.process.kill()
        for mount in sorted(host.mounts(), key=len, reverse=True):
            if mount.split()[0].startswith(self.data_dir):
                subprocess.run(["umount", "-l", mount.split()[0]], check=False)
        shutil.rmtree(self.data_dir, ignore_errors=True)
        if not keep_log:
            self.log_path.unlink(missing_ok=True)


def entries_of(data_dir, sandbox_id):
    """Files and folders of the data directory that bear this sandbox's id."""
    found = []
    for folder, names, files in os.walk(data_dir):
        found += [os.path.join(folder, name) for name in names + files if sandbox_id in name]
    return found


def ids_in(data_dir):
    """All sandbox ids that files and folders of the data directory bear."""
    found = set()
    for _, names, files in os.walk(data_dir):
        for name in names + files:
            found |= set(host.SANDBOX_ID.findall(name))
    return found
