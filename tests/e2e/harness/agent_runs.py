"""`warren agent run` on a folder of a test's own, with a home of its own."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

from . import settings
from .pipes import first_line
from .waiting import wait_for

#: The client, where it is another build than the server.
CLIENT = os.environ.get("WARREN_CLIENT") or settings.PROGRAM
GIT = ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]


class Folder:
    """A folder that agents work on."""

    def __init__(self, path, server, **environment):
        self.path = Path(path)
        self.home = self.path.parent / f"{self.path.name}-home"
        self.path.mkdir(parents=True)
        self.home.mkdir()
        names = ("PATH", "LANG", "TERM")
        self.environment = {name: os.environ[name] for name in names if name in os.environ} | {
            "HOME": str(self.home), "OPENCOMPUTER_API_URL": server.url, "OPENCOMPUTER_API_KEY": server.key,
        } | environment

    def put(self, files):
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def read(self, name):
        return (self.path / name).read_text()

    def git(self, *arguments):
        return subprocess.run([*GIT, *arguments], cwd=self.path, capture_output=True, text=True, check=True, timeout=30).stdout

    def commit(self):
        self.git("init", "-q", ".")
        self.git("add", "-A")
        self.git("commit", "-qm", "one")
        return self

    def state(self):
        """Every file with its content, links as links; without .git."""
        found = {}
        for folder, folders, files in os.walk(self.path):
            if ".git" in folders:
                folders.remove(".git")
            for name in [*files, *folders]:
                path = Path(folder) / name
                key = str(path.relative_to(self.path))
                if path.is_symlink():
                    found[key] = os.readlink(path)
                elif path.is_file():
                    found[key] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        return found

    def warren(self, *arguments, code=0, within=60, **options):
        """Runs the program to its end."""
        done = subprocess.run(
            [CLIENT, *arguments], cwd=self.path, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=settings.patient(within), **options
        )
        assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def run(self, command, *arguments, **options):
        return self.warren("agent", "run", "--memory", "1024", "--command", command, *arguments, **options)

    def events(self, command, *arguments, **options):
        """The same with --json; its events by their type, the last of each."""
        done = self.run(command, "--json", *arguments, **options)
        return {event["type"]: event for event in map(json.loads, done.stdout.splitlines())}

    def start(self, command, *arguments):
        """Starts one with --json and waits until its program runs: the process, and the sandbox's id."""
        process = subprocess.Popen(
            [CLIENT, "agent", "run", "--memory", "1024", "--json", "--command", command, *arguments], cwd=self.path, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        line = first_line(process.stdout)
        assert line, process.stderr.read()
        event = json.loads(line)
        assert event["type"] == "started", event
        return process, event["sandbox"]

    def agents(self):
        done = self.warren("agent", "ls", "--json")
        return {agent["sandbox"]: agent for agent in json.loads(done.stdout or "[]")}

    def terminal(self, *arguments):
        return Terminal(self, arguments)


class Terminal:
    """The program on a terminal that can be typed on and closed."""

    def __init__(self, folder, arguments):
        self.said = b""
        pid, self.master = pty.fork()
        if pid == 0:
            os.chdir(folder.path)
            os.execve(CLIENT, [CLIENT, *arguments], folder.environment)
        self.pid = pid

    def wait_for(self, text, within=30):
        end = time.monotonic() + settings.patient(within)
        while text.encode() not in self.said:
            assert time.monotonic() < end, f"no {text!r} in {self.said!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.said += self._read()

    def _read(self):
        try:
            return os.read(self.master, 65536)
        except OSError:
            return b""

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        """As a window that is closed: the kernel sends the hang-up."""
        os.close(self.master)
        return self.end()

    def end(self, within=30):
        def ended():
            if self.master is not None:
                try:
                    if select.select([self.master], [], [], 0)[0]:
                        self.said += self._read()
                except (OSError, ValueError):
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return (os.waitstatus_to_exitcode(status),) if pid else None

        return wait_for(ended, "the program ends", within)[0]


def interrupt(process):
    process.send_signal(signal.SIGINT)
