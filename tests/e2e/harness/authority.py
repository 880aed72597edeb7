"""A certificate authority for tests, made with the openssl program."""

import subprocess
from pathlib import Path


def openssl(*arguments, **options):
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30, **options)


class TestAuthority:
    """Certificates in a folder; `pem` is what to trust."""

    __test__ = False

    def __init__(self, folder, name="Warren test authority"):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key, self.pem = self.folder / "ca.key", self.folder / "ca.pem"
        self.made = 0
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key)
        openssl(
            "req", "-x509", "-new", "-key", self.key, "-out", self.pem, "-days", "3", "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )

    def certificate(self, *names, days=2, signed=True):
        """The files of a key and of a certificate for these names; `days` below 0 has run out."""
        self.made += 1
        key, request, made = (self.folder / f"{self.made}.{end}" for end in ("key", "csr", "pem"))
        extensions = self.folder / f"{self.made}.ext"
        alternatives = ",".join(f"IP:{name}" if name.replace(".", "").isdigit() else f"DNS:{name}" for name in names)
        extensions.write_text(f"subjectAltName={alternatives}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        openssl("req", "-new", "-key", key, "-out", request, "-subj", "/CN=upstream")
        signer = ["-CA", self.pem, "-CAkey", self.key, "-CAcreateserial"] if signed else ["-signkey", key]
        openssl("x509", "-req", "-in", request, "-out", made, "-days", str(days), "-extfile", extensions, *signer)
        return {"names": list(names), "key": str(key), "cert": str(made)}
