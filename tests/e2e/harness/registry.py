"""A real registry, Debian's `docker-registry`, on an address and a folder of its own."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import httpx

from .server import free_port
from .waiting import wait_for

PROGRAM = shutil.which("docker-registry")
USER, PASSWORD = "e2e", "open sesame"
#: Of that password; the registry takes no other kind.
HTPASSWD = f"{USER}:$2b$04$warrenwarrenwarrenwarezT2pSJNdKN0G6qJN8Z.VFmwt4a8mqSC\n"


class Registry:
    def __init__(self, closed=False):
        self.folder = Path(tempfile.mkdtemp(prefix="e2e-registry-"))
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.auth = (USER, PASSWORD) if closed else None
        self.process = None

    def __enter__(self):
        lines = [
            "version: 0.1",
            "log: {level: error, accesslog: {disabled: true}}",
            f"storage: {{filesystem: {{rootdirectory: {self.folder}/data}}, delete: {{enabled: true}}}}",
            f"http: {{addr: '{self.address}'}}",
        ]
        if self.auth:
            (self.folder / "htpasswd").write_text(HTPASSWD)
            lines.append(f"auth: {{htpasswd: {{realm: e2e, path: {self.folder}/htpasswd}}}}")
        (self.folder / "config.yml").write_text("\n".join(lines) + "\n")
        log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen([PROGRAM, "serve", self.folder / "config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        try:
            wait_for(self.is_ready, "the registry is ready", 20, instead=lambda: (self.folder / "log").read_text()[-1000:])
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_ready(self):
        try:
            return httpx.get(f"{self.url}/v2/", auth=self.auth, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
