"""A server of one's own that serves TLS."""

import subprocess

import httpx

from .client import Api
from .server import Server


def make_certificate(folder, name):
    """A certificate for `*.localhost`, signed by itself, as `cert.pem` and `key.pem`."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.new"), "-out", str(folder / "cert.new")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "key.new").rename(folder / "key.pem")
    (folder / "cert.new").rename(folder / "cert.pem")


class TlsServer(Server):
    def __init__(self, folder):
        super().__init__("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
        self.url = f"https://127.0.0.1:{self.port}"
        self.folder = folder

    def is_ready(self):
        return httpx.get(f"{self.url}/readyz", timeout=2, verify=False).status_code == 200

    def api(self, **options):
        api = Api(self.url, self.key, **options)
        api.http = httpx.Client(base_url=self.url, headers={"X-API-Key": self.key}, verify=False, timeout=60)
        return api
