"""A headless Chromium, driven over its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

from .waiting import wait_for

#: Debian's packages; the first is half the size.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_chromium():
    return os.environ.get("WARREN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One browser with one page. It looks up `*.localhost` itself, as browsers do."""

    def __init__(self, *more):
        self.folder = tempfile.mkdtemp(prefix="e2e-chromium-")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server"]
        flags += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0", *more]
        self.log = open(f"{self.folder}/log", "wb")
        command = [find_chromium(), *flags, f"--user-data-dir={self.folder}/profile", "about:blank"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        port = Path(self.folder, "profile/DevToolsActivePort")
        try:
            number, path = wait_for(lambda: port.exists() and len(lines := port.read_text().split()) == 2 and lines, "Chromium listens", 60)
            self.opened = connect(f"ws://127.0.0.1:{number}{path}", max_size=None, compression=None)
            self.socket = self.opened.__enter__()
        except BaseException:
            self.close()
            raise
        self.numbers = itertools.count(1)
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        # All of its processes: one that started the others may be gone before them.
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, **params):
        """One call of the protocol; its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if hasattr(self, "session"):
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        deadline = time.monotonic() + 30
        while True:
            answer = json.loads(self.socket.recv(timeout=max(0.1, deadline - time.monotonic())))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, url):
        """Goes to a page and waits until it is loaded."""
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert not failed, (url, failed)
        wait_for(lambda: self.evaluate("document.readyState") == "complete", f"{url} is loaded", 20)

    def evaluate(self, script):
        """The value of an expression in the page; of a promise when it is kept."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script, what, within=20):
        return wait_for(lambda: self.evaluate(script), what, within, 0.05, instead=lambda: self.evaluate("document.body.innerText"))

    def cookies(self):
        return self.call("Network.getCookies")["cookies"]

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
